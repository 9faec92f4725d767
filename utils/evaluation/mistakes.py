"""Keep what a detector did wrong in each image, by the confusion matrix."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from utils.evaluation.metrics import Pairing

RIGHT, FALSE_POSITIVE, MISSED, WRONG_CLASS = range(4)

KINDS = {FALSE_POSITIVE: "false positive", MISSED: "missed", WRONG_CLASS: "wrong class"}

SIZES = ("small", "medium", "large")
_SIZE_EDGES = (32**2, 96**2)  # COCO's, in square pixels of the file: small is below the first


@dataclass(frozen=True)
class ImageMistakes:
    """Hold one image with at least one mistake.

    Attributes:
        path: of its file.
        detections: (n, 6) xyxy in its pixels, confidence, class; those above the confidence.
        labels: (m, 5) class, xyxy.
        found: (n,) what each detection is: RIGHT, FALSE_POSITIVE or WRONG_CLASS.
        asked: (m,) what became of each label: RIGHT, MISSED or WRONG_CLASS.
    """

    path: str
    detections: np.ndarray
    labels: np.ndarray
    found: np.ndarray
    asked: np.ndarray

    @property
    def weight(self) -> float:
        """Return how bad it is: each wrong detection counts its confidence, each missed label 1."""
        return float(self.detections[self.found != RIGHT, 4].sum() + (self.asked == MISSED).sum())

    @property
    def cells(self) -> set[tuple[int, int]]:
        """Return the mistakes by kind and class; a wrong class is one of both classes."""
        classes = np.concatenate((self.detections[:, 5], self.labels[:, 0])).astype(int).tolist()
        kinds = np.concatenate((self.found, self.asked)).tolist()
        return {(kind, number) for kind, number in zip(kinds, classes) if kind != RIGHT}

    def counts(self) -> dict[int, int]:
        """Return how many mistakes there are of each kind."""
        missed = int((self.asked == MISSED).sum())
        false, wrong = (int((self.found == kind).sum()) for kind in (FALSE_POSITIVE, WRONG_CLASS))
        return {FALSE_POSITIVE: false, MISSED: missed, WRONG_CLASS: wrong}


@dataclass
class Mistakes:
    """Collect the mistakes of a validation, image by image.

    Attributes:
        images: those with mistakes.
        by_size: (3, 4) for small, medium and large boxes: labels that are RIGHT, false positives, MISSED
            and WRONG_CLASS labels.

    >>> none = np.zeros(0, int)
    >>> pairing = Pairing(np.zeros((0, 6)), np.array([[1.0, 0, 0, 40, 40]]), none, none)
    >>> mistakes = Mistakes()
    >>> mistakes.add("a.jpg", pairing)
    >>> mistakes.images[0].cells, mistakes.by_size[1].tolist()
    ({(2, 1)}, [0, 0, 1, 0])
    """

    images: list[ImageMistakes] = field(default_factory=list)
    by_size: np.ndarray = field(default_factory=lambda: np.zeros((len(SIZES), 4), dtype=np.int64))

    def add(self, path: str, pairing: Pairing) -> None:
        """Count one image."""
        detections, labels = pairing.detections, pairing.labels
        hits, matched = pairing.hits, pairing.matched
        found = np.full(len(detections), FALSE_POSITIVE)
        asked = np.full(len(labels), MISSED)
        same = detections[hits, 5] == labels[matched, 0]
        found[hits] = asked[matched] = np.where(same, RIGHT, WRONG_CLASS)
        false = detections[found == FALSE_POSITIVE, :4]
        cells = np.concatenate((_size_of(labels[:, 1:]) * 4 + asked, _size_of(false) * 4 + FALSE_POSITIVE))
        self.by_size += np.bincount(cells, minlength=self.by_size.size).reshape(self.by_size.shape)
        if (found != RIGHT).any() or (asked != RIGHT).any():
            self.images.append(ImageMistakes(path, detections, labels, found, asked))

    def recall(self) -> dict[str, dict[str, float]]:
        """Return the number of objects and their recall for each size that has any."""
        found = {}
        for size, (right, _, missed, wrong) in zip(SIZES, self.by_size.tolist()):
            if objects := right + missed + wrong:
                found[size] = {"objects": objects, "recall": right / objects}
        return found

    def worst(self, count: int) -> list[ImageMistakes]:
        """Return at most `count` images, the worst first.

        Half of them are the worst of all. The others are the worst of each kind and class in turn, so that
        a rare class is not lost behind a common one.
        """
        ranked = sorted(self.images, key=lambda image: (-image.weight, image.path))
        by_cell: dict[tuple[int, int], list[int]] = defaultdict(list)
        for rank, image in enumerate(ranked):
            for cell in image.cells:
                by_cell[cell].append(rank)
        chosen = set(range(min(len(ranked), -(-count // 2))))
        depth, deepest = 0, max(map(len, by_cell.values()), default=0)
        while len(chosen) < min(count, len(ranked)) and depth < deepest:
            turn = {ranks[depth] for _, ranks in sorted(by_cell.items()) if depth < len(ranks)}
            chosen |= set(sorted(turn - chosen)[: count - len(chosen)])
            depth += 1
        return [ranked[rank] for rank in sorted(chosen)]


def _size_of(boxes: np.ndarray) -> np.ndarray:
    """Return which of SIZES boxes (n, 4) xyxy are."""
    return np.digitize((boxes[:, 2:] - boxes[:, :2]).prod(1), _SIZE_EDGES)
