"""Read and check one image and its label file.

What a fault costs:

* a label row is ignored when it has text, the wrong number of columns, a class that is negative or not a
  whole number, a coordinate that is negative, above 1, NaN or infinite, or a box without area; the message
  names file, line and value;
* an image is dropped when its label file has rows but no valid one, because it would otherwise be learnt as
  background;
* an image is dropped when it cannot be decoded, is cut short or has a side under 10 pixels;
* identical rows count once.

No file is ever rewritten.
"""

from __future__ import annotations

import functools
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from utils.dataset.image_set import CORRUPT, EMPTY, FOUND, MISSING, Record
from utils.files import read_regular
from utils.images import NoMemoryLeft, inspect_image

MIN_IMAGE_SIDE = 10
"""Images with a shorter side are dropped, in pixels."""

ROUNDING = 1e-5
"""How far a coordinate may lie outside 0..1, from rounding to six digits; it is then clipped."""

_NO_LABELS = np.zeros((0, 5), np.float32)


def label_path(image: str) -> str:
    """Return the label file of an image.

    The last `/images/` becomes `/labels/`, and the suffix `.txt`. Without a folder named images the label
    file is beside the image.

    >>> label_path("set/images/train/1.jpg")
    'set/labels/train/1.txt'
    """
    stem = os.path.splitext(image)[0]
    slash = stem.replace(os.sep, "/")
    at = slash.rfind("/images/")
    if at < 0:
        if slash.startswith("images/"):
            return "labels" + stem[len("images") :] + ".txt"
        return stem + ".txt"
    return stem[: at + 1] + "labels" + stem[at + len("/images") :] + ".txt"


def find_labels(images: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the label file of each image, and a sentence on each kind of surprise.

    Where `label_path` does not exist, a file whose name differs only in the case of `.txt` or in its Unicode
    form is taken, else one beside the image.
    """
    names, respelled = functools.cache(_text_files), functools.cache(_respelled)
    expected = [label_path(image) for image in images]
    found = []
    for image, path in zip(images, expected):
        folder, name = os.path.split(path)
        if name in names(folder):  # nearly always, so it comes first
            found.append(path)
            continue
        beside = os.path.splitext(image)[0] + ".txt"
        found.append(_look(path, names, respelled) or _look(beside, names, respelled))
    notes = []
    moved = [(path, label) for path, label in zip(expected, found) if label not in ("", path)]
    if moved:
        path, label = moved[0]
        notes.append(f"{len(moved)} label files are not where they are expected: for {path}, {label} is read")
    shared = [label for label, count in Counter(found).items() if label and count > 1]
    if shared:
        notes.append(
            f"{len(shared)} label files belong to several images each, whose names differ in the suffix "
            f"only, such as {shared[0]}; rename the images unless they show the same picture"
        )
    return [label or path for label, path in zip(found, expected)], notes


def _look(
    path: str, names: Callable[[str], frozenset[str]], respelled: Callable[[str], dict[str, str]]
) -> str:
    """Return a text file as its folder spells it; '' without it."""
    folder, name = os.path.split(path)
    if name in names(folder):
        return path
    found = respelled(folder).get(_plain(name), "")
    return found and os.path.join(folder, found)


def _text_files(folder: str) -> frozenset[str]:
    """Return the names of a folder's text files."""
    try:
        return frozenset(name for name in os.listdir(folder or ".") if name.lower().endswith(".txt"))
    except OSError:
        return frozenset()


def _respelled(folder: str) -> dict[str, str]:
    """Return the names of a folder's text files by their plain names."""
    return {_plain(name): name for name in _text_files(folder)}


def _plain(name: str) -> str:
    """Return a file's name in one Unicode form, with its suffix in lower case."""
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + suffix.lower()


def read_labels(path: str, keypoints: int = 0) -> tuple[np.ndarray, list[np.ndarray], list[str], int]:
    """Read a YOLO label file.

    Five columns are a box `class xc yc w h`, seven or more a polygon `class x1 y1 x2 y2 ...`, all normalised.
    A box may be followed by keypoints, which are left out.

    Args:
        path: the label file.
        keypoints: how many numbers follow the box in a row with keypoints. With 0, only rows that can be no
            polygon are taken for such: those with x, y and a visibility of 0, 1 or 2 for each.

    Returns:
        labels (k, 5) float32, polygons (k arrays (p, 2), or none when the file has boxes only; a box among
        polygons is given as its four corners), messages, and the number of rows written in the file.

    Raises:
        OSError: the file cannot be read.
    """
    text = read_regular(path).decode("utf-8-sig", errors="replace")
    boxes: list[tuple[float, ...]] = []
    polygons: list[np.ndarray | None] = []
    messages: list[str] = []
    seen: dict[tuple[float, ...], int] = {}
    written = 0
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        written += 1
        try:
            row, polygon = _parse_row(fields, keypoints)
            if row in seen:
                raise ValueError(f"same row as line {seen[row]}")
        except ValueError as fault:
            messages.append(f"{path}, line {number}: {fault}; row ignored")
            continue
        seen[row] = number
        boxes.append(row)
        polygons.append(polygon)
    labels = np.array(boxes, np.float32).reshape(-1, 5)
    segments: list[np.ndarray] = []
    if any(p is not None for p in polygons):
        segments = [_corners(box) if p is None else p for box, p in zip(labels, polygons)]
    return labels, segments, messages, written


def _parse_row(fields: list[str], keypoints: int) -> tuple[tuple[float, ...], np.ndarray | None]:
    """Parse one row as box (5 numbers), and polygon or None.

    Raises:
        ValueError: what is wrong with the row.
    """
    values: list[float] = []
    for field in fields:
        try:
            values.append(float(field))
        except ValueError:
            raise ValueError(f"{_shown(field)} is not a number") from None
    if (keypoints and len(values) == 5 + keypoints) or _has_visibilities(values):
        values, fields = values[:5], fields[:5]
    _check_columns(len(values))
    _check_class(values[0], _shown(fields[0]))
    for value, field in zip(values[1:], fields[1:]):
        if not math.isfinite(value):
            raise ValueError(f"coordinate {field} is not finite")
        if not -ROUNDING <= value <= 1 + ROUNDING:
            shown = _shown(field)
            raise ValueError(
                f"coordinate {shown} is outside 0..1 (normalise by the image's width and height)"
            )
    box, polygon = [min(max(v, 0.0), 1.0) for v in values[1:]], None
    if len(box) > 4:
        polygon = np.array(box, np.float32).reshape(-1, 2)
        (x1, y1), (x2, y2) = polygon.min(0).tolist(), polygon.max(0).tolist()
        box = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
    if not (np.float32(box[2]) > 0 and np.float32(box[3]) > 0):
        raise ValueError(f"the box has no area (width {box[2]:g}, height {box[3]:g})")
    return (values[0], *box), polygon


def _has_visibilities(values: list[float]) -> bool:
    """Return whether `x y visibility` of points follow a box, as in no polygon."""
    flags = values[7::3]
    if not flags or len(values) % 3 != 2 or not all(flag in (0, 1, 2) for flag in flags):
        return False
    return len(values) % 2 == 0 or 2 in flags  # a polygon has an odd number of columns, and none above 1


def _check_columns(count: int) -> None:
    """Refuse a number of columns that is neither a box nor a polygon."""
    if count == 6:
        raise ValueError("6 columns: the last is a confidence, as detect.py --save-conf writes it; remove it")
    if count > 6 and count % 2 == 0:
        raise ValueError(f"{count} columns: a polygon has an odd number, the class and pairs of x y")
    if count < 5:
        raise ValueError(f"{count} column{'s' * (count != 1)} where 'class xc yc w h' has 5")


def _check_class(value: float, shown: str) -> None:
    """Refuse what cannot be a class number."""
    if not math.isfinite(value) or value != int(value):
        raise ValueError(f"class {shown} is not a whole number")
    if value < 0:
        raise ValueError(f"class {shown} is negative")
    if value >= 1 << 24:
        raise ValueError(f"class {shown} is too large")


def _shown(field: str) -> str:
    """Return a value as a message shows it: short and on one line."""
    return repr(field if len(field) <= 40 else field[:37] + "...").strip("'")


def _corners(box: np.ndarray) -> np.ndarray:
    """Return the corners (4, 2) of a label (5,), clockwise from the top left."""
    _, xc, yc, w, h = box.tolist()
    x1, y1, x2, y2 = xc - w / 2, yc - h / 2, xc + w / 2, yc + h / 2
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float32)


