"""Define the detection head: raw maps in training, boxes in pixels in evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.registry import register_block


@register_block(channels="sources", joins=True, output=True)
class Detect(nn.Module):
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

    anchors: Tensor
    stride: Tensor

    def __init__(self, nc: int, anchors: Sequence[Sequence[float]], ch: Sequence[int]) -> None:
        super().__init__()
        self.nc = nc
        self.no = nc + 5
        self.nl = len(anchors)
        self.na = len(anchors[0]) // 2
        self.export = False
        pixels = torch.tensor(anchors, dtype=torch.float32).view(self.nl, self.na, 2)
        self.register_buffer("anchors", pixels)
        self.register_buffer("stride", torch.ones(self.nl), persistent=False)
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

    def forward(self, x: list[Tensor]) -> list[Tensor] | Tensor | tuple[Tensor, list[Tensor]]:
        """Return logits, and in evaluation also decoded boxes.

        Args:
            x: nl maps (N, ch_i, ny_i, nx_i).

        Returns:
            Training: nl raw maps (N, na, ny, nx, 5 + nc), views of the convolutions' results.
            Evaluation: (decoded (N, boxes, 5 + nc), raw maps); with `export` the decoded tensor alone.
            Decoded rows are x, y, w, h in pixels of the input, objectness and class probabilities, float32,
            in order of level, anchor, row, column.
        """
        maps = [conv(level) for conv, level in zip(self.m, x)]
        if self.training:
            return [self._raw(y) for y in maps]
        decoded = torch.cat([self._decode(y, i) for i, y in enumerate(maps)], 1)
        return decoded if self.export else (decoded, [self._raw(y) for y in maps])

    def _raw(self, y: Tensor) -> Tensor:
        """View a convolution's result (N, na*no, ny, nx) as (N, na, ny, nx, no)."""
        n, _, ny, nx = y.shape
        return y.view(n, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2)

    def _decode(self, y: Tensor, level: int) -> Tensor:
        """Map logits (N, na*no, ny, nx) to boxes and probabilities (N, na*ny*nx, no).

        The outputs stay the last axis, as CPU runtimes lay out a convolution's result: no data is moved to
        another layout and back. All is float32, because half precision has too few bits for the fraction of a
        coordinate on a large map.
        """
        n, _, ny, nx = y.shape
        stride = self.stride[level].float()
        anchor = self.anchors[level].float().view(self.na, 1, 2) * stride
        rows = torch.arange(ny, device=y.device, dtype=torch.float32).view(ny, 1).expand(ny, nx)
        columns = torch.arange(nx, device=y.device, dtype=torch.float32).view(1, nx).expand(ny, nx)
        cell = torch.stack((columns, rows), -1).view(ny * nx, 2)
        p = y.permute(0, 2, 3, 1).float().sigmoid().reshape(n, ny * nx, self.na, self.no).transpose(1, 2)
        xy = (p[..., 0:2] * 2 - 0.5 + cell) * stride
        side = p[..., 2:4] * 2
        wh = side * side * anchor  # no power: some mobile runtimes lack it
        return torch.cat((xy, wh, p[..., 4:]), -1).reshape(n, self.na * ny * nx, self.no)
