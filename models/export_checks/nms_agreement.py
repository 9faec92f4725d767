"""Compare the NMS inside a file with `non_max_suppression`.

Rounding alone may put a score on the other side of a threshold, or swap two nearly equal scores, after which
another box of a heap stays. So two lists are not compared. What the file finds is checked against the
network's candidates and against the rules of greedy NMS (`_compare_rows`): rounding is allowed, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.formats.base import Backend
from models.formats.nms_options import Suppression
from utils.boxes import box_iou
from utils.nms import MAX_CANDIDATES, NmsOptions


@dataclass
class Agreement:
    """Sum up all images and thresholds compared.

    Attributes:
        score, box: largest differences, of a confidence and of a corner in pixels, between what was found and
            the network's own candidate for it.
        detections: how many the file found.
        wrong: how many of them should not be there, and how many that should be are not.
    """

    score: float = 0.0
    box: float = 0.0
    detections: int = 0
    wrong: int = 0


def compare_detections(
    decode: Callable[[Tensor], Tensor],
    backend: Backend,
    batches: Sequence[Tensor],
    tolerance: tuple[float, float],
) -> Agreement:
    """Run the file and the network on images (N, ch, H, W) and compare.

    Where thresholds are inputs, several are tried.

    Args:
        decode: gives the network's boxes (N, boxes, 5 + nc), as `Backend.predict` does.
        backend: the file with NMS inside.
        tolerance: how far rounding may carry a score, and a corner in pixels.
    """
    if backend.nms is None:
        raise ValueError(f"{backend.path}: has no NMS inside to compare")
    total = Agreement()
    for images in batches:
        decoded = decode(images)
        for wanted in _thresholds(backend.nms):
            for rows, found in zip(decoded, backend.detections(images, wanted)):
                one = _compare_rows(rows, found, wanted, tolerance)
                total.score, total.box = max(total.score, one.score), max(total.box, one.box)
                total.detections += one.detections
                total.wrong += one.wrong
    return total


def _thresholds(nms: Suppression) -> Iterator[NmsOptions]:
    """Yield the thresholds to compare at.

    They are the file's own and, where they are inputs, others, up to one that nothing passes.
    """
    usual = nms.usual()
    yield usual
    if nms.inputs:
        yield replace(usual, conf_thres=0.05, iou_thres=0.6)
        yield replace(usual, conf_thres=0.5, iou_thres=0.3, max_det=max(nms.max_det // 10, 1))
        yield replace(usual, conf_thres=1.0)


def _compare_rows(
    rows: Tensor, found: Tensor, wanted: NmsOptions, tolerance: tuple[float, float]
) -> Agreement:
    """Compare decoded rows (boxes, 5 + nc) with the detections (n, 6) found of them.

    Each detection must be a candidate of the network; they must come best first, at most `max_det`; none may
    overlap another that it competes with above the threshold; and each candidate that is not among them must
    overlap one at least as good, or come after the last of a full list.
    """
    score, box = tolerance
    margin = box / 50  # of an IoU: what corners off by `box` do to a box of some tens of pixels
    everything = replace(
        wanted, conf_thres=max(wanted.conf_thres - score, 0.0), iou_thres=1.0, max_det=MAX_CANDIDATES
    )
    (candidates,) = everything.suppress(rows[None])
    result = Agreement(detections=len(found), wrong=max(len(found) - wanted.max_det, 0))
    explained = candidates[:, 4] <= wanted.conf_thres + score
    if len(found) >= wanted.max_det:
        explained |= candidates[:, 4] <= found[-1, 4] + score
    for row in found:
        corners = (candidates[:, :4] - row[:4]).abs().amax(1)
        scores = (candidates[:, 4] - row[4]).abs()
        same = (candidates[:, 5] == row[5]) & (corners <= box) & (scores <= score)
        if not same.any():
            result.wrong += 1
            continue
        nearest = torch.where(same, corners / box + scores / score, torch.inf).argmin()
        result.score = max(result.score, scores[nearest].item())
        result.box = max(result.box, corners[nearest].item())
        explained |= same
    overlap = _competing_iou(candidates, found, wanted.agnostic)
    better = found[None, :, 4] >= candidates[:, None, 4] - score
    explained |= ((overlap > wanted.iou_thres - margin) & better).any(1)
    crowded = _competing_iou(found, found, wanted.agnostic).triu(1) > wanted.iou_thres + margin
    disorder = found[1:, 4] > found[:-1, 4]
    result.wrong += int((~explained).sum() + crowded.any(0).sum() + disorder.sum())
    return result


def _competing_iou(a: Tensor, b: Tensor, agnostic: bool) -> Tensor:
    """Return IoU (n, m) of detections (n, 6) and (m, 6).

    It is -1 for pairs whose classes do not suppress each other.
    """
    overlap = box_iou(a[:, :4], b[:, :4])
    return overlap if agnostic else torch.where(a[:, None, 5] == b[None, :, 5], overlap, -1.0)
