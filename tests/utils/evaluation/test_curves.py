"""Pictures of a validation: written for few and many classes, with names that matplotlib could misread."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from utils.evaluation.curves import plot_confusion, plot_curves
from utils.evaluation.metrics import ConfusionMatrix, ap_per_class


@pytest.mark.parametrize("nc", [1, 3, 60])
def test_four_curves_and_a_matrix(tmp_path, nc):
    rng = np.random.default_rng(0)
    cls = rng.integers(0, nc, 300)
    curves = ap_per_class(rng.random((300, 10)) < 0.6, rng.random(300), cls, rng.integers(0, nc, 200))
    names = {c: ["_hidden", "a$b", "plain", "$x$"][c % 4] for c in range(nc)}
    plot_curves(curves, names, tmp_path)
    confusion = ConfusionMatrix(nc)
    confusion.matrix += rng.integers(0, 9, confusion.matrix.shape)
    plot_confusion(confusion, names, tmp_path)
    written = {p.name for p in tmp_path.iterdir()}
    assert written == {
        "PR_curve.png",
        "F1_curve.png",
        "P_curve.png",
        "R_curve.png",
        "confusion_matrix.png",
    }
    for name in written:
        assert cv2.imread(str(tmp_path / name)).std() > 1


def test_an_empty_matrix_is_drawn_too(tmp_path):
    plot_confusion(ConfusionMatrix(2), {}, tmp_path)
    assert (tmp_path / "confusion_matrix.png").stat().st_size > 1000
