"""Pictures of a run: grids of images with boxes, labels of a set, results.csv, image sizes, several nets.

Figures are matplotlib `Figure` objects on an Agg canvas of their own: no pyplot, no global state, no display,
safe in threads. The curves and the confusion matrix of a validation are in `utils.curves`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter
from matplotlib.transforms import Bbox
from torch import Tensor

from utils.boxes import xywh2xyxy
from utils.comparison import Group
from utils.drawing import colour, draw_detections
from utils.errors import UserError
from utils.files import atomic_write
from utils.metrics import smooth

GRID_IMAGES = 16  # at most, per picture
GRID_PIXELS = 1920  # longer side of a grid, at most
SHOWN_CONFIDENCE = 0.25  # less certain predictions are left out of grids
# Panels of results.png: columns of results.csv, losses of training above those of validation.
RESULT_COLUMNS = (1, 2, 3, 4, 5, 8, 9, 10, 6, 7)
MAX_DRAWN_BOXES = 1000


class LabelledSizes(Protocol):
    """The part of an ImageSet that `plot_labels` looks at."""

    all_labels: np.ndarray


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` x `height` inches with a canvas of its own."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 200) -> None:
    """Write a figure in the format of its suffix, whole or not at all."""
    path = Path(path)
    atomic_write(path, lambda file: figure.savefig(file, dpi=dpi, format=path.suffix.lstrip(".")))


def rgb(class_index: int) -> tuple[float, float, float]:
    """The class's colour for matplotlib: RGB, 0..1."""
    blue, green, red = colour(class_index)
    return red / 255, green / 255, blue / 255


def plain(text: str) -> str:
    """Text as matplotlib has to be given it: two dollar signs would make a formula of what is between."""
    return text.replace("$", r"\$")


def write_jpeg(path: str | Path, image: np.ndarray) -> None:
    """Write a BGR image as JPEG, whole or not at all."""
    data = cv2.imencode(".jpg", image)[1]
    atomic_write(path, lambda file: file.write(data.tobytes()))


def targets_to_detections(targets: Tensor, count: int, width: int, height: int) -> list[np.ndarray]:
    """Targets (M, 6) image, class, xywh normalised -> per image (k, 6) xyxy pixels, confidence 1, class."""
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
    *,
    max_images: int = GRID_IMAGES,
    max_size: int = GRID_PIXELS,
) -> None:
    """Draw a batch as one square grid and write it as JPEG.

    Args:
        images: (N, 3, H, W) or (N, 1, H, W), RGB, uint8 or float in 0..1.
        boxes: targets (M, 6) image, class, xywh normalised; or per image detections (n, 6) xyxy in pixels of
            `images`, confidence, class, of which those above 0.25 are drawn with their confidence.
        paths: file names to write on the tiles, or None.
    """
    is_truth = isinstance(boxes, Tensor)
    count, _, height, width = images.shape
    shown = min(count, max_images)
    side = math.ceil(math.sqrt(shown))
    scale = min(1.0, max_size / (side * max(height, width)))
    tile_h, tile_w = max(int(height * scale), 1), max(int(width * scale), 1)
    if is_truth:
        boxes = targets_to_detections(boxes, count, width, height)
    grid = np.full((side * tile_h, side * tile_w, 3), 255, np.uint8)
    for i in range(shown):
        tile = to_bgr(images[i])
        if scale < 1:
            tile = cv2.resize(tile, (tile_w, tile_h), interpolation=cv2.INTER_AREA)
        found = np.array(boxes[i].detach().cpu() if isinstance(boxes[i], Tensor) else boxes[i], np.float32)
        found = found.reshape(-1, 6)
        if not is_truth:
            found = found[found[:, 4] > SHOWN_CONFIDENCE]
        found[:, :4] *= scale
        thickness = max(round((tile_h + tile_w) / 2 * 0.003), 2)
        tile = draw_detections(tile, found, names, line_thickness=thickness, hide_conf=is_truth)
        if paths is not None:
            cv2.putText(
                tile,
                Path(paths[i]).name[:40].encode("ascii", "replace").decode(),
                (5, tile_h - 6),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.4,
                (220, 220, 220),
                1,
                cv2.LINE_AA,
            )
        cv2.rectangle(tile, (0, 0), (tile_w - 1, tile_h - 1), (255, 255, 255), 1)
        y, x = i // side * tile_h, i % side * tile_w
        grid[y : y + tile_h, x : x + tile_w] = tile
    write_jpeg(file, grid)


