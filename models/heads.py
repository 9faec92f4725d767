"""Define the detection heads: raw maps in training, boxes in pixels in evaluation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.common import Conv, DWConv
from models.registry import register_block
from utils.boxes import LARGEST_LOG_SIDE


class DetectionHead(nn.Module):
    """Hold what both heads have in common.

    Attributes:
        nc, nl, na, no: classes, levels, boxes of each cell, outputs of each box.
        stride: buffer (nl,), pixels per cell; not in the state_dict.
        export: True: evaluation returns the decoded tensor alone.
        CLASS_TENSORS: names of the weights with a row for each class.
        BEFORE_CLASSES: rows of a box in them before its classes.
    """

    CLASS_TENSORS: ClassVar[re.Pattern[str]]
    BEFORE_CLASSES: ClassVar[int] = 0
    stride: Tensor

    def __init__(self, nc: int, levels: int, boxes: int, outputs: int) -> None:
        super().__init__()
        self.nc = nc
        self.no = outputs
        self.nl = levels
        self.na = boxes
        self.export = False
        self.register_buffer("stride", torch.ones(levels), persistent=False)

    def forward(self, x: list[Tensor]) -> list[Tensor] | Tensor | tuple[Tensor, list[Tensor]]:
        """Return logits, and in evaluation also decoded boxes.

        Args:
            x: nl maps (N, ch_i, ny_i, nx_i).

        Returns:
            Training: nl raw maps (N, na, ny, nx, no), views of the convolutions' results.
            Evaluation: (decoded (N, boxes, 5 + nc), raw maps); with `export` the decoded tensor alone.
            Decoded rows are x, y, w, h in pixels of the input, objectness and class probabilities, float32,
            in order of level, anchor, row, column.
        """
        maps = [self._map(level, i) for i, level in enumerate(x)]
        if self.training:
            return [self._raw(y) for y in maps]
        decoded = torch.cat([self._decode(y, i) for i, y in enumerate(maps)], 1)
        return decoded if self.export else (decoded, [self._raw(y) for y in maps])

    def _map(self, x: Tensor, level: int) -> Tensor:
        """Map a level (N, ch, ny, nx) to logits (N, na*no, ny, nx)."""
        raise NotImplementedError

    def _decode(self, y: Tensor, level: int) -> Tensor:
        """Map logits (N, na*no, ny, nx) to decoded rows (N, na*ny*nx, 5 + nc)."""
        raise NotImplementedError

    def _raw(self, y: Tensor) -> Tensor:
        """View a convolution's result (N, na*no, ny, nx) as (N, na, ny, nx, no)."""
        n, _, ny, nx = y.shape
        return y.view(n, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2)

    @staticmethod
    def _cells(y: Tensor) -> Tensor:
        """Return column and row (ny*nx, 2) of each cell of a map, float32."""
        ny, nx = y.shape[2:]
        rows = torch.arange(ny, device=y.device, dtype=torch.float32).view(ny, 1).expand(ny, nx)
        columns = torch.arange(nx, device=y.device, dtype=torch.float32).view(1, nx).expand(ny, nx)
        return torch.stack((columns, rows), -1).view(ny * nx, 2)


