"""Write report.html: figures, curves and worst images of a validation or a training."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from html import escape
from pathlib import Path

import numpy as np
import torch

from utils.dataset.config import DatasetConfig
from utils.device import describe, versions
from utils.errors import UserError
from utils.evaluation.evaluate import ValResult
from utils.evaluation.metrics import ConfusionMatrix
from utils.evaluation.mistakes import (
    FALSE_POSITIVE,
    KINDS,
    MISSED,
    RIGHT,
    SIZES,
    WRONG_CLASS,
    ImageMistakes,
    Mistakes,
)
from utils.files import atomic_text
from utils.images import load_image
from utils.pages import html_facts, html_figure, html_filter, html_image, html_page, html_table, html_tiles
from utils.results.drawing import Colour, class_name, drawn_jpeg

LOGGER = logging.getLogger("yolo.val")

SHOWN_WORST = 100
"""The worst images, which are inside the page with their pictures."""

_SHOWN_CONFUSIONS = 12

# BGR of Okabe & Ito's palette, as the classes are painted: told apart by everybody.
_PAINT: dict[int, Colour] = {
    RIGHT: (115, 158, 0),
    FALSE_POSITIVE: (0, 94, 213),
    MISSED: (0, 159, 230),
    WRONG_CLASS: (167, 121, 204),
}
_CHARTS = (
    ("PR_curve.png", "precision over recall"),
    ("confusion_matrix.png", "confusion matrix"),
    ("F1_curve.png", "F1 over confidence"),
    ("P_curve.png", "precision over confidence"),
    ("R_curve.png", "recall over confidence"),
)


def write_run_page(
    folder: Path, title: str, result: ValResult, config: DatasetConfig, facts: Mapping[str, object]
) -> Path:
    """Write report.html into a run's folder, and return its path.

    Args:
        folder: with the pictures that `evaluate` has drawn; the results.png of a training is shown too.
        title: its heading.
        result: of the validation, with its mistakes.
        config: the data set.
        facts: how it was measured; date and versions are added.
    """
    mistakes = result.mistakes or Mistakes()
    made = {"date": datetime.now().strftime("%Y-%m-%d %H:%M")}
    made |= {"versions": ", ".join(f"{name} {number}" for name, number in versions().items())}
    parts = [
        _tiles(result),
        _charts(folder, "How it learnt", [("results.png", "losses and metrics over the epochs")]),
        _images(mistakes, config, result.confusion),
        _classes(result, config.names),
        _sizes(result, mistakes),
        _confusions(result.confusion, config.names),
        _charts(folder, "Curves", _CHARTS),
        f"<section><h2>How it was measured</h2>{html_facts({**facts, **made})}</section>",
    ]
    path = folder / "report.html"
    atomic_text(path, html_page(title, "\n".join(parts)))
    LOGGER.info("figures, curves and the worst images: %s", path)
    return path


def measurement(result: ValResult, imgsz: int, device: torch.device) -> dict[str, object]:
    """Return the facts of a measurement: image size, speed and hardware."""
    speed = ", ".join(f"{ms:.1f} ms {stage}" for stage, ms in result.speed.items())
    return {"image size": f"{imgsz} px", "speed per image": speed, "hardware": describe(device)}


def _tiles(result: ValResult) -> str:
    m, matrix = result.metrics, result.confusion.matrix
    nothing = "" if result.instances else "no labels"
    figures = {"mAP50-95": m.map, "mAP50": m.map50, "precision": m.precision, "recall": m.recall}
    tiles = [(name, f"{value:.3f}", nothing) for name, value in figures.items()]
    tiles += [("images", str(result.seen), f"{result.instances} objects")]
    conf = f"above confidence {result.confusion.conf:g}"
    false, missed, wrong = (int(counts.sum()) for counts in _mistaken(matrix))
    tiles += [("false positives", str(false), conf), ("missed objects", str(missed), conf)]
    return html_tiles([*tiles, ("wrong classes", str(wrong), conf)])


def _mistaken(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the false positives, missed labels and wrongly classified labels of each class."""
    false, missed, inner = matrix[:-1, -1], matrix[-1, :-1], matrix[:-1, :-1]
    return false, missed, inner.sum(0) - inner.diagonal()


def _classes(result: ValResult, names: Mapping[int, str]) -> str:
    """Return the table of the classes that have labels or false positives."""
    false, missed, wrong = (counts.tolist() for counts in _mistaken(result.confusion.matrix))
    measured = {row["class"]: row for row in result.metrics.per_class}
    keys = ("images", "instances", "precision", "recall", "map50", "map")
    rows: list[list[str | float | None]] = []
    for number in sorted(set(measured) | set(np.flatnonzero(false).tolist())):
        figures = [measured.get(number, {}).get(key) for key in keys]
        rows.append([class_name(names, number), *figures, false[number], missed[number], wrong[number]])
    heads = ["class", "images", "objects", "precision", "recall", "mAP50", "mAP50-95"]
    heads += ["false positives", "missed", "wrong class"]
    conf = result.metrics.confidence
    return _section(
        "Classes",
        f"Precision and recall at confidence {conf:.3f}, where their F1 is highest; the last three columns "
        f"above confidence {result.confusion.conf:g}.",
        html_table(heads, rows),
    )


