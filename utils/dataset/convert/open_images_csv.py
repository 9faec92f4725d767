"""Read Open Images boxes (https://storage.googleapis.com/openimages/web/download_v7.html)."""

from __future__ import annotations

import contextlib
import csv
import math
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from utils.dataset.convert.annotated import (
    NO_IMAGE,
    NOT_A_BOX,
    Annotated,
    AnnotatedSet,
    ConvertOptions,
    ConvertReport,
    FolderIndex,
    SourceFormat,
    chosen_names,
    places_by_split,
    renamed,
    to_number,
)
from utils.errors import UserError

_SIDES = ("XMin", "YMin", "XMax", "YMax")
_COLUMNS = {"ImageID", "LabelName", *_SIDES}
_Row = tuple[str, list[float], bool]  # class, sides, whether it is a group


def _read(options: ConvertOptions) -> AnnotatedSet:
    """Read the CSV files of boxes; sides are fractions of the image. Groups are left out unless asked for.

    Only rows of images that are there are kept in memory: the published lists have millions.
    """
    tables = _box_tables(options.path)
    if not tables:
        raise UserError(f"{options.path}: no CSV with the columns {', '.join(sorted(_COLUMNS))} in it")
    splits = places_by_split(options, {path: path.stem for path in tables})
    images = FolderIndex(options.images or _folder(options.path))
    titles = _class_titles(_folder(options.path))
    read = {split: _Table(path, images, split) for split, path in splits.items()}
    labels = {row[0] for table in read.values() for rows in table.rows.values() for row in rows}
    names = chosen_names(options, {titles.get(label, label) for label in labels})
    numbers = {label: names.index(titles.get(label, label)) for label in labels}
    return AnnotatedSet(
        names, {split: partial(table.annotated, numbers, options) for split, table in read.items()}
    )


class _Table:
    """Hold the rows of one CSV whose images are there.

    Attributes:
        rows: image -> class, sides and whether it is a group, for each box.
    """

    def __init__(self, path: Path, images: FolderIndex, split: str) -> None:
        self.path = path
        self.rows: dict[Path, list[_Row]] = defaultdict(list)
        self._names: dict[Path, str] = {}
        self._missing: dict[str, int] = defaultdict(int)
        places: dict[str, Path | None] = {}
        rows = _read_csv(path)
        header = next(rows)
        for values in rows:
            row = dict(zip(header, values))
            name = row.get("ImageID", "")
            if name not in places:
                places[name] = images.find(name, split)
            if (image := places[name]) is not None:
                self._names[image] = name
                sides = [to_number(row.get(side)) for side in _SIDES]
                self.rows[image].append((row.get("LabelName", ""), sides, row.get("IsGroupOf") == "1"))
            elif name:
                self._missing[name] += 1

    def annotated(
        self, numbers: dict[str, int], options: ConvertOptions, report: ConvertReport
    ) -> Iterator[Annotated]:
        """Yield the annotated images."""
        if self._missing:
            report.lost_images[NO_IMAGE] += len(self._missing)
            report.lost_boxes[f"of images {NO_IMAGE}"] += sum(self._missing.values())
            report.remedy = "give the folder of images as IMAGES"
            first = next(iter(self._missing))
            report.messages.append(
                f"{self.path}: {len(self._missing)} images are not there, as {first}; left out"
            )
        for image, rows in self.rows.items():
            found = Annotated(image, renamed(self._names[image], image), [], normalised=True)
            for label, sides, group in rows:
                if group and not options.keep_crowds:
                    report.lost_boxes["marked as groups"] += 1
                    report.remedy = report.remedy or "keep the boxes of groups with --keep-crowds"
                elif any(map(math.isnan, sides)):
                    report.lose_box(NOT_A_BOX, f"{self.path}: a row of {image.stem} is not four numbers")
                else:
                    found.boxes.append((numbers[label], sides[0], sides[1], sides[2], sides[3]))
            yield found


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _read_csv(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a CSV file.

    Raises:
        UserError: a row that is none.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        try:
            yield from reader
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: is not CSV ({error}); correct it") from None


def _header(path: Path) -> set[str]:
    """Return the first row of a CSV file; nothing for a file that is none."""
    with contextlib.suppress(UserError):
        return set(next(_read_csv(path), []))
    return set()


def _box_tables(path: Path) -> list[Path]:
    """Return the CSV files that have boxes."""
    paths = FolderIndex(path, {".csv"}).paths if path.is_dir() else [path]
    return [file for file in paths if _header(file) >= _COLUMNS]


def _class_titles(folder: Path) -> dict[str, str]:
    """Return label -> name in words, from the class descriptions if they are there."""
    titles: dict[str, str] = {}
    for path in FolderIndex(folder, {".csv"}).paths:
        if "class" in path.name.lower():
            titles |= {row[0]: row[1] for row in _read_csv(path) if len(row) == 2}
    return titles


def _find(root: Path) -> str:
    if root.is_file() and root.suffix.lower() != ".csv":
        return ""
    return ", ".join(str(path.relative_to(_folder(root))) for path in _box_tables(root))


OPEN_IMAGES = SourceFormat("openimages", "Open Images CSV", _find, _read)
