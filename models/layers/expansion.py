"""Compute BatchNorm after a widening 1x1 convolution from the statistics of its input.

The result of a 1x1 convolution W has the mean W m and the variance diag(W C W^T), where m and C are the mean
and the covariance of its input. So the normalisation is known before the wide map exists, and W takes it in:
W' (x - m) + bias with W' = gain / sqrt(variance + eps) W. Neither the forward nor the backward pass of
BatchNorm then reads the wide map, the largest of a mobile network: docs/cpu-training.md has the figures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_Context = Any  # Any: torch lets a function add attributes of any kind to its context

_LEAST_RATIO = 3  # of the channels; below, BatchNorm's passes cost less than the covariance
_MOST_CHANNELS = 64  # the covariance takes their square for each pixel
_LEAST_PIXELS = 4096  # of a batch; smaller maps stay in the CPU's cache


class _NormalisedExpansion(torch.autograd.Function):
    """Compute BatchNorm(conv2d(x, weight)) for a 1x1 weight, with mean and biased variance.

    All that has no pixels is computed in float32, or in float64 for maps of it.
    """

    @staticmethod
    def forward(
        ctx: _Context, x: Tensor, weight: Tensor, gain: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the map (N, c2, H, W), its mean and its variance (c2,)."""
        with torch.autocast("cpu", enabled=False):
            rows = _rows(x).to(torch.promote_types(x.dtype, torch.float32))
            mean = rows.mean(0)
            rows = rows - mean
            covariance = rows.T @ rows / len(rows)
            matrix = weight.flatten(1).to(rows.dtype)
            variance = ((matrix @ covariance) * matrix).sum(1).clamp_(min=0)
            inverse = torch.rsqrt(variance + eps)
            folded = (matrix * (gain * inverse)[:, None]).to(x.dtype)[..., None, None]
            centred = _map(rows.to(x.dtype), x)
            result = torch.conv2d(centred, folded, bias.to(x.dtype))
            means = matrix @ mean
        ctx.save_for_backward(centred, folded, weight, gain, covariance, inverse)
        ctx.mark_non_differentiable(means, variance)
        return result, means, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, grad: Tensor, *_: None) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None]:
        """Return the gradients of x, weight, gain and bias."""
        centred, folded, weight, gain, covariance, inverse = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            grad_x, grad_folded, _ = torch.ops.aten.convolution_backward(
                grad, centred, folded, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
                [ctx.needs_input_grad[0], True, False],
            )  # fmt: skip
            # The library's gradient of a bias takes as long as all the rest in float32.
            grad_bias = (grad.new_ones(1, grad.numel() // len(gain)) @ _rows(grad))[0].to(inverse.dtype)
            matrix = weight.flatten(1).to(inverse.dtype)
            grad_folded = grad_folded.flatten(1).to(inverse.dtype)
            grad_scale = (grad_folded * matrix).sum(1)
            grad_variance = -0.5 * grad_scale * gain * inverse**3
            grad_weight = grad_folded * (gain * inverse)[:, None]
            grad_weight += 2 * grad_variance[:, None] * (matrix @ covariance)
            if grad_x is not None:
                pixels = len(_rows(centred))
                through_covariance = (matrix.T * (2 / pixels * grad_variance)) @ matrix
                through_mean = -_rows(grad_x).mean(0, dtype=inverse.dtype)
                grad_x += torch.conv2d(
                    centred, through_covariance.to(grad.dtype)[..., None, None], through_mean.to(grad.dtype)
                )
        grad_gain = grad_scale * inverse
        return grad_x, grad_weight.view_as(weight), grad_gain, grad_bias, None


def _rows(x: Tensor) -> Tensor:
    """Return a map (N, C, H, W) as one row per pixel."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _map(rows: Tensor, like: Tensor) -> Tensor:
    """Return rows of pixels as a channels_last map of another's size."""
    n, _, height, width = like.shape
    return rows.view(n, height, width, -1).permute(0, 3, 1, 2)


class ConvNormAct(nn.Sequential):
    """Apply a convolution, BatchNorm and perhaps an activation: children 0, 1, 2 as in torchvision."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H', W')."""
        conv, norm, *rest = self
        x = conv_norm(conv, norm, x)
        for layer in rest:
            x = layer(x)
        return x


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """Return norm(conv(x)); in training on a CPU without BatchNorm's passes where that is faster.

    >>> conv, norm = nn.Conv2d(4, 16, 1, bias=False), nn.BatchNorm2d(16)
    >>> conv_norm(conv, norm, torch.rand(2, 4, 64, 64)).shape
    torch.Size([2, 16, 64, 64])
    """
    if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and _is_faster(conv, norm, x)):
        result: Tensor = norm(conv(x))
        return result
    if torch.is_autocast_enabled("cpu"):
        x = x.to(torch.get_autocast_dtype("cpu"))
    result, mean, variance = _NormalisedExpansion.apply(x, conv.weight, norm.weight, norm.bias, norm.eps)
    _track(norm, mean, variance, x.numel() // x.shape[1])
    return result


@torch.no_grad()
def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, pixels: int) -> None:
    """Move the running statistics as BatchNorm does."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), share)
    norm.running_var.lerp_((variance * (pixels / (pixels - 1))).to(norm.running_var), share)


def _is_faster(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Return whether these are plain layers in training that widen a large map."""
    trains = norm.training and torch.is_grad_enabled() and x.device.type == "cpu"
    plain = type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and conv.bias is None
    if not (trains and plain):  # a trace must not see the sizes below
        return False
    pointwise = conv.weight.shape[2:] == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0)
    widens = conv.in_channels <= min(_MOST_CHANNELS, conv.out_channels // _LEAST_RATIO) and conv.groups == 1
    large = x.numel() // x.shape[1] >= _LEAST_PIXELS and x.is_contiguous(memory_format=torch.channels_last)
    return norm.affine and pointwise and widens and large
