"""Draw pictures of a run: batches with boxes, labels, results.csv, image sizes.

Figures are matplotlib `Figure` objects on an Agg canvas of their own: no pyplot, no global state, no display,
safe in threads. The curves and the confusion matrix of a validation are in `utils.evaluation.curves`.

matplotlib is imported in the functions that draw with it: it takes half as long as torch, and every script
that may draw would start with it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.boxes import xywh2xyxy
from utils.errors import UserError
from utils.evaluation.metrics import smooth
from utils.files import atomic_write
from utils.results.drawing import class_label, colour, draw_detections, font_for, shown_text, write_text
from utils.results.result_files import write_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

GRID_IMAGES = 16  # at most, per picture
GRID_PIXELS = 1920  # longer side of a grid, at most
SHOWN_CONFIDENCE = 0.25  # less certain predictions are left out of grids
# Panels of results.png: columns of results.csv, losses of training above those of validation.
RESULT_COLUMNS = (1, 2, 3, 4, 5, 8, 9, 10, 6, 7)
MAX_DRAWN_BOXES = 1000


class LabelledSizes(Protocol):
    """State what `plot_labels` needs of an ImageSet."""

    all_labels: np.ndarray


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of `width` x `height` inches with a canvas of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 200) -> None:
    """Write a figure in the format of its suffix, whole or not at all."""
    from matplotlib.text import Text

    path = Path(path)
    ticks = (label for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels()))
    for text in (*figure.findobj(Text), *ticks):
        choose_font(text)
    atomic_write(path, lambda file: figure.savefig(file, dpi=dpi, format=path.suffix.lstrip(".")))


def rgb(class_index: int) -> tuple[float, float, float]:
    """Return a class's colour for matplotlib: RGB, 0..1."""
    blue, green, red = colour(class_index)
    return red / 255, green / 255, blue / 255


def plain_text(text: str) -> str:
    """Return text for matplotlib, which would make a formula between two dollar signs."""
    return shown_text(text).replace("$", r"\$")


def choose_font(text: Text) -> None:
    """Give a matplotlib text a font that has its letters.

    `save_figure` does so for all.
    """
    shown = text.get_text()
    if not shown.isascii() and (path := font_for(shown)):
        text.set_fontfamily([*text.get_fontfamily(), _family(path)])


@cache
def _family(path: str) -> str:
    """Make a font known to matplotlib, and return its family."""
    from matplotlib.font_manager import FontProperties, fontManager

    fontManager.addfont(path)
    return str(FontProperties(fname=path).get_name())


def targets_to_detections(targets: Tensor, count: int, width: int, height: int) -> list[np.ndarray]:
    """Return targets (M, 6) as detections (k, 6) per image, in pixels, confidence 1."""
    targets = targets.detach().cpu().float()
    boxes = xywh2xyxy(targets[:, 2:6]) * torch.tensor([width, height, width, height])
    rows = torch.cat((boxes, torch.ones(len(targets), 1), targets[:, 1:2]), 1).numpy()
    return [rows[(targets[:, 0] == i).numpy()] for i in range(count)]


def plot_images(
    images: Tensor,
    boxes: Tensor | Sequence[Tensor | np.ndarray],
    paths: Sequence[str] | None,
    file: str | Path,
    names: Mapping[int, str],
) -> None:
    """Draw a batch as one square grid and write it as JPEG.

    Args:
        images: (N, 3, H, W) or (N, 1, H, W), RGB, uint8 or float in 0..1.
        boxes: targets (M, 6) image, class, xywh normalised; or per image detections (n, 6) xyxy in pixels of
            `images`, confidence, class, of which those above 0.25 are drawn with their confidence.
        paths: file names to write on the tiles, or None.
    """
    count, _, height, width = images.shape
    is_truth = isinstance(boxes, Tensor)
    listed = targets_to_detections(boxes, count, width, height) if isinstance(boxes, Tensor) else boxes
    shown = min(count, GRID_IMAGES)
    side = math.ceil(math.sqrt(shown))
    scale = min(1.0, GRID_PIXELS / (side * max(height, width)))
    tile_h, tile_w = max(int(height * scale), 1), max(int(width * scale), 1)
    grid = np.full((side * tile_h, side * tile_w, 3), 255, np.uint8)
    for i in range(shown):
        tile = to_bgr(images[i])
        if scale < 1:
            tile = cv2.resize(tile, (tile_w, tile_h), interpolation=cv2.INTER_AREA)
        drawn = listed[i]
        found = np.array(drawn.detach().cpu() if isinstance(drawn, Tensor) else drawn, np.float32)
        found = found.reshape(-1, 6)
        if not is_truth:
            found = found[found[:, 4] > SHOWN_CONFIDENCE]
        found[:, :4] *= scale
        thickness = max(round((tile_h + tile_w) / 2 * 0.003), 2)
        tile = draw_detections(tile, found, names, line_thickness=thickness, hide_conf=is_truth)
        if paths is not None:
            write_text(tile, (5, tile_h - 4), Path(paths[i]).name[:40], (220, 220, 220), 12, anchor="ld")
        cv2.rectangle(tile, (0, 0), (tile_w - 1, tile_h - 1), (255, 255, 255), 1)
        y, x = i // side * tile_h, i % side * tile_w
        grid[y : y + tile_h, x : x + tile_w] = tile
    write_image(Path(file), grid)


