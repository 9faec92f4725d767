"""Read KITTI labels (Geiger et al. 2012, readme of the object development kit)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from utils.dataset.convert.annotated import (
    NOT_A_BOX,
    UNREADABLE,
    Annotated,
    AnnotatedSet,
    ConvertOptions,
    ConvertReport,
    FolderIndex,
    SourceFormat,
    chosen_names,
    places_by_split,
    read_text,
    renamed,
    to_number,
)
from utils.errors import UserError

_FOLDERS = ("label_2", "label_02", "labels")
_COLUMNS = (
    15  # type, truncated, occluded, alpha, 4 of the box, 3 sizes, 3 of the place, rotation; then a score
)
_NO_OBJECT = "DontCare"


def _read(options: ConvertOptions) -> AnnotatedSet:
    """Read the label files; their boxes are pixel edges counted from 0. Regions DontCare are no objects."""
    folders = _label_folders(options.path)
    if not folders:
        raise UserError(f"{options.path}: no folder {' or '.join(_FOLDERS)} with KITTI labels below it")
    splits = places_by_split(options, {folder: folder.parent.name for folder in folders})
    found = {
        row[0] for folder in folders for path in FolderIndex(folder, {".txt"}).paths for row in _rows(path)
    }
    names = chosen_names(options, found - {_NO_OBJECT})
    return AnnotatedSet(
        names, {split: partial(_annotated, options, folder, names) for split, folder in splits.items()}
    )


def _annotated(
    options: ConvertOptions, folder: Path, names: list[str], report: ConvertReport
) -> Iterator[Annotated]:
    """Yield the annotated images of a folder of labels."""
    labels, images = FolderIndex(folder, {".txt"}), FolderIndex(options.images or folder.parent)
    for label in labels.paths:
        name = labels.name(label)
        try:
            lines = [line for line in read_text(label).splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            report.lose_image(UNREADABLE, f"{label}: {error}")
            continue
        image = images.find(name)
        if image is None:
            report.miss_image(label, images.root, len(lines), "give the folder of images (image_2) as IMAGES")
            continue
        found = Annotated(image, renamed(name, image), [])
        for line in lines:
            row = line.split()
            x1, y1, x2, y2 = [to_number(v) for v in row[4:8]] if len(row) >= _COLUMNS else [math.nan] * 4
            if row[0] == _NO_OBJECT:
                report.ignored[_NO_OBJECT] += 1
            elif math.isnan(x1 + y1 + x2 + y2) or row[0] not in names:
                report.lose_box(NOT_A_BOX, f"{label}: {line[:60]!r} is no KITTI row of {_COLUMNS} columns")
            else:
                found.boxes.append((names.index(row[0]), x1, y1, x2, y2))
        yield found


def _rows(path: Path) -> list[list[str]]:
    """Return the rows of a label file that have KITTI's columns."""
    try:
        rows = [line.split() for line in read_text(path).splitlines()]
    except (OSError, ValueError):
        return []  # reported when its image is read
    return [row for row in rows if len(row) >= _COLUMNS and math.isnan(to_number(row[0]))]


def _label_folders(root: Path) -> list[Path]:
    """Return the folders whose first label file with rows has KITTI's columns."""
    found = []
    folders = [root, *sorted(path for name in _FOLDERS for path in root.rglob(name))]
    for folder in (path for path in folders if path.name in _FOLDERS and path.is_dir()):
        if any(map(_rows, FolderIndex(folder, {".txt"}).paths[:50])):
            found.append(folder)
    return found


def _find(root: Path) -> str:
    return (
        ", ".join(str(folder.relative_to(root)) for folder in _label_folders(root)) if root.is_dir() else ""
    )


KITTI = SourceFormat("kitti", "KITTI", _find, _read)
