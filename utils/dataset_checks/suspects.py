"""Find labels that are probably wrong, with a trained network.

Missing labels, wrong classes and shifted boxes are the kinds of Tkachenko et al. 2023, "ObjectLab: Automated
Diagnosis of Mislabeled Images in Object Detection Data"; spurious labels are the fourth kind of Schubert et
al. 2023, arXiv:2303.06999. The scores are our own. Each is in 0..1, from the network's confidence and from
how well it usually finds such objects:

* missing-label: a detection that no label overlaps; confidence x (1 - IoU with the nearest label);
* spurious-label: a label that no detection overlaps enough; how far the confidence there is below the usual
  one for labels of its class and size;
* wrong-class: a detection of another class on the label; its confidence x (1 - that of the label's class);
* shifted-box: a detection of the same class beside the label; confidence x the share that the IoU lacks of
  the usual one for labels of its class and size.

A network that was trained on the same labels has learnt some of their errors, so a short training, or a
network that never saw these images, finds more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from utils.boxes import box_iou, xyxy2xywhn
from utils.dataset.image_set import ImageSet
from utils.dataset.loader import build_loader
from utils.dataset_checks.findings import CheckedData, Finding, LabelRow, Mark, Section, TrainedNetwork
from utils.dataset_checks.label_files import label_line
from utils.evaluation.evaluate import EvalOptions, ImageResult, ValResult, evaluate
from utils.nms import NmsOptions

SUSPECTS = ("missing-label", "spurious-label", "wrong-class", "shifted-box")
LEAST_SCORE = 0.1
"""Less suspicious labels are not reported."""

_NMS = NmsOptions(conf_thres=0.01, iou_thres=0.6, max_det=300)
_SAME_PLACE = 0.5  # IoU from which a detection is on a label's object
_NEAR = 0.1  # IoU from which it may mean that object
_SEEN = 0.4  # IoU from which it shows that there is an object


@dataclass
class Evidence:
    """Hold what the network says about the labels of one image.

    Attributes:
        labels: (m, 5) class, xyxy in pixels.
        box: (m, 6) the detection that belongs to each label; zeros without one.
        iou: (m,) its overlap with the label.
        given: (m,) best confidence of the label's own class on it.
        unlabelled: (k, 6) detections that belong to no label.
        distance: (k,) 1 - their largest IoU with a label.
    """

    labels: np.ndarray
    box: np.ndarray
    iou: np.ndarray
    given: np.ndarray
    unlabelled: np.ndarray
    distance: np.ndarray


def weigh(detections: torch.Tensor, labels: torch.Tensor) -> Evidence:
    """Match detections (n, 6) and labels (m, 5) of one image by IoU.

    Of detections of several classes at one place the most confident one is matched, whatever the class of the
    label. A detection belongs to the label that it overlaps most, and a label has the detection with the
    largest confidence x IoU.
    """
    best = detections[torch.ops.torchvision.nms(detections[:, :4], detections[:, 4], _NMS.iou_thres)]
    m = len(labels)
    box, iou, given = np.zeros((m, 6), np.float32), np.zeros(m, np.float32), np.zeros(m, np.float32)
    if m == 0 or len(best) == 0:
        best = best[best[:, 4] >= LEAST_SCORE]
        return Evidence(labels.numpy(), box, iou, given, best.numpy(), np.ones(len(best), np.float32))
    overlap = box_iou(labels[:, 1:], best[:, :4])
    most, owner = overlap.max(0)
    mine = (torch.arange(m)[:, None] == owner[None]) & (overlap >= _NEAR)
    worth, choice = (overlap * best[None, :, 4] * mine).max(1)
    has = (worth > 0).numpy()
    box[has], iou[has] = best[choice].numpy()[has], overlap[torch.arange(m), choice].numpy()[has]
    taken = torch.zeros(len(best), dtype=torch.bool)
    taken[choice[worth > 0]] = True
    # What is not reported is not kept: there may be hundreds of weak detections in an image.
    free = ~taken & (most < _SAME_PLACE) & (best[:, 4] * (1 - most) >= LEAST_SCORE)
    on_it = box_iou(labels[:, 1:], detections[:, :4]) >= _SAME_PLACE
    own = on_it & (labels[:, :1] == detections[None, :, 5])
    given[:] = (own * detections[None, :, 4]).max(1).values.numpy()
    return Evidence(labels.numpy(), box, iou, given, best[free].numpy(), (1 - most[free]).numpy())


def check_suspects(data: CheckedData) -> Section:
    """Report the labels that are probably wrong, the most suspicious first."""
    section = Section("Labels that are probably wrong")
    if data.network is None:
        section.facts["not searched"] = "give a trained network with --weights"
        return section
    nc = len(data.config.label_names)
    if any((images.all_labels[:, 0] >= nc).any() for images in data.splits.values()):
        section.facts["not searched"] = "some labels have classes without a name; correct these first"
        return section
    for split, images in data.splits.items():
        if len(images):
            result, seen = _look(images, data.network, data.config.names)
            section.facts[f"mAP50 on {split}"] = round(result.metrics.map50, 3)
            section.findings += _label_findings(data, split, images, seen)
            section.findings += _missing_labels(data, split, images, seen)
    return section


def _look(
    images: ImageSet, network: TrainedNetwork, names: dict[int, str]
) -> tuple[ValResult, list[Evidence]]:
    """Run the network over a split; return metrics and evidence by image."""
    index = {images.path(i): i for i in range(len(images))}
    seen: dict[int, Evidence] = {}

    def note(image: ImageResult) -> None:
        seen[index[image.path]] = weigh(image.detections, image.labels)

    loader = build_loader(images, network.batches, workers=network.workers)
    try:
        result = evaluate(network.backend, loader, names, EvalOptions(_NMS), on_image=note)
    finally:
        loader.close()
    return result, [seen[i] for i in range(len(images))]


def suspicion(labels: np.ndarray, sides: np.ndarray, evidence: Evidence) -> np.ndarray:
    """Return how suspicious labels are, (m, 3): spurious, of a wrong class, shifted.

    Args:
        labels: (m, 5) of a whole split.
        sides: (m, 2) width and height in pixels, for comparing a label with others of its size.
        evidence: of these labels.
    """
    conf, iou = evidence.box[:, 4], evidence.iou
    same, seen = evidence.box[:, 5] == labels[:, 0], conf * (iou >= _SEEN)
    usual_conf, usual_iou = usual(np.stack((seen, iou), 1), labels[:, 0], sides.prod(1)).T
    spurious = np.clip(usual_conf - seen, 0, 1)
    wrong = conf * (1 - evidence.given) * (~same & (iou >= _SAME_PLACE))
    shifted = conf * same * np.clip(1 - iou / np.maximum(usual_iou, 1e-6), 0, 1)
    return np.stack((spurious, wrong, shifted), 1)


def usual(values: np.ndarray, classes: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Return the median of `values` (m, k) among similar labels.

    These are labels of the same class and a similar size: a class has up to five groups by area, of at least
    twenty labels each.

    >>> usual(np.array([[1.0], [2.0], [6.0], [5.0]]), np.array([0, 0, 0, 1]), np.ones(4)).ravel().tolist()
    [2.0, 2.0, 2.0, 5.0]
    """
    typical = np.empty_like(values)
    for number in np.unique(classes):
        rows = np.flatnonzero(classes == number)
        rows = rows[np.argsort(areas[rows], kind="stable")]
        for group in np.array_split(rows, min(max(len(rows) // 20, 1), 5)):
            typical[group] = np.median(values[group], axis=0)
    return typical


def _label_findings(
    data: CheckedData, split: str, images: ImageSet, seen: Sequence[Evidence]
) -> list[Finding]:
    """Return the suspicious labels of a split; a label may be so in several ways."""
    whole = Evidence(*(np.concatenate(parts) for parts in zip(*(vars(image).values() for image in seen))))
    owner = np.repeat(np.arange(len(images)), np.diff(images.offsets))
    sides = whole.labels[:, 3:] - whole.labels[:, 1:3]
    scores = suspicion(whole.labels, sides, whole)
    found = []
    for row, kind in np.argwhere(scores >= LEAST_SCORE).tolist():
        index = int(owner[row])
        view = _View(data, split, images, index)
        number = row - int(images.offsets[index])
        found.append(view.finding(SUSPECTS[1 + kind], float(scores[row, kind]), whole.box[row], number))
    return found


def _missing_labels(
    data: CheckedData, split: str, images: ImageSet, seen: Sequence[Evidence]
) -> list[Finding]:
    """Return the detections of a split that no label overlaps."""
    found = []
    for index, evidence in enumerate(seen):
        for box, distance in zip(evidence.unlabelled, evidence.distance.tolist()):
            view = _View(data, split, images, index)
            found.append(view.finding(SUSPECTS[0], float(box[4]) * distance, box))
    return found


@dataclass(frozen=True)
class _View:
    """Describe findings in one image."""

    data: CheckedData
    split: str
    images: ImageSet
    index: int

    def finding(self, kind: str, score: float, box: np.ndarray, number: int | None = None) -> Finding:
        """Return a finding about a detection (6,) and, unless a label is missing, label `number`."""
        path, names = self.images.path(self.index), self.data.config.label_names
        width, height = self.images.sizes[self.index].tolist()
        xywh = xyxy2xywhn(box[None, :4].astype(np.float64), width, height, clip=True)[0].tolist()
        seen: LabelRow = (float(box[5]), *xywh)
        conf, said = float(box[4]), names[int(box[5])]
        row = f"{int(box[5])} " + " ".join(f"{value:.6f}" for value in xywh)
        marks, line, labelled = [], 0, ""
        file = self.data.label_files[self.split][self.index]
        if number is not None:
            label = self.images.labels(self.index)[number].tolist()
            labelled = names[int(label[0])]
            marks.append(Mark(f"label {labelled}", tuple(label)))
            line = label_line(self.data, file, number)
        if conf > 0:
            marks.append(Mark(f"model {said} {conf:.2f}", seen))
        value, remedy = _words(kind, labelled, said, conf, row)
        return Finding(
            kind,
            file,
            value,
            remedy,
            line,
            score=score,
            split=self.split,
            row="" if kind == "spurious-label" else row,
            images=(path,),
            marks=tuple(marks),
        )


def _words(kind: str, labelled: str, said: str, conf: float, row: str) -> tuple[str, str]:
    """Return the value and the remedy of a finding."""
    if kind == "missing-label":
        return f"the model finds {said!r} ({conf:.2f}), no label", f"if it is there, add the line '{row}'"
    if kind == "spurious-label":
        return f"labelled {labelled!r}, the model finds at most {conf:.2f}", "if nothing is there, delete it"
    if kind == "wrong-class":
        return f"labelled {labelled!r}, the model says {said!r} ({conf:.2f})", f"if so, write '{row}'"
    return f"{labelled!r} is beside the model's box ({conf:.2f})", f"if the model is right, write '{row}'"
