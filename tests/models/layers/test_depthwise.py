"""The strided depthwise convolution: nn.Conv2d's results and gradients, by another way."""

import pytest
import torch
from torch import nn

from models.common import Conv, InvertedResidual
from models.layers.depthwise import StridedDepthwiseConv2d, convolution


@pytest.mark.parametrize(("size", "kernel", "stride"), [((8, 10), 3, 2), ((9, 7), 3, 2), ((11, 12), 5, 3)])
def test_gradients_equal_the_library(size, kernel, stride):
    generator = torch.Generator().manual_seed(0)
    ours = StridedDepthwiseConv2d(6, 6, kernel, stride, kernel // 2, groups=6, bias=False)
    plain = nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6, bias=False)
    plain.load_state_dict(ours.state_dict())
    image = torch.rand(2, 6, *size, generator=generator)
    results = []
    for module in (ours, plain):
        x = image.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        assert y.dtype == torch.bfloat16
        (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        results.append((y, x.grad, module.weight.grad))
    assert torch.equal(results[0][0], results[1][0])
    for ours_grad, plain_grad in zip(results[0][1:], results[1][1:]):
        assert (ours_grad - plain_grad).abs().max() <= 0.02 * plain_grad.abs().max()


def test_it_is_used_where_it_helps_and_nowhere_else():
    strided = InvertedResidual(8, 16, 2, 6).conv[1][0]
    assert type(strided) is StridedDepthwiseConv2d
    assert type(InvertedResidual(8, 16, 1, 6).conv[1][0]) is nn.Conv2d
    assert type(Conv(8, 16, 3, 2).conv) is nn.Conv2d
    assert type(convolution(1, 1, 3, 2)) is nn.Conv2d


def test_float32_goes_the_library_way():
    module = StridedDepthwiseConv2d(4, 4, 3, 2, 1, groups=4, bias=False)
    y = module(torch.rand(1, 4, 8, 8, requires_grad=True))
    assert "StridedDepthwise" not in type(y.grad_fn).__name__
    with torch.autocast("cpu", torch.bfloat16):
        y = module(torch.rand(1, 4, 8, 8, requires_grad=True))
    assert "StridedDepthwise" in type(y.grad_fn).__name__
