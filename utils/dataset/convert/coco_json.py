"""Read COCO detection annotations (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from utils.dataset.convert.annotated import (
    LEAVES,
    NO_AREA,
    NOT_A_BOX,
    Annotated,
    AnnotatedSet,
    ConvertOptions,
    ConvertReport,
    FolderIndex,
    SourceFormat,
    places_by_split,
    renamed,
    to_number,
)
from utils.downloads import leaves_folder
from utils.errors import UserError, shown
from utils.files import JsonObject

_CROWDS = "marked as crowds"
_MOST_DISTANCES = 1 << 22  # between points of two parts; larger outlines are written as boxes


def read_coco(options: ConvertOptions) -> AnnotatedSet:
    """Read a COCO annotation file, or those of a folder, one a split.

    Category ids become 0, 1, ... in the order of the ids. Ids and numbers may be text. Crowds are left out
    unless they are asked for.

    Raises:
        UserError: a missing folder, no COCO file, two files for one split, files with different classes.
    """
    splits = places_by_split(options, _annotation_files(options.path))
    files = {split: _CocoFile(path, options) for split, path in splits.items()}
    first = next(iter(files.values()))
    for file in files.values():
        if file.names != first.names:
            raise UserError(
                f"{file.path}: its classes {file.names} are not those of {first.path}, {first.names}; "
                "convert the files into two folders"
            )
    places = _Places(options)
    return AnnotatedSet(
        first.names, {split: partial(file.annotated, places, split) for split, file in files.items()}
    )


def _annotation_files(path: Path) -> dict[Path, str]:
    """Return the COCO files of a folder, or the file itself, with words for splits."""
    if not path.is_dir():
        return {path: ""}  # the name of a file that the user gives may be any
    found = [file for file in FolderIndex(path, {".json"}).paths if _looks_like_coco(file)]
    boxes = [file for file in found if file.name.startswith("instances")]  # beside keypoints and captions
    if not found:
        raise UserError(f"{path}: no COCO JSON in it; give the JSON, or the folder that it is in")
    return {file: f"{file.stem} {file.parent.name}" for file in boxes or found}


def _looks_like_coco(path: Path) -> bool:
    """Return whether a file has COCO's keys, without reading gigabytes as JSON."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return all(data.find(key) >= 0 for key in (b'"images"', b'"annotations"', b'"categories"'))
    except (OSError, ValueError):  # ValueError: an empty file
        return False


def _find(root: Path) -> str:
    """Return the names of the COCO files in a folder, or ''."""
    if root.is_file():
        return root.name if root.suffix.lower() == ".json" and _looks_like_coco(root) else ""
    found = [str(p.relative_to(root)) for p in FolderIndex(root, {".json"}).paths if _looks_like_coco(p)]
    return ", ".join(found[:5])


COCO = SourceFormat("coco", "COCO JSON", _find, read_coco)


class _Places:
    """Find the images that the file names of a JSON mean."""

    def __init__(self, options: ConvertOptions) -> None:
        self.given = options.images
        self.root = options.path if options.path.is_dir() else options.path.parent
        if self.root.name == "annotations":  # the JSON was given; its images are beside its folder
            self.root = self.root.parent
        self._index: FolderIndex | None = None

    def find(self, name: str, json_folder: Path, split: str) -> Path | None:
        """Return the image of a file name, or None.

        It is looked for below IMAGES if that is given, else anywhere below the source.
        """
        path = (self.given or json_folder) / name
        if self.given is not None or os.path.isfile(path):
            return path if os.path.isfile(path) else None
        return self._indexed(self.root).find(name, split)

    def remedy(self, name: str, json_folder: Path) -> str:
        """Return what would find an image that was not found, in words."""
        if self.given is None:
            return "give the folder of images as IMAGES"
        for folder in (json_folder, json_folder.parent, self.given.parent):
            if os.path.isfile(folder / name):
                return f"{folder / name} has the first such name, so give {folder} as IMAGES"
        found = self._indexed(self.given).find(name) or self._indexed(json_folder).find(name)
        if found is None:
            return f"file names of the JSON are looked for below IMAGES, as {self.given / name}"
        parts = Path(name).parts
        if found.parts[-len(parts) :] == parts:
            return f"{found} has the first such name, so give {Path(*found.parts[: -len(parts)])} as IMAGES"
        return f"{found} has the first such name in another folder, so leave out IMAGES, or correct file_name"

    def _indexed(self, folder: Path) -> FolderIndex:
        if self._index is None or self._index.root != folder:
            self._index = FolderIndex(folder)
        return self._index


