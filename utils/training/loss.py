"""Compute the detection loss.

On each layer, a target is matched with the anchors whose shape it fits, in up to three cells around its
centre. The box loss is 1 - CIoU; objectness and classes have binary cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from utils.boxes import complete_iou
from utils.training.anchors import AnchoredLayer

_Context = Any  # Any: torch lets a function add attributes of any kind to its context

# Half a cell from the centre towards: the own cell, left, up, right, down.
CELL_OFFSETS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0), (0.0, -0.5))
BALANCE = {3: (4.0, 1.0, 0.4)}
BALANCE_OTHERWISE = (4.0, 1.0, 0.25, 0.06, 0.02)
FOCAL_ALPHA = 0.25


LossFunction = Callable[[list[Tensor], Tensor], tuple[Tensor, Tensor]]
"""(raw maps, targets) -> (loss, items), such as `DetectionLoss`."""

MeanCounts = Callable[[Sequence[float], torch.device], list[float]]
"""Counts of this process -> their means over all, such as `utils.training.distributed.mean_counts`."""


class DetectLayer(AnchoredLayer, Protocol):
    """Describe what the loss reads of a Detect layer.

    Attributes:
        na: anchors per layer.
        nl: layers.
        nc: classes.
    """

    na: int
    nl: int
    nc: int


@dataclass
class Matches:
    """Hold the K matched cells of all layers, and what each should predict.

    The rows are ordered by layer.

    Attributes:
        image, anchor, y, x: the cells (K,).
        boxes: the targets relative to their cells (K, 4), xywh in cells.
        anchors: widths and heights (K, 2) in cells.
        classes: class numbers (K,).
        counts: rows of each layer.
    """

    image: Tensor
    anchor: Tensor
    y: Tensor
    x: Tensor
    boxes: Tensor
    anchors: Tensor
    classes: Tensor
    counts: list[int]


class DetectionLoss:
    """Compute the box, objectness and class loss of YOLOv5-style raw maps.

    Args:
        detect: the Detect layer; it is read at every call, so its anchors may change.
        hyp: gains `box`, `obj`, `cls` (already scaled to layers, classes and image size, see `scale_gains`),
            `obj_pw`, `cls_pw`, `anchor_t`, `fl_gamma`.
        label_smoothing: epsilon; class targets become 1 - eps/2 and eps/2.
        mean_counts: the mean of the matches per layer over all processes, of which each has a share of the
            batch. Their mean gradient is then that of the whole batch. None: this process is alone.

    Example: one layer of 2 x 2 cells with one anchor of 1 x 1 cell; its box loss is 0 for a perfect box.

    >>> from types import SimpleNamespace
    >>> anchors, stride = torch.ones(1, 1, 2), torch.tensor([8.0])
    >>> detect = SimpleNamespace(anchors=anchors, stride=stride, na=1, nl=1, nc=1)
    >>> hyp = {"box": 1.0, "obj": 1.0, "cls": 1.0, "obj_pw": 1.0, "cls_pw": 1.0}
    >>> loss = DetectionLoss(detect, hyp | {"anchor_t": 4.0, "fl_gamma": 0.0})
    >>> raw = torch.zeros(1, 1, 2, 2, 6)  # 0: the centre of the cell, the anchor's size
    >>> target = torch.tensor([[0.0, 0.0, 0.25, 0.25, 0.5, 0.5]])  # centre of the first cell, one cell large
    >>> total, (box, obj, cls) = loss([raw], target)
    >>> round(abs(float(box)), 4), round(float(obj), 4), float(cls)
    (0.0, 2.7726, 0.0)
    """

    def __init__(
        self,
        detect: DetectLayer,
        hyp: dict[str, float],
        *,
        label_smoothing: float = 0.0,
        mean_counts: MeanCounts | None = None,
    ) -> None:
        self.mean_counts = mean_counts
        self.detect = detect
        self.hyp = hyp
        self.positive = 1.0 - 0.5 * label_smoothing
        self.negative = 0.5 * label_smoothing
        self.balance = BALANCE.get(detect.nl, BALANCE_OTHERWISE)[: detect.nl]

    def __call__(self, raws: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of one batch, and its parts.

        Args:
            raws: per layer the raw logits (N, na, ny, nx, 5 + nc), any float type and memory format.
            targets: (M, 6) image index, class, xc, yc, w, h normalised to the batch's image.

        Returns:
            The loss times the batch size (scalar, float32) and its parts (3,) box, obj, cls, detached.
        """
        with torch.autocast(raws[0].device.type, enabled=False):
            return self._loss(raws, targets.to(raws[0].device, torch.float32))

    def _loss(self, raws: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        matches = self.match(targets, [(raw.shape[2], raw.shape[3]) for raw in raws])
        logits, rows = _PickCells.apply(matches, *raws)
        objectness = torch.zeros_like(logits)
        box = cls = logits.new_zeros(())
        counts = self.mean_counts(matches.counts, rows.device) if self.mean_counts else matches.counts
        if len(rows):
            share = _layer_shares(matches.counts, counts, rows.device)
            xy, wh = rows[:, 0:4].sigmoid().mul(2).split(2, 1)
            predicted = torch.cat((xy - 0.5, wh * wh * matches.anchors), 1)
            iou = complete_iou(predicted, matches.boxes)
            box = (1.0 - iou) @ share
            # Two targets may claim one cell. On a CPU scatter_ along one dimension is serial, so the last one
            # is kept; on CUDA it is so inside `utils.device.repeatable`.
            objectness.scatter_(0, _cell_numbers(matches, raws), iou.detach().clamp_(0))
            if self.detect.nc > 1:
                cls = self._class_loss(rows[:, 5:], matches.classes) @ share
        obj = self._objectness_loss(logits, objectness, [raw.numel() // raw.shape[-1] for raw in raws])
        box, obj, cls = box * self.hyp["box"], obj * self.hyp["obj"], cls * self.hyp["cls"]
        return (box + obj + cls) * raws[0].shape[0], torch.stack((box, obj, cls)).detach()

    def _class_loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Return each matched row's cross-entropy (K,), its mean over classes."""
        wanted = torch.full_like(logits, self.negative)
        wanted.scatter_(1, classes[:, None], self.positive)
        return self._cross_entropy(logits, wanted, self._positive_weights(logits.device)[0]).mean(1)

    def _objectness_loss(self, logits: Tensor, wanted: Tensor, cells: list[int]) -> Tensor:
        """Return the sum over layers of the mean cross-entropy times the layer's balance."""
        losses = self._cross_entropy(logits, wanted, self._positive_weights(logits.device)[1])
        means = [part.mean() for part in losses.split(cells)]
        return sum((mean * weight for mean, weight in zip(means, self.balance)), start=logits.new_zeros(()))

    def _cross_entropy(self, logits: Tensor, wanted: Tensor, positive_weight: Tensor | None) -> Tensor:
        """Return each element's binary cross-entropy; focal (Lin et al. 2017, eq. 5) if `fl_gamma` > 0."""
        loss = F.binary_cross_entropy_with_logits(
            logits, wanted, pos_weight=positive_weight, reduction="none"
        )
        gamma = self.hyp["fl_gamma"]
        if gamma <= 0:
            return loss
        probability = logits.sigmoid()
        right = wanted * probability + (1 - wanted) * (1 - probability)
        alpha = wanted * FOCAL_ALPHA + (1 - wanted) * (1 - FOCAL_ALPHA)
        return loss * alpha * (1.0 - right) ** gamma

    def _positive_weights(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Return the weights of positive classes and positive objectness; None for 1."""

        def weight(key: str) -> Tensor | None:  # None saves a pass over all cells
            return None if self.hyp[key] == 1.0 else torch.tensor(self.hyp[key], device=device)

        return weight("cls_pw"), weight("obj_pw")

    def match(self, targets: Tensor, sizes: list[tuple[int, int]]) -> Matches:
        """Match each target with cells, on all layers in one pass.

        Args:
            targets: (M, 6) float32 as in `__call__`.
            sizes: (ny, nx) of each layer.
        """
        device = targets.device
        anchors = self.detect.anchors.to(device, torch.float32)
        grid = torch.tensor([(nx, ny) for ny, nx in sizes], dtype=torch.float32, device=device)
        boxes = targets[None, :, 2:6] * grid.repeat(1, 2)[:, None]  # (nl, M, 4) in cells
        ratio = boxes[:, None, :, 2:4] / anchors[:, :, None]  # (nl, na, M, 2)
        fits = torch.maximum(ratio, 1.0 / ratio).amax(3) < self.hyp["anchor_t"]
        centre = boxes[..., 0:2]
        mirrored = grid[:, None] - centre
        before = (centre % 1.0 < 0.5) & (centre > 1.0)
        after = (mirrored % 1.0 < 0.5) & (mirrored > 1.0)
        near = torch.cat((torch.ones_like(before[..., :1]), before, after), 2).transpose(1, 2)  # (nl, 5, M)
        layer, offset, anchor, target = (fits[:, None] & near[:, :, None]).nonzero(as_tuple=True)

        offsets = torch.tensor(CELL_OFFSETS, device=device)
        matched = boxes[layer, target]
        cell = (matched[:, 0:2] - offsets[offset]).long()
        cell = torch.minimum(cell.clamp_(min=0), grid.long()[layer] - 1)
        matched[:, 0:2] -= cell
        image_class = targets[target, 0:2].long()
        return Matches(
            image=image_class[:, 0],
            anchor=anchor,
            y=cell[:, 1],
            x=cell[:, 0],
            boxes=matched,
            anchors=anchors[layer, anchor],
            classes=image_class[:, 1],
            counts=torch.bincount(layer, minlength=len(sizes)).tolist(),
        )


def _layer_shares(counts: list[int], divisors: Sequence[float], device: torch.device) -> Tensor:
    """Return weights of the matched rows (K,) with which a sum adds the layers' means."""
    weights = torch.tensor([1.0 / divisor if divisor else 0.0 for divisor in divisors], device=device)
    return torch.repeat_interleave(weights, torch.tensor(counts, device=device), output_size=sum(counts))


def _cell_numbers(matches: Matches, raws: list[Tensor]) -> Tensor:
    """Return the position of each matched cell (K,) in the joined objectness of all layers."""
    numbers, start, first = [], 0, 0
    for raw, count in zip(raws, matches.counts):
        n, na, ny, nx, _ = raw.shape
        part = slice(start, start + count)
        cell = (matches.image[part] * na + matches.anchor[part]) * ny + matches.y[part]
        numbers.append(cell * nx + matches.x[part] + first)
        start += count
        first += n * na * ny * nx
    return torch.cat(numbers)


class _PickCells(torch.autograd.Function):
    """Select all objectness logits (cells,) and the matched rows (K, 5 + nc), as float32.

    In autograd's backward each of the two selections fills a zero map of the raw map's size, and both are
    summed. Here each layer gets one zero map, in the memory format of its convolution. index_add_ adds rows
    one after another, so equal runs give equal bits on a CPU; on CUDA inside `utils.device.repeatable`.
    """

    @staticmethod
    def forward(ctx: _Context, matches: Matches, *raws: Tensor) -> tuple[Tensor, Tensor]:
        ctx.matches = matches
        ctx.layouts = [(raw.shape, raw.dtype, _is_channels_last(raw)) for raw in raws]
        logits = torch.cat([raw[..., 4].reshape(-1) for raw in raws])
        rows = [raw[index] for raw, index in zip(raws, _indices(matches))]
        return logits.float(), torch.cat(rows).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_logits: Tensor, grad_rows: Tensor) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [None]
        cells = [shape[:-1].numel() for shape, _, _ in ctx.layouts]
        parts = zip(
            ctx.layouts, _indices(ctx.matches), grad_logits.split(cells), grad_rows.split(ctx.matches.counts)
        )
        for (shape, dtype, channels_last), (image, anchor, y, x), of_logits, of_rows in parts:
            n, na, ny, nx, no = shape
            if channels_last:
                flat = ((image * ny + y) * nx + x) * na + anchor
                memory, order = (n, ny, nx, na, no), (0, 3, 1, 2, 4)
            else:
                flat = ((image * na + anchor) * ny + y) * nx + x
                memory, order = tuple(shape), (0, 1, 2, 3, 4)
            grad = torch.zeros(memory, dtype=dtype, device=of_rows.device)
            grad.view(-1, no).index_add_(0, flat, of_rows.to(dtype))
            grad = grad.permute(order)
            grad[..., 4] += of_logits.view(n, na, ny, nx)
            grads.append(grad)
        return tuple(grads)


def _is_channels_last(raw: Tensor) -> bool:
    """Return whether a raw map is a view of a channels_last convolution output."""
    return raw.permute(0, 2, 3, 1, 4).is_contiguous()


def _indices(matches: Matches) -> list[tuple[Tensor, ...]]:
    """Return (image, anchor, y, x) of each layer's matches."""
    columns = (matches.image, matches.anchor, matches.y, matches.x)
    return list(zip(*(column.split(matches.counts) for column in columns)))
