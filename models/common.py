"""Blocks a detector is built from: YOLOv5's own, then one section per light family. Imports nothing of the
project but its activations and its depthwise convolution.

Names of children are the names of YOLOv5's state_dict, so weights carry over by name. Every family sets the
BatchNorm eps and momentum it was trained with in its own blocks; nothing rewrites them later.
`c1` and `c2` are input and output channels; inputs and outputs are (N, C, H, W) unless said otherwise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.activations import Activation, make_activation
from models.depthwise import convolution


def autopad(
    k: int | tuple[int, ...], p: int | tuple[int, ...] | None = None, d: int = 1
) -> int | tuple[int, ...]:
    """The padding that keeps the size at stride 1: half of the kernel after dilation, unless `p` is given."""
    if p is not None:
        return p
    if isinstance(k, int):
        return (d * (k - 1) + 1) // 2
    return tuple((d * (x - 1) + 1) // 2 for x in k)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm as YOLOv5 trains it."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)


# YOLOv5's own


class Conv(nn.Module):
    """Convolution without bias, BatchNorm, activation: YOLOv5's unit.

    Args:
        k, s, p, g, d: kernel, stride, padding (None: keep the size), groups, dilation.
        act: True (the model's default), False, a name of `ACTIVATIONS`, or a module.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int | tuple[int, int] = 1,
        s: int | tuple[int, int] = 1,
        p: int | tuple[int, int] | None = None,
        g: int = 1,
        d: int = 1,
        act: Activation = True,
    ) -> None:
        super().__init__()
        self.conv = convolution(c1, c2, k, s, autopad(k, p, d), g, d)
        self.bn = _batch_norm(c2)
        self.act = make_activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H/s, W/s)."""
        return self.act(self.bn(self.conv(x)))


class DWConv(Conv):
    """Conv with as many groups as both channel numbers allow; with c1 == c2 it is depthwise."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, d: int = 1, act: Activation = True) -> None:
        super().__init__(c1, c2, k, s, g=math.gcd(c1, c2), d=d, act=act)


class DWConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution with gcd(c1, c2) groups; p1 is the padding, p2 the output padding."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, p1: int = 0, p2: int = 0) -> None:
        super().__init__(c1, c2, k, s, p1, p2, groups=math.gcd(c1, c2))


class Bottleneck(nn.Module):
    """1x1 down to int(c2 * e) channels, 3x3 up to c2; the input is added where asked and the widths agree."""

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden, c2, 3, 1, g=g)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H, W)."""
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class BottleneckCSP(nn.Module):
    """Cross-stage-partial stage of n bottlenecks, in YOLOv5's first form (arXiv 1911.11929).

    One BatchNorm follows the concatenation of both branches, so it belongs to neither convolution before it.
    """

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = nn.Conv2d(c1, hidden, 1, bias=False)
        self.cv3 = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.cv4 = Conv(2 * hidden, c2, 1, 1)
        self.bn = _batch_norm(2 * hidden)
        self.act = nn.SiLU(inplace=True)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H, W)."""
        both = torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1)
        return self.cv4(self.act(self.bn(both)))


class C3(nn.Module):
    """Cross-stage-partial stage with three convolutions: half of the width goes through n bottlenecks."""

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(c1, hidden, 1, 1)
        self.cv3 = Conv(2 * hidden, c2, 1)
        self.m = self._inner(hidden, n, shortcut, g)

    def _inner(self, hidden: int, n: int, shortcut: bool, g: int) -> nn.Module:
        """The branch that works; the other C3 kinds differ in nothing else."""
        return nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C3x(C3):
    """C3 whose bottlenecks are cross convolutions."""

    def _inner(self, hidden: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return nn.Sequential(*(CrossConv(hidden, hidden, 3, 1, g, 1.0, shortcut) for _ in range(n)))


class C3TR(C3):
    """C3 whose working branch is a transformer of n layers with 4 heads."""

    def _inner(self, hidden: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return TransformerBlock(hidden, hidden, 4, n)


class C3Ghost(C3):
    """C3 of ghost bottlenecks."""

    def _inner(self, hidden: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return nn.Sequential(*(GhostBottleneck(hidden, hidden) for _ in range(n)))


class C3SPP(C3):
    """C3 with spatial pyramid pooling as its working branch; the pooling sizes come before n."""

    def __init__(
        self,
        c1: int,
        c2: int,
        k: tuple[int, ...] = (5, 9, 13),
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
    ) -> None:
        super().__init__(c1, c2, n, shortcut, g, e)
        hidden = int(c2 * e)
        self.m = SPP(hidden, hidden, k)


class CrossConv(nn.Module):
    """A k x k convolution taken apart into 1 x k and k x 1."""

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 3,
        s: int = 1,
        g: int = 1,
        e: float = 1.0,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, (1, k), (1, s))
        self.cv2 = Conv(hidden, c2, (k, 1), (s, 1), g=g)
        self.add = shortcut and c1 == c2 and s == 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H/s, W/s)."""
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class SPP(nn.Module):
    """Spatial pyramid pooling (arXiv 1406.4729): the map beside its max-pooled copies of sizes k."""

    def __init__(self, c1: int, c2: int, k: tuple[int, ...] = (5, 9, 13)) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden * (len(k) + 1), c2, 1, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(size, stride=1, padding=size // 2) for size in k)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H, W)."""
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))


