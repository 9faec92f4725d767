"""Blocks of YOLOv7's neck, written from the paper (arXiv 2207.02696).

Every convolution is followed by BatchNorm as YOLOv5 trains it and by the model's activation, which a YAML
sets with its key `activation`; the paper's tiny network uses leaky ReLU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.activations import make_activation
from models.depthwise import convolution


def _unit(c1: int, c2: int, k: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, activation, at stride 1."""
    norm = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
    return nn.Sequential(convolution(c1, c2, k, 1, k // 2), norm, make_activation(True))


class ELAN(nn.Module):
    """Efficient layer aggregation network (section 3 and figure 2c): every depth of a chain is kept.

    Two 1x1 convolutions divide the input; behind the second follows a chain of 3x3 convolutions. The results
    of all depths stand side by side before the last 1x1, so the shortest and the longest gradient path are
    both under control.

    Args:
        n: convolutions in the chain (YAML: the row's number).
        e: width of each branch over c2.
    """

    def __init__(self, c1: int, c2: int, n: int = 2, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = _unit(c1, hidden)
        self.cv2 = _unit(c1, hidden)
        self.m = nn.ModuleList(_unit(hidden, hidden, 3) for _ in range(n))
        self.cv3 = _unit((2 + n) * hidden, c2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H, W)."""
        kept = [self.cv1(x), self.cv2(x)]
        for layer in self.m:
            kept.append(layer(kept[-1]))
        return self.cv3(torch.cat(kept, 1))


class SPPCSPC(nn.Module):
    """Spatial pyramid pooling on one branch of a cross-stage-partial stage (the paper's CSP-ised SPP).

    Args:
        k: pooling sizes, odd; the unpooled map stands beside them.
        e: width of each branch over c2.
    """

    def __init__(self, c1: int, c2: int, k: tuple[int, ...] = (5, 9, 13), e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.before = nn.Sequential(_unit(c1, hidden), _unit(hidden, hidden, 3), _unit(hidden, hidden))
        self.m = nn.ModuleList(nn.MaxPool2d(size, stride=1, padding=size // 2) for size in k)
        self.after = nn.Sequential(_unit((len(k) + 1) * hidden, hidden), _unit(hidden, hidden, 3))
        self.beside = _unit(c1, hidden)
        self.join = _unit(2 * hidden, c2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H, W)."""
        y = self.before(x)
        y = self.after(torch.cat([y, *(pool(y) for pool in self.m)], 1))
        return self.join(torch.cat((y, self.beside(x)), 1))