def to_bgr(image: Tensor) -> np.ndarray:
    """Return an RGB image (3 or 1, H, W) as BGR uint8 (H, W, 3)."""
    image = image.detach().cpu()
    if image.is_floating_point():
        image = (image.float() * 255).round().clamp(0, 255).to(torch.uint8)
    array = image.permute(1, 2, 0).numpy()
    if array.shape[2] == 1:
        array = array.repeat(3, axis=2)
    return np.ascontiguousarray(array[:, :, 2::-1])


def plot_labels(images: LabelledSizes, names: Mapping[int, str], folder: str | Path) -> None:
    """Write labels.jpg and labels_correlogram.jpg: number, place and size of the labels."""
    labels = np.asarray(images.all_labels)
    cls, xywh = labels[:, 0].astype(int), labels[:, 1:5]
    figure = new_figure(8, 8)
    axes = figure.subplots(2, 2).ravel()
    nc = max(len(names), int(cls.max(initial=-1)) + 1, 1)
    axes[0].bar(np.arange(nc), np.bincount(cls, minlength=nc), color=[rgb(c) for c in range(nc)])
    axes[0].set_ylabel("instances")
    if nc <= 30:
        ticks = [plain_text(class_label(names, c)) for c in range(nc)]
        axes[0].set_xticks(range(nc), ticks, rotation=90, fontsize=8)
    else:
        axes[0].set_xlabel("classes")
    _draw_centred_boxes(axes[1], cls, xywh)
    _density(axes[2], xywh[:, 0], xywh[:, 1], "x", "y")
    _density(axes[3], xywh[:, 2], xywh[:, 3], "width", "height")
    save_figure(figure, Path(folder) / "labels.jpg")

    figure = new_figure(8, 8)
    grid = figure.subplots(4, 4)
    quantities = ("x", "y", "width", "height")
    for row in range(4):
        for column in range(4):
            axis = grid[row, column]
            if column > row:
                axis.axis("off")
            elif column == row:
                axis.hist(xywh[:, row], bins=50, range=(0, 1), color=rgb(1))
                axis.set_xlabel(quantities[row])
            else:
                _density(axis, xywh[:, column], xywh[:, row], quantities[column], quantities[row])
    save_figure(figure, Path(folder) / "labels_correlogram.jpg")


def _density(axis: Axes, x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> None:
    """Return the two-dimensional histogram of values in 0..1."""
    axis.hist2d(x, y, bins=50, range=((0, 1), (0, 1)), cmap="Blues")
    axis.set_xlabel(x_name)
    axis.set_ylabel(y_name)


def _draw_centred_boxes(axis: Axes, cls: np.ndarray, xywh: np.ndarray) -> None:
    """Draw the boxes with one common centre, to show the range of shapes.

    Of many, every k-th is drawn.
    """
    from matplotlib.patches import Rectangle

    step = max(len(xywh) // MAX_DRAWN_BOXES, 1)
    for c, (w, h) in zip(cls[::step], xywh[::step, 2:]):
        axis.add_patch(
            Rectangle((-w / 2, -h / 2), w, h, fill=False, linewidth=0.5, edgecolor=rgb(c), alpha=0.5)
        )
    axis.set(xlim=(-0.5, 0.5), ylim=(-0.5, 0.5), xticks=[], yticks=[], title="shapes")


def plot_results(path: str | Path) -> Path:
    """Write results.png beside a results.csv: ten panels over the epochs. Returns the picture's path.

    Raises:
        UserError: the CSV is missing, has no rows, or other columns.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the results.csv of a training run")
    with path.open(newline="", encoding="utf-8") as file:
        table = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    try:
        header, values = table[0], np.array(table[1:], dtype=float)
        names = [header[c] for c in RESULT_COLUMNS]
        epochs, columns = values[:, 0], [values[:, c] for c in RESULT_COLUMNS]
    except (ValueError, IndexError):
        raise UserError(f"{path}: is no table of epochs with the columns of results.csv") from None
    figure = new_figure(14, 6)
    for axis, name, column in zip(figure.subplots(2, 5).ravel(), names, columns):
        known = np.isfinite(column)  # an epoch that was not validated, or not yet, has no value
        axis.plot(epochs[known], column[known], marker=".", markersize=6, linewidth=1.5, color=rgb(1))
        if known.sum() > 4:
            axis.plot(epochs[known], smooth(column[known], 0.3), ":", linewidth=1.5, color=rgb(0))
        axis.set_title(plain_text(name), fontsize=11)
    picture = path.with_suffix(".png")
    save_figure(figure, picture)
    return picture


def plot_study(tables: Mapping[str, np.ndarray], sizes: Sequence[int], path: str | Path) -> None:
    """Write study.png: what each image size gives and costs.

    Args:
        tables: title -> (s, 10) rows of a study file: P, R, mAP50, mAP50-95, three losses, ms per image of
            pre-processing, inference and NMS.
        sizes: the s image sizes in pixels.
    """
    figure = new_figure(12, 7)
    axes = figure.subplots(2, 4).ravel()
    titles = ("P", "R", "mAP50", "mAP50-95", "pre-process (ms)", "inference (ms)", "NMS (ms)")
    for number, (title, table) in enumerate(tables.items()):
        for axis, name, column in zip(axes, titles, (0, 1, 2, 3, 7, 8, 9)):
            axis.plot(sizes, table[:, column], marker=".", color=rgb(number), label=plain_text(title))
            axis.set(title=name, xlabel="image size (px)")
        axes[7].plot(table[:, 8], table[:, 3], marker=".", color=rgb(number), label=plain_text(title))
    axes[7].set(title="mAP50-95 over inference (ms)", xlabel="ms per image")
    axes[7].legend(fontsize=7)
    save_figure(figure, path)
