"""Convert COCO detection annotations (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.dataset.convert.yolo_labels import Annotated, ConvertReport, read_yaml, write_split
from utils.downloads import leaves_folder
from utils.errors import UserError


def convert_coco(
    annotations: Path,
    images: Path,
    out: Path,
    split: str,
    *,
    segments: bool = False,
    copy: bool = False,
    yaml_path: Path | None = None,
) -> tuple[list[str], ConvertReport]:
    """Convert a COCO annotation file (https://cocodataset.org/#format-data).

    Category ids become 0, 1, ... in the order of the ids; crowds are left out.

    Args:
        annotations: the JSON.
        images: the folder that its file names are below.
        out: gets images/<split>/ and labels/<split>/.
        split: name of the split.
        segments: write polygons instead of boxes.
        copy: copy images even where a hard link would do.
        yaml_path: the dataset YAML of the split; if it exists, its classes must be the same.

    Returns:
        The class names and the report.

    Raises:
        UserError: a missing folder, no COCO file, a category it does not define, a split that exists already,
            other classes than in the YAML. Nothing is written then.
    """
    report = ConvertReport()
    if not images.is_dir():
        raise UserError(f"{images}: no such folder of images; check the path")
    file = _CocoFile(annotations)
    if yaml_path is not None:
        read_yaml(yaml_path, file.names)
    write_split(out, split, file.annotated(images, report.messages, segments), report, copy=copy)
    return file.names, report


class _CocoFile:
    """Read a COCO annotation file.

    Attributes:
        names: class names in the order of their ids.

    Raises:
        UserError: the file is not such a JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data = _load(path)
        # The ids are what the file says: numbers as a rule.
        self._objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        try:
            categories = sorted((int(c["id"]), str(c["name"])) for c in data["categories"])
            self._images: dict[Any, dict[str, Any]] = {image["id"]: image for image in data["images"]}
            for item in data["annotations"]:
                self._objects[item["image_id"]].append(item)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: not a COCO detection file ({type(error).__name__}: {error}); it needs images, "
                "annotations and categories"
            ) from None
        self.names = [name for _, name in categories]
        self._numbers = {key: i for i, (key, _) in enumerate(categories)}

    def annotated(self, folder: Path, messages: list[str], segments: bool) -> Iterator[Annotated]:
        """Yield the annotated images.

        Args:
            folder: where the file names are.
            messages: gets a sentence for everything left out.
            segments: read outlines too.

        Raises:
            UserError: an annotation of an unknown category.
        """
        unknown = [key for key in self._objects if key not in self._images]
        if unknown:
            messages.append(
                f"{self.path}: annotations of {len(unknown)} unknown images, as {unknown[0]!r}; ignored"
            )
        crowds = 0
        for key, image in self._images.items():
            name = str(image.get("file_name", "")).replace("\\", "/")
            if leaves_folder(name):
                messages.append(f"{self.path}: image {key} has the file name {name!r}; image left out")
                continue
            boxes: list[tuple[int, float, float, float, float]] = []
            polygons: list[list[tuple[float, float]] | None] = []
            for item in self._objects.get(key, ()):
                if item.get("iscrowd"):
                    crowds += 1
                    continue
                number, box = self._number(item), _box(self.path, item, messages)
                if box:
                    boxes.append((number, *box))
                    polygons.append(_outline(item.get("segmentation")) if segments else None)
            yield Annotated(folder / name, name, boxes, polygons if segments else [], _size(image))
        if crowds:
            messages.append(f"{self.path}: {crowds} crowds left out")

    def _number(self, item: dict[str, Any]) -> int:
        """Return the class number of an annotation."""
        category = item.get("category_id")
        if category not in self._numbers:
            raise UserError(
                f"{self.path}: annotation {item.get('id')} has category_id {category!r}, which its "
                "categories do not define; correct the file"
            )
        return self._numbers[category]


def _load(annotations: Path) -> dict[str, Any]:  # values of a JSON
    """Read a JSON file that holds an object."""
    try:
        data = json.loads(annotations.read_bytes())
    except OSError as error:
        raise UserError(f"{annotations}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{annotations}: is not JSON ({error}); check the file") from None
    if not isinstance(data, dict):
        raise UserError(f"{annotations}: holds a {type(data).__name__} where a COCO object is expected")
    return data


def _size(image: dict[str, Any]) -> tuple[int, int]:
    """Return the width and height that the annotation states, (0, 0) without."""
    width, height = image.get("width"), image.get("height")
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return 0, 0


def _box(
    annotations: Path, item: dict[str, Any], messages: list[str]
) -> tuple[float, float, float, float] | None:
    """Return x1, y1, x2, y2 in pixels, or None and a message."""
    box = item.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        messages.append(f"{annotations}: annotation {item.get('id')} has the bbox {box}; box left out")
        return None
    x, y, w, h = box
    if w <= 0 or h <= 0:
        messages.append(f"{annotations}: annotation {item.get('id')}, bbox {box}, has no area; box left out")
        return None
    return x, y, x + w, y + h


def _is_finite(value: object) -> bool:
    """Return whether a value of a JSON is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def _outline(segmentation: object) -> list[tuple[float, float]] | None:
    """Return one closed outline of an object, with its parts joined.

    None: the object has a mask (RLE), or no polygon.
    """
    if not isinstance(segmentation, list):
        return None
    parts = []
    for flat in segmentation:
        if not isinstance(flat, list) or len(flat) < 6 or len(flat) % 2:
            continue
        if all(map(_is_finite, flat)):
            parts.append(np.array(flat, np.float64).reshape(-1, 2))
    if not parts:
        return None
    joined = parts[0]
    for part in parts[1:]:
        joined = _bridge(joined, part)
    return [(float(x), float(y)) for x, y in joined]


def _bridge(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Join two outlines (n, 2), (m, 2) between their nearest points.

    The result is (n + m + 2, 2).
    """
    distance = ((first[:, None] - second[None]) ** 2).sum(-1)
    i, j = np.unravel_index(distance.argmin(), distance.shape)
    around = np.roll(second, -int(j), axis=0)
    return np.concatenate([first[: i + 1], around, around[:1], first[i:]])
