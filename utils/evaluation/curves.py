"""Draw the curves and the confusion matrix of a validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.evaluation.metrics import CONFIDENCES, ConfusionMatrix, Curves, smooth
from utils.evaluation.plots import new_figure, plain_text, rgb, save_figure
from utils.results.drawing import class_label

if TYPE_CHECKING:  # see utils.evaluation.plots
    from matplotlib.figure import Figure

MAX_LEGEND = 20  # beyond that many classes only the mean is named
_MEAN = rgb(4)


def plot_curves(curves: Curves, names: Mapping[int, str], folder: str | Path) -> None:
    """Write PR_curve.png, F1_curve.png, P_curve.png and R_curve.png."""
    folder = Path(folder)
    figure = _chart("Recall", "Precision", "Precision-recall at IoU 0.5")
    labels = [_name(names, c, f" {ap:.3f}") for c, ap in zip(curves.classes, curves.ap[:, 0])]
    mean = f"all classes {curves.ap[:, 0].mean():.3f} mAP50"
    _draw(figure, curves.precision_recall, curves.classes, labels, curves.precision_recall.mean(0), mean)
    save_figure(figure, folder / "PR_curve.png")
    for short, title, values in (
        ("F1", "F1", curves.f1),
        ("P", "Precision", curves.precision),
        ("R", "Recall", curves.recall),
    ):
        figure = _chart("Confidence", title, f"{title} over confidence")
        line = smooth(values.mean(0), 0.05)
        mean = f"all classes {line.max():.2f} at {CONFIDENCES[line.argmax()]:.3f}"
        _draw(figure, values, curves.classes, [_name(names, c) for c in curves.classes], line, mean)
        save_figure(figure, folder / f"{short}_curve.png")


def _name(names: Mapping[int, str], cls: int, end: str = "") -> str:
    """Return a class name for a legend, which hides those that begin with `_`."""
    return plain_text(class_label(names, int(cls), end)).lstrip("_") or f"class{cls}"


def _chart(x: str, y: str, title: str) -> Figure:
    """Return an empty chart of the unit square."""
    figure = new_figure(9, 6)
    figure.subplots().set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1), title=title)
    return figure


def _draw(
    figure: Figure,
    values: np.ndarray,
    classes: np.ndarray,
    labels: list[str],
    mean: np.ndarray,
    mean_label: str,
) -> None:
    """Draw a thin line per class (k, 1000) and the mean (1000,)."""
    axis = figure.axes[0]
    few = len(classes) <= MAX_LEGEND
    for line, cls, label in zip(values, classes, labels):
        axis.plot(
            CONFIDENCES, line, linewidth=1, color=rgb(cls) if few else "grey", label=label if few else None
        )
    axis.plot(CONFIDENCES, mean, linewidth=3, color=_MEAN, label=mean_label)
    figure.legend(loc="outside right upper", fontsize=8)


def plot_confusion(confusion: ConfusionMatrix, names: Mapping[int, str], folder: str | Path) -> None:
    """Write confusion_matrix.png.

    Each column is divided by its sum; cells under 0.005 stay blank.
    """
    matrix = confusion.matrix / np.maximum(confusion.matrix.sum(0, keepdims=True), 1e-9)
    shown = np.where(matrix < 0.005, np.nan, matrix)
    size = len(matrix)
    side = float(np.clip(0.35 * size + 3, 7, 24))
    figure = new_figure(side * 1.2, side)
    axis = figure.subplots()
    picture = axis.imshow(shown, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, shrink=0.8)
    ticks = [_name(names, c) for c in range(size - 1)] + ["background"]
    if size <= 100:
        font = 9 if size <= 40 else 6
        axis.set_xticks(range(size), ticks, rotation=90, fontsize=font)
        axis.set_yticks(range(size), ticks, fontsize=font)
    if size <= 31:
        for row, column in np.argwhere(~np.isnan(shown)):
            ink = "white" if shown[row, column] > 0.5 else "black"
            axis.text(
                column, row, f"{shown[row, column]:.2f}", ha="center", va="center", color=ink, fontsize=8
            )
    axis.set(xlabel="True", ylabel="Predicted", title="Confusion matrix, columns normalised")
    save_figure(figure, Path(folder) / "confusion_matrix.png", dpi=150)
