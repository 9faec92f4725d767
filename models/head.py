"""The detection head: raw maps in training, boxes in pixels in evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Detect(nn.Module):
    """One 1x1 convolution per level; na anchors per cell, each with x, y, w, h, objectness, nc class logits.

    Attributes:
        anchors: buffer (nl, na, 2), width and height in units of the level's stride.
        stride: buffer (nl,), pixels per cell; not in the state_dict. Set with `set_stride`.
        m: the convolutions.
        nl, na, nc, no: levels, anchors per level, classes, outputs per anchor (5 + nc).
        export: True: evaluation returns the decoded tensor alone.
    """

    def __init__(
        self,
        nc: int,
        anchors: Sequence[Sequence[float]],
        ch: Sequence[int],
    ) -> None:
        """
        Args:
            nc: classes.
            anchors: per level a flat list w, h, w, h, ... in pixels.
            ch: input channels per level.
        """
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
        """State each level's stride: anchors in pixels become anchors in cells, biases get their prior.

        The prior expects 8 objects in a 640 px image, each class equally likely, so the first steps of
        training do not have to unlearn a map full of objects.
        """
        stride = torch.tensor(list(strides), dtype=torch.float32, device=self.anchors.device)
        self.anchors.div_(stride.view(-1, 1, 1))
        self.stride.copy_(stride)
        for conv, s in zip(self.m, strides):
            bias = conv.bias.detach().view(self.na, self.no)
            bias[:, 4] += math.log(8 / (640 / s) ** 2)
            bias[:, 5:] += math.log(0.6 / (self.nc - 0.99999))

    def forward(self, x: list[Tensor]) -> list[Tensor] | Tensor | tuple[Tensor, list[Tensor]]:
        """Logits, and outside training boxes.

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
        """A convolution's result (N, na*no, ny, nx) seen as (N, na, ny, nx, no)."""
        n, _, ny, nx = y.shape
        return y.view(n, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2)

    def _decode(self, y: Tensor, level: int) -> Tensor:
        """(N, na*no, ny, nx) logits -> (N, na*ny*nx, no) boxes and probabilities.

        Outputs stay the last axis all the way, as convolutions of CPU runtimes give them: there the anchors
        change places in one go with the joining of the columns, and nothing is brought into planes and back.
        In float32: in half precision a coordinate on a large map has no bits left for its fraction.
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
        wh = side * side * anchor  # not a power, which not every mobile runtime has
        return torch.cat((xy, wh, p[..., 4:]), -1).reshape(n, self.na * ny * nx, self.no)