def _sizes(result: ValResult, mistakes: Mistakes) -> str:
    """Return the table of small, medium and large objects."""
    stats = result.coco.stats if result.coco else {}
    heads = ["size", "objects", "found", "missed", "wrong class", "false positives", "recall"]
    rows: list[list[str | float | None]] = []
    for size, (right, false, missed, wrong) in zip(SIZES, mistakes.by_size.tolist()):
        objects = right + missed + wrong
        recall = right / objects if objects else None
        row: list[str | float | None] = [size, objects, right, missed, wrong, false, recall]
        rows.append([*row, stats[f"map_{size}"]] if stats else row)
    return _section(
        "Object sizes",
        "Small: an area below 32 x 32 pixels of the file, large: from 96 x 96. Above confidence "
        f"{result.confusion.conf:g}, as in the confusion matrix.",
        html_table(heads + ["COCO mAP50-95"] * bool(stats), rows),
    )


def _confusions(confusion: ConfusionMatrix, names: Mapping[int, str]) -> str:
    """Return the table of the classes that are taken for others most often."""
    inner, labels = confusion.matrix[:-1, :-1].copy(), confusion.matrix.sum(0)
    np.fill_diagonal(inner, 0)
    order = np.argsort(-inner, axis=None, kind="stable")[:_SHOWN_CONFUSIONS]
    rows: list[list[str | float | None]] = []
    for said, true in zip(*np.unravel_index(order, inner.shape)):
        if count := int(inner[said, true]):
            share = count / int(labels[true])
            rows.append([class_name(names, int(true)), class_name(names, int(said)), count, share])
    if not rows:
        return ""
    heads = ["true class", "taken for", "objects", "share of the class"]
    return _section("Most frequent confusions", "", html_table(heads, rows))


def _charts(folder: Path, title: str, charts: Iterable[tuple[str, str]]) -> str:
    """Return the pictures that the run has drawn; nothing if there are none."""
    there = [(folder / name, alt) for name, alt in charts if (folder / name).is_file()]
    images = "".join(
        f'<figure class="chart">{html_image(path.read_bytes(), "png", alt)}</figure>' for path, alt in there
    )
    kind = "charts" if len(there) > 1 else "chart"
    return _section(title, "", f'<div class="{kind}">{images}</div>') if there else ""


def _section(title: str, text: str, inside: str) -> str:
    sub = f'<p class="sub">{escape(text)}</p>' if text else ""
    return f"<section><h2>{escape(title)}</h2>{sub}{inside}</section>"


def _images(mistakes: Mistakes, config: DatasetConfig, confusion: ConfusionMatrix) -> str:
    """Return the worst images beside their truth, with filters by kind and class."""
    worst, total = mistakes.worst(SHOWN_WORST), len(mistakes.images)
    if not worst:
        return _section("Images", f"No mistake above confidence {confusion.conf:g}.", "")
    classes = sorted({number for image in worst for _, number in image.cells})
    choices = {"mistake": KINDS, "class": {number: class_name(config.names, number) for number in classes}}
    items = ((_item(image, config), image.cells) for image in worst)
    key = "".join(
        f'<i style="--key: rgb({red} {green} {blue})"></i>{text}'
        for (blue, green, red), text in zip(_PAINT.values(), ("right", *KINDS.values()))
    )
    return _section(
        "The worst images",
        f"{len(worst)} of {total} images with mistakes; half are the worst of all, the others the worst of "
        f"each kind and class. A wrong detection counts its confidence, a missed object 1. Detections above "
        f"confidence {confusion.conf:g}, matched at IoU {confusion.iou_thres:g}. Click to enlarge.",
        f'<p class="sub key">{key}</p>{html_filter(choices, items)}',
    )


def _item(image: ImageMistakes, config: DatasetConfig) -> str:
    """Return an image's name and its two pictures."""
    path = Path(image.path)
    name = str(path.relative_to(config.root)) if path.is_relative_to(config.root) else path.name
    said = ", ".join(f"{count} {KINDS[kind]}" for kind, count in image.counts().items() if count)
    heading = f"<h3>{escape(name)}: {said}</h3>"
    try:
        pixels = load_image(path)
    except UserError as error:  # the file was there when it was measured
        return f'{heading}<p class="note">{escape(str(error))}</p>'
    figures = "".join(
        html_figure(_picture(pixels, boxes, captions, kinds), f"{name}: {title}", title, note, style)
        for title, note, style, boxes, captions, kinds in _sides(image, config.names)
    )
    return f'{heading}<div class="sample">{figures}</div>'


def _sides(
    image: ImageMistakes, names: Mapping[int, str]
) -> Iterator[tuple[str, str, str, np.ndarray, list[str], np.ndarray]]:
    """Yield the truth and the detections.

    Each is a title, a note, a style, boxes (n, 4), their captions and their kinds.
    """
    labels, found = image.labels, image.detections
    captions = [class_name(names, int(number)) for number in labels[:, 0]]
    yield "truth", f"{len(labels)} labels", "truth", labels[:, 1:], captions, image.asked
    captions = [f"{class_name(names, int(number))} {conf:.2f}" for conf, number in found[:, 4:]]
    yield "detections", f"{len(found)} boxes", "", found[:, :4], captions, image.found


def _picture(pixels: np.ndarray, boxes: np.ndarray, captions: list[str], kinds: np.ndarray) -> bytes:
    """Return a JPEG of an image with boxes in their kinds' colours, mistakes on top."""
    rows = np.zeros((len(boxes), 6))
    rows[:, :4], rows[:, 4], rows[:, 5] = boxes, kinds != RIGHT, np.arange(len(boxes))
    return drawn_jpeg(pixels, rows, captions, hide_conf=True, paint=lambda index: _PAINT[int(kinds[index])])
