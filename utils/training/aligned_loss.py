"""Compute the loss of a head without anchors: `DetectFree`.

Each target is given the cells that classify and locate it best at the moment, and a class's probability
learns how good its box is (TOOD: task-aligned one-stage object detection, arXiv 2108.07755, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.boxes import LARGEST_LOG_SIDE, box_iou, complete_iou, xywh2xyxy
from utils.training.loss import MeanCounts

POWER_OF_SCORE, POWER_OF_OVERLAP = 1.0, 6.0  # TOOD's alpha and beta
MOST_CELLS = 13  # of a target: TOOD's m
FOCUS = 2.0  # TOOD's gamma

# TOOD weighs its losses of classes and boxes 1 to 2. YOLOv5's recipes have cls 0.5 and box 0.05.
_CLASS_GAIN, _BOX_GAIN = 1.0 / 0.5, 2.0 / 0.05


class FreeLayer(Protocol):
    """Describe what the loss reads of a head.

    Attributes:
        stride: pixels per cell of each layer (nl,).
        nc: classes.
    """

    stride: Tensor
    nc: int


@dataclass
class Alignment:
    """Hold the K cells of one image that learn a target.

    Attributes:
        cells, targets: numbers of the cells, in order of layer, row and column, and of their targets (K,).
        quality: what the probability of the target's class should be (K,): the target's best cell has its
            IoU, the others in proportion of their alignment.
    """

    cells: Tensor
    targets: Tensor
    quality: Tensor


class AlignedLoss:
    """Compute the box and class loss of raw maps without anchors.

    Both are sums over the whole batch, divided by the sum of the qualities.

    Args:
        detect: the head.
        hyp: gains `box` and `cls` as in YOLOv5's recipes, `cls_pw`, and `fl_gamma`; its 0 means TOOD's 2.
        mean_counts: as in `utils.training.loss.DetectionLoss`.

    Example: one layer of 2 x 2 cells; the first cell has a perfect box and is sure of it.

    >>> from types import SimpleNamespace
    >>> hyp = {"box": 0.05, "cls": 0.5, "cls_pw": 1.0, "fl_gamma": 0.0}
    >>> loss = AlignedLoss(SimpleNamespace(stride=torch.tensor([8.0]), nc=1), hyp)
    >>> raw = torch.zeros(1, 1, 2, 2, 5)  # 0: the centre of the cell, a side of one cell
    >>> raw[..., 4] = -20.0
    >>> raw[0, 0, 0, 0, 4] = 20.0
    >>> target = torch.tensor([[0.0, 0.0, 0.25, 0.25, 0.5, 0.5]])
    >>> total, items = loss([raw], target)
    >>> [round(abs(float(item)), 4) for item in items]
    [0.0, 0.0, 0.0]
    """

    def __init__(
        self, detect: FreeLayer, hyp: dict[str, float], *, mean_counts: MeanCounts | None = None
    ) -> None:
        self.detect = detect
        self.hyp = hyp
        self.mean_counts = mean_counts

    def __call__(self, raws: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of one batch, and its parts.

        Args:
            raws: per layer the raw logits (N, 1, ny, nx, 4 + nc), any float type and memory format.
            targets: (M, 6) image index, class, xc, yc, w, h normalised to the batch's image.

        Returns:
            The loss times the batch size (scalar, float32) and its parts (3,) box, 0, cls, detached.
        """
        with torch.autocast(raws[0].device.type, enabled=False):
            return self._loss(raws, targets.to(raws[0].device, torch.float32))

    def _loss(self, raws: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        centres, strides = cell_centres(raws, self.detect.stride)
        rows = torch.cat([raw.flatten(1, 3) for raw in raws], 1).float()  # (N, P, 4 + nc)
        logits = rows[..., 4:]
        sides = rows[..., 2:4].clamp(max=LARGEST_LOG_SIDE).exp()
        boxes = torch.cat((rows[..., 0:2] * strides + centres, sides * strides), 2)
        ny, nx = raws[0].shape[2:4]
        size = self.detect.stride[0].float() * torch.tensor([nx, ny, nx, ny], device=rows.device)
        wanted = torch.zeros_like(logits)
        box = total = rows.new_zeros(())
        for image in range(len(rows)):
            own = targets[targets[:, 0] == image]
            labels, truth = own[:, 1].long(), own[:, 2:6] * size
            if not len(own):
                continue
            with torch.no_grad():
                scores = logits[image].sigmoid()[:, labels].T
                found = align(scores, boxes[image], truth, centres, strides)
            iou = complete_iou(boxes[image, found.cells], truth[found.targets])
            box = box + (1.0 - iou) @ found.quality
            wanted[image, found.cells, labels[found.targets]] = found.quality
            total = total + found.quality.sum()
        if self.mean_counts:  # of all processes, each of which has a share of the batch
            total = total.new_tensor(self.mean_counts([float(total)], total.device)[0])
        share = 1.0 / total.clamp(min=1.0)
        box = box * share * self.hyp["box"] * _BOX_GAIN
        cls = self._class_loss(logits, wanted) * share * self.hyp["cls"] * _CLASS_GAIN
        return (box + cls) * len(rows), torch.stack((box, torch.zeros_like(box), cls)).detach()

    def _class_loss(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Return the sum of the cross-entropies times |wanted - probability|^gamma (TOOD, section 3.2)."""
        gamma, weight = self.hyp["fl_gamma"] or FOCUS, self.hyp["cls_pw"]
        positive = None if weight == 1.0 else torch.tensor(weight, device=logits.device)
        loss = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=positive, reduction="none")
        return (loss * (wanted - logits.sigmoid()).abs() ** gamma).sum()


def cell_centres(raws: Sequence[Tensor], strides: Tensor) -> tuple[Tensor, Tensor]:
    """Return centre (P, 2) and stride (P, 1) of each cell, in pixels.

    >>> centres, strides = cell_centres([torch.zeros(1, 1, 1, 2, 5)], torch.tensor([8.0]))
    >>> centres.tolist(), strides.tolist()
    ([[4.0, 4.0], [12.0, 4.0]], [[8.0], [8.0]])
    """
    places, sizes = [], []
    for raw, stride in zip(raws, strides.float()):
        ny, nx = raw.shape[2:4]
        y, x = torch.meshgrid(
            *(torch.arange(n, device=raw.device, dtype=torch.float32) for n in (ny, nx)), indexing="ij"
        )
        places.append((torch.stack((x, y), -1).view(-1, 2) + 0.5) * stride)
        sizes.append(stride.expand(ny * nx, 1))
    return torch.cat(places), torch.cat(sizes)


def align(scores: Tensor, boxes: Tensor, truth: Tensor, centres: Tensor, strides: Tensor) -> Alignment:
    """Choose the cells of each target of an image, by score x IoU^6.

    A cell may learn a target if its centre lies in it, or if the target's centre lies in the cell. A cell
    that several targets choose learns the one that its box overlaps most.

    Args:
        scores: probability of each target's class at each cell (G, P).
        boxes: predicted boxes (P, 4), truth: targets (G, 4), both xywh in pixels.
        centres, strides: of the cells, (P, 2) and (P, 1).
    """
    reach = torch.maximum(truth[:, None, 2:4], strides) / 2  # (G, P, 2)
    near = ((centres - truth[:, None, 0:2]).abs() <= reach).all(2)
    overlap = box_iou(xywh2xyxy(truth), xywh2xyxy(boxes)).clamp_(0) * near
    aligned = scores**POWER_OF_SCORE * overlap**POWER_OF_OVERLAP
    best, chosen = aligned.topk(min(MOST_CELLS, aligned.shape[1]), 1)
    mask = torch.zeros_like(near).scatter_(1, chosen, best > 0)
    owner = (overlap * mask).argmax(0)
    cells = mask.any(0).nonzero()[:, 0]
    targets = owner[cells]
    kept = torch.zeros_like(aligned)
    kept[targets, cells] = aligned[targets, cells]
    peaks = kept.amax(1)
    overlaps = torch.where(kept > 0, overlap, 0.0).amax(1)
    quality = kept[targets, cells] / peaks[targets] * overlaps[targets]
    return Alignment(cells, targets, quality)
