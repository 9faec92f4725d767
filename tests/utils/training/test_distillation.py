"""A teacher's lesson on a tiny detector: what it counts, where its gradients go, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.yolo import DetectionModel
from tests.tiny_set import NAMES, TINY_MODEL
from utils.device import seeded
from utils.errors import UserError
from utils.training.distillation import (
    GAINS,
    Distillation,
    check_same_teacher,
    check_teacher,
    fitted_gains,
    teacher_hash,
)
from utils.training.hyp import load_hyp, scale_gains
from utils.training.loss import DetectionLoss

HYP = load_hyp("hyp.scratch-low.yaml") | {"distill_head": 1.0, "distill_neck": 1.0}


def network(seed: int = 0, **changes) -> DetectionModel:
    with seeded(seed):
        model = DetectionModel(TINY_MODEL | changes)
    model.names = dict(enumerate(NAMES[: model.nc]))
    return model.train()


def sure(model: DetectionModel) -> DetectionModel:
    """The same network in evaluation mode, as sure of an object as not everywhere."""
    with torch.no_grad():
        for conv in model.detect.m:
            conv.bias.view(model.detect.na, -1)[:, 4] = 0.0
    return model.eval()


def distillation(teacher: DetectionModel, model: DetectionModel, **gains: float) -> Distillation:
    hyp = scale_gains(HYP | gains, nl=model.detect.nl, nc=model.nc, imgsz=96)
    return Distillation(teacher, model, DetectionLoss(model.detect, hyp))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def test_only_the_network_learns(images: Tensor) -> None:
    teacher, model = sure(network(1)), network(0)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    lesson = distillation(teacher, model)
    raws, loss = lesson(model, images)
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not teacher.training and [raw.shape for raw in raws] == [(2, 2, 12, 12, 7), (2, 2, 6, 6, 7)]
    assert (lesson.parts > 0).all() and float(loss.detach()) == pytest.approx(2 * float(lesson.parts.sum()))
    assert not model.detect._forward_pre_hooks and not teacher.detect._forward_pre_hooks


def test_nothing_is_left_to_learn_of_oneself(images: Tensor) -> None:
    teacher = sure(network(0))
    model = copy.deepcopy(teacher)
    model.detect.train()
    lesson = distillation(teacher, model)
    _, loss = lesson(model, images)
    assert abs(float(loss.detach())) < 1e-5
    loss.backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-5


def test_learning_of_the_teacher_brings_the_two_together(images: Tensor) -> None:
    """By the lesson alone, without labels: each of its parts falls far."""
    teacher, model = sure(network(1)), network(0)
    lesson = distillation(teacher, model)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    found = []
    for _ in range(60):
        optimizer.zero_grad()
        lesson(model, images)[1].backward()
        optimizer.step()
        found.append(lesson.parts)
    assert (found[-1] < 0.5 * found[0]).all(), (found[0], found[-1])


def test_the_logits_count_as_the_teacher_is_sure() -> None:
    """By hand: one cell of which the teacher is sure, one of which it is not."""
    model = network()
    lesson = distillation(network(1), model, distill_head=2.0)
    raws = [torch.zeros(1, 2, 1, 1, 7), torch.zeros(1, 2, 1, 1, 7)]
    wanted = [raw.clone() for raw in raws]
    for want in wanted:
        want[..., 4] = -20.0  # no object
    wanted[0][0, 0, 0, 0, 4:] = torch.tensor([20.0, 20.0, -20.0])  # an object of the first class
    hyp = lesson.loss.hyp
    box, obj, cls = lesson.at_logits(raws, wanted)
    ln2 = torch.tensor(2.0).log()
    assert float(box) == pytest.approx(0.0, abs=1e-6)
    # Each cell says 0.5 where 0 or 1 is wanted: ln 2, on two levels with their balance.
    assert float(obj) == pytest.approx(2.0 * hyp["obj"] * float(ln2) * sum(lesson.loss.balance[:2]), rel=1e-5)
    assert float(cls) == pytest.approx(2.0 * hyp["cls"] * 2 * float(ln2), rel=1e-5)
    wanted[0][0, 1, 0, 0, :2] = 3.0  # another box where there is no object: does not count
    assert float(lesson.at_logits(raws, wanted)[0]) == pytest.approx(0.0, abs=1e-6)
    wanted[0][0, 0, 0, 0, :2] = 3.0
    assert float(lesson.at_logits(raws, wanted)[0]) > 0.01


def test_maps_are_compared_by_their_pattern() -> None:
    lesson = distillation(network(1), network(), distill_neck=3.0)
    maps = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.1, 1.0, 10.0, 3.0]).view(1, 4, 1, 1)
    assert float(lesson.at_maps([maps], [maps * scale + 7.0])) == pytest.approx(0.0, abs=1e-3)
    assert float(lesson.at_maps([maps], [-maps])) == pytest.approx(3.0 * 2.0, rel=1e-4)
    correlation = torch.stack([torch.corrcoef(m.flatten(1))[0, 1] for m in maps]).mean()
    one, other = maps[:, :1], maps[:, 1:2]
    assert float(lesson.at_maps([one], [other])) == pytest.approx(3.0 * (1.0 - float(correlation)), rel=1e-3)
    assert float(lesson.at_maps([maps], [one])) == 0.0  # other channels


def test_shares_of_a_batch_give_the_whole(images: Tensor) -> None:
    """Two processes with a half each, whose gradients are averaged after a factor of 2: as one process."""
    teacher, model = sure(network(1)), network(0).eval()
    model.detect.train()
    lesson = distillation(teacher, model)
    raws, wanted = model(images), teacher(images)
    whole = torch.stack(lesson.at_logits(raws, wanted)) * 2
    halves = [([raw[i : i + 1] for raw in raws], [want[i : i + 1] for want in wanted]) for i in (0, 1)]
    totals = [
        sum(float(s[s > 0.05].sum()) for s in (w[..., 4].sigmoid() for w in want)) for _, want in halves
    ]
    lesson.loss.mean_counts = lambda counts, device: [sum(totals) / 2]
    parts = [torch.stack(lesson.at_logits(*half)) for half in halves]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "names", "sentence"),
    [
        (
            {},
            ["square", "ring"],
            "has 2 classes, the data set 2, and class 1 is 'ring' there and 'disc' here",
        ),
        ({"nc": 3}, ["square", "disc", "ring"], "has 3 classes, the data set 2, and class 2 is 'ring' there"),
        (
            {"anchors": [[12, 12], [28, 28]]},
            NAMES,
            "strides 8, 16 with 1 anchors each, the network at strides 8, 16 with 2 anchors each; give",
        ),
        (
            {"head": [[[3], 1, "Detect", ["nc", [[12, 12, 20, 20]]]]]},
            NAMES,
            "predicts at strides 16 with 2 anchors each, the network at strides 8, 16",
        ),
    ],
)
def test_another_kind_of_teacher_is_refused(changes: dict, names: list[str], sentence: str) -> None:
    teacher = network(**changes)
    teacher.names = dict(enumerate(names))
    with pytest.raises(UserError, match=f"--teacher t.pt: .*{sentence}"):
        check_teacher("t.pt", teacher, network())


def test_a_resumed_run_keeps_its_teacher(tmp_path: Path) -> None:
    (tmp_path / "t.pt").write_bytes(b"one")
    teacher, last = str(tmp_path / "t.pt"), tmp_path / "last.pt"
    check_same_teacher(last, None, "")
    check_same_teacher(last, teacher_hash(teacher), teacher)
    with pytest.raises(UserError, match="its run has no teacher; leave --teacher as it was"):
        check_same_teacher(last, None, teacher)
    with pytest.raises(UserError, match="its run has a teacher; leave"):
        check_same_teacher(last, teacher_hash(teacher), "")
    saved = teacher_hash(teacher)
    (tmp_path / "t.pt").write_bytes(b"two")
    with pytest.raises(UserError, match="t.pt is not the file that was its teacher; give that one"):
        check_same_teacher(last, saved, teacher)


def test_gains_without_a_teacher_are_told(log: pytest.LogCaptureFixture) -> None:
    assert fitted_gains({"box": 1.0}, "t.pt") == GAINS | {"box": 1.0}
    assert fitted_gains({"distill_head": 3.0}, "t.pt")["distill_head"] == 3.0
    assert not log.text
    assert fitted_gains({"distill_head": 3.0}, "") == {"distill_head": 3.0}
    assert "without --teacher, distill_head does nothing" in log.text
