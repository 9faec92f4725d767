"""EfficientNet (arXiv 1905.11946) and EfficientNet-Lite: `stem`, `MBConvBlock`, `SeBlock`, `drop_connect`.

The family was trained twice, and weights are right only in the network they were trained in. In TensorFlow
(the Lite packages, timm's tf_efficientnet_*): "SAME" padding, BatchNorm eps 1e-3 and momentum 0.01. In
PyTorch (torchvision's and timm's efficientnet_b*): symmetric padding, eps 1e-5, momentum 0.1. The argument
`tf` of the blocks says which.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.activations import Activation, make_activation
from models.depthwise import StridedDepthwiseConv2d, convolution

SE_RATIO = 0.25  # of a block's input width, table 1's networks


def same_padding(size: int, k: int, s: int) -> tuple[int, int]:
    """TensorFlow's "SAME" padding of one side: (before, after), the odd pixel after.

    The result then has ceil(size / s) pixels. No branch depends on the size, so a traced network takes any;
    needs k >= s.
    """
    total = k - s + (size + s - 1) // s * s - size
    before = total // 2
    return before, total - before


class SameConv2d(nn.Conv2d):
    """nn.Conv2d padded as TensorFlow's "SAME": at stride 2 on even sizes (0, 1) for k3 and (1, 2) for k5."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, ceil(H/s), ceil(W/s))."""
        height, width = x.shape[2:]
        above, below = same_padding(height, self.kernel_size[0], self.stride[0])
        left, right = same_padding(width, self.kernel_size[1], self.stride[1])
        return super().forward(F.pad(x, (left, right, above, below)))


class SameDepthwiseConv2d(SameConv2d, StridedDepthwiseConv2d):
    """The same for one channel per group, with that class's faster gradient."""


def _convolution(c1: int, c2: int, k: int, s: int, g: int, tf: bool) -> nn.Conv2d:
    """A convolution without bias; "SAME" padding is symmetric unless there is a stride."""
    if not tf or s == 1:
        return convolution(c1, c2, k, s, k // 2, g)
    cls = SameDepthwiseConv2d if g == c1 == c2 else SameConv2d
    return cls(c1, c2, k, s, groups=g, bias=False)


def _unit(
    c1: int, c2: int, k: int, s: int = 1, g: int = 1, act: Activation = None, tf: bool = True
) -> nn.Sequential:
    """Convolution, BatchNorm, activation (None: none); children 0, 1, 2 as in torchvision."""
    eps, momentum = (1e-3, 0.01) if tf else (1e-5, 0.1)
    norm = nn.BatchNorm2d(c2, eps=eps, momentum=momentum)
    activation = [] if act is None else [make_activation(act)]
    return nn.Sequential(_convolution(c1, c2, k, s, g, tf), norm, *activation)


def drop_connect(x: Tensor, rate: float, training: bool) -> Tensor:
    """Drop whole samples of a batch at random (stochastic depth, arXiv 1603.09382).

    Args:
        x: (N, ...).
        rate: share of samples dropped, 0 <= rate < 1; those kept are scaled by 1 / (1 - rate).
        training: False: x comes back as it is.
    """
    if not training or rate == 0:
        return x
    keep = 1 - rate
    mask = x.new_empty((x.shape[0], *[1] * (x.ndim - 1))).bernoulli_(keep)
    return x * (mask / keep)


class stem(nn.Sequential):  # noqa: N801 the name the YAMLs of the posts use
    """First layer: 3x3 convolution at stride 2, BatchNorm, activation (table 1, stage 1)."""

    def __init__(self, c1: int, c2: int, act: Activation = "ReLU6", tf: bool = True) -> None:
        super().__init__(*_unit(c1, c2, 3, 2, act=act, tf=tf))


class SeBlock(nn.Module):
    """Squeeze and excitation (arXiv 1709.01507, figure 1): each channel weighed by what all of them hold.

    Args:
        c1: channels in and out.
        squeeze: channels in between.
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
        """(N, c1, H, W) -> the same."""
        return x * self.gate(self.fc2(self.act(self.fc1(self.pool(x)))))


class MBConvBlock(nn.Module):
    """Mobile inverted bottleneck: expand 1x1, depthwise k x k, squeeze and excitation, project 1x1 (table 1).

    Children in the order of torchvision's MBConv, and by its names. The expansion is left out at expand == 1;
    the input is added at stride 1 where the widths agree, and only there drop_connect works.

    Args:
        k, s: kernel and stride of the depthwise convolution; k odd and at least s.
        expand: hidden channels over input channels.
        drop_connect_rate: share of samples whose block is left out in training.
        se: squeeze and excitation, a quarter of the block's input width. EfficientNet-Lite has none.
        act: ReLU6 for Lite, SiLU for B0.
        tf: padding and BatchNorm as trained in TensorFlow (True) or in PyTorch.
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
            *([_unit(c1, hidden, 1, act=act, tf=tf)] if hidden != c1 else []),
            _unit(hidden, hidden, k, s, hidden, act, tf),
            *([SeBlock(hidden, squeeze, act)] if se else []),
            _unit(hidden, c2, 1, tf=tf),
        )
        self.drop_connect_rate = drop_connect_rate
        self.add = s == 1 and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, ceil(H/s), ceil(W/s))."""
        y = self.block(x)
        return x + drop_connect(y, self.drop_connect_rate, self.training) if self.add else y
