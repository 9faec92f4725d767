"""Compute precision, recall, average precision and the confusion matrix, by YOLOv5's definitions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.boxes import box_iou
from utils.device import versions
from utils.files import JsonObject, atomic_text

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # the ten of mAP50-95; the first is mAP50's
CONFIDENCES = np.linspace(0, 1, 1000)  # where the P, R and F1 curves are sampled
_EPS = 1e-16


def match_predictions(detections: Tensor, labels: Tensor) -> Tensor:
    """Return which detections of one image are right, at each of the ten IoU thresholds.

    Args:
        detections: (n, 6) xyxy in native pixels, confidence, class; sorted by confidence, best first.
        labels: (m, 5) class, xyxy in native pixels.

    Returns:
        bool (n, 10). A detection is matched with the label of its class that it overlaps most; of the
        detections that chose one label and reach the threshold, the first (the most confident) is right.

    >>> detections = torch.tensor([[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 8, 0.8, 0]])  # IoU 1.0 and 0.8
    >>> match_predictions(detections, torch.tensor([[0.0, 0, 0, 10, 10]])).sum(1).tolist()
    [10, 0]
    """
    n, m, thresholds = len(detections), len(labels), torch.from_numpy(IOU_THRESHOLDS).float()
    if n == 0 or m == 0:
        return torch.zeros(n, len(thresholds), dtype=torch.bool, device=detections.device)
    iou = box_iou(detections[:, :4], labels[:, 1:])
    iou = iou * (detections[:, 5:6] == labels[None, :, 0])
    best_iou, best_label = iou.max(1)
    reached = best_iou[:, None] >= thresholds.to(iou.device)
    order = torch.arange(n, device=iou.device)[:, None].expand_as(reached)
    choice = best_label[:, None].expand_as(reached)
    first = torch.full((m, len(thresholds)), n, device=iou.device)
    first = first.scatter_reduce(0, choice, order.where(reached, torch.full_like(order, n)), "amin")
    return reached & (first.gather(0, choice) == order)


def average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Return the area under the envelope of a precision-recall curve, from 101 points.

    `recall` and `precision` (n,) run from the most to the least confident detection. The curve is closed with
    (0, 1) and (1, 0), so a perfect predictor reaches 0.995: the last of the 101 points falls to zero.

    >>> round(average_precision(np.array([0.5, 1.0]), np.array([1.0, 1.0])), 3)
    0.995
    """
    r = np.concatenate(([0.0], recall, [1.0]))
    p = np.concatenate(([1.0], precision, [0.0]))
    envelope = np.maximum.accumulate(p[::-1])[::-1]
    x = np.linspace(0, 1, 101)
    y = np.interp(x, r, envelope)
    return float((y[1:] + y[:-1]).sum() / 2 / (len(x) - 1))


def smooth(y: np.ndarray, fraction: float = 0.05) -> np.ndarray:
    """Return the moving average of `y` (n,) over an odd window.

    The window is about `fraction` of its length.

    Beyond the ends the first and the last value are repeated.

    >>> smooth(np.array([0.0, 3.0, 0.0, 0.0, 0.0]), fraction=0.5).tolist()
    [1.0, 1.0, 1.0, 0.0, 0.0]
    """
    half = round(len(y) * fraction) // 2
    padded = np.pad(y, half, mode="edge")
    return np.convolve(padded, np.full(2 * half + 1, 1 / (2 * half + 1)), mode="valid")


@dataclass
class Curves:
    """Hold the curves of each class with ground truth.

    Row k belongs to class `classes[k]`, columns to `CONFIDENCES`. `precision_recall` alone is sampled over
    recall: 1000 points in 0..1, at IoU 0.5.
    """

    classes: np.ndarray  # (k,) int
    precision: np.ndarray  # (k, 1000)
    recall: np.ndarray  # (k, 1000)
    f1: np.ndarray  # (k, 1000)
    precision_recall: np.ndarray  # (k, 1000)
    ap: np.ndarray  # (k, 10)
    best: int  # column where the smoothed mean F1 is highest


