"""Write converted images, YOLO labels and their dataset YAML."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from utils.dataset.labels import image_size
from utils.dataset.verification import log_findings
from utils.errors import UserError
from utils.files import load_yaml, save_yaml


@dataclass
class Annotated:
    """Hold one image of the source and its objects.

    Attributes:
        image: the file.
        name: its path below the new images folder.
        boxes: class number and x1, y1, x2, y2 in pixels, edges counted from 0.
        polygons: for each box its outline [(x, y), ...] in pixels, or None; empty when polygons are not
            wanted.
        stated_size: width and height as the annotation says, (0, 0) when it does not.
    """

    image: Path
    name: str
    boxes: list[tuple[int, float, float, float, float]]
    polygons: list[list[tuple[float, float]] | None] = field(default_factory=list)
    stated_size: tuple[int, int] = (0, 0)


@dataclass
class ConvertReport:
    """Count what a conversion wrote and left out.

    Attributes:
        images: images written.
        boxes: class number -> boxes written.
        messages: everything left out or changed, one sentence each.
    """

    images: int = 0
    boxes: Counter[int] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)


def read_yaml(path: Path, names: list[str]) -> dict[str, Any]:  # values of a YAML
    """Read the dataset YAML of an earlier conversion, without its names.

    Without such a file it returns the first key of a new one.

    Raises:
        UserError: it has other classes, or is not a YAML.
    """
    if not path.exists():
        return {"path": "."}
    data = load_yaml(path)
    known = data.pop("names", None)
    if known != dict(enumerate(names)):
        raise UserError(f"{path}: has other classes ({known}) than {names}; choose another --name")
    return data


def write_yaml(path: Path, names: list[str], splits: Iterable[str]) -> None:
    """Write the dataset YAML, or add splits to that of an earlier conversion.

    Raises:
        UserError: the earlier one has other classes.
    """
    data = read_yaml(path, names) | {split: f"images/{split}" for split in splits}
    save_yaml(path, data | {"names": dict(enumerate(names))})


@contextmanager
def _unfinished(out: Path, split: str) -> Iterator[Path]:
    """Make a temporary folder that becomes images/<split> and labels/<split> on success."""
    for kind in ("images", "labels"):
        if (out / kind / split).exists():
            raise UserError(
                f"{out / kind / split}: exists already; remove it, or choose another folder or split"
            )
    out.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{split}.", suffix=".part", dir=out))
    try:
        for kind in ("images", "labels"):
            (temporary / kind).mkdir()
        yield temporary
        for kind in ("images", "labels"):
            (out / kind).mkdir(exist_ok=True)
            os.replace(temporary / kind, out / kind / split)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_split(
    out: Path, split: str, found: Iterable[Annotated], report: ConvertReport, *, copy: bool
) -> None:
    """Write the images and labels of one split, whole or not at all.

    Args:
        out: gets images/<split>/ and labels/<split>/.
        split: name of the split.
        found: its images; each is read when the one before is written.
        report: gets the counts, and a message for everything left out or changed.
        copy: copy images even where a hard link would do.

    Raises:
        UserError: the split exists already.
    """
    with _unfinished(out, split) as folder:
        for item in tqdm(found, desc=f"converting {split}", unit="image", dynamic_ncols=True):
            label = folder / "labels" / PurePosixPath(item.name).with_suffix(".txt")
            image = folder / "images" / item.name
            if os.path.lexists(label) or os.path.lexists(image):
                report.messages.append(f"{item.image}: a second image of this name; image left out")
                continue
            try:
                width, height, note = image_size(str(item.image))
            except (OSError, ValueError) as error:
                report.messages.append(f"{item.image}: {error}; image left out")
                continue
            if note:
                report.messages.append(f"{item.image}: {note}")
            _compare_sizes(item, width, height, report)
            rows = _rows(item, width, height, report)
            _place_image(item.image, image, copy)
            label.parent.mkdir(parents=True, exist_ok=True)
            with label.open("x", encoding="utf-8") as file:
                file.write("".join(rows))
            report.images += 1
    log_findings(report.messages)


def _compare_sizes(item: Annotated, width: int, height: int, report: ConvertReport) -> None:
    """Note when the annotation states another size than the image has.

    The size of the image is used.
    """
    stated = item.stated_size
    if stated in ((width, height), (0, 0)):
        return
    hint = ""
    if stated == (height, width):
        hint = "; its EXIF tag turns it, so check that the boxes are in the right place"
    report.messages.append(
        f"{item.image}: {width} x {height} pixels where the annotation says {stated[0]} x {stated[1]}{hint}"
    )


def _rows(item: Annotated, width: int, height: int, report: ConvertReport) -> list[str]:
    """Return the label rows of an image: clipped to it, normalised, without empty ones."""
    rows = []
    polygons = item.polygons or [None] * len(item.boxes)
    for (number, *box), polygon in zip(item.boxes, polygons):
        x1, x2 = (min(max(x / width, 0.0), 1.0) for x in (box[0], box[2]))
        y1, y2 = (min(max(y / height, 0.0), 1.0) for y in (box[1], box[3]))
        if not (round(x2 - x1, 6) > 0 and round(y2 - y1, 6) > 0):
            corners = " ".join(f"{v:g}" for v in box)
            report.messages.append(f"{item.image}: box {corners} has no area in the image; box left out")
            continue
        if item.polygons:
            outline = polygon or [(box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3])]
            values = [min(max(v / s, 0.0), 1.0) for point in outline for v, s in zip(point, (width, height))]
        else:
            values = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        rows.append(f"{number} " + " ".join(f"{v:.6f}" for v in values) + "\n")
        report.boxes[number] += 1
    return rows


def _place_image(source: Path, target: Path, copy: bool) -> None:
    """Hard-link an image, or copy it where links do not work.

    Another file is never replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or one without links: the copy below does it
    with source.open("rb") as read, target.open("xb") as written:
        shutil.copyfileobj(read, written)
