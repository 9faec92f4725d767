"""Read Pascal VOC annotations (Everingham et al. 2010, and the development kit)."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from utils.dataset.convert.annotated import (
    LEAVES,
    NO_AREA,
    NOT_A_BOX,
    UNREADABLE,
    Annotated,
    AnnotatedSet,
    ConvertOptions,
    ConvertReport,
    FolderIndex,
    SourceFormat,
    read_text,
    renamed,
    split_of,
    to_number,
)
from utils.downloads import leaves_folder
from utils.errors import UserError, shown

_BELOW_ONE = "a corner is below 1, so its tool counts from 0; --zero-based reads such corners as edges"


def read_voc(options: ConvertOptions) -> AnnotatedSet:
    """Read a folder of VOC XML files, with or without lists of images.

    The XML files are in `Annotations`, or anywhere below the folder. VOC's corners are pixels counted from
    1, both ends inside the box (the development kit's convention), so a box covers xmin - 1 .. xmax and is
    xmax - xmin + 1 wide.

    Raises:
        UserError: no XML, a list that cannot be read, no object, a class that the names lack.
    """
    folder = _VocFolder(options)
    splits = _splits(options, folder)
    names = list(options.names or _find_names(folder, splits))
    return AnnotatedSet(
        names, {split: partial(folder.annotated, listed, names) for split, listed in splits.items()}
    )


def _find(root: Path) -> str:
    """Return where the first VOC XML is, or ''."""
    paths = FolderIndex(_child(root, "annotations") or root, {".xml"}).paths
    for path in paths[:20]:  # a few others may lie there
        if (tree := _parse(path, ConvertReport())) is not None and tree.tag == "annotation":
            return f"{len(paths)} XML files, as {path.relative_to(root)}"
    return ""


VOC = SourceFormat("voc", "Pascal VOC XML", _find, read_voc)


def _child(root: Path, name: str) -> Path | None:
    """Return the folder of this name, in any case, or None."""
    found = (
        sorted(p for p in root.iterdir() if p.name.lower() == name and p.is_dir()) if root.is_dir() else []
    )
    return found[0] if found else None


class _VocFolder:
    """Find the XML files and images of a VOC folder, and read them."""

    def __init__(self, options: ConvertOptions) -> None:
        root = options.path
        self.options = options
        self.xmls = FolderIndex(_child(root, "annotations") or root, {".xml"})
        if not self.xmls.paths:
            raise UserError(
                f"{self.xmls.root}: no XML file in it; give the folder that has Annotations, or the XML files"
            )
        self.images = FolderIndex(options.images or _child(root, "jpegimages") or root)

    def every_name(self, _: ConvertReport) -> Iterator[tuple[str, Path]]:
        """Yield name and file of all XML files."""
        for path in self.xmls.paths:
            yield self.xmls.name(path), path

    def listed_names(self, listed: Path, report: ConvertReport) -> Iterator[tuple[str, Path]]:
        """Yield name and XML file of an ImageSets file's lines, each once.

        The whole line is the name, but for a flag of -1, 0 or 1 after it; -1 leaves the image out.
        """
        try:
            lines = read_text(listed).splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{listed}: list of images cannot be read ({reason}); check --split") from None
        seen: set[str] = set()
        for line in filter(None, map(str.strip, lines)):
            name, path = line, self.xmls.find(line)
            flagged = re.fullmatch(r"(.*\S)\s+(-1|0|1)", line)
            if path is None and flagged:
                name, path = flagged[1], self.xmls.find(flagged[1])
                if flagged[2] == "-1":
                    continue
            if name in seen:
                continue
            seen.add(name)
            if leaves_folder(name):  # the written image and label get the same name
                report.lose_image(LEAVES, f"{listed}: the image name {shown(name)} leads out of the folder")
            elif path is None:
                report.lose_image("without an XML", f"{listed}: {name} has no XML file in {self.xmls.root}")
            else:
                yield name, path

    def annotated(self, listed: Path | None, names: list[str], report: ConvertReport) -> Iterator[Annotated]:
        """Yield the annotated images of a list, or all of them."""
        numbers, said = {name: i for i, name in enumerate(names)}, False
        for name, xml in self.listed_names(listed, report) if listed else self.every_name(report):
            tree = _parse(xml, report)
            if tree is None:
                continue
            stated_name = PurePosixPath((tree.findtext("filename") or "").replace("\\", "/")).name
            image = self.images.find(name) or self.images.find(stated_name)
            if image is None:
                report.miss_image(xml, self.images.root, sum(1 for _ in tree.iter("object")))
                continue
            boxes = list(self._boxes(xml, tree, numbers, report))
            if not (self.options.zero_based or said) and any(-1 <= min(box[1:3]) < 0 for box in boxes):
                said = True
                report.messages.append(f"{xml}: {_BELOW_ONE}")
            stated = [to_number(tree.findtext(f"size/{side}")) for side in ("width", "height")]
            size = (int(stated[0]), int(stated[1])) if all(v > 0 for v in stated) else (0, 0)
            yield Annotated(image, renamed(name, image), boxes, stated_size=size)

    def _boxes(
        self, xml: Path, tree: ElementTree.Element, numbers: dict[str, int], report: ConvertReport
    ) -> Iterator[tuple[int, float, float, float, float]]:
        """Yield class and corners of the objects of one XML."""
        offset = 0.0 if self.options.zero_based else 1.0
        for item in tree.iter("object"):
            name = (item.findtext("name") or "").strip()
            if name not in numbers:
                raise UserError(
                    f"{xml}: class {shown(name)} is not among {', '.join(numbers)}; add it to --names"
                )
            if self.options.drop_difficult and (item.findtext("difficult") or "0").strip() == "1":
                report.ignored["marked difficult"] += 1
                continue
            texts = [item.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
            x1, y1, x2, y2 = map(to_number, texts)
            box = f"{xml}: {name} box {' '.join(str(t).strip() for t in texts)}"
            if math.isnan(x1 + y1 + x2 + y2):
                report.lose_box(NOT_A_BOX, f"{box} is not four numbers")
            elif x2 <= x1 or y2 <= y1:
                report.lose_box(NO_AREA, f"{box} has no area")
            else:
                yield numbers[name], x1 - offset, y1 - offset, x2, y2


def _splits(options: ConvertOptions, folder: _VocFolder) -> dict[str, Path | None]:
    """Return split -> list of images, or None for every XML.

    A list is relative to the root or to the working folder; without --split, ImageSets/Main is used.
    """
    if not options.split:
        return _lists_of(options.path / "ImageSets" / "Main") or {"train": None}
    splits: dict[str, Path | None] = {}
    for text in options.split:
        split, equals, listed = text.partition("=")
        if bool(equals) != bool(listed) or not split:
            raise UserError(
                f"--split {text}: expected NAME or NAME=LIST, as in train=ImageSets/Main/train.txt"
            )
        below = options.path / listed
        splits[split] = (below if below.is_file() else Path(listed)) if listed else None
    if len(splits) > 1 and None in splits.values():
        raise UserError(f"--split {' '.join(options.split)}: several splits need a list each, as train=LIST")
    return splits


def _lists_of(folder: Path) -> dict[str, Path | None]:
    """Return split -> list, for the lists whose whole name is that of a split."""
    found: dict[str, Path | None] = {}
    lists = {path.stem: path for path in sorted(folder.glob("*.txt")) if path.stem.isalpha()}
    for stem in (
        *(s for s in ("train", "val", "test") if s in lists),
        *lists,
    ):  # default and so on come after
        if split := split_of(stem):
            found.setdefault(split, lists[stem])
    return found or ({"train": lists["trainval"]} if "trainval" in lists else {})


def _find_names(folder: _VocFolder, splits: dict[str, Path | None]) -> list[str]:
    """Return all classes in the annotations of these splits, sorted."""
    ignored = ConvertReport()
    found: set[str] = set()
    for listed in splits.values():
        for _, xml in folder.listed_names(listed, ignored) if listed else folder.every_name(ignored):
            tree = _parse(xml, ignored)
            if tree is not None:
                found |= {(item.findtext("name") or "").strip() for item in tree.iter("object")}
    if not found:
        first = f" ({ignored.messages[0]})" if ignored.messages else ""
        raise UserError(f"{folder.xmls.root}: no object in any annotation{first}; check the path and --split")
    return sorted(found)


def _parse(xml: Path, report: ConvertReport) -> ElementTree.Element | None:
    """Return the root element of an annotation, or None and a message."""
    try:
        text = read_text(xml)
        if "<!ENTITY" in text:  # no annotation needs one, and nested ones fill the memory
            raise ElementTree.ParseError("entities are refused")
        return ElementTree.fromstring(text)  # noqa: S314 (entities were refused above)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        report.lose_image(UNREADABLE, f"{xml}: {getattr(error, 'strerror', None) or error}")
        return None
