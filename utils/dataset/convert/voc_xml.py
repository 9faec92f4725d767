"""Convert Pascal VOC annotations (Everingham et al. 2010, and the development kit)."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.dataset.convert.yolo_labels import Annotated, ConvertReport, write_split
from utils.downloads import leaves_folder
from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES


def convert_voc(
    root: Path,
    out: Path,
    splits: dict[str, Path],
    names: list[str],
    *,
    drop_difficult: bool = False,
    zero_based: bool = False,
    copy: bool = False,
) -> dict[str, ConvertReport]:
    """Convert splits of a VOC-like folder (Annotations/, JPEGImages/).

    VOC's corners are pixels counted from 1, both ends inside the box (the development kit's convention), so a
    box covers xmin - 1 .. xmax and is xmax - xmin + 1 wide.

    Args:
        root: that folder.
        out: gets images/<split>/ and labels/<split>/.
        splits: split -> list of image names, one a line; a second column of -1 leaves an image out.
        names: classes in order.
        drop_difficult: leave out objects marked difficult; they are kept otherwise.
        zero_based: corners are edges counted from 0 instead of pixels counted from 1.
        copy: copy images even where a hard link would do.

    Raises:
        UserError: a missing folder or list, a class that `names` lacks, a split that exists already.
    """
    reports = {}
    for split, listed in splits.items():
        report = ConvertReport()
        offset = 0.0 if zero_based else 1.0
        found = _annotated(root, listed, names, report.messages, drop_difficult, offset)
        write_split(out, split, found, report, copy=copy)
        reports[split] = report
    return reports


def _annotated(
    root: Path, listed: Path, names: list[str], messages: list[str], drop_difficult: bool, offset: float
) -> Iterator[Annotated]:
    """Yield the annotated images of one list.

    Args:
        messages: gets a sentence for everything left out.
        offset: what is subtracted from xmin and ymin.
    """
    numbers = {name: i for i, name in enumerate(names)}
    if len(numbers) < len(names):
        raise UserError(f"--names {' '.join(names)}: a class is named twice; name each once")
    for folder in (root / "Annotations", root / "JPEGImages"):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; ROOT needs Annotations and JPEGImages")
    images = {
        p.stem: p for p in sorted((root / "JPEGImages").iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES
    }
    for stem in _read_image_names(listed):
        if leaves_folder(stem):  # the written image and label get the same name
            messages.append(f"{listed}: the image name {stem!r} leads out of the folder; image left out")
            continue
        xml = root / "Annotations" / f"{stem}.xml"
        tree = _parse(xml, messages)
        if tree is None:
            continue
        image = images.get(stem) or images.get(Path(tree.findtext("filename") or "").stem)
        if image is None:
            messages.append(f"{xml}: no image of that name in {root / 'JPEGImages'}; image left out")
            continue
        boxes = []
        for item in tree.iter("object"):
            name = (item.findtext("name") or "").strip()
            if name not in numbers:
                raise UserError(f"{xml}: class {name!r} is not among {', '.join(names)}; add it to --names")
            if drop_difficult and (item.findtext("difficult") or "0").strip() == "1":
                continue
            box = _box(xml, item, messages)
            if box:
                boxes.append((numbers[name], box[0] - offset, box[1] - offset, box[2], box[3]))
        stated = tuple(_number(tree.findtext(f"size/{side}")) for side in ("width", "height"))
        size = (int(stated[0]), int(stated[1])) if all(map(math.isfinite, stated)) else (0, 0)
        yield Annotated(image, f"{stem}{image.suffix}", boxes, stated_size=size if all(size) else (0, 0))


def find_names(root: Path, lists: Iterable[Path]) -> list[str]:
    """Return all classes in the annotations of these lists, sorted.

    Raises:
        UserError: there is no object.
    """
    ignored: list[str] = []
    found: set[str] = set()
    for listed in lists:
        for stem in _read_image_names(listed):
            if leaves_folder(stem):
                continue
            tree = _parse(root / "Annotations" / f"{stem}.xml", ignored)
            if tree is not None:
                found |= {(item.findtext("name") or "").strip() for item in tree.iter("object")}
    if not found:
        raise UserError(f"{root / 'Annotations'}: no object in any annotation; check ROOT and --split")
    return sorted(found)


def _read_image_names(listed: Path) -> list[str]:
    """Read the image names of an ImageSets file, each once."""
    try:
        lines = listed.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{listed}: list of images cannot be read ({reason}); check --split") from None
    rows = [line.split() for line in lines if line.strip()]
    return list(dict.fromkeys(row[0] for row in rows if row[1:] != ["-1"]))


def _parse(xml: Path, messages: list[str]) -> ElementTree.Element | None:
    """Return the root element of an annotation, or None and a message."""
    try:
        data = xml.read_bytes()
        if b"<!ENTITY" in data:  # no annotation needs one, and nested ones fill the memory
            raise ElementTree.ParseError("entities are refused")
        return ElementTree.fromstring(data)  # noqa: S314 (entities were refused above)
    except (OSError, ElementTree.ParseError) as error:
        messages.append(f"{xml}: {getattr(error, 'strerror', None) or error}; image left out")
        return None


def _box(xml: Path, item: ElementTree.Element, messages: list[str]) -> tuple[float, ...] | None:
    """Return xmin, ymin, xmax, ymax as written, or None and a message."""
    texts = [item.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    box = tuple(_number(text) for text in texts)
    shown = f"{xml}: {item.findtext('name')} box {' '.join(str(t).strip() for t in texts)}"
    if not all(map(math.isfinite, box)):
        messages.append(f"{shown} is not four numbers; box left out")
        return None
    if box[2] <= box[0] or box[3] <= box[1]:
        messages.append(f"{shown} has no area; box left out")
        return None
    return box


def _number(text: str | None) -> float:
    """Return a number; NaN for other text."""
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan
