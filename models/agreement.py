"""Whether a file with NMS inside finds what the PyTorch model finds with `non_max_suppression`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.backends import Backend
from models.nms_inside import Suppression
from models.yolo import DetectionModel
from utils.boxes import NmsOptions

# What rounding moves scores and IoUs by. A candidate this near to a threshold may fall on either side of it.
MARGIN = 1e-4


@dataclass
class Agreement:
    """Over all images and thresholds compared.

    Attributes:
        score, box: largest differences of a confidence, and of a corner in pixels, among detections that have
            a counterpart.
        detections: how many PyTorch found.
        unmatched: how many, on either side, have no counterpart.
    """

    score: float = 0.0
    box: float = 0.0
    detections: int = 0
    unmatched: int = 0


def compare_detections(
    reference: DetectionModel,
    backend: Backend,
    batches: Sequence[Tensor],
    tolerance: tuple[float, float],
) -> Agreement:
    """Run the file and the model on images (N, ch, H, W), at several thresholds where these are inputs.

    Counterparts have the same class and differ by no more than `tolerance`: (score, corner in pixels).
    """
    total = Agreement()
    for images in batches:
        with torch.no_grad():
            decoded = reference(images)[0]
        for wanted in _wishes(backend.nms):
            for rows, found in zip(decoded, backend.detections(images, wanted)):
                closest = _closest(rows[None], found, wanted, tolerance)
                total.score = max(total.score, closest.score)
                total.box = max(total.box, closest.box)
                total.detections += closest.detections
                total.unmatched += closest.unmatched
    return total


def _wishes(nms: Suppression) -> Iterator[NmsOptions]:
    """The thresholds to compare at: the file's own and, where they are inputs, others, up to one that nothing
    passes."""
    usual = nms.usual()
    yield usual
    if nms.inputs:
        yield replace(usual, conf_thres=0.05, iou_thres=0.6)
        yield replace(usual, conf_thres=0.5, iou_thres=0.3, max_det=max(nms.max_det // 10, 1))
        yield replace(usual, conf_thres=1.0)


def _closest(rows: Tensor, found: Tensor, wanted: NmsOptions, tolerance: tuple[float, float]) -> Agreement:
    """Of the model's detections at the thresholds and a margin beside them, those nearest to the found."""
    best: Agreement | None = None
    for conf, iou in itertools.product((0.0, MARGIN, -MARGIN), repeat=2):
        conf = min(max(wanted.conf_thres + conf, 0.0), 1.0)
        iou = min(max(wanted.iou_thres + iou, 0.0), 1.0)
        (truth,) = replace(wanted, conf_thres=conf, iou_thres=iou).suppress(rows)
        agreement = _match(truth, found, wanted.max_det, tolerance)
        if best is None or agreement.unmatched < best.unmatched:
            best = agreement
        if not best.unmatched:
            break
    return best


def _match(truth: Tensor, found: Tensor, max_det: int, tolerance: tuple[float, float]) -> Agreement:
    """Pair detections (n, 6) with (m, 6), whatever the order of nearly equal scores."""
    result = Agreement(detections=len(truth))
    free = torch.ones(len(found), dtype=torch.bool, device=found.device)
    alone = []
    for row in truth:
        score = (found[:, 4] - row[4]).abs()
        box = (found[:, :4] - row[:4]).abs().amax(1)
        fits = free & (found[:, 5] == row[5]) & (score <= tolerance[0]) & (box <= tolerance[1])
        if not fits.any():
            alone.append(row[4].item())
            continue
        nearest = torch.where(fits, box / tolerance[1] + score / tolerance[0], torch.inf).argmin()
        free[nearest] = False
        result.score = max(result.score, score[nearest].item())
        result.box = max(result.box, box[nearest].item())
    alone += found[free, 4].tolist()
    if len(truth) == len(found) == max_det:  # nearly equal scores may change places across the last row
        last = max(truth[-1, 4].item(), found[-1, 4].item()) + tolerance[0]
        alone = [score for score in alone if score > last]
    result.unmatched = len(alone)
    return result