def to_bgr(image: Tensor) -> np.ndarray:
    """(3 or 1, H, W) RGB uint8 or float 0..1 -> (H, W, 3) BGR uint8, contiguous."""
    image = image.detach().cpu()
    if image.is_floating_point():
        image = (image.float() * 255).round().clamp(0, 255).to(torch.uint8)
    array = image.permute(1, 2, 0).numpy()
    if array.shape[2] == 1:
        array = array.repeat(3, axis=2)
    return np.ascontiguousarray(array[:, :, 2::-1])


def plot_labels(images: LabelledSizes, names: Mapping[int, str], folder: str | Path) -> None:
    """Write labels.jpg and labels_correlogram.jpg: how many of each class, where they are and how large."""
    labels = np.asarray(images.all_labels)
    cls, xywh = labels[:, 0].astype(int), labels[:, 1:5]
    figure = new_figure(8, 8)
    axes = figure.subplots(2, 2).ravel()
    nc = max(len(names), int(cls.max(initial=-1)) + 1, 1)
    axes[0].bar(np.arange(nc), np.bincount(cls, minlength=nc), color=[rgb(c) for c in range(nc)])
    axes[0].set_ylabel("instances")
    if nc <= 30:
        ticks = [plain(str(names.get(c, c))) for c in range(nc)]
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
    """Two-dimensional histogram of values in 0..1."""
    axis.hist2d(x, y, bins=50, range=((0, 1), (0, 1)), cmap="Blues")
    axis.set_xlabel(x_name)
    axis.set_ylabel(y_name)


def _draw_centred_boxes(axis: Axes, cls: np.ndarray, xywh: np.ndarray) -> None:
    """Boxes laid over one another by their centres, to show the range of their shapes.

    Of many, every k-th is drawn.
    """
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
        axis.set_title(plain(name), fontsize=11)
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
            axis.plot(sizes, table[:, column], marker=".", color=rgb(number), label=plain(title))
            axis.set(title=name, xlabel="image size (px)")
        axes[7].plot(table[:, 8], table[:, 3], marker=".", color=rgb(number), label=plain(title))
    axes[7].set(title="mAP50-95 over inference (ms)", xlabel="ms per image")
    axes[7].legend(fontsize=7)
    save_figure(figure, path)


_COSTS = (("torch_ms", "PyTorch ms per image (median, batch 1)"), ("gflops", "GFLOPs per image"))
_MARKERS = "osD^vPX"
_LOG_RANGE = 8  # costs further apart than this factor are shown on a logarithmic axis


def plot_pareto(groups: Sequence[Group], path: str | Path) -> None:
    """Write mAP50-95 over latency and over GFLOPs: each net named, the front of each group drawn.

    Groups have a colour and marker of their own; those whose conditions are unknown are hollow and have no
    front.
    """
    figure = new_figure(14, 6)
    for axis, (cost, title) in zip(figure.subplots(1, 2), _COSTS):
        axis.set(xlabel=title, ylabel="mAP50-95")
        axis.grid(color="0.92", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
        points = [point for i, group in enumerate(groups) for point in _draw_group(axis, group, cost, i)]
        if not points:
            axis.text(0.5, 0.5, "nothing measured", ha="center", transform=axis.transAxes, color="0.5")
            continue
        costs = [x for x, _, _ in points]
        if min(costs) > 0 and max(costs) > _LOG_RANGE * min(costs):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.14, y=0.14)
        low, high = axis.get_ylim()
        axis.set_ylim(bottom=max(low, -0.03 * high))
    if len(groups) > 1 or (groups and groups[0].front("gflops")):
        handles, labels = figure.axes[1].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.draw_without_rendering()  # decides where everything lies, and the names go where there is room
    figure.set_layout_engine("none")
    for axis, (cost, _) in zip(figure.axes, _COSTS):
        _name_points(axis, [p for g in groups for p in _points(g, cost)])
    save_figure(figure, path, dpi=150)