def image_size(path: str) -> tuple[int, int, str]:
    """Return width and height of an image file, and a note on its faults.

    Width and height are those after EXIF rotation. The note is '' without faults. The image is decoded, so
    `load_image` can read every image that is accepted here.

    Raises:
        ValueError: the image cannot be used; the text says why.
        NoMemoryLeft: (a ValueError) there was no memory to decode it.
        OSError: the file cannot be opened or read.
    """
    data = read_regular(path)
    if not data:
        raise ValueError("empty file")
    width, height, note = inspect_image(data)
    if min(width, height) < MIN_IMAGE_SIDE:
        raise ValueError(f"{width} x {height} pixels, under {MIN_IMAGE_SIDE}")
    return width, height, note


def verify(image: str, label: str, keypoints: int = 0) -> Record:
    """Check one image and its label file (see `read_labels`).

    Faults become messages and a status, never an exception. A fault of the system and not of the files
    (rights, a disk, memory) is marked as `passing`.
    """
    try:
        width, height, note = image_size(image)
    except FileNotFoundError:
        return _dropped(image, "no such image")
    except (NoMemoryLeft, MemoryError) as error:
        return _dropped(image, str(error) or "cannot be read for lack of memory", passing=True)
    except ValueError as error:
        return _dropped(image, str(error))
    except OSError as error:
        return _dropped(image, f"cannot be opened ({error.strerror or error})", passing=True)
    notes = [_one_line(f"{image}: {note}")] if note else []
    try:
        labels, segments, messages, written = read_labels(label, keypoints)
    except FileNotFoundError:
        return Record(MISSING, width, height, _NO_LABELS, [], notes)
    except OSError as error:
        fault = f"its labels {label} cannot be read ({error.strerror or error})"
        return _dropped(image, fault, passing=True)
    notes += [_one_line(m) for m in messages]
    if written and not len(labels):
        dropped = _dropped(image, f"no valid row in {label}")
        return dropped._replace(messages=notes + dropped.messages)
    return Record(FOUND if written else EMPTY, width, height, labels, segments, notes)


def _dropped(image: str, reason: str, *, passing: bool = False) -> Record:
    """Return the record of an image that cannot be used."""
    message = _one_line(f"{image}: {reason}; image ignored")
    return Record(CORRUPT, 0, 0, _NO_LABELS, [], [message], passing)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
