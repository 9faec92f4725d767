"""GhostNet (arXiv 1911.11907) as published; YOLOv5's own ghost blocks are in models/common.py.

Children are named as in timm's `ghostnet_100`, so its `blocks.i.j` map onto rows one to one. ReLU, and
BatchNorm with eps 1e-5 and momentum 0.1, throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.depthwise import convolution


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)


def _activation(relu: bool) -> nn.Module:
    return nn.ReLU(inplace=True) if relu else nn.Identity()


class GhostNetStem(nn.Module):
    """The first layer: 3x3 convolution at stride 2, BatchNorm, ReLU."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 2) -> None:
        super().__init__()
        self.conv_stem = convolution(c1, c2, k, s, k // 2)
        self.bn1 = _norm(c2)
        self.act1 = _activation(True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H/s, W/s)."""
        return self.act1(self.bn1(self.conv_stem(x)))


class GhostModule(nn.Module):
    """Half of the channels by a convolution, the other half from those by a cheap 3x3 depthwise one.

    Figure 1b of the paper with its ratio s = 2. An odd c2 rounds the half up and trims the surplus channel.
    """

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, relu: bool = True) -> None:
        super().__init__()
        half = (c2 + 1) // 2
        self.c2 = c2
        self.primary_conv = nn.Sequential(convolution(c1, half, k, s, k // 2), _norm(half), _activation(relu))
        self.cheap_operation = nn.Sequential(
            convolution(half, half, 3, 1, 1, half), _norm(half), _activation(relu)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H/s, W/s)."""
        y = self.primary_conv(x)
        both = torch.cat((y, self.cheap_operation(y)), 1)
        return both[:, : self.c2] if self.c2 % 2 else both


class GhostSqueezeExcite(nn.Module):
    """Squeeze-and-excitation (arXiv 1709.01507) with hard-sigmoid, squeezed to a multiple of 4."""

    def __init__(self, c: int, ratio: float) -> None:
        super().__init__()
        squeezed = max(4, int(c * ratio + 2) // 4 * 4)
        if squeezed < 0.9 * c * ratio:
            squeezed += 4
        self.conv_reduce = nn.Conv2d(c, squeezed, 1)
        self.act1 = _activation(True)
        self.conv_expand = nn.Conv2d(squeezed, c, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, c, H, W) -> the same, each channel weighed by its sample's own gate."""
        gate = self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * self.gate(gate)


class GhostNetBottleneck(nn.Module):
    """Ghost bottleneck (figure 3, table 1): ghost module up to `mid`, stride, SE, linear one down to c2.

    Args:
        k, s: kernel and stride of the depthwise convolution, which is there at s > 1 only.
        mid: channels inside, "#exp" in table 1; width_multiple scales it like c2.
        se_ratio: squeeze over mid; 0 leaves squeeze-and-excitation out.
    """

    def __init__(self, c1: int, c2: int, k: int, s: int, mid: int, se_ratio: float = 0.0) -> None:
        super().__init__()
        self.ghost1 = GhostModule(c1, mid)
        self.conv_dw = convolution(mid, mid, k, s, k // 2, mid) if s > 1 else nn.Identity()
        self.bn_dw = _norm(mid) if s > 1 else nn.Identity()
        self.se = GhostSqueezeExcite(mid, se_ratio) if se_ratio else nn.Identity()
        self.ghost2 = GhostModule(mid, c2, relu=False)
        self.shortcut = (
            nn.Identity()
            if s == 1 and c1 == c2
            else nn.Sequential(
                convolution(c1, c1, k, s, k // 2, c1), _norm(c1), convolution(c1, c2, 1), _norm(c2)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H/s, W/s)."""
        y = self.se(self.bn_dw(self.conv_dw(self.ghost1(x))))
        return self.ghost2(y) + self.shortcut(x)
