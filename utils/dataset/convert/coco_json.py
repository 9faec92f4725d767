"""Reading COCO detection annotations (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.downloads import leaves_folder
from utils.errors import UserError


def read(
    annotations: Path, images: Path, messages: list[str], segments: bool
) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Class names in the order of their ids, and the images as arguments of `convert.Annotated`.

    Args:
        annotations: the JSON.
        images: the folder that its file names are below.
        messages: gets a sentence for whatever is left out.
        segments: read outlines too.

    Raises:
        UserError: a missing folder, not such a JSON, an annotation of an unknown category.
    """
    if not images.is_dir():
        raise UserError(f"{images}: no such folder of images; check the path")
    data = _load(annotations)
    try:
        categories = sorted((int(c["id"]), str(c["name"])) for c in data["categories"])
        listed = {image["id"]: image for image in data["images"]}
        objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for item in data["annotations"]:
            objects[item["image_id"]].append(item)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{annotations}: not a COCO detection file ({type(error).__name__}: {error}); it needs images, "
            "annotations and categories"
        ) from None
    strangers = [key for key in objects if key not in listed]
    if strangers:
        messages.append(
            f"{annotations}: annotations of {len(strangers)} unknown images, as {strangers[0]!r}; ignored"
        )
    numbers = {key: i for i, (key, _) in enumerate(categories)}
    found = _images(annotations, images, listed, objects, numbers, messages, segments)
    return [name for _, name in categories], found


def _load(annotations: Path) -> dict[str, Any]:
    try:
        data = json.loads(annotations.read_bytes())
    except OSError as error:
        raise UserError(f"{annotations}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{annotations}: is not JSON ({error}); check the file") from None
    if not isinstance(data, dict):
        raise UserError(f"{annotations}: holds a {type(data).__name__} where a COCO object is expected")
    return data


def _images(
    annotations: Path,
    images: Path,
    listed: dict[Any, dict[str, Any]],
    objects: dict[Any, list[dict[str, Any]]],
    numbers: dict[int, int],
    messages: list[str],
    segments: bool,
) -> Iterator[dict[str, Any]]:
    crowds = 0
    for key, image in listed.items():
        name = str(image.get("file_name", "")).replace("\\", "/")
        if leaves_folder(name):
            messages.append(f"{annotations}: image {key} has the file name {name!r}; image left out")
            continue
        boxes, polygons = [], []
        for item in objects.get(key, ()):
            if item.get("iscrowd"):
                crowds += 1
                continue
            if item.get("category_id") not in numbers:
                raise UserError(
                    f"{annotations}: annotation {item.get('id')} has category_id "
                    f"{item.get('category_id')!r}, which its categories do not define; mend the file"
                )
            box = _box(annotations, item, messages)
            if box:
                boxes.append((numbers[item["category_id"]], *box))
                polygons.append(_outline(item.get("segmentation")) if segments else None)
        yield {
            "image": images / name,
            "name": name,
            "boxes": boxes,
            "polygons": polygons if segments else [],
            "stated_size": _size(image),
        }
    if crowds:
        messages.append(f"{annotations}: {crowds} crowds left out")


def _size(image: dict[str, Any]) -> tuple[int, int]:
    """The width and height that the annotation states, (0, 0) without."""
    size = image.get("width"), image.get("height")
    return size if all(isinstance(v, int) and v > 0 for v in size) else (0, 0)  # type: ignore[return-value]


def _box(annotations: Path, item: dict[str, Any], messages: list[str]) -> tuple[float, ...] | None:
    """x1, y1, x2, y2 in pixels, or None and a message."""
    box = item.get("bbox")
    numeric = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    if not numeric or not all(map(math.isfinite, box)):
        messages.append(f"{annotations}: annotation {item.get('id')} has the bbox {box}; box left out")
        return None
    x, y, w, h = box
    if w <= 0 or h <= 0:
        messages.append(f"{annotations}: annotation {item.get('id')}, bbox {box}, has no area; box left out")
        return None
    return x, y, x + w, y + h


def _outline(segmentation: Any) -> list[tuple[float, float]] | None:
    """One closed outline of an object, its parts joined; None for masks (RLE) and for what is no polygon."""
    if not isinstance(segmentation, list):
        return None
    parts = []
    for flat in segmentation:
        if not isinstance(flat, list) or len(flat) < 6 or len(flat) % 2:
            continue
        if all(isinstance(v, int | float) and math.isfinite(v) for v in flat):
            parts.append(np.array(flat, np.float64).reshape(-1, 2))
    if not parts:
        return None
    joined = parts[0]
    for part in parts[1:]:
        joined = _bridge(joined, part)
    return [(float(x), float(y)) for x, y in joined]


def _bridge(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two outlines (n, 2), (m, 2) -> one (n + m + 2, 2) joined between their nearest points."""
    distance = ((first[:, None] - second[None]) ** 2).sum(-1)
    i, j = np.unravel_index(distance.argmin(), distance.shape)
    around = np.roll(second, -int(j), axis=0)
    return np.concatenate([first[: i + 1], around, around[:1], first[i:]])