class SPPF(nn.Module):
    """SPP with sizes k, 2k-1, 3k-2 for the price of k: one pooling applied three times in series."""

    def __init__(self, c1: int, c2: int, k: int = 5) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden * 4, c2, 1, 1)
        self.m = nn.MaxPool2d(k, stride=1, padding=k // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H, W)."""
        levels = [self.cv1(x)]
        for _ in range(3):
            levels.append(self.m(levels[-1]))
        return self.cv2(torch.cat(levels, 1))


class Focus(nn.Module):
    """Every 2x2 square of pixels becomes four channel groups, then a Conv: stride 2 without loss."""

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 1,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        act: Activation = True,
    ) -> None:
        super().__init__()
        self.conv = Conv(4 * c1, c2, k, s, p, g, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W), H and W even -> (N, c2, H/2s, W/2s)."""
        quarters = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.conv(torch.cat(quarters, 1))


class MixConv2d(nn.Module):
    """Convolutions of several kernel sizes side by side (arXiv 1907.09595), then BatchNorm and SiLU.

    Args:
        k: kernel sizes.
        equal_ch: True: as many channels for each size; False: as many weights for each.
    """

    def __init__(
        self, c1: int, c2: int, k: tuple[int, ...] = (1, 3), s: int = 1, equal_ch: bool = True
    ) -> None:
        super().__init__()
        shares = [1.0] * len(k) if equal_ch else [1.0 / size**2 for size in k]
        ends = [round(c2 * sum(shares[: i + 1]) / sum(shares) - 1e-9) for i in range(len(k))]
        widths = [end - start for start, end in zip([0, *ends], ends)]
        self.m = nn.ModuleList(
            nn.Conv2d(c1, width, size, s, size // 2, groups=math.gcd(c1, width), bias=False)
            for size, width in zip(k, widths)
        )
        self.bn = _batch_norm(c2)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H/s, W/s)."""
        return self.act(self.bn(torch.cat([conv(x) for conv in self.m], 1)))


class TransformerLayer(nn.Module):
    """Self-attention and a two-layer projection, each with a residual and neither with LayerNorm."""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(c, c, bias=False)
        self.k = nn.Linear(c, c, bias=False)
        self.v = nn.Linear(c, c, bias=False)
        self.ma = nn.MultiheadAttention(c, heads)
        self.fc1 = nn.Linear(c, c, bias=False)
        self.fc2 = nn.Linear(c, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(L, N, C) -> (L, N, C): L positions."""
        x = x + self.ma(self.q(x), self.k(x), self.v(x), need_weights=False)[0]
        return x + self.fc2(self.fc1(x))


class TransformerBlock(nn.Module):
    """Transformer over the positions of a map (arXiv 2010.11929 without its norms); `linear` places them."""

    def __init__(self, c1: int, c2: int, heads: int, layers: int) -> None:
        super().__init__()
        self.conv = Conv(c1, c2) if c1 != c2 else None
        self.linear = nn.Linear(c2, c2)
        self.tr = nn.Sequential(*(TransformerLayer(c2, heads) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H, W)."""
        if self.conv is not None:
            x = self.conv(x)
        positions = x.flatten(2).permute(2, 0, 1)
        y = self.tr(positions + self.linear(positions))
        return y.permute(1, 2, 0).reshape(x.shape)


class Contract(nn.Module):
    """Space to channels: (N, C, H, W) -> (N, C*gain^2, H/gain, W/gain), in order (row, column, C)."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """H and W must be multiples of the gain."""
        n, c, h, w = x.shape
        s = self.gain
        x = x.reshape(n, c, h // s, s, w // s, s)
        return x.permute(0, 3, 5, 1, 2, 4).reshape(n, c * s * s, h // s, w // s)


class Expand(nn.Module):
    """Channels to space, the inverse of Contract: (N, C, H, W) -> (N, C/gain^2, H*gain, W*gain)."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """C must be a multiple of gain^2."""
        n, c, h, w = x.shape
        s = self.gain
        x = x.reshape(n, s, s, c // s**2, h, w)
        return x.permute(0, 3, 4, 1, 5, 2).reshape(n, c // s**2, h * s, w * s)


class Concat(nn.Module):
    """Several maps side by side along one dimension."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, x: list[Tensor]) -> Tensor:
        """List of (N, Ci, H, W) -> (N, sum Ci, H, W) for dimension 1."""
        return torch.cat(x, self.d)


class Sum(nn.Module):
    """Sum of n maps; with `weight` all but the first are weighed by 2 * sigmoid(w), which starts at 1."""

    def __init__(self, n: int, weight: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n - 1)) if weight else None

    def forward(self, x: list[Tensor]) -> Tensor:
        """n times (N, C, H, W) -> (N, C, H, W)."""
        total = x[0]
        weights = None if self.w is None else self.w.sigmoid() * 2
        for i, other in enumerate(x[1:]):
            total = total + (other if weights is None else other * weights[i])
        return total


