"""Non-maximum suppression: decoded predictions of a network to detections."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from utils.boxes import xywh2xyxy
from utils.errors import UserError


def _load_operator() -> None:
    """Load torchvision's compiled operators, not its modules, whose import takes as long as torch's."""
    found = importlib.util.find_spec("torchvision")
    libraries = Path(found.origin).parent.glob("_C*") if found and found.origin else ()
    for library in libraries:
        with contextlib.suppress(OSError):
            torch.ops.load_library(library)
            return
    import torchvision.ops  # noqa: F401 here: another layout, or a pair that does not fit, which it explains


_load_operator()

MAX_CANDIDATES = 30_000  # best-scored candidates per image that enter NMS, as YOLOv5 does


def _candidates(rows: Tensor, conf_thres: float, multi_label: bool, keep_class: Tensor | None) -> Tensor:
    """Return the candidates (n, 6) of one image: xyxy, confidence, class.

    The best come first, and there are `MAX_CANDIDATES` at most.
    """
    rows = rows[rows[:, :4].isfinite().all(1)]
    scores = rows[:, 5:] * rows[:, 4:5]
    if multi_label:
        above = scores > conf_thres
        if keep_class is not None:
            above &= keep_class
        index, cls = above.nonzero(as_tuple=True)
        conf = scores[index, cls]
    else:
        conf, cls = scores.max(1)
        above = conf > conf_thres
        if keep_class is not None:
            above &= keep_class[cls]
        index = above.nonzero(as_tuple=True)[0]
        conf, cls = conf[index], cls[index]
    if conf.numel() > MAX_CANDIDATES:
        conf, best = conf.topk(MAX_CANDIDATES)
    else:
        conf, best = conf.sort(descending=True, stable=True)
    boxes = xywh2xyxy(rows[index[best], :4])
    return torch.cat((boxes, conf[:, None], cls[best, None].to(boxes.dtype)), 1)


def suppress_overlaps(found: Tensor, iou_thres: float, agnostic: bool, max_det: int) -> Tensor:
    """Return the first `max_det` candidates (n, 6), sorted by confidence, that greedy NMS keeps.

    Whether a box stays depends on better-scored boxes only, so the first `max_det` survivors of a prefix are
    those of the whole: prefixes grow until they hold enough. That is exact, and keeps early epochs, where
    tens of thousands of candidates pass a threshold of 0.001, from costing seconds. Classes are kept apart by
    an offset, in float64 because 7680 x 79 leaves float32 only 1/16 pixel.
    """
    boxes = found[:, :4].double()
    if not agnostic:
        extent = boxes.max() - boxes.min() + 1
        boxes = boxes + found[:, 5:6].double() * extent
    size = 4 * max_det
    while True:
        kept = torch.ops.torchvision.nms(boxes[:size], found[:size, 4].double(), iou_thres)
        if len(kept) >= max_det or size >= len(found):
            return found[kept[:max_det]]
        size *= 4


def _check_thresholds(conf_thres: float, iou_thres: float, max_det: int) -> None:
    """Refuse thresholds outside 0..1 and a `max_det` below 1."""
    for name, value in (("confidence", conf_thres), ("IoU", iou_thres)):
        if not 0 <= value <= 1:
            raise UserError(
                f"The {name} threshold of NMS must lie in 0..1, not {value}; give a value such as 0.25."
            )
    if max_det < 1:
        raise UserError(f"max-det must be at least 1, not {max_det}.")


@torch.no_grad()
def non_max_suppression(
    prediction: Tensor,
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    *,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_det: int = 300,
    labels: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Return the detections of each image of a batch, without a time limit.

    Args:
        prediction: (N, boxes, 5 + nc): xywh in pixels, objectness, class probabilities.
        conf_thres: candidates need objectness, and objectness x class probability, above it.
        iou_thres: of two boxes that overlap more, the less confident one goes.
        classes: keep these only.
        agnostic: boxes suppress each other across classes too.
        multi_label: one box may be several classes (validation); otherwise its best class.
        max_det: most detections of an image.
        labels: per image (m, 5) class + xywh in pixels, added with confidence 1 (hybrid labelling).

    Returns:
        Per image (n, 6) float32, xyxy in pixels, confidence, class; best first; n <= max_det.

    Raises:
        UserError: a threshold outside 0..1, or `max_det` below 1.

    >>> boxes = [[50.0, 50, 20, 20, 0.9, 1.0], [51.0, 50, 20, 20, 0.8, 1.0], [90.0, 50, 20, 20, 0.5, 1.0]]
    >>> non_max_suppression(torch.tensor([boxes]))[0]
    tensor([[ 40.0000,  40.0000,  60.0000,  60.0000,   0.9000,   0.0000],
            [ 80.0000,  40.0000, 100.0000,  60.0000,   0.5000,   0.0000]])
    """
    _check_thresholds(conf_thres, iou_thres, max_det)
    home = prediction.device
    if home.type == "mps":  # torchvision has no NMS there
        prediction = prediction.cpu()
    nc = prediction.shape[2] - 5
    multi_label &= nc > 1
    keep_class = None
    if classes is not None:
        keep_class = torch.zeros(nc, dtype=torch.bool, device=prediction.device)
        keep_class[[c for c in classes if 0 <= c < nc]] = True

    output = []
    for i, rows in enumerate(prediction):
        rows = rows[rows[:, 4] > conf_thres].float()
        if len(labels) and len(labels[i]):
            truth = labels[i].to(rows.device)
            extra = rows.new_zeros(len(truth), rows.shape[1])
            extra[:, :4] = truth[:, 1:5]
            extra[:, 4] = 1
            extra[torch.arange(len(truth)), 5 + truth[:, 0].long()] = 1
            rows = torch.cat((rows, extra))
        found = _candidates(rows, conf_thres, multi_label, keep_class)
        if len(found):
            found = suppress_overlaps(found, iou_thres, agnostic, max_det)
        output.append(found.to(home))
    return output


@dataclass(frozen=True)
class NmsOptions:
    """Hold the options of `non_max_suppression`; the fields are its arguments.

    >>> NmsOptions(conf_thres=0.5).suppress(torch.zeros(2, 10, 7))[1].shape
    torch.Size([0, 6])
    """

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    classes: Sequence[int] | None = None
    agnostic: bool = False
    multi_label: bool = False
    max_det: int = 300

    def suppress(self, prediction: Tensor, labels: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return the detections (n, 6) of each image, as `non_max_suppression` does."""
        return non_max_suppression(
            prediction,
            self.conf_thres,
            self.iou_thres,
            classes=self.classes,
            agnostic=self.agnostic,
            multi_label=self.multi_label,
            max_det=self.max_det,
            labels=labels,
        )