@register_block(channels="sources", joins=True, output=True)
class Detect(DetectionHead):
    """Predict boxes by one 1x1 convolution per level.

    Each cell has na anchors, each with x, y, w, h, objectness and nc class logits. The row must be the last.
    Example: `[[17, 20, 23], 1, Detect, [nc, anchors]]`

    Args:
        nc: classes.
        anchors: per level a flat list w, h, w, h, ... in pixels.
        ch: input channels per level.

    Attributes:
        anchors: buffer (nl, na, 2), width and height in units of the level's stride.
        stride: buffer (nl,), pixels per cell; not in the state_dict. Set with `set_stride`.
        m: the convolutions.
        nl, na, nc, no: levels, anchors per level, classes, outputs per anchor (5 + nc).
        export: True: evaluation returns the decoded tensor alone.
    """

    CLASS_TENSORS = re.compile(r"m\.\d+\.\w+")
    BEFORE_CLASSES = 5  # the box and objectness
    anchors: Tensor

    def __init__(self, nc: int, anchors: Sequence[Sequence[float]], ch: Sequence[int]) -> None:
        super().__init__(nc, len(anchors), len(anchors[0]) // 2, nc + 5)
        pixels = torch.tensor(anchors, dtype=torch.float32).view(self.nl, self.na, 2)
        self.register_buffer("anchors", pixels)
        self.m = nn.ModuleList(nn.Conv2d(c, self.na * self.no, 1) for c in ch)

    def set_stride(self, strides: Sequence[float]) -> None:
        """Set the stride of each level, scale the anchors to cells and set the biases.

        Must be called once. The biases start at a prior of 8 objects in an image of 640 px, each class
        equally likely (RetinaNet, section 3.3); without it the first steps of training would predict objects
        everywhere.
        """
        stride = torch.tensor(list(strides), dtype=torch.float32, device=self.anchors.device)
        self.anchors.div_(stride.view(-1, 1, 1))
        self.stride.copy_(stride)
        for conv, s in zip(self.m, strides):
            bias = conv.get_parameter("bias").detach().view(self.na, self.no)
            bias[:, 4] += math.log(8 / (640 / s) ** 2)
            bias[:, 5:] += math.log(0.6 / (self.nc - 0.99999))

    def _map(self, x: Tensor, level: int) -> Tensor:
        result: Tensor = self.m[level](x)
        return result

    def _decode(self, y: Tensor, level: int) -> Tensor:
        """Map logits (N, na*no, ny, nx) to boxes and probabilities (N, na*ny*nx, no).

        The outputs stay the last axis, as CPU runtimes lay out a convolution's result: no data is moved to
        another layout and back. All is float32, because half precision has too few bits for the fraction of a
        coordinate on a large map.
        """
        n, _, ny, nx = y.shape
        stride = self.stride[level].float()
        anchor = self.anchors[level].float().view(self.na, 1, 2) * stride
        p = y.permute(0, 2, 3, 1).float().sigmoid().reshape(n, ny * nx, self.na, self.no).transpose(1, 2)
        xy = (p[..., 0:2] * 2 - 0.5 + self._cells(y)) * stride
        side = p[..., 2:4] * 2
        wh = side * side * anchor  # no power: some mobile runtimes lack it
        return torch.cat((xy, wh, p[..., 4:]), -1).reshape(n, self.na * ny * nx, self.no)


@register_block(channels="sources", joins=True, output=True)
class DetectFree(DetectionHead):
    """Predict one box per cell, without anchors and without objectness.

    Each level has a light branch for boxes and one for classes (YOLOX, arXiv 2107.08430, section 2.2). A
    class's probability also says how good the box is (TOOD, arXiv 2108.07755, section 3.2), so the decoded
    objectness is 1. The row must be the last. Example: `[[17, 20, 23], 1, DetectFree, [nc]]`

    Args:
        nc: classes.
        ch: input channels per level; the branches are as wide as the narrowest level.

    Attributes:
        boxes, classes: per level the branches, each two depthwise and pointwise pairs and a 1x1 convolution.
        stride: buffer (nl,), pixels per cell; not in the state_dict. Set with `set_stride`.
        nl, na, nc, no: levels, 1, classes, outputs per cell (4 + nc).
        export: True: evaluation returns the decoded tensor alone.
    """

    CLASS_TENSORS = re.compile(r"classes\.\d+\.4\.\w+")

    def __init__(self, nc: int, ch: Sequence[int]) -> None:
        super().__init__(nc, len(ch), 1, nc + 4)
        self.boxes = nn.ModuleList(_branch(c, min(ch), 4) for c in ch)
        self.classes = nn.ModuleList(_branch(c, min(ch), nc) for c in ch)

    def set_stride(self, strides: Sequence[float]) -> None:
        """Set the stride of each level and the biases.

        Boxes start at their cell's centre with sides of five cells, classes at a probability of 0.01
        (RetinaNet, section 4.1), so that the many cells without an object do not outweigh the first steps.
        """
        self.stride.copy_(torch.tensor(list(strides)))
        for boxes, classes in zip(self.boxes, self.classes):
            boxes.get_parameter("4.bias").detach().copy_(torch.tensor([0.0, 0.0, *[math.log(5)] * 2]))
            classes.get_parameter("4.bias").detach().fill_(math.log(0.01 / 0.99))

    def _map(self, x: Tensor, level: int) -> Tensor:
        return torch.cat((self.boxes[level](x), self.classes[level](x)), 1)

    def _decode(self, y: Tensor, level: int) -> Tensor:
        """Map logits to boxes, ones and probabilities.

        (N, 4 + nc, ny, nx) becomes (N, ny*nx, 5 + nc). The centre is an offset from the cell's, the sides are
        exponentials, all in cells (YOLOX, section 2.1).
        """
        stride = self.stride[level].float()
        p = y.permute(0, 2, 3, 1).float().flatten(1, 2)
        xy = (p[..., 0:2] + 0.5 + self._cells(y)) * stride
        wh = p[..., 2:4].clamp(max=LARGEST_LOG_SIDE).exp() * stride
        return torch.cat((xy, wh, torch.ones_like(p[..., :1]), p[..., 4:].sigmoid()), -1)


def _branch(c1: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return two depthwise and pointwise pairs and a 1x1 convolution."""
    return nn.Sequential(
        DWConv(c1, c1, 3),
        Conv(c1, hidden),
        DWConv(hidden, hidden, 3),
        Conv(hidden, hidden),
        nn.Conv2d(hidden, outputs, 1),
    )
