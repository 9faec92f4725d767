"""How a network computes: layers in float32 within bfloat16, and the plain form that a run records."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from models.common import SameConv2d, SameDepthwiseConv2d
from models.layers.depthwise import StridedDepthwiseConv2d
from utils.device import autocast
from utils.errors import UserError
from utils.training.compute_mode import ComputeMode, set_layer, unmeasured_mode

CPU = torch.device("cpu")


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            StridedDepthwiseConv2d(4, 4, 3, 2, 1, groups=4, bias=False),
            nn.Conv2d(4, 5, 1),
        )


def run(model: nn.Module, mode: ComputeMode, x: torch.Tensor) -> list[torch.Tensor]:
    """The result and the gradients of a step."""
    model.zero_grad(set_to_none=True)
    with autocast(CPU, mode.dtype):
        y = model(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, 2, 1),
        nn.Conv2d(4, 4, 5, groups=4, padding=2, padding_mode="reflect"),
        StridedDepthwiseConv2d(4, 4, 3, 2, 1, groups=4, bias=False),
        SameConv2d(4, 6, 3, 2),
        SameDepthwiseConv2d(4, 4, 5, 2, groups=4, bias=False),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_in_float32_gives_its_float32_result_rounded(layer):
    torch.manual_seed(0)
    x, names = torch.rand(2, 4, 9, 9).bfloat16(), list(layer.state_dict())
    exact = layer(x.float())
    kind = type(layer)
    set_layer(layer, float32=True)
    assert isinstance(layer, kind) and list(layer.state_dict()) == names
    for twin in (layer, copy.deepcopy(layer)):
        with autocast(CPU, torch.bfloat16):
            y = twin(x)
        assert y.dtype == torch.bfloat16 and torch.equal(y, exact.bfloat16())
        (gradient,) = torch.autograd.grad(y.float().sum(), twin.weight)
        (wanted,) = torch.autograd.grad(exact.sum(), layer.weight, retain_graph=True)
        torch.testing.assert_close(gradient, wanted)
        assert torch.equal(twin(x.float()), exact), "without autocast it is the ordinary layer"
    set_layer(layer)
    assert type(layer) is kind


def test_only_the_named_layers_change_and_they_change_back():
    model, x = Net(), torch.rand(2, 3, 8, 8)
    plain = ComputeMode(torch.bfloat16)
    plain.prepare(model)
    before = run(model, plain, x)
    mixed = ComputeMode(torch.bfloat16, False, frozenset(["0", "3"]), frozenset(["2"]))
    mixed.prepare(model)
    assert [type(layer).__name__ for layer in model] == [
        "Float32Conv2d",
        "BatchNorm2d",
        "StridedDepthwiseConv2d",
        "Float32Conv2d",
    ]
    assert not model[2].spreads and model[0].weight.is_contiguous()
    other = run(model, mixed, x)
    assert not torch.equal(before[0], other[0])
    for a, b in zip(before, other):
        torch.testing.assert_close(a.float(), b.float(), atol=0.05 * float(a.abs().max()), rtol=0)
    average = copy.deepcopy(model)
    assert torch.equal(run(average, mixed, x)[0], other[0])
    plain.prepare(model)
    assert type(model[0]) is nn.Conv2d and model[2].spreads
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(before, run(model, plain, x)):
        assert torch.equal(a, b)


def test_layers_of_another_network_are_refused():
    mode = ComputeMode(torch.bfloat16, float32=frozenset(["0", "7.conv"]))
    with pytest.raises(
        UserError, match=r"^--amp from:x: was measured on another.*no convolution '7.conv'; use"
    ):
        mode.prepare(Net(), "--amp from:x: ")


@pytest.mark.parametrize(
    "mode",
    [
        ComputeMode(),
        ComputeMode(torch.bfloat16),
        ComputeMode(torch.bfloat16, False, frozenset(["b", "a"]), frozenset(["c"]), "a CPU"),
    ],
)
def test_the_plain_form_comes_back(mode):
    plain = mode.to_plain()
    assert ComputeMode.from_plain(plain, "x") == mode
    assert plain["float32"] == sorted(mode.float32) and plain["dtype"] in ("float32", "bfloat16")


GOOD = ComputeMode(torch.bfloat16, True, frozenset(["a"])).to_plain()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("bf16", "'bf16' is no recorded choice"),
        ([], "is no recorded choice"),
        ({"dtype": "bfloat16"}, "is no recorded choice"),
        (GOOD | {"more": 1}, "is no recorded choice"),
        (GOOD | {"dtype": "float16"}, "dtype='float16' cannot be"),
        (GOOD | {"dtype": ["bfloat16"]}, "cannot be"),
        (GOOD | {"channels_last": 1}, "channels_last=1 cannot be"),
        (GOOD | {"float32": "a"}, "float32='a' cannot be"),
        (GOOD | {"direct": [1]}, r"direct=\[1\] cannot be"),
        (GOOD | {"machine": None}, "machine=None cannot be"),
    ],
)
def test_another_form_is_one_sentence(wrong, says):
    with pytest.raises(UserError, match=f"^opt.yaml: .*{says}"):
        ComputeMode.from_plain(wrong, "opt.yaml")


def test_words_for_a_mode():
    assert str(ComputeMode()) == "float32, channels_last"
    mixed = ComputeMode(torch.bfloat16, False, frozenset("ab"), frozenset("c"))
    assert str(mixed) == "bf16 with 2 convolutions in float32, 1 with the library's gradient, contiguous"


def test_unmeasured_modes_are_those_of_amp():
    assert unmeasured_mode(CPU, "off") == ComputeMode()
    assert unmeasured_mode(CPU, "bf16") == replace(ComputeMode(), dtype=torch.bfloat16)
    with pytest.raises(UserError, match="--amp fp16"):
        unmeasured_mode(CPU, "fp16")
