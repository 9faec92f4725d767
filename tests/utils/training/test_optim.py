"""Groups, schedule, average, early stop and freezing against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.tiny_set import TinyRows
from utils.errors import UserError
from utils.training.hyp import load_hyp
from utils.training.optim import (
    LRSchedule,
    accumulation,
    add_nominal_batch,
    build_optimizer,
    fitting_nominal_batch,
    param_groups,
)

HYP = load_hyp("hyp.scratch-low.yaml")


def test_groups_are_biases_weights_norms() -> None:
    biases, weights, norms = param_groups(TinyRows())
    assert (len(biases), len(weights), len(norms)) == (6, 4, 3)
    assert all(p.ndim >= 2 for p in weights) and all(p.ndim == 1 for p in biases + norms)


class NormAct(nn.BatchNorm2d):
    """A norm as timm and torchvision derive theirs."""


class ChannelNorm(nn.Module):
    """A norm of no known parent."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))


class NormedConv(nn.Module):
    """A convolution that its name calls a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4, 1, 1))


def test_norms_of_other_libraries_do_not_decay() -> None:
    norms = [NormAct(4), nn.LayerNorm((4, 2, 2)), ChannelNorm()]
    conv = NormedConv()
    found = param_groups(nn.Sequential(*norms, conv))
    assert [*map(id, found[2])] == [id(norms[0].weight), id(norms[1].weight), id(norms[2].gain)]
    assert [*map(id, found[1])] == [id(conv.weight)]


def test_timms_norms_do_not_decay() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv4_conv_small", features_only=True)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 45
    assert {id(p) for p in param_groups(model)[2]} == {id(m.weight) for m in norms}
    others = [
        getattr(timm.layers, name)(4) for name in ("FilterResponseNormAct2d", "RmsNorm2d", "EvoNorm2dS0")
    ]
    assert not param_groups(nn.Sequential(*others))[1]  # none of them is torch.nn's kind


@pytest.mark.parametrize("turned", [False, True])
def test_a_shared_parameter_is_stepped_once_and_not_decayed_if_it_is_a_norms(turned: bool) -> None:
    shared, single = nn.Parameter(torch.ones(4)), nn.Conv2d(4, 4, 1, bias=False)
    norm, scale = nn.BatchNorm2d(4), nn.Module()
    norm.weight = scale.weight = shared
    twin = nn.Conv2d(4, 4, 1, bias=False)
    twin.weight = single.weight
    parts = [scale, norm, single, twin]
    model = nn.Sequential(*(reversed(parts) if turned else parts))
    biases, weights, norms = param_groups(model)
    assert [*map(id, biases)] == [id(norm.bias)]
    assert [*map(id, weights)] == [id(single.weight)] and [*map(id, norms)] == [id(shared)]
    optimizer = build_optimizer(model, "SGD", HYP, 64)
    start = single.weight.detach().clone()
    single.weight.grad = torch.ones_like(start)
    optimizer.step()  # Nesterov's first step: (1 + momentum) times the gradient, decay in it
    step = HYP["lr0"] * (1 + HYP["momentum"]) * (1 + HYP["weight_decay"] * start)
    torch.testing.assert_close(single.weight.detach(), start - step)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_only_weights_decay_scaled_to_the_real_step(name: str) -> None:
    optimizer = build_optimizer(TinyRows(), name, HYP, batch_size=24)  # 3 batches of 24: 72 of nominal 64
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0, pytest.approx(0.0005 * 72 / 64), 0]
    first = optimizer.param_groups[0]
    assert (
        first["nesterov"] and first["momentum"] == 0.937
        if name == "SGD"
        else first["betas"] == (0.937, 0.999)
    )


def test_unknown_optimizer() -> None:
    with pytest.raises(UserError, match="LAMB"):
        build_optimizer(TinyRows(), "LAMB", HYP, 16)


def test_accumulation() -> None:
    assert [accumulation(b) for b in (1, 16, 24, 64, 200)] == [64, 4, 3, 1, 1]
    assert accumulation(16, 16) == 1


def test_decay_runs_from_one_to_lrf() -> None:
    linear = LRSchedule(HYP, epochs=100, batches=10, batch_size=16)
    cosine = LRSchedule(HYP, epochs=100, batches=10, batch_size=16, cosine=True)
    for schedule in (linear, cosine):
        assert schedule.factor(0) == 1.0 and schedule.factor(100) == pytest.approx(0.01)
        assert schedule.factor(50) == pytest.approx(0.505)
    assert linear.factor(25) == pytest.approx(0.7525)
    assert cosine.factor(25) == pytest.approx(1 - 0.99 * (1 - math.cos(math.pi / 4)) / 2)


def test_warm_up() -> None:
    schedule = LRSchedule(HYP, epochs=100, batches=50, batch_size=16)
    assert schedule.warmup_iterations == 150
    assert LRSchedule(HYP, 100, 5, 16).warmup_iterations == 100  # never less than 100
    optimizer = build_optimizer(TinyRows(), "SGD", HYP, 16)
    assert schedule.apply(optimizer, 0, 0) == 1
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.0, 0.0]
    assert optimizer.param_groups[0]["momentum"] == 0.8
    assert schedule.apply(optimizer, 75, 1) == round(2.5)
    target = 0.01 * schedule.factor(1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx((0.1 + target) / 2)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(target / 2)
    assert schedule.apply(optimizer, 151, 3) == 4
    assert {g["lr"] for g in optimizer.param_groups} == {0.01 * schedule.factor(3)}
    assert optimizer.param_groups[2]["momentum"] == pytest.approx(0.937)


def test_nominal_batch_of_small_data_sets() -> None:
    schedule = LRSchedule(HYP | {"nominal_batch": 16}, 100, 50, 16)
    optimizer = build_optimizer(TinyRows(), "SGD", HYP, 16)
    assert [schedule.apply(optimizer, i, 0) for i in (0, 100, 1000)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("images", "batch_size", "nominal"),
    [
        (205, 16, 16),  # 13 batches an epoch: each is a step
        (5000, 16, 64),
        (640, 16, 64),  # exactly 10 steps of 64
        (639, 16, 48),
        (320, 8, 32),
        (4, 8, 8),
        (100, 128, 64),  # a batch already is more than the nominal one
    ],
)
def test_an_epoch_has_ten_steps_where_its_batches_allow(images, batch_size, nominal) -> None:
    assert fitting_nominal_batch(images, batch_size) == nominal
    steps = images // (batch_size * accumulation(batch_size, nominal))
    assert steps >= 10 or accumulation(batch_size, nominal) == 1


def test_no_warm_up_when_going_on_from_a_finished_run() -> None:
    optimizer = build_optimizer(TinyRows(), "SGD", HYP, 16)
    assert LRSchedule(HYP, 100, 50, 16, warm_up=False).apply(optimizer, 0, 0) == 4
    assert {g["lr"] for g in optimizer.param_groups} == {0.01}
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.937)


def test_the_step_is_nesterov_momentum_whatever_the_memory_format() -> None:
    """Two steps of the optimizer as built (fused where torch has it) against the formula."""
    torch.manual_seed(0)
    model = TinyRows().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, "SGD", HYP, 64)
    weight = model.model[1][0].weight
    value, buffer = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(2):
        optimizer.zero_grad()
        images = torch.randn(2, 3, 9, 9).to(memory_format=torch.channels_last)
        model.model[1](model.model[0](images)).square().sum().backward()
        gradient = weight.grad + HYP["weight_decay"] * value
        optimizer.step()
        buffer = HYP["momentum"] * buffer + gradient
        value = value - HYP["lr0"] * (gradient + HYP["momentum"] * buffer)
        assert torch.allclose(weight, value, rtol=1e-5, atol=1e-6)


def test_images_per_step_are_fitted_once(log: pytest.LogCaptureFixture) -> None:
    log.set_level("INFO", "yolo")
    hyp = {"lr0": 0.01}
    assert add_nominal_batch(hyp, 24, 8) == {"lr0": 0.01, "nominal_batch": 8} and hyp == {"lr0": 0.01}
    assert "24 images are few: an optimizer step after every 8 instead of 64" in log.text
    assert add_nominal_batch(hyp | {"nominal_batch": 32}, 24, 8)["nominal_batch"] == 32
    assert add_nominal_batch(hyp, 100_000, 16)["nominal_batch"] == 64