def _points(group: Group, cost: str) -> list[tuple[float, float, str]]:
    """(cost, mAP50-95, label) of a group's rows that have both."""
    rows = [row for row in group.rows if row.values.get(cost) is not None]
    return [(row.values[cost], row.values["map"], row.label) for row in rows]


def _draw_group(axis: Axes, group: Group, cost: str, number: int) -> list[tuple[float, float, str]]:
    """A group's points and front; returns the points."""
    points = _points(group, cost)
    if not points:
        return points
    ink = rgb(4 + number) if group.ranked else (0.5, 0.5, 0.5)
    name = f"conditions {group.number}" if group.ranked else group.title
    front = group.front(cost)
    if front:
        line = [(row.values[cost], row.values["map"]) for row in front]
        axis.plot(*zip(*line), color=ink, linewidth=1.6, alpha=0.6, label=f"{name}: not dominated", zorder=2)
    on_front = {row.label for row in front}
    filled = [ink if label in on_front else "white" for _, _, label in points]
    axis.scatter(
        [x for x, _, _ in points],
        [y for _, y, _ in points],
        s=48,
        marker=_MARKERS[number % len(_MARKERS)],
        c=filled,
        edgecolors=[ink],
        linewidths=1.5,
        label=plain(name),
        zorder=3,
    )
    return points


def _name_points(axis: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each point's label beside it, where it hides least; a thin line leads to those further away."""
    pixels = [tuple(axis.transData.transform((x, y))) for x, y, _ in points]
    per_point = axis.figure.dpi / 72
    reach = 6 * per_point
    taken = [Bbox.from_extents(x - reach, y - reach, x + reach, y + reach) for x, y in pixels]
    room = axis.get_window_extent()
    for (x, y), (px, py), (_, _, label) in zip([p[:2] for p in points], pixels, points):
        text = axis.annotate(plain(label), (x, y), (0, 0), textcoords="offset points", fontsize=8.5, zorder=4)
        size = text.get_window_extent()
        tries = []
        for radius in (9, 18, 30, 44, 60):
            for turn in range(12):
                angle = math.tau * turn / 12
                cx = px + radius * per_point * math.cos(angle) + math.cos(angle) * size.width / 2
                cy = py + radius * per_point * math.sin(angle) + math.sin(angle) * size.height / 2
                box = Bbox.from_bounds(cx - size.width / 2, cy - size.height / 2, size.width, size.height)
                tries.append((_hidden(box, taken, room) + radius * 4, radius, box))
        _, radius, box = min(tries, key=lambda entry: entry[0])
        taken.append(box)
        text.set_position(((box.x0 - px) / per_point, (box.y0 - py) / per_point))
        if radius > 18:
            end = axis.transData.inverted().transform(
                (min(max(px, box.x0), box.x1), min(max(py, box.y0), box.y1))
            )
            axis.plot(
                [x, end[0]], [y, end[1]], color="0.6", linewidth=0.7, zorder=1, scalex=False, scaley=False
            )


def _hidden(box: Bbox, taken: Sequence[Bbox], room: Bbox) -> float:
    """Square pixels of a label that lie on others or outside the chart."""
    overlaps = (Bbox.intersection(box, other) for other in taken)
    covered = sum(shared.width * shared.height for shared in overlaps if shared is not None)
    inside = Bbox.intersection(box, room)
    outside = box.width * box.height - (inside.width * inside.height if inside is not None else 0)
    return covered + 3 * outside