class _CocoFile:
    """Hold a COCO annotation file.

    Attributes:
        path: the file.
        names: class names in the order of their ids, without a placeholder that no object has.
    """

    def __init__(self, path: Path, options: ConvertOptions) -> None:
        self.path, self.options = path, options
        data = _load(path)
        self._objects: dict[str, list[JsonObject]] = defaultdict(list)
        self._images: dict[str, JsonObject] = {}
        self._notes: list[str] = []
        self._bounds = 0  # boxes that are bounds of polygons
        try:
            categories = {_key(c["id"]): c for c in data["categories"]}
            self._twice = len(data["images"]) - len({_key(image["id"]) for image in data["images"]})
            for image in data["images"]:
                self._images.setdefault(_key(image["id"]), image)
            for item in data["annotations"]:
                self._objects[_key(item["image_id"])].append(item)
            names = {key: str(c["name"]) for key, c in categories.items()}
            if len(categories) < len(data["categories"]):
                raise UserError(f"{path}: two of its categories have the same id; give each its own")
            placeholder = self._placeholder(categories)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: not a COCO detection file ({type(error).__name__}: {error}); it needs images, "
                "annotations and categories"
            ) from None
        ordered = sorted(names, key=lambda key: (not _is_whole(key), int(key) if _is_whole(key) else 0))
        if placeholder:
            ordered.remove(placeholder)
            self._notes.append(
                f"{path}: the class {shown(names[placeholder])} has no object and is only the supercategory "
                "of the others, as Roboflow writes it; class left out"
            )
        self.names = [names[key] for key in ordered]
        self._numbers = {key: i for i, key in enumerate(ordered)}

    def _placeholder(self, categories: dict[str, JsonObject]) -> str:
        """Return the id of an unused class that is every other's supercategory, or ''."""
        used = {_key(item.get("category_id")) for items in self._objects.values() for item in items}
        for key, category in categories.items():
            others = [other.get("supercategory") for k, other in categories.items() if k != key]
            if others and key not in used and all(other == category["name"] for other in others):
                return key
        return ""

    def annotated(self, places: _Places, split: str, report: ConvertReport) -> Iterator[Annotated]:
        """Yield the annotated images.

        Raises:
            UserError: an annotation of an unknown category.
        """
        self._report_ids(report)
        for key, image in self._images.items():
            name = str(image.get("file_name", "")).replace("\\", "/")
            items = self._objects.get(key, [])
            if leaves_folder(name):
                text = f"{self.path}: image {key} has the file name {shown(name)}"
                report.lose_image(LEAVES, text, len(items))
                report.remedy = report.remedy or "write file_name relative to the folder of images"
                continue
            path = places.find(name, self.path.parent, split)
            if path is None:
                remedy = report.remedy or places.remedy(name, self.path.parent)
                report.miss_image(name, places.given or places.root, len(items), remedy)
                continue
            found = Annotated(path, renamed(name, path), [], stated_size=_size(image))
            self._add_objects(found, items, report)
            yield found
        if self._bounds:
            report.messages.append(
                f"{self.path}: {self._bounds} boxes without a bbox are taken from polygons"
            )
        if crowds := report.lost_boxes[_CROWDS]:
            report.remedy = report.remedy or "keep the boxes of crowds with --keep-crowds"
            report.messages.append(f"{self.path}: {crowds} crowds left out; --keep-crowds keeps them")

    def _add_objects(self, found: Annotated, items: list[JsonObject], report: ConvertReport) -> None:
        """Add the boxes and outlines of an image's annotations."""
        for item in items:
            if _is_true(item.get("iscrowd")) and not self.options.keep_crowds:
                report.lost_boxes[_CROWDS] += 1
                continue
            number, box = self._number(item), _box(item.get("bbox"))
            if box is None and (parts := _polygons(item.get("segmentation"))):
                (x1, y1), (x2, y2) = np.vstack(parts).min(0).tolist(), np.vstack(parts).max(0).tolist()
                box = (x1, y1, x2, y2)
                self._bounds += 1
            if self._is_box(item, box, report) and box:
                found.boxes.append((number, *box))
                if self.options.segments:
                    found.polygons.append(_outline(item.get("segmentation")))

    def _report_ids(self, report: ConvertReport) -> None:
        """Report what the ids of the file lose."""
        report.messages += self._notes
        if self._twice:
            report.lost_images["of an id that is taken"] += self._twice
            report.messages.append(f"{self.path}: {self._twice} images have the id of another; left out")
        unknown = [key for key in self._objects if key not in self._images]
        if unknown:
            report.lost_boxes["of images that the file does not list"] += sum(
                len(self._objects[key]) for key in unknown
            )
            report.messages.append(
                f"{self.path}: annotations of {len(unknown)} unknown images, as {unknown[0]}; ignored"
            )

    def _number(self, item: JsonObject) -> int:
        """Return the class number of an annotation."""
        key = _key(item.get("category_id"))
        if key not in self._numbers:
            raise UserError(
                f"{self.path}: annotation {shown(item.get('id'))} has category_id "
                f"{shown(item.get('category_id'))}, which its categories do not define; correct the file"
            )
        return self._numbers[key]

    def _is_box(self, item: JsonObject, box: tuple[float, ...] | None, report: ConvertReport) -> bool:
        """Return whether a box has four numbers and an area; report one that has not."""
        told = f"{self.path}: annotation {shown(item.get('id'))} has the bbox {shown(item.get('bbox'))}"
        if box is None and not _numbers(item.get("bbox")):
            mask = " and a mask" if isinstance(item.get("segmentation"), dict) else ""
            report.lose_box(NOT_A_BOX, f"{told}{mask} where four numbers or a polygon are expected")
        elif box is None or box[2] <= box[0] or box[3] <= box[1]:
            report.lose_box(NO_AREA, f"{told} with no area")
        else:
            return True
        return False


