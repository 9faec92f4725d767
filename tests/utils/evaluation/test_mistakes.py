"""Mistakes of a validation: the kinds of each box, sizes, and which images are shown."""

from __future__ import annotations

import numpy as np
import torch

from utils.evaluation.metrics import ConfusionMatrix
from utils.evaluation.mistakes import FALSE_POSITIVE, MISSED, RIGHT, WRONG_CLASS, Mistakes

LABELS = [[0.0, 0, 0, 20, 20], [1.0, 50, 0, 100, 50], [2.0, 0, 100, 100, 200], [0.0, 200, 200, 230, 230]]


def detections(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).reshape(-1, 6)


def collected(*images: tuple[str, torch.Tensor, list[list[float]]]) -> tuple[Mistakes, ConfusionMatrix]:
    mistakes, confusion = Mistakes(), ConfusionMatrix(3)
    for path, found, labels in images:
        mistakes.add(path, confusion.add(found, torch.tensor(labels).reshape(-1, 5)))
    return mistakes, confusion


def test_each_box_is_of_one_kind_as_in_the_confusion_matrix():
    found = detections(
        [0.0, 0, 20, 20, 0.9, 0],
        [50, 0, 100, 50, 0.8, 2],
        [300, 300, 310, 310, 0.7, 1],
        [0, 100, 100, 200, 0.2, 2],  # below the confidence: its label is missed
    )
    mistakes, confusion = collected(("a", found, LABELS))
    (image,) = mistakes.images
    assert image.found.tolist() == [RIGHT, WRONG_CLASS, FALSE_POSITIVE]
    assert image.asked.tolist() == [RIGHT, WRONG_CLASS, MISSED, MISSED]
    assert image.cells == {(WRONG_CLASS, 1), (WRONG_CLASS, 2), (FALSE_POSITIVE, 1), (MISSED, 2), (MISSED, 0)}
    assert np.isclose(image.weight, 0.8 + 0.7 + 2)
    assert image.counts() == {FALSE_POSITIVE: 1, MISSED: 2, WRONG_CLASS: 1}
    assert mistakes.by_size.tolist() == [[1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    matrix = confusion.matrix
    assert matrix[:-1, -1].sum() == 1 and matrix[-1].sum() == 2 and matrix[2, 1] == 1


def test_an_image_without_mistakes_is_counted_and_not_kept():
    right = detections([0.0, 0, 20, 20, 0.9, 0])
    mistakes, _ = collected(("a", right, LABELS[:1]), ("b", detections(), []))
    assert mistakes.images == [] and mistakes.by_size.sum() == 1 and mistakes.worst(5) == []


def test_a_rare_class_is_among_the_worst_images():
    """Twenty images miss class 0 twice; one misses class 2 once, and is the least bad of all."""
    common = [(f"{i:02d}", detections(), [LABELS[0], LABELS[3]]) for i in range(20)]
    mistakes, _ = collected(*common, ("rare", detections(), [LABELS[2]]))
    assert [image.path for image in mistakes.worst(4)] == ["00", "01", "02", "rare"]
    assert len(mistakes.worst(100)) == 21 and mistakes.worst(100)[-1].path == "rare"
