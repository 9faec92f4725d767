"""Define every block that a model YAML can name, family by family, and register it.

A row `[from, number, block, arguments]` builds one block. The decorator `@register_block` on a class says how
the arguments of its row become those of its constructor (`models/registry.py`). The examples in the
docstrings are such rows. `c1` and `c2` are input and output channels; a row gives `c2`, and `c1` is filled
in. Maps are (N, C, H, W) unless a docstring says otherwise.

Names of child modules are those of the reference (YOLOv5, torchvision or timm), so its weights fit by name.
Each family keeps the eps and momentum of BatchNorm that it was trained with.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.activations import ACTIVATIONS, Activation, make_activation
from models.layers.depthwise import StridedDepthwiseConv2d, convolution
from models.layers.expansion import ConvNormAct, conv_norm
from models.registry import Arguments, register_block
from utils.package import MODULE_PREFIX

if not TYPE_CHECKING:  # for a type checker this module would have every name

    def __getattr__(name: str) -> object:
        """Load the wrappers of a network that YOLOv5 has here when they are asked for."""
        if name in ("AutoShape", "DetectMultiBackend", "HubModel"):
            return getattr(import_module(f"{MODULE_PREFIX}models.experimental"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Small functions that several families share


def autopad(
    k: int | tuple[int, int], p: int | tuple[int, int] | None = None, d: int = 1
) -> int | tuple[int, int]:
    """Return the padding that keeps the size at stride 1, unless `p` is given.

    It is half of the kernel `k` after dilation `d`: autopad(3) == 1, autopad(3, d=2) == 2.
    """
    if p is not None:
        return p
    if isinstance(k, int):
        return (d * (k - 1) + 1) // 2
    return (d * (k[0] - 1) + 1) // 2, (d * (k[1] - 1) + 1) // 2


def make_divisible(value: float, divisor: int = 8) -> int:
    """Return the multiple of `divisor` nearest to a width.

    It is the next larger one where the nearest is below nine tenths of the width: 18 gives 24, not 16.
    """
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * value else nearest + divisor


def _yolov5_norm(channels: int) -> nn.BatchNorm2d:
    """Return the BatchNorm that YOLOv5 trains with."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)


def _pytorch_norm(channels: int) -> nn.BatchNorm2d:
    """Return the BatchNorm of families that were trained in PyTorch with its defaults."""
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)


def _tensorflow_norm(channels: int) -> nn.BatchNorm2d:
    """Return the BatchNorm of families that were trained with TensorFlow's settings."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _remainder_problem(name: str, divisor: int, what: str, value: int) -> str | None:
    """Say that a number cannot be divided; None if it can."""
    return f"{what} {value} cannot be divided by {name} {divisor}" if value % divisor else None


def _even_problem(name: str, value: int) -> str | None:
    """Say that a kernel is even; None if it is odd."""
    return None if value % 2 else f"{name} is {value}, expected an odd number, which keeps the map's size"


def _check_groups(args: Arguments, channels: list[int]) -> str | None:
    """Check that both channel numbers are multiples of the groups."""
    groups: int = args["g"] if "g" in args else args["groups"]
    c2: int = args["c2"] if "c2" in args else args["out_channels"]
    return _remainder_problem("groups", groups, "input channels", channels[0]) or _remainder_problem(
        "groups", groups, "output channels", c2
    )


def _check_kernel(args: Arguments, channels: list[int]) -> str | None:
    """Check for a kernel whose padding keeps the size and which skips no pixel."""
    if args["k"] % 2 == 0 or args["k"] < args["s"]:
        return f"kernel {args['k']} at stride {args['s']}: expected an odd kernel, at least the stride"
    return None


# YOLOv5


@register_block(check=_check_groups)
class Conv(nn.Module):
    """Apply a convolution without bias, BatchNorm and an activation.

    Example: `[-1, 1, Conv, [64, 3, 2]]`

    Args:
        k, s, p, g, d: kernel, stride, padding (None: keep the size), groups, dilation.
        act: True (the model's default), False (none), a name of `ACTIVATIONS`, or a module.
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
        self.bn = _yolov5_norm(c2)
        self.act = make_activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H/s, W/s)."""
        return self.act(self.bn(self.conv(x)))


@register_block
class DWConv(Conv):
    """Apply a Conv with as many groups as both channel numbers allow.

    With c1 == c2 it is depthwise. Example: `[-1, 1, DWConv, [64, 3, 2]]`
    """

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, d: int = 1, act: Activation = True) -> None:
        super().__init__(c1, c2, k, s, g=math.gcd(c1, c2), d=d, act=act)


@register_block
class DWConvTranspose2d(nn.ConvTranspose2d):
    """Apply a transposed convolution with gcd(c1, c2) groups.

    Example: `[-1, 1, DWConvTranspose2d, [64, 4, 2, 1]]`, which doubles the size.

    Args:
        k, s, p1, p2: kernel, stride, padding, output padding.
    """

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, p1: int = 0, p2: int = 0) -> None:
        super().__init__(c1, c2, k, s, p1, p2, groups=math.gcd(c1, c2))


@register_block
class Bottleneck(nn.Module):
    """Reduce to int(c2 * e) channels by 1x1, then expand to c2 by 3x3.

    The input is added if `shortcut` is set and c1 == c2. Example: `[-1, 3, Bottleneck, [64]]`
    """

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden, c2, 3, 1, g=g)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H, W)."""
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