@dataclass
class Metrics:
    """Hold the metrics of a validation; means are over the classes that have ground truth."""

    precision: float = 0.0
    recall: float = 0.0
    map50: float = 0.0
    map: float = 0.0
    per_class: list[JsonObject] = field(default_factory=list)
    confidence: float = 0.0  # the confidence that precision and recall are read at
    curves: Curves | None = None

    def maps(self, nc: int) -> np.ndarray:
        """Return mAP50-95 of every class (nc,); the mean for a class without ground truth."""
        maps = np.full(nc, self.map)
        for row in self.per_class:
            maps[row["class"]] = row["map"]
        return maps

    def as_dict(self) -> JsonObject:
        """Return plain values for metrics.json."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "map50": self.map50,
            "map": self.map,
            "confidence": self.confidence,
            "per_class": self.per_class,
        }


def fitness(metrics: Metrics) -> float:
    """Return the figure that picks the best checkpoint: 0.1 mAP50 + 0.9 mAP50-95.

    >>> round(fitness(Metrics(map50=0.8, map=0.5)), 3)
    0.53
    """
    return 0.1 * metrics.map50 + 0.9 * metrics.map


def ap_per_class(
    correct: np.ndarray, conf: np.ndarray, pred_cls: np.ndarray, target_cls: np.ndarray
) -> Curves | None:
    """Compute the curves and the AP of a whole set.

    Args:
        correct: bool (n, 10), from `match_predictions`.
        conf, pred_cls: (n,) of the same detections.
        target_cls: (m,) class of every label.

    Returns:
        the curves, or None when there is no label at all.

    >>> curves = ap_per_class(np.ones((1, 10), bool), np.array([0.9]), np.array([0.0]), np.array([0.0, 1.0]))
    >>> curves.classes.tolist(), curves.ap[:, 0].round(3).tolist()
    ([0, 1], [0.995, 0.0])
    """
    order = np.argsort(-conf, kind="stable")
    correct, conf, pred_cls = correct[order], conf[order], pred_cls[order]
    classes, counts = np.unique(target_cls, return_counts=True)
    if len(classes) == 0:
        return None
    k = len(classes)
    precision, recall, pr = (np.zeros((k, len(CONFIDENCES))) for _ in range(3))
    ap = np.zeros((k, correct.shape[1]))
    for row, (cls, count) in enumerate(zip(classes, counts)):
        mine = pred_cls == cls
        if not mine.any():
            continue
        tp = correct[mine].cumsum(0)
        r = tp / (count + _EPS)
        p = tp / np.arange(1, len(tp) + 1)[:, None]
        # np.interp wants rising abscissae; beyond the most confident detection recall is 0, precision 1.
        recall[row] = np.interp(-CONFIDENCES, -conf[mine], r[:, 0], left=0)
        precision[row] = np.interp(-CONFIDENCES, -conf[mine], p[:, 0], left=1)
        ap[row] = [average_precision(r[:, j], p[:, j]) for j in range(correct.shape[1])]
        closed_r = np.concatenate(([0.0], r[:, 0], [1.0]))
        closed_p = np.concatenate(([1.0], p[:, 0], [0.0]))
        envelope = np.maximum.accumulate(closed_p[::-1])[::-1]
        pr[row] = np.interp(CONFIDENCES, closed_r, envelope)
    f1 = 2 * precision * recall / (precision + recall + _EPS)
    best = int(smooth(f1.mean(0), 0.1).argmax())
    return Curves(classes.astype(int), precision, recall, f1, pr, ap, best)


class DetectionStats:
    """Collect the matches of a set image by image, and compute `Metrics` from them.

    >>> stats = DetectionStats()
    >>> stats.add(torch.tensor([[0, 0, 10, 10, 0.9, 0]]), torch.tensor([[0.0, 0, 0, 10, 10]]))
    >>> round(stats.compute({0: "cat"}).map50, 3), stats.instances
    (0.995, 1)
    """

    def __init__(self) -> None:
        self._correct: list[np.ndarray] = []
        self._conf: list[np.ndarray] = []
        self._pred_cls: list[np.ndarray] = []
        self._target_cls: list[np.ndarray] = []
        self.seen = 0

    def add(self, detections: Tensor, labels: Tensor) -> None:
        """Count one image: detections (n, 6) and labels (m, 5) as in `match_predictions`, or none."""
        self.seen += 1
        self._correct.append(match_predictions(detections, labels).cpu().numpy())
        self._conf.append(detections[:, 4].float().cpu().numpy())
        self._pred_cls.append(detections[:, 5].float().cpu().numpy())
        self._target_cls.append(labels[:, 0].float().cpu().numpy())

    @property
    def instances(self) -> int:
        """Return the number of labels counted so far."""
        return sum(len(t) for t in self._target_cls)

    def compute(self, names: dict[int, str]) -> Metrics:
        """Return the metrics of everything added; zeros when nothing was right or labelled."""
        if not self.seen:
            return Metrics()
        curves = ap_per_class(
            *(np.concatenate(x) for x in (self._correct, self._conf, self._pred_cls, self._target_cls))
        )
        if curves is None:
            return Metrics()
        images: dict[int, int] = {}
        instances: dict[int, int] = {}
        for target in self._target_cls:
            for cls, count in zip(*np.unique(target.astype(int), return_counts=True)):
                images[int(cls)] = images.get(int(cls), 0) + 1
                instances[int(cls)] = instances.get(int(cls), 0) + int(count)
        best = curves.best
        rows = [
            {
                "class": int(cls),
                "name": names.get(int(cls), f"class{cls}"),
                "images": images[int(cls)],
                "instances": instances[int(cls)],
                "precision": float(curves.precision[row, best]),
                "recall": float(curves.recall[row, best]),
                "map50": float(curves.ap[row, 0]),
                "map": float(curves.ap[row].mean()),
            }
            for row, cls in enumerate(curves.classes)
        ]
        return Metrics(
            precision=float(curves.precision[:, best].mean()),
            recall=float(curves.recall[:, best].mean()),
            map50=float(curves.ap[:, 0].mean()),
            map=float(curves.ap.mean()),
            per_class=rows,
            confidence=float(CONFIDENCES[best]),
            curves=curves,
        )


@dataclass(frozen=True)
class Pairing:
    """Hold which detections of one image belong to which labels, whatever their classes.

    Attributes:
        detections: (n, 6) xyxy, confidence, class; those above the confidence of the confusion matrix.
        labels: (m, 5) class, xyxy.
        hits, matched: (k,) indices of the detections and of the labels that form pairs.
    """

    detections: np.ndarray
    labels: np.ndarray
    hits: np.ndarray
    matched: np.ndarray


class ConfusionMatrix:
    """Count pairs (nc + 1, nc + 1): rows predicted, columns true, last background.

    Boxes are paired whatever their class: a pair needs an IoU above `iou_thres`, each detection takes its
    best label, then each label its best detection. An unmatched label counts in the background row. An
    unmatched detection always counts in the background column, also in images where nothing matched or
    nothing is labelled (YOLOv5 leaves those out, which hides false positives). So each class's column sums to
    its labels and its row to its detections above `conf`.

    >>> confusion = ConfusionMatrix(nc=1)
    >>> _ = confusion.add(torch.tensor([[0, 0, 10, 10, 0.9, 0]]), torch.tensor([[0.0, 0, 0, 10, 10]]))
    >>> _ = confusion.add(torch.tensor([[0, 0, 10, 10, 0.9, 0]]), torch.zeros(0, 5))
    >>> confusion.matrix.tolist()
    [[1, 1], [0, 0]]
    """

    def __init__(self, nc: int, conf: float = 0.25, iou_thres: float = 0.45) -> None:
        self.nc, self.conf, self.iou_thres = nc, conf, iou_thres
        self.matrix = np.zeros((nc + 1, nc + 1), dtype=np.int64)

    def add(self, detections: Tensor, labels: Tensor) -> Pairing:
        """Count one image: detections (n, 6) xyxy, confidence, class; labels (m, 5) class, xyxy.

        Returns:
            the pairs that were counted.
        """
        pairing = self._pair(detections[detections[:, 4] > self.conf], labels)
        hits, matched = pairing.hits, pairing.matched
        predicted = pairing.detections[:, 5].astype(np.int64)
        true = pairing.labels[:, 0].astype(np.int64)
        missed, false = np.delete(true, matched), np.delete(predicted, hits)
        rows = np.concatenate((predicted[hits], false, np.full(len(missed), self.nc)))
        columns = np.concatenate((true[matched], np.full(len(false), self.nc), missed))
        self.matrix += np.bincount(rows * (self.nc + 1) + columns, minlength=self.matrix.size).reshape(
            self.matrix.shape
        )
        return pairing

    def _pair(self, detections: Tensor, labels: Tensor) -> Pairing:
        """Return the pairs of detections and labels."""
        found, true = detections.float().cpu().numpy(), labels.float().cpu().numpy()
        if len(detections) == 0 or len(labels) == 0:
            return Pairing(found, true, np.zeros(0, dtype=int), np.zeros(0, dtype=int))
        best_iou, best_label = (x.cpu().numpy() for x in box_iou(labels[:, 1:], detections[:, :4]).max(0))
        order = np.argsort(-best_iou, kind="stable")
        order = order[best_iou[order] > self.iou_thres]
        matched, first = np.unique(best_label[order], return_index=True)
        return Pairing(found, true, order[first], matched)


def save_metrics(
    path: str | Path,
    metrics: Metrics,
    *,
    parameters: int | None,
    gflops: float | None,
    speed: dict[str, float],
    imgsz: int,
    nc: int,
    seed: int | None,
    **extra: object,
) -> dict[str, object]:
    """Write metrics.json, whole or not at all, and return its content.

    `speed` holds ms per image of each stage; `ms_per_image` is their sum. `parameters` and `gflops` are None
    for a format that does not tell, `gflops` also for a network that cannot be counted.
    """
    report = {
        **metrics.as_dict(),
        "parameters": parameters,
        "gflops": gflops,
        "ms_per_image": sum(speed.values()),
        "speed": speed,
        "imgsz": imgsz,
        "nc": nc,
        "seed": seed,
        "versions": versions(),
        **extra,
    }
    atomic_text(path, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report
