"""Weights of images worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from utils.image_weights import class_weights, image_weights

LABELS = np.zeros((6, 5), np.float32)
LABELS[:, 0] = [0, 0, 0, 1, 0, 1]
OFFSETS = np.array([0, 3, 3, 5, 6])  # three of class 0; none; one of each; one of class 1


def test_rare_classes_weigh_more_and_average_one() -> None:
    weights = class_weights(LABELS[:, 0], 3)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[1] / weights[0] == pytest.approx(2.0) and weights[2] / weights[0] == pytest.approx(4.0)


def test_an_image_weighs_what_its_boxes_do() -> None:
    weights = image_weights(LABELS, OFFSETS, 2, None)
    assert weights == pytest.approx(np.array([3, 0, 3, 2]) * (2 / 3) / 2)


def test_classes_learnt_well_count_less() -> None:
    weights = image_weights(LABELS, OFFSETS, 2, np.array([0.5, 0.9]))
    assert weights == pytest.approx(np.array([3 * 0.25, 0, 0.25 + 2 * 0.01, 2 * 0.01]) / 3)


def test_when_all_is_learnt_images_are_equal() -> None:
    assert (image_weights(LABELS, OFFSETS, 2, np.ones(2)) == 1).all()
