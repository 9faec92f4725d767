"""BatchNorm after a widening 1x1 convolution: the library's results, gradients and statistics."""

import copy

import pytest
import torch
from torch import nn

from models.common import ConvBNReLU, ConvBNSiLU, MobileNetV3Conv
from models.layers import expansion
from models.layers.expansion import ConvNormAct, conv_norm
from utils.training.distributed import GroupBatchNorm


def image(channels, size=(2, 48, 48), dtype=torch.float32, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    n, *sides = size
    x = torch.randn(n, channels, *sides, generator=generator, dtype=dtype)
    x = x * torch.linspace(0.1, 2, channels, dtype=dtype)[:, None, None] + offset
    return x.to(memory_format=torch.channels_last).requires_grad_()


def layers(c1, c2, dtype=torch.float32, **options):
    torch.manual_seed(1)
    conv, norm = nn.Conv2d(c1, c2, 1, bias=False), nn.BatchNorm2d(c2, **options)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    return conv.to(dtype), norm.to(dtype)


def is_ours(result):
    return "NormalisedExpansion" in type(result.grad_fn).__name__


def run(conv, norm, x, by_library=False):
    """The result, all gradients, and the norm's statistics."""
    conv, norm, x = copy.deepcopy(conv), copy.deepcopy(norm), x.detach().clone().requires_grad_()
    y = norm(conv(x)) if by_library else conv_norm(conv, norm, x)
    assert is_ours(y) != by_library
    (
        y.to(conv.weight.dtype) * torch.linspace(-1, 2, y.numel()).to(conv.weight).view(y.shape)
    ).sum().backward()
    parameters = (x, conv.weight, norm.weight, norm.bias)
    return [y.detach(), *(p.grad for p in parameters), norm.running_mean, norm.running_var]


def test_gradients_are_those_of_the_formula_in_double_precision():
    x = image(3, (2, 4, 5), torch.float64)
    conv, norm = layers(3, 10, torch.float64)
    inputs = (x, conv.weight, norm.weight, norm.bias)
    assert torch.autograd.gradcheck(
        lambda *given: expansion._NormalisedExpansion.apply(*given, 1e-3)[0], inputs
    )


@pytest.mark.parametrize("options", [{}, {"eps": 1e-3, "momentum": 0.01}, {"momentum": None}])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_double_precision_equals_the_library(options, offset):
    conv, norm = layers(8, 40, torch.float64, **options)
    x = image(8, dtype=torch.float64, offset=offset)
    for ours, library in zip(run(conv, norm, x), run(conv, norm, x, by_library=True)):
        torch.testing.assert_close(ours, library, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("reduced", [False, True])
def test_it_is_as_exact_as_the_library(reduced):
    conv, norm = layers(8, 40)
    x = image(8, offset=3.0)
    exact = run(conv.double(), norm.double(), x.double(), by_library=True)
    conv, norm = conv.float(), norm.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
        ours, library = run(conv, norm, x), run(conv, norm, x, by_library=True)
    assert ours[0].dtype == library[0].dtype == (torch.bfloat16 if reduced else torch.float32)
    # BatchNorm's own gain has few bits left of a product of two of bfloat16.
    for number, (a, b, wanted) in enumerate(zip(ours, library, exact)):
        errors = [((t.double() - wanted).norm() / wanted.norm()).item() for t in (a, b)]
        assert errors[0] <= max(1.5 * errors[1], 0.02 if reduced else 2e-6), (number, errors)


def test_runs_are_equal_and_frozen_inputs_need_no_gradient():
    conv, norm = layers(8, 40)
    first, second = (run(conv, norm, image(8)) for _ in range(2))
    assert all(map(torch.equal, first, second))
    y = conv_norm(conv, norm, image(8).detach())
    y.sum().backward()
    assert is_ours(y)
    assert conv.weight.grad is not None


def test_blocks_use_it_in_training_and_keep_their_results():
    for block in (ConvBNReLU(8, 40, 1), MobileNetV3Conv(8, 40, 1), ConvBNSiLU(8, 40)):
        plain, x = copy.deepcopy(block), image(8)
        y = block(x)
        kinds, node = [], y.grad_fn
        while node is not None:
            kinds.append(type(node).__name__)
            node = node.next_functions[0][0] if node.next_functions else None
        assert any("NormalisedExpansion" in kind for kind in kinds), kinds
        conv, norm, act = plain.children()
        torch.testing.assert_close(y, act(norm(conv(x))), rtol=1e-4, atol=1e-5)
        assert block.state_dict().keys() == plain.state_dict().keys()
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(block.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_everything_else_goes_the_librarys_way():
    conv, norm = layers(8, 40)
    x = image(8)
    assert is_ours(conv_norm(conv, norm, x))
    assert not is_ours(conv_norm(conv, norm.eval(), x))
    norm.train()
    for other in (x.detach().contiguous(), image(8, (1, 32, 32))):  # not channels_last; small
        assert not is_ours(conv_norm(conv, norm, other))
    group = copy.deepcopy(norm)
    group.__class__ = GroupBatchNorm
    assert not is_ours(conv_norm(conv, group, x))
    for other in (
        nn.Conv2d(8, 40, 1),
        nn.Conv2d(8, 40, 1, 2, bias=False),
        nn.Conv2d(8, 40, 1, 1, 1, bias=False),
    ):
        assert not is_ours(conv_norm(other, norm, x))
    for c1, c2 in ((20, 40), (80, 240)):  # too narrow, and too many channels
        assert not is_ours(conv_norm(*layers(c1, c2), image(c1)))
    with torch.no_grad():
        before = norm.running_mean.clone()
        torch.testing.assert_close(conv_norm(conv, norm, x), norm(conv(x)))
        assert not torch.equal(norm.running_mean, before)
    assert ConvNormAct(conv, nn.Identity())(x).shape == (2, 40, 48, 48)
