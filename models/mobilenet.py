"""MobileNetV3 (arXiv 1905.02244), small and large: the rows of tables 1 and 2 as blocks.

BatchNorm eps 1e-3 and momentum 0.01 throughout, as the published weights were trained with. MobileNetV2's
blocks, which are older here, stand in models/common.py.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.activations import Activation, make_activation
from models.depthwise import convolution
from models.efficientnet import SeBlock


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of the divisor nearest to a width, the next one up where that would lose over a tenth."""
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * value else nearest + divisor


class MobileNetV3Conv(nn.Sequential):
    """Convolution, BatchNorm, activation; children 0, 1, 2 as in torchvision. The network's first layer."""

    def __init__(
        self, c1: int, c2: int, k: int = 3, s: int = 1, act: Activation = "Hardswish", g: int = 1
    ) -> None:
        activation = [make_activation(act)] if act else []
        norm = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.01)
        super().__init__(convolution(c1, c2, k, s, k // 2, g), norm, *activation)


class MobileNetV3Block(nn.Module):
    """Expand 1x1, depthwise k x k, squeeze and excitation, project 1x1 without activation (figure 4).

    Tensor for tensor torchvision's `mobilenet_v3_{small,large}.features[i]`. The expansion is left out where
    it would change nothing; the input is added at stride 1 where the widths agree.

    Args:
        k, s: kernel and stride of the depthwise convolution.
        expand: the tables' "exp size" over the input channels, so that a width multiple scales it too; the
            product is brought to a multiple of 8.
        se: squeeze and excitation to a quarter of the hidden width, with ReLU and hard sigmoid (section 5.3).
        act: 'ReLU' or 'Hardswish', the tables' RE and HS.
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
        """(N, c1, H, W) -> (N, c2, H/s, W/s)."""
        y = self.block(x)
        return x + y if self.add else y
