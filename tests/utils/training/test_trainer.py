"""The epoch loop on a net of three layers: steps, clipping, seeds, state, and naming what went bad."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from utils.errors import UserError
from utils.training.ema import ModelEMA
from utils.training.hyp import load_hyp
from utils.training.optim import LRSchedule, build_optimizer
from utils.training.trainer import Trainer, epoch_seed, first_bad_layer

HYP = load_hyp("hyp.scratch-low.yaml") | {"nominal_batch": 4}


class Net(nn.Module):
    """Mean colour -> three numbers, with dropout so that torch's own generator matters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Conv2d(4, 3, 1)
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> list[Tensor]:
        self.sizes.append(images.shape[2])
        return [self.last(self.drop(self.norm(self.first(images)))).mean((2, 3))]


def square_loss(raws: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    items = ((raws[0] - targets[:, :3]) ** 2).mean(0)
    return items.sum() * len(targets), items.detach()


def batches(count: int = 3, size: int = 64) -> list:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        images = torch.from_numpy(rng.integers(0, 256, (2, 3, size, size), dtype=np.uint8))
        made.append((images, images.float().mean((2, 3)) / 255, ["a", "b"], [None, None]))
    return made


def make(hyp: dict = HYP, count: int = 3, **options) -> Trainer:
    torch.manual_seed(0)
    model = Net()
    return Trainer(
        model,
        square_loss,
        build_optimizer(model, "SGD", hyp, 2),
        LRSchedule(hyp, epochs=4, batches=count, batch_size=2, warm_up=False),
        torch.device("cpu"),
        ema=ModelEMA(model),
        **options,
    )


def test_loss_falls_and_the_average_follows() -> None:
    trainer = make()
    trainer.model.drop.p = 0.0
    losses = [sum(trainer.train_epoch(batches(), epoch).losses) for epoch in range(4)]
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.ema.updates == 6  # 12 batches of 2 at 4 images a step


def test_gradients_short_of_a_step_wait_for_the_next_epoch() -> None:
    trainer = make()
    trainer.train_epoch(batches(), 0)
    assert trainer.last_step == 1 and trainer.model.last.weight.grad is not None
    trainer.train_epoch(batches(), 1)
    assert trainer.last_step == 5 and trainer.model.last.weight.grad is None


def test_reports_running_means() -> None:
    seen = []
    result = make().train_epoch(batches(), 0, seen.append)
    assert [report.batch for report in seen] == [0, 1, 2] and result.images == 6
    assert seen[-1].losses == pytest.approx(result.losses)
    assert (seen[0].instances, seen[0].size, seen[0].images) == (2, 64, 2)


def test_a_step_never_exceeds_the_gradient_norm() -> None:
    trainer = make(HYP | {"lr0": 1.0, "momentum": 0.0, "weight_decay": 0.0, "nominal_batch": 2}, count=1)
    trainer.loss = lambda raws, targets: (raws[0].sum() * 1e6, torch.zeros(3))
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.train_epoch(batches(1), 0)
    moved = torch.sqrt(sum(((p - b) ** 2).sum() for p, b in zip(trainer.model.parameters(), before)))
    assert moved.item() == pytest.approx(10.0, rel=1e-3)


def test_resumed_training_equals_uninterrupted_to_the_bit() -> None:
    whole, first = make(), make()
    for epoch in range(3):
        whole.train_epoch(batches(), epoch)
    first.train_epoch(batches(), 0)
    state, average = first.state_dict(1), first.ema.model.state_dict()
    second = make()
    torch.manual_seed(99)
    second.load_state_dict(state, average)
    for epoch in (1, 2):
        second.train_epoch(batches(), epoch)
    for a, b in ((whole.model, second.model), (whole.ema.model, second.ema.model)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    assert whole.ema.updates == second.ema.updates


def test_a_state_of_other_parameter_groups_is_a_sentence() -> None:
    trainer = make()
    state = trainer.state_dict(0)
    moved = state["optimizer"]["param_groups"]
    moved[0]["params"], moved[1]["params"] = (
        moved[0]["params"][1:],
        moved[1]["params"] + moved[0]["params"][:1],
    )
    with pytest.raises(
        UserError, match="groups of .* cannot be resumed; start a new one with the checkpoint"
    ):
        trainer.load_state_dict(state)


def steps_of(trainer: Trainer, epoch: int, count: int) -> int:
    """Optimizer steps that an epoch of `count` batches makes."""
    before = trainer.ema.updates
    trainer.train_epoch(batches(count), epoch)
    return trainer.ema.updates - before


def broken_off(trainer: Trainer, epoch: int, after: int, count: int) -> None:
    """Train until Ctrl-C behind some batches of an epoch."""

    def press(report) -> None:
        if report.batch + 1 == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train_epoch(batches(count), epoch, press)


@pytest.mark.parametrize("after", [1, 5, 7])
def test_an_epoch_broken_off_is_trained_whole_when_it_starts_again(after: int) -> None:
    """Its batches come again: no gradient of theirs is kept, and each makes the steps it always makes."""
    first = make(count=8)
    assert steps_of(first, 0, 8) == 4
    broken_off(first, 1, after, 8)
    state = first.state_dict(1)
    assert state["gradients"] == {} and state["last_step"] == 7
    second = make(count=8)
    second.load_state_dict(state, first.ema.model.state_dict())
    assert steps_of(second, 1, 8) == 4
    # What an older version wrote: where it was stopped, and the gradients of that moment.
    pending = {n: p.grad for n, p in first.model.named_parameters() if p.grad is not None}
    old = {k: v for k, v in state.items() if k != "batches"}
    old |= {"last_step": 8 + 2 * (after // 2) - 1, "gradients": pending}
    third = make(count=8)
    third.load_state_dict(old, first.ema.model.state_dict())
    assert third.last_step == 7
    assert steps_of(third, 1, 8) == 4


@pytest.mark.parametrize("count", [2, 4, 9])
@pytest.mark.parametrize("told", [True, False])
def test_resumed_with_other_batches_an_epoch_goes_on_making_steps(
    count: int, told: bool, log: pytest.LogCaptureFixture
) -> None:
    first = make(count=7)
    for epoch in range(3):
        first.train_epoch(batches(7), epoch)
    state = first.state_dict(3)
    assert len(state["gradients"]) == 6 and state["last_step"] == 19  # the 21st batch waits
    if not told:  # an older checkpoint
        del state["batches"]
    second = make(count=count)
    second.load_state_dict(state, first.ema.model.state_dict())
    assert not log.text  # `tell_changed_data` says it when the images are others
    if told:
        assert second.last_step == 3 * count - 2  # it still waits
    assert steps_of(second, 3, count) >= count // 2


def test_epochs_and_ranks_have_seeds_of_their_own() -> None:
    seeds = {epoch_seed(s, e, r) for s in range(3) for e in range(20) for r in range(3)}
    assert len(seeds) == 180 and epoch_seed(1, 2, 3) == epoch_seed(1, 2, 3)


def test_multi_scale_stays_in_half_to_one_and_a_half_on_the_grid() -> None:
    trainer = make(imgsz=64, stride=8, multi_scale=True, count=40)
    trainer.train_epoch(batches(40), 0)
    sizes = trainer.model.sizes
    assert min(sizes) >= 32 and max(sizes) <= 96 and len(set(sizes)) >= 6
    assert all(size % 8 == 0 for size in sizes)
    other = make(imgsz=64, stride=8, multi_scale=True, count=40)
    other.train_epoch(batches(40), 0)
    assert other.model.sizes == sizes


def test_bad_weight_is_named() -> None:
    trainer = make()
    with torch.no_grad():
        trainer.model.norm.weight[1] = float("nan")
    with pytest.raises(UserError) as caught:
        trainer.train_epoch(batches(), 2)
    assert "epoch 3/4, batch 1/3: the loss is not finite" in str(caught.value)
    assert "norm (BatchNorm2d): its weights" in str(caught.value)


def test_bad_output_is_named() -> None:
    trainer = make()
    with torch.no_grad():
        trainer.model.first.weight.fill_(3e38)
    assert "first (Conv2d): its output" in first_bad_layer(trainer.model, trainer.prepare(batches(1)[0][0]))


def test_the_search_for_what_went_bad_needs_no_other_process() -> None:
    """torch's group of two in which the other one never answers: SyncBatchNorm must not ask for it."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Net()).train()
    with torch.no_grad():
        model.last.weight.fill_(float("nan"))
    images = make().prepare(batches(1)[0][0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with pytest.raises(ValueError, match="SyncBatchNorm expected input"):
            model(images)  # so it does ask, here refused because only GPUs can answer
        assert "last (Conv2d): its weights" in first_bad_layer(model, images)
    finally:
        dist.destroy_process_group()
    assert model.norm.training
    after = model.state_dict()
    assert int(after["norm.num_batches_tracked"]) == 1  # by the forward pass above alone
    assert all(torch.equal(before[name], after[name]) for name in ("norm.running_mean", "norm.running_var"))


def test_the_search_takes_the_statistics_of_the_batch() -> None:
    """By the running ones, which say nothing yet, this network's output would be finite."""
    model = Net().train()
    with torch.no_grad():
        model.first.weight.mul_(1e-4)
        model.first.bias.zero_()
        model.norm.weight.fill_(1e38)
    model.norm.eps = 1e-12
    model.drop.p = 0.0
    images = make().prepare(batches(1)[0][0])
    assert torch.isfinite(model.eval()(images)[0]).all()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert "first layer that went bad is" in first_bad_layer(model, images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bad_target_is_laid_to_the_loss() -> None:
    bad = batches()
    bad[1][1][0, 0] = float("inf")
    with pytest.raises(UserError, match="batch 2/3.*only the loss itself"):
        make().train_epoch(bad, 0)


def test_bad_gradient_stops_before_it_reaches_the_weights() -> None:
    trainer = make()
    trainer.loss = lambda raws, targets: (raws[0].abs().sum().mul(0).sqrt(), torch.zeros(3))
    with pytest.raises(UserError, match="gradient of last.bias is not finite"):
        trainer.train_epoch(batches(), 0)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_a_finished_run_counts_its_epochs_without_their_state() -> None:
    trainer = make()
    trainer.count_as_trained(2, updates=5)
    assert trainer.last_step == 5 and trainer.ema.updates == 5
    trainer.train_epoch(batches(), 2)  # 3 batches of 2 at 4 images a step: one step, and a batch that waits
    assert trainer.last_step == 7 and trainer.ema.updates == 6


def test_a_single_value_per_channel_is_a_sentence() -> None:
    image = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    with pytest.raises(UserError, match="BatchNorm layer gets a single value .* --batch-size 2 or more"):
        make().train_epoch([(image, torch.zeros(1, 3), ["a"], [None])], 0)