def _load(annotations: Path) -> JsonObject:
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


def _key(value: object) -> str:
    """Return an id in one spelling, whether it is a number or text.

    >>> _key(7), _key("7"), _key(7.0), _key("07"), _key("a")
    ('7', '7', '7', '7', 'a')
    """
    number = to_number(value)
    if not math.isnan(number) and number == int(number) and abs(number) < 1 << 53:
        return str(int(number))
    return str(value).strip() if isinstance(value, int | float | str) else ""


def _is_whole(key: str) -> bool:
    return key.removeprefix("-").isdecimal()


def _is_true(value: object) -> bool:
    """Return whether a flag is set; 0, "0", "false" and nothing are not."""
    return bool(value) and str(value).strip().lower() not in ("0", "0.0", "false", "no", "none")


def _size(image: JsonObject) -> tuple[int, int]:
    """Return the width and height that the annotation states, (0, 0) without."""
    width, height = to_number(image.get("width")), to_number(image.get("height"))
    return (int(width), int(height)) if width > 0 and height > 0 else (0, 0)


def _numbers(value: object) -> list[float]:
    """Return four finite numbers, or an empty list."""
    numbers = [to_number(v) for v in value] if isinstance(value, list) and len(value) == 4 else []
    return [] if any(map(math.isnan, numbers)) else numbers


def _box(value: object) -> tuple[float, float, float, float] | None:
    """Return x1, y1, x2, y2 in pixels of a bbox with an area, or None."""
    numbers = _numbers(value)
    if not numbers or numbers[2] <= 0 or numbers[3] <= 0:
        return None
    x, y, w, h = numbers
    return x, y, x + w, y + h


def _polygons(segmentation: object) -> list[np.ndarray]:
    """Return the parts (n, 2) of an object's outline; none for a mask (RLE)."""
    parts = []
    for flat in segmentation if isinstance(segmentation, list) else ():
        if isinstance(flat, list) and len(flat) >= 6 and len(flat) % 2 == 0:
            points = np.array([to_number(v) for v in flat], np.float64).reshape(-1, 2)
            if np.isfinite(points).all():
                parts.append(points)
    return parts


def _outline(segmentation: object) -> list[tuple[float, float]] | None:
    """Return one closed outline of an object with its parts joined, or None without polygon."""
    joined: np.ndarray | None = None
    for part in _polygons(segmentation):
        if joined is not None and len(joined) * len(part) > _MOST_DISTANCES:
            return None
        joined = part if joined is None else _bridge(joined, part)
    return None if joined is None else [(float(x), float(y)) for x, y in joined]


def _bridge(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Join two outlines (n, 2), (m, 2) between their nearest points.

    The result is (n + m + 2, 2).
    """
    distance = ((first[:, None] - second[None]) ** 2).sum(-1)
    i, j = np.unravel_index(distance.argmin(), distance.shape)
    around = np.roll(second, -int(j), axis=0)
    return np.concatenate([first[: i + 1], around, around[:1], first[i:]])