class Classify(nn.Module):
    """Classification head: Conv to 1280 channels, mean over the map, linear."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, p: int | None = None, g: int = 1) -> None:
        super().__init__()
        self.conv = Conv(c1, 1280, k, s, p, g)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(p=0.0, inplace=True)
        self.linear = nn.Linear(1280, c2)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        """(N, c1, H, W), or a list of maps that sum to c1 channels -> (N, c2) logits."""
        if isinstance(x, list):
            x = torch.cat(x, 1)
        return self.linear(self.drop(self.pool(self.conv(x)).flatten(1)))


# Ghost modules as YOLOv5 has them (arXiv 1911.11907, with SiLU and a 5x5 cheap operation)


class GhostConv(nn.Module):
    """Half of the channels by a convolution, the other half from those by a cheap 5x5 depthwise one.

    An odd c2 rounds the half up and trims the surplus channel, so c2 channels always come out.
    """

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: Activation = True) -> None:
        super().__init__()
        half = (c2 + 1) // 2
        self.c2 = c2
        self.cv1 = Conv(c1, half, k, s, None, g, act=act)
        self.cv2 = Conv(half, half, 5, 1, None, half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H/s, W/s)."""
        y = self.cv1(x)
        both = torch.cat((y, self.cv2(y)), 1)
        return both[:, : self.c2] if self.c2 % 2 else both


class GhostBottleneck(nn.Module):
    """Two GhostConvs around a depthwise stride; the shortcut is convolved wherever the shape changes."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1) -> None:
        super().__init__()
        hidden = c2 // 2
        self.conv = nn.Sequential(
            GhostConv(c1, hidden, 1, 1),
            DWConv(hidden, hidden, k, s, act=False) if s > 1 else nn.Identity(),
            GhostConv(hidden, c2, 1, 1, act=False),
        )
        self.shortcut = (
            nn.Sequential(DWConv(c1, c1, k, s, act=False), Conv(c1, c2, 1, 1, act=False))
            if s > 1 or c1 != c2
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H/s, W/s)."""
        return self.conv(x) + self.shortcut(x)


# MobileNetV2 (arXiv 1801.04381)


class ConvBNReLU(nn.Sequential):
    """Convolution, BatchNorm (eps 1e-5, momentum 0.1), ReLU6; children named as in torchvision: 0, 1.

    ReLU6 works in place and its gradient needs only its result, so the step keeps one map fewer in memory:
    depthwise layers on large maps are bound by memory, not by arithmetic.
    """

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1) -> None:
        super().__init__(
            convolution(c1, c2, k, s, autopad(k), g),
            nn.BatchNorm2d(c2, eps=1e-5, momentum=0.1),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation (table 1 and figure 4d of the paper).

    Tensor for tensor torchvision's `mobilenet_v2.features[i]`. The expansion is left out at expand == 1; the
    input is added at stride 1 where the widths agree.
    """

    def __init__(self, c1: int, c2: int, stride: int = 1, expand: int | float = 6) -> None:
        super().__init__()
        hidden = round(c1 * expand)
        self.conv = nn.Sequential(
            *([ConvBNReLU(c1, hidden, 1)] if expand != 1 else []),
            ConvBNReLU(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, c2, 1, bias=False),
            nn.BatchNorm2d(c2, eps=1e-5, momentum=0.1),
        )
        self.add = stride == 1 and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H/stride, W/stride)."""
        y = self.conv(x)
        return x + y if self.add else y


# The other families have files of their own; their blocks are found here as well.
from models.efficientnet import MBConvBlock, SeBlock, drop_connect, stem  # noqa: E402,F401
from models.mobilenet import MobileNetV3Block, MobileNetV3Conv  # noqa: E402,F401
from models.yolov7 import ELAN, SPPCSPC  # noqa: E402,F401