@register_block(repeat="inside")
class BottleneckCSP(nn.Module):
    """Apply a cross-stage-partial stage of n bottlenecks (arXiv 1911.11929), YOLOv5's first form.

    One BatchNorm follows the concatenation of both branches, so no single convolution can absorb it.
    Example: `[-1, 3, BottleneckCSP, [64]]`
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
        self.bn = _yolov5_norm(2 * hidden)
        self.act = nn.SiLU(inplace=True)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H, W)."""
        both = torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1)
        return self.cv4(self.act(self.bn(both)))


@register_block(repeat="inside")
class C3(nn.Module):
    """Apply a cross-stage-partial stage of three convolutions and n bottlenecks.

    One of two branches, each int(c2 * e) wide, passes the bottlenecks. The row's number is n.
    Example: `[-1, 3, C3, [64]]`; in a neck `[-1, 3, C3, [64, False]]`
    """

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
        """Return the first branch, the only part in which the kinds of C3 differ."""
        return nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


@register_block(repeat="inside")
class C3x(C3):
    """Apply a C3 of cross convolutions. Example: `[-1, 3, C3x, [64]]`."""

    def _inner(self, hidden: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return nn.Sequential(*(CrossConv(hidden, hidden, 3, 1, g, 1.0, shortcut) for _ in range(n)))


def _check_c3tr(args: Arguments, channels: list[int]) -> str | None:
    """Check that the hidden channels fit the four heads."""
    return _remainder_problem("heads", 4, "hidden channels", int(args["c2"] * args["e"]))


@register_block(repeat="inside", check=_check_c3tr)
class C3TR(C3):
    """Apply a C3 whose first branch is a transformer of n layers with 4 heads.

    Example: `[-1, 3, C3TR, [64]]`
    """

    def _inner(self, hidden: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return TransformerBlock(hidden, hidden, 4, n)


@register_block(repeat="inside")
class C3Ghost(C3):
    """Apply a C3 of ghost bottlenecks. Example: `[-1, 3, C3Ghost, [64]]`."""

    def _inner(self, hidden: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return nn.Sequential(*(GhostBottleneck(hidden, hidden) for _ in range(n)))


@register_block
class C3SPP(C3):
    """Apply a C3 whose first branch is spatial pyramid pooling.

    The pooling sizes k come before n in its arguments. Example: `[-1, 1, C3SPP, [64, [5, 9, 13]]]`
    """

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


@register_block
class CrossConv(nn.Module):
    """Replace one k x k convolution by 1 x k followed by k x 1.

    The input is added if `shortcut` is set, c1 == c2 and s == 1. Example: `[-1, 1, CrossConv, [64, 3, 2]]`
    """

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
        """Map (N, c1, H, W) to (N, c2, H/s, W/s)."""
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


@register_block
class SPP(nn.Module):
    """Concatenate a map with its max-pooled copies of sizes k (arXiv 1406.4729, section 2).

    Example: `[-1, 1, SPP, [64, [5, 9, 13]]]`
    """

    def __init__(self, c1: int, c2: int, k: tuple[int, ...] = (5, 9, 13)) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden * (len(k) + 1), c2, 1, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(size, stride=1, padding=size // 2) for size in k)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H, W)."""
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))


@register_block
class SPPF(nn.Module):
    """Compute SPP with sizes k, 2k-1 and 3k-2 by pooling three times in series.

    Example: `[-1, 1, SPPF, [64, 5]]`
    """

    def __init__(self, c1: int, c2: int, k: int = 5) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden * 4, c2, 1, 1)
        self.m = nn.MaxPool2d(k, stride=1, padding=k // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H, W)."""
        levels = [self.cv1(x)]
        for _ in range(3):
            levels.append(self.m(levels[-1]))
        return self.cv2(torch.cat(levels, 1))


def _check_focus(args: Arguments, channels: list[int]) -> str | None:
    """Check the groups of a convolution of four times the input channels."""
    return _check_groups(args, [4 * channels[0]])


@register_block(check=_check_focus)
class Focus(nn.Module):
    """Turn every 2x2 square of pixels into four channel groups, then apply a Conv.

    It halves the size and loses no pixel. Example: `[-1, 1, Focus, [64, 3]]`
    """

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
        """Map (N, c1, H, W), H and W even, to (N, c2, H/2s, W/2s)."""
        quarters = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.conv(torch.cat(quarters, 1))


@register_block
class MixConv2d(nn.Module):
    """Apply convolutions of several kernel sizes in parallel (arXiv 1907.09595), BatchNorm and SiLU.

    Example: `[-1, 1, MixConv2d, [64, [1, 3]]]`

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
        self.bn = _yolov5_norm(c2)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H/s, W/s)."""
        return self.act(self.bn(torch.cat([conv(x) for conv in self.m], 1)))


class TransformerLayer(nn.Module):
    """Apply self-attention and two linear layers, each with a residual, without LayerNorm."""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(c, c, bias=False)
        self.k = nn.Linear(c, c, bias=False)
        self.v = nn.Linear(c, c, bias=False)
        self.ma = nn.MultiheadAttention(c, heads)
        self.fc1 = nn.Linear(c, c, bias=False)
        self.fc2 = nn.Linear(c, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (L, N, c) to the same shape, where L counts the positions."""
        x = x + self.ma(self.q(x), self.k(x), self.v(x), need_weights=False)[0]
        return x + self.fc2(self.fc1(x))


def _check_transformer(args: Arguments, channels: list[int]) -> str | None:
    """Check that the channels fit the heads."""
    return _remainder_problem("heads", args["heads"], "output channels", args["c2"])


@register_block(check=_check_transformer)
class TransformerBlock(nn.Module):
    """Apply a transformer to the positions of a map (arXiv 2010.11929, without LayerNorm).

    `linear` computes the embedding of the positions. Example: `[-1, 1, TransformerBlock, [64, 4, 2]]`

    Args:
        heads, layers: of the attention, which must divide c2; of the transformer.
    """

    def __init__(self, c1: int, c2: int, heads: int, layers: int) -> None:
        super().__init__()
        self.conv = Conv(c1, c2) if c1 != c2 else None
        self.linear = nn.Linear(c2, c2)
        self.tr = nn.Sequential(*(TransformerLayer(c2, heads) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H, W)."""
        if self.conv is not None:
            x = self.conv(x)
        positions = x.flatten(2).permute(2, 0, 1)
        y = self.tr(positions + self.linear(positions))
        return y.permute(1, 2, 0).reshape(x.shape)


@register_block(channels="same")
class Contract(nn.Module):
    """Move pixels into channels, in the order row, column, C.

    Example: `[-1, 1, Contract, [2]]`
    """

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C*gain^2, H/gain, W/gain).

        H and W must be multiples of gain.
        """
        n, c, h, w = x.shape
        s = self.gain
        x = x.reshape(n, c, h // s, s, w // s, s)
        return x.permute(0, 3, 5, 1, 2, 4).reshape(n, c * s * s, h // s, w // s)


def _check_expand(args: Arguments, channels: list[int]) -> str | None:
    """Check that the channels fit the squares of pixels."""
    return _remainder_problem("gain squared", args["gain"] ** 2, "input channels", channels[0])


@register_block(channels="same", check=_check_expand)
class Expand(nn.Module):
    """Move channels into pixels, the inverse of Contract.

    Example: `[-1, 1, Expand, [2]]`
    """

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C/gain^2, H*gain, W*gain).

        C must be a multiple of gain^2.
        """
        n, c, h, w = x.shape
        s = self.gain
        x = x.reshape(n, s, s, c // s**2, h, w)
        return x.permute(0, 3, 4, 1, 5, 2).reshape(n, c // s**2, h * s, w * s)


def _check_concat(args: Arguments, channels: list[int]) -> str | None:
    """Check that channels are joined, not batches or sizes."""
    if args["dimension"] != 1:
        return f"dimension {args['dimension']} is not the channels'; write [1]"
    return None


@register_block(channels="same", joins=True, check=_check_concat)
class Concat(nn.Module):
    """Concatenate several maps along one dimension. Example: `[[-1, 1], 1, Concat, [1]]`."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, x: list[Tensor]) -> Tensor:
        """Map a list of (N, Ci, H, W) to (N, sum of Ci, H, W)."""
        return torch.cat(x, self.d)


def _check_sum(args: Arguments, channels: list[int]) -> str | None:
    """Check that there are n maps of one number of channels."""
    if len(channels) != args["n"]:
        return f"n says {args['n']} maps but `from` lists {len(channels)}"
    if len(set(channels)) > 1:
        return f"maps of {', '.join(map(str, channels))} channels cannot be added; all need one number"
    return None


@register_block(channels="same", joins=True, check=_check_sum)
class Sum(nn.Module):
    """Add n maps. Example: `[[-1, 1], 1, Sum, [2]]`.

    With `weight` every map but the first is multiplied by 2 * sigmoid(w), which starts at 1.
    """

    def __init__(self, n: int, weight: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n - 1)) if weight else None

    def forward(self, x: list[Tensor]) -> Tensor:
        """Map n times (N, C, H, W) to (N, C, H, W)."""
        total = x[0]
        weights = None if self.w is None else self.w.sigmoid() * 2
        for i, other in enumerate(x[1:]):
            total = total + (other if weights is None else other * weights[i])
        return total


@register_block
class Classify(nn.Module):
    """Compute class logits: Conv to 1280 channels, mean over the map, linear layer."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, p: int | None = None, g: int = 1) -> None:
        super().__init__()
        self.conv = Conv(c1, 1280, k, s, p, g)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(p=0.0, inplace=True)
        self.linear = nn.Linear(1280, c2)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        """Map (N, c1, H, W) to logits (N, c2).

        A list of maps is concatenated first; their channels sum to c1.
        """
        if isinstance(x, list):
            x = torch.cat(x, 1)
        return self.linear(self.drop(self.pool(self.conv(x)).flatten(1)))


@register_block(check=_check_groups)
class GhostConv(nn.Module):
    """Make half of the channels by a Conv, the rest by a 5x5 depthwise Conv.

    YOLOv5's ghost module (arXiv 1911.11907, figure 1b); the published one is `GhostModule`. An odd c2 rounds
    the half up and drops the last channel. Example: `[-1, 1, GhostConv, [64, 3, 2]]`
    """

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: Activation = True) -> None:
        super().__init__()
        half = (c2 + 1) // 2
        self.c2 = c2
        self.cv1 = Conv(c1, half, k, s, None, g, act=act)
        self.cv2 = Conv(half, half, 5, 1, None, half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H/s, W/s)."""
        y = self.cv1(x)
        both = torch.cat((y, self.cv2(y)), 1)
        return both[:, : self.c2] if self.c2 % 2 else both


@register_block
class GhostBottleneck(nn.Module):
    """Apply two GhostConvs, with a depthwise Conv between them if s > 1.

    The input is added; it passes two convolutions first where the shape changes.
    Example: `[-1, 1, GhostBottleneck, [64, 3, 2]]`
    """

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
        """Map (N, c1, H, W) to (N, c2, H/s, W/s)."""
        return self.conv(x) + self.shortcut(x)


# MobileNetV2 (arXiv 1801.04381)


@register_block(check=_check_groups)
class ConvBNReLU(ConvNormAct):
    """Apply a convolution, BatchNorm and ReLU6: children 0, 1, 2 as in torchvision.

    ReLU6 works in place, and its gradient needs only its result. One map fewer stays in memory, which limits
    the speed of depthwise layers on large maps. Example: `[-1, 1, ConvBNReLU, [32, 3, 2]]`
    """

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1) -> None:
        super().__init__(convolution(c1, c2, k, s, autopad(k), g), _pytorch_norm(c2), nn.ReLU6(inplace=True))


@register_block
class InvertedResidual(nn.Module):
    """Expand by 1x1, filter by depthwise 3x3, project by 1x1 without activation.

    Table 1 and figure 4d of the paper. Its tensors are those of torchvision's `mobilenet_v2.features[i]`.
    There is no expansion at expand == 1. The input is added if stride == 1 and c1 == c2.
    Example: `[-1, 2, InvertedResidual, [24, 2, 6]]`

    Args:
        expand: hidden channels over input channels.
    """

    def __init__(self, c1: int, c2: int, stride: int = 1, expand: int | float = 6) -> None:
        super().__init__()
        hidden = round(c1 * expand)
        self.conv = nn.Sequential(
            *([ConvBNReLU(c1, hidden, 1)] if expand != 1 else []),
            ConvBNReLU(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, c2, 1, bias=False),
            _pytorch_norm(c2),
        )
        self.add = stride == 1 and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H/stride, W/stride)."""
        y = self.conv(x)
        return x + y if self.add else y


# EfficientNet and EfficientNet-Lite (arXiv 1905.11946)
#
# The family was trained twice, and weights are right only with the settings they were trained with.
# TensorFlow (the Lite packages, timm's tf_efficientnet_*): "SAME" padding, eps 1e-3, momentum 0.01.
# PyTorch (torchvision's and timm's efficientnet_b*): symmetric padding, eps 1e-5, momentum 0.1.
# The argument `tf` chooses.

SE_RATIO = 0.25  # squeezed channels over the block's input channels, in the networks of table 1


def same_padding(size: int, k: int, s: int) -> tuple[int, int]:
    """Return TensorFlow's "SAME" padding of one side: (before, after).

    The result of the convolution then has ceil(size / s) pixels; an odd pixel goes after. Needs k >= s. No
    branch depends on the size, so a traced network takes any size. Example: same_padding(64, 3, 2) == (0, 1)
    """
    total = k - s + (size + s - 1) // s * s - size
    before = total // 2
    return before, total - before


class SameConv2d(nn.Conv2d):
    """Apply a convolution with TensorFlow's "SAME" padding."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, ceil(H/s), ceil(W/s))."""
        height, width = x.shape[2:]
        above, below = same_padding(height, self.kernel_size[0], self.stride[0])
        left, right = same_padding(width, self.kernel_size[1], self.stride[1])
        return super().forward(F.pad(x, (left, right, above, below)))

    def with_padded_kernel(self) -> nn.Conv2d:
        """Return a plain convolution that gives the same on sides which the stride divides.

        The odd pixel of the padding becomes a row and a column of zeros in the kernel, so no map is copied.
        """
        high, wide = (k - s for k, s in zip(self.kernel_size, self.stride))  # pixels of padding
        plain = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            (self.kernel_size[0] + high % 2, self.kernel_size[1] + wide % 2),
            (self.stride[0], self.stride[1]),
            ((high + 1) // 2, (wide + 1) // 2),
            groups=self.groups,
            bias=self.bias is not None,
            device="meta",
        )
        weight = F.pad(self.weight.detach(), (wide % 2, 0, high % 2, 0))
        plain.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        plain.bias = self.bias
        return plain.train(self.training)


class SameDepthwiseConv2d(SameConv2d, StridedDepthwiseConv2d):
    """Apply a depthwise convolution with "SAME" padding and the faster gradient."""


def _efficientnet_convolution(c1: int, c2: int, k: int, s: int, g: int, tf: bool) -> nn.Conv2d:
    """Return a convolution without bias; "SAME" padding differs from symmetric only with a stride."""
    if not tf or s == 1:
        return convolution(c1, c2, k, s, k // 2, g)
    cls = SameDepthwiseConv2d if g == c1 == c2 else SameConv2d
    return cls(c1, c2, k, s, groups=g, bias=False)


def _efficientnet_unit(
    c1: int, c2: int, k: int, s: int = 1, g: int = 1, act: Activation = None, tf: bool = True
) -> ConvNormAct:
    """Return convolution, BatchNorm and activation (None: none), children 0, 1, 2 as in torchvision."""
    norm = _tensorflow_norm(c2) if tf else _pytorch_norm(c2)
    activation = [] if act is None else [make_activation(act)]
    return ConvNormAct(_efficientnet_convolution(c1, c2, k, s, g, tf), norm, *activation)


def drop_connect(x: Tensor, rate: float, training: bool) -> Tensor:
    """Set whole samples of a batch to zero at random (stochastic depth, arXiv 1603.09382).

    Args:
        x: (N, ...).
        rate: share of samples dropped, 0 <= rate < 1; the others are multiplied by 1 / (1 - rate).
        training: False: x is returned unchanged.
    """
    if not training or rate == 0:
        return x
    keep = 1 - rate
    mask = x.new_empty((x.shape[0], *[1] * (x.ndim - 1))).bernoulli_(keep)
    return x * (mask / keep)


@register_block
class stem(ConvNormAct):  # noqa: N801 the name that published YAMLs use
    """Apply the first layer: 3x3 convolution at stride 2, BatchNorm, activation.

    Table 1, stage 1. Example: `[-1, 1, stem, [32, ReLU6]]`

    Args:
        act: ReLU6 for Lite, SiLU for B0.
        tf: padding and BatchNorm as trained in TensorFlow (True) or in PyTorch (False).
    """

    def __init__(self, c1: int, c2: int, act: Activation = "ReLU6", tf: bool = True) -> None:
        super().__init__(*_efficientnet_unit(c1, c2, 3, 2, act=act, tf=tf))


@register_block(channels="in")
class SeBlock(nn.Module):
    """Multiply each channel by a gate computed from all channels (arXiv 1709.01507, figure 1).

    MobileNetV3 uses it too. Example: `[-1, 1, SeBlock, [16]]`

    Args:
        c1: channels in and out.
        squeeze: channels of the hidden layer.
        act, gate: activations of the first and of the second layer.
    """

    def __init__(self, c1: int, squeeze: int, act: Activation = "SiLU", gate: Activation = "Sigmoid") -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(c1, squeeze, 1)
        self.act = make_activation(act)
        self.fc2 = nn.Conv2d(squeeze, c1, 1)
        self.gate = make_activation(gate)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to the same shape."""
        return x * self.gate(self.fc2(self.act(self.fc1(self.pool(x)))))


def _check_mbconv(args: Arguments, channels: list[int]) -> str | None:
    """Check the rate and the kernel."""
    if not 0 <= args["drop_connect_rate"] < 1:
        return f"drop_connect_rate is {args['drop_connect_rate']}, expected a share from 0 to below 1"
    return _check_kernel(args, channels)


@register_block(check=_check_mbconv)
class MBConvBlock(nn.Module):
    """Expand by 1x1, filter by depthwise k x k, squeeze and excite, project by 1x1.

    The mobile inverted bottleneck of table 1. Names and order of children are those of torchvision's MBConv.
    There is no expansion at expand == 1. The input is added if s == 1 and c1 == c2; drop_connect works only
    there. Example: `[-1, 2, MBConvBlock, [24, 3, 2, 6, 0.05]]`

    Args:
        k, s: kernel and stride of the depthwise convolution; k odd and at least s.
        expand: hidden channels over input channels.
        drop_connect_rate: share of samples whose block is skipped in training.
        se: squeeze and excitation to a quarter of the block's input channels. EfficientNet-Lite has none.
        act: ReLU6 for Lite, SiLU for B0.
        tf: padding and BatchNorm as trained in TensorFlow (True) or in PyTorch (False).
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 3,
        s: int = 1,
        expand: int | float = 6,
        drop_connect_rate: float = 0.0,
        se: bool = False,
        act: Activation = "ReLU6",
        tf: bool = True,
    ) -> None:
        super().__init__()
        hidden = round(c1 * expand)
        squeeze = max(1, int(c1 * SE_RATIO))
        self.block = nn.Sequential(
            *([_efficientnet_unit(c1, hidden, 1, act=act, tf=tf)] if hidden != c1 else []),
            _efficientnet_unit(hidden, hidden, k, s, hidden, act, tf),
            *([SeBlock(hidden, squeeze, act)] if se else []),
            _efficientnet_unit(hidden, c2, 1, tf=tf),
        )
        self.drop_connect_rate = drop_connect_rate
        self.add = s == 1 and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, ceil(H/s), ceil(W/s))."""
        y = self.block(x)
        return x + drop_connect(y, self.drop_connect_rate, self.training) if self.add else y


# MobileNetV3 (arXiv 1905.02244)


@register_block(check=_check_groups)
class MobileNetV3Conv(ConvNormAct):
    """Apply a convolution, BatchNorm and an activation: children 0, 1, 2 as in torchvision.

    It is the network's first layer. Example: `[-1, 1, MobileNetV3Conv, [16, 3, 2]]`
    """

    def __init__(
        self, c1: int, c2: int, k: int = 3, s: int = 1, act: Activation = "Hardswish", g: int = 1
    ) -> None:
        activation = [make_activation(act)] if act else []
        super().__init__(convolution(c1, c2, k, s, k // 2, g), _tensorflow_norm(c2), *activation)


@register_block(check=_check_kernel)
class MobileNetV3Block(nn.Module):
    """Expand by 1x1, filter by depthwise k x k, squeeze and excite, project by 1x1.

    One row of tables 1 and 2 (figure 4). Its tensors are those of torchvision's
    `mobilenet_v3_{small,large}.features[i]`. There is no expansion where the width stays the same. The input
    is added if s == 1 and c1 == c2. Example: `[-1, 1, MobileNetV3Block, [40, 5, 2, 3, True, ReLU]]`

    Args:
        k, s: kernel and stride of the depthwise convolution; k odd and at least s.
        expand: hidden channels over input channels, brought to a multiple of 8. The tables give the product
            ("exp size"); a ratio lets width_multiple scale it too.
        se: squeeze and excitation to a quarter of the hidden channels, with ReLU and hard sigmoid
            (section 5.3).
        act: ReLU or Hardswish, the tables' RE and HS.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 3,
        s: int = 1,
        expand: int | float = 6,
        se: bool = False,
        act: Activation = "Hardswish",
    ) -> None:
        super().__init__()
        hidden = make_divisible(c1 * expand)
        self.block = nn.Sequential(
            *([MobileNetV3Conv(c1, hidden, 1, act=act)] if hidden != c1 else []),
            MobileNetV3Conv(hidden, hidden, k, s, act, hidden),
            *([SeBlock(hidden, make_divisible(hidden // 4), "ReLU", "Hardsigmoid")] if se else []),
            MobileNetV3Conv(hidden, c2, 1, act=None),
        )
        self.add = s == 1 and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H/s, W/s)."""
        y = self.block(x)
        return x + y if self.add else y


# GhostNet (arXiv 1911.11907): names of children are those of timm's `ghostnet_100`


@register_block
class GhostNetStem(nn.Module):
    """Apply the first layer: 3x3 convolution at stride 2, BatchNorm, ReLU.

    Example: `[-1, 1, GhostNetStem, [16]]`
    """

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 2) -> None:
        super().__init__()
        self.conv_stem = convolution(c1, c2, k, s, k // 2)
        self.bn1 = _pytorch_norm(c2)
        self.act1 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H/s, W/s)."""
        return self.act1(self.bn1(self.conv_stem(x)))


@register_block
class GhostModule(nn.Module):
    """Make half of the channels by a convolution, the rest by a 3x3 depthwise one.

    Figure 1b of the paper with its ratio s = 2; YOLOv5's own is `GhostConv`. An odd c2 rounds the half up and
    drops the last channel. Example: `[-1, 1, GhostModule, [64, 3, 2]]`
    """

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, relu: bool = True) -> None:
        super().__init__()
        half = (c2 + 1) // 2
        act = "ReLU" if relu else None
        self.c2 = c2
        self.primary_conv = nn.Sequential(
            convolution(c1, half, k, s, k // 2), _pytorch_norm(half), make_activation(act)
        )
        self.cheap_operation = nn.Sequential(
            convolution(half, half, 3, 1, 1, half), _pytorch_norm(half), make_activation(act)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H/s, W/s)."""
        y = self.primary_conv(x)
        both = torch.cat((y, self.cheap_operation(y)), 1)
        return both[:, : self.c2] if self.c2 % 2 else both


class GhostSqueezeExcite(nn.Module):
    """Multiply each channel by a hard-sigmoid gate (arXiv 1709.01507).

    The hidden layer has c * ratio channels, brought to a multiple of 4.
    """

    def __init__(self, c: int, ratio: float) -> None:
        super().__init__()
        squeezed = make_divisible(c * ratio, 4)
        self.conv_reduce = nn.Conv2d(c, squeezed, 1)
        self.act1 = nn.ReLU(inplace=True)
        self.conv_expand = nn.Conv2d(squeezed, c, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c, H, W) to the same shape."""
        gate = self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * self.gate(gate)


def _check_ghostnet(args: Arguments, channels: list[int]) -> str | None:
    """Check the ratio and the kernel."""
    if not 0 <= args["se_ratio"] <= 1:
        return f"se_ratio is {args['se_ratio']}, expected 0 to 1"
    return _even_problem("k", args["k"])


@register_block(scale_also=("mid",), check=_check_ghostnet)
class GhostNetBottleneck(nn.Module):
    """Expand by a ghost module, squeeze and excite, reduce by a linear ghost module.

    Figure 3 and table 1 of the paper. The input is added; it passes two convolutions first where the shape
    changes. Example: `[-1, 1, GhostNetBottleneck, [40, 5, 2, 72, 0.25]]`

    Args:
        k, s: kernel and stride of the depthwise convolution, which is there only if s > 1.
        mid: hidden channels, "#exp" in table 1; width_multiple scales it like c2.
        se_ratio: squeezed channels over mid; 0: no squeeze and excitation.
    """

    def __init__(self, c1: int, c2: int, k: int, s: int, mid: int, se_ratio: float = 0.0) -> None:
        super().__init__()
        self.ghost1 = GhostModule(c1, mid)
        self.conv_dw = convolution(mid, mid, k, s, k // 2, mid) if s > 1 else nn.Identity()
        self.bn_dw = _pytorch_norm(mid) if s > 1 else nn.Identity()
        self.se = GhostSqueezeExcite(mid, se_ratio) if se_ratio else nn.Identity()
        self.ghost2 = GhostModule(mid, c2, relu=False)
        self.shortcut = (
            nn.Identity()
            if s == 1 and c1 == c2
            else nn.Sequential(
                convolution(c1, c1, k, s, k // 2, c1),
                _pytorch_norm(c1),
                convolution(c1, c2, 1),
                _pytorch_norm(c2),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H/s, W/s)."""
        y = self.se(self.bn_dw(self.conv_dw(self.ghost1(x))))
        return self.ghost2(y) + self.shortcut(x)


# MobileViT (arXiv 2110.02178): names of children are those of timm's `mobilevit_*`


@register_block(check=_check_groups)
class ConvBNSiLU(nn.Module):
    """Apply a convolution, BatchNorm and, where `act` is set, SiLU.

    It is the network's first layer. Example: `[-1, 1, ConvBNSiLU, [16, 3, 2]]`
    """

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = convolution(c1, c2, k, s, k // 2, g)
        self.bn = _pytorch_norm(c2)
        self.act = nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H/s, W/s)."""
        return self.act(conv_norm(self.conv, self.bn, x))


@register_block
class MV2Block(nn.Module):
    """Apply MobileNetV2's inverted residual with SiLU ("MV2" in figure 1b).

    The last convolution has no activation. There is an expansion at every `expand`, as in the paper's code.
    The input is added if stride == 1 and c1 == c2. Example: `[-1, 1, MV2Block, [32, 2, 4]]`

    Args:
        expand: hidden channels over input channels.
    """

    def __init__(self, c1: int, c2: int, stride: int = 1, expand: int | float = 4) -> None:
        super().__init__()
        hidden = round(c1 * expand)
        self.conv1_1x1 = ConvBNSiLU(c1, hidden)
        self.conv2_kxk = ConvBNSiLU(hidden, hidden, 3, stride, hidden)
        self.conv3_1x1 = ConvBNSiLU(hidden, c2, act=False)
        self.add = stride == 1 and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H/stride, W/stride)."""
        y = self.conv3_1x1(self.conv2_kxk(self.conv1_1x1(x)))
        return x + y if self.add else y


class _PatchAttention(nn.Module):
    """Apply multi-head self-attention among the pixels at one place of their patches.

    One linear layer gives q, k and v. Places and heads share one axis, since neither sees the others:
    runtimes for phones take at most five axes, of which the first must be the batch.
    """

    def __init__(self, dim: int, heads: int, places: int) -> None:
        super().__init__()
        self.heads = heads
        self.places = places
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, places * L, dim) to the same shape, where L counts the patches."""
        n, tokens, dim = x.shape
        length, width = tokens // self.places, dim // self.heads

        def by_head(t: Tensor) -> Tensor:
            t = t.reshape(n, self.places, length, self.heads, width).transpose(2, 3)
            return t.reshape(n, self.places * self.heads, length, width)

        q, k, v = (by_head(t) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v)
        y = y.reshape(n, self.places, self.heads, length, width).transpose(2, 3)
        return self.proj(y.reshape(n, tokens, dim))


class _PatchMLP(nn.Module):
    """Apply two linear layers with SiLU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.SiLU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class _PatchTransformerLayer(nn.Module):
    """Apply attention and two linear layers, each after LayerNorm and with a residual."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, places: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = _PatchAttention(dim, heads, places)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = _PatchMLP(dim, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, places * L, dim) to the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def _check_mobilevit(args: Arguments, channels: list[int]) -> str | None:
    """Check the channels, the kernel and the heads."""
    if args["c_in"] != channels[0]:
        return f"c_in, after width_multiple, is {args['c_in']} but {channels[0]} channels arrive"
    return _even_problem("kernel", args["kernel"]) or _remainder_problem(
        "heads", args["heads"], "dim", args["dim"]
    )


@register_block(scale_also=("dim", "mlp_dim"), check=_check_mobilevit)
class MobileViTAttention(nn.Module):
    """Apply the MobileViT block: convolutions, then a transformer over the whole map.

    Section 3.1 of the paper. Pixels at the same place of their patches attend to each other. A map whose
    height or width is no multiple of the patch is resized bilinearly before the transformer and back after
    it, as in the paper's code, so every size works.
    Example: `[-1, 1, MobileViTAttention, [64, 80, 4, 3, 2, 160]]`

    Args:
        c1: input channels.
        c_in: the same number as the YAML states it (width_multiple scales it); also the output channels.
        dim, depth, mlp_dim: width and number of the transformer's layers, width inside its MLP.
            width_multiple scales dim and mlp_dim like c_in.
        kernel: of the two spatial convolutions, odd.
        patch: pixels per side of a patch.
        heads: of the attention; must divide dim.
    """

    def __init__(
        self,
        c1: int,
        c_in: int,
        dim: int,
        depth: int,
        kernel: int,
        patch: int,
        mlp_dim: int,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.conv_kxk = ConvBNSiLU(c1, c1, kernel)
        self.conv_1x1 = nn.Conv2d(c1, dim, 1, bias=False)
        self.transformer = nn.Sequential(
            *(_PatchTransformerLayer(dim, heads, mlp_dim, patch * patch) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.conv_proj = ConvBNSiLU(dim, c_in)
        self.conv_fusion = ConvBNSiLU(c1 + c_in, c_in, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c_in, H, W) to the same shape, for any H and W."""
        y = self.conv_proj(self._global(self.conv_1x1(self.conv_kxk(x))))
        return self.conv_fusion(torch.cat((x, y), 1))

    def _global(self, x: Tensor) -> Tensor:
        """Apply the transformer to the patches of (N, dim, H, W)."""
        n, c, h, w = x.shape
        p = self.patch
        rows, columns = (h + p - 1) // p, (w + p - 1) // p
        # A trace must hold for other sizes too, so it always resizes; to its own size this changes nothing.
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]  # torch has no types for it
        resize = tracing or h % p != 0 or w % p != 0
        if resize:
            x = F.interpolate(x, size=(rows * p, columns * p), mode="bilinear", align_corners=False)
        # Here: channels, places, patches; attention needs places, patches, channels.
        x = F.pixel_unshuffle(x, p).reshape(n, c, p * p, rows * columns).permute(0, 2, 3, 1)
        x = self.norm(self.transformer(x.reshape(n, p * p * rows * columns, c)))
        x = x.reshape(n, p * p, rows * columns, c).permute(0, 3, 1, 2)
        x = F.pixel_shuffle(x.reshape(n, c * p * p, rows, columns), p)
        return F.interpolate(x, size=(h, w), mode="bilinear", align_corners=False) if resize else x


# YOLOv7's neck (arXiv 2207.02696)


def _yolov7_unit(c1: int, c2: int, k: int = 1) -> nn.Sequential:
    """Return convolution, BatchNorm and the model's default activation, at stride 1.

    The YAML's key `activation` sets the default; the paper's tiny network uses leaky ReLU.
    """
    return nn.Sequential(convolution(c1, c2, k, 1, k // 2), _yolov5_norm(c2), make_activation(True))


@register_block(repeat="inside")
class ELAN(nn.Module):
    """Concatenate the results of every depth of a chain of convolutions.

    The efficient layer aggregation network (section 3, figure 2c). Two 1x1 convolutions divide the input; the
    chain of 3x3 convolutions follows the second. A last 1x1 joins the results, so the shortest and the
    longest gradient path are both under control. Example: `[-1, 2, ELAN, [64]]`

    Args:
        n: convolutions in the chain; the row's number.
        e: channels of each branch over c2.
    """

    def __init__(self, c1: int, c2: int, n: int = 2, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = _yolov7_unit(c1, hidden)
        self.cv2 = _yolov7_unit(c1, hidden)
        self.m = nn.ModuleList(_yolov7_unit(hidden, hidden, 3) for _ in range(n))
        self.cv3 = _yolov7_unit((2 + n) * hidden, c2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H, W)."""
        kept = [self.cv1(x), self.cv2(x)]
        for layer in self.m:
            kept.append(layer(kept[-1]))
        return self.cv3(torch.cat(kept, 1))


@register_block
class SPPCSPC(nn.Module):
    """Apply spatial pyramid pooling in one branch of a cross-stage-partial stage.

    The paper calls it CSP-ised SPP. Example: `[-1, 1, SPPCSPC, [64, [5, 9, 13]]]`

    Args:
        k: pooling sizes, odd; the map without pooling is used beside them.
        e: channels of each branch over c2.
    """

    def __init__(self, c1: int, c2: int, k: tuple[int, ...] = (5, 9, 13), e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.before = nn.Sequential(
            _yolov7_unit(c1, hidden), _yolov7_unit(hidden, hidden, 3), _yolov7_unit(hidden, hidden)
        )
        self.m = nn.ModuleList(nn.MaxPool2d(size, stride=1, padding=size // 2) for size in k)
        self.after = nn.Sequential(
            _yolov7_unit((len(k) + 1) * hidden, hidden), _yolov7_unit(hidden, hidden, 3)
        )
        self.beside = _yolov7_unit(c1, hidden)
        self.join = _yolov7_unit(2 * hidden, c2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H, W)."""
        y = self.before(x)
        y = self.after(torch.cat([y, *(pool(y) for pool in self.m)], 1))
        return self.join(torch.cat((y, self.beside(x)), 1))


# Blocks of torch.nn, which a YAML calls nn.NAME or torch.nn.NAME

register_block(nn.Conv2d, "nn.Conv2d", check=_check_groups)
register_block(nn.ConvTranspose2d, "nn.ConvTranspose2d", check=_check_groups)
register_block(nn.BatchNorm2d, "nn.BatchNorm2d", channels="in")
for _cls in (nn.Upsample, nn.MaxPool2d, nn.AvgPool2d, nn.ZeroPad2d, nn.Dropout, *ACTIVATIONS.values()):
    register_block(_cls, f"nn.{_cls.__name__}", channels="same")
