"""Read the YOLO labels of other tools: CVAT and Darknet, labelImg, Label Studio.

Their rows are those of our own labels; what differs is where the classes, labels and images are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from utils.dataset.convert.annotated import (
    UNREADABLE,
    Annotated,
    AnnotatedSet,
    ConvertOptions,
    ConvertReport,
    FolderIndex,
    SourceFormat,
    places_by_split,
    read_class_list,
    read_text,
    split_of,
)
from utils.dataset.labels import read_labels
from utils.errors import UserError

_CLASS_LISTS = ("classes.txt", "_darknet.labels", "obj.names")
_NO_LABELS = re.compile(r"classes|labels|readme.*|notes|train|val|valid|test|predefined_classes", re.I)
"""Stems of text files beside the images that are no labels."""


# CVAT YOLO 1.1 and Darknet: obj.data names a list of classes and a list of images for each split.


def _read_darknet(options: ConvertOptions) -> AnnotatedSet:
    """Read what a Darknet .data file names.

    Labels are beside their images, or where these would be.

    Paths in it are those of the machine that trains, as data/train.txt, so they are looked for by their
    last parts.
    """
    data = _data_file(options.path)
    if data is None:
        raise UserError(
            f"{options.path}: no .data file with train and names; CVAT and Darknet call it obj.data"
        )
    keys = _data_keys(data)
    files = FolderIndex(options.path, {".txt", ".names", ".list"})
    labels, images = FolderIndex(options.path, {".txt"}), FolderIndex(options.images or options.path)
    names = _given_names(options, read_class_list(_named(files, data, keys, "names")))
    read_one = partial(_read_one, images, names)
    lists = {split_of(key): _named(files, data, keys, key) for key in keys if split_of(key)}

    def annotated(listed: Path, report: ConvertReport) -> Iterator[Annotated]:
        lines = filter(None, map(str.strip, read_text(listed).splitlines()))
        for line in dict.fromkeys(lines):
            yield from read_one(line, images.find(line), labels.find(line), report)

    return AnnotatedSet(names, {split: partial(annotated, path) for split, path in lists.items()})


def _data_file(root: Path) -> Path | None:
    found = [
        path for path in FolderIndex(root, {".data"}).paths if {"train", "names"} <= _data_keys(path).keys()
    ]
    return found[0] if found else None


def _data_keys(path: Path) -> dict[str, str]:
    """Return the lines `key = value` of a Darknet file."""
    rows = (line.partition("=") for line in read_text(path).splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in rows}


def _named(files: FolderIndex, data: Path, keys: dict[str, str], key: str) -> Path:
    """Return the file that a key of the Darknet file names, below its folder."""
    name = keys[key].replace("\\", "/").split("/")[-1]
    found = [path for path in files.paths if path.name == name]
    if not found:
        raise UserError(f"{data}: its {key} is {keys[key]}, and no {name} is in {files.root}; put it there")
    return min(found, key=lambda path: (len(path.parts), path))


def _find_darknet(root: Path) -> str:
    data = _data_file(root) if root.is_dir() else None
    return f"{data.relative_to(root)} with lists of images" if data else ""


DARKNET = SourceFormat("darknet", "CVAT YOLO 1.1 or Darknet", _find_darknet, _read_darknet)


# labelImg: a label file beside each image, a list of classes in the same folder; Roboflow's Darknet export
# has such a folder for each split.


def _read_labelimg(options: ConvertOptions) -> AnnotatedSet:
    """Read folders of images with label files beside them; an image without one is background."""
    folders = _labelimg_folders(options.path)
    if not folders and not options.names:
        lists = ", ".join(_CLASS_LISTS)
        raise UserError(
            f"{options.path}: no list of classes in it ({lists}); write one name a line into classes.txt, or "
            "give --names"
        )
    known = [read_class_list(path) for path in folders]
    if any(names != known[0] for names in known):
        raise UserError(f"{folders[0]}: other splits have other classes; make the lists the same")
    names = _given_names(options, known[0] if known else [])

    def annotated(folder: Path, report: ConvertReport) -> Iterator[Annotated]:
        labels, images = FolderIndex(folder, {".txt"}), FolderIndex(options.images or folder)
        read_one, used = partial(_read_one, images, names), set()
        for path in images.paths:
            label = labels.find(images.name(path) + path.suffix)
            used.add(label)
            yield from read_one(path.name, path, label, report)
        for label in labels.paths:
            if label not in used and not _NO_LABELS.fullmatch(label.stem):
                yield from read_one(label.stem, None, label, report)

    places = {path.parent: path.parent.name if len(folders) > 1 else "" for path in folders}
    places = places or {options.path: ""}
    return AnnotatedSet(
        names, {split: partial(annotated, p) for split, p in places_by_split(options, places).items()}
    )


def _labelimg_folders(root: Path) -> list[Path]:
    """Return the class lists of the folder, or those of its folders of splits."""
    if not root.is_dir():
        return []
    folders = [root, *sorted(p for p in root.iterdir() if p.is_dir() and split_of(p.name))]
    found = [next((f / name for name in _CLASS_LISTS if (f / name).is_file()), None) for f in folders]
    return [found[0]] if found[0] else [path for path in found if path]


def _find_labelimg(root: Path) -> str:
    lists = _labelimg_folders(root)
    if not lists or (root / "labels").is_dir() or _data_file(root):
        return ""
    labels, images = FolderIndex(root, {".txt"}), FolderIndex(root)
    count = sum(labels.find(images.name(path) + path.suffix) is not None for path in images.paths)
    return f"{count} images with a text file of their name, and {lists[0].relative_to(root)}" if count else ""


LABELIMG = SourceFormat("labelimg", "labelImg or Darknet folder", _find_labelimg, _read_labelimg)


# Label Studio: classes.txt, notes.json, images/ (often empty), labels/.


def _read_label_studio(options: ConvertOptions) -> AnnotatedSet:
    """Read Label Studio's YOLO export; only images with a label file are annotated.

    Label Studio puts eight hexadecimal digits and a hyphen or __ before the names of images, and quotes
    paths as in addresses; both are taken away where no image has the whole name.
    """
    root = options.path
    if not (root / "labels").is_dir():
        raise UserError(f"{root}: no folder named labels; give the folder that has classes.txt and labels")
    names = _given_names(options, _label_studio_names(root))
    labels = FolderIndex(root / "labels", {".txt"})
    images = FolderIndex(options.images or root)
    read_one = partial(_read_one, images, names)

    def annotated(report: ConvertReport) -> Iterator[Annotated]:
        for label in labels.paths:
            name = labels.name(label)
            tail = re.split(r"[/\\=]", unquote(name))[-1]
            found = (images.find(n) for n in (name, tail, re.sub(r"^[0-9a-f]{8}(-|__)", "", tail)))
            yield from read_one(tail, next(filter(None, found), None), label, report)

    return AnnotatedSet(names, {options.split[0] if options.split else "train": annotated})


def _label_studio_names(root: Path) -> list[str]:
    if (root / "classes.txt").is_file():
        return read_class_list(root / "classes.txt")
    try:
        categories = json.loads(read_text(root / "notes.json"))["categories"]
        return [str(c["name"]) for c in sorted(categories, key=lambda c: int(c["id"]))]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{root}: neither classes.txt nor a notes.json with categories is in it; add one"
        ) from None


def _find_label_studio(root: Path) -> str:
    lists = [name for name in ("classes.txt", "notes.json") if (root / name).is_file()]
    if not lists or not (root / "labels").is_dir() or any(root.glob("*.y*ml")):  # a YAML: a data set of ours
        return ""
    return f"{' and '.join(lists)} beside labels"


LABEL_STUDIO = SourceFormat("labelstudio", "Label Studio YOLO", _find_label_studio, _read_label_studio)


def _given_names(options: ConvertOptions, found: list[str]) -> list[str]:
    """Return the classes of the user, or else those found."""
    if options.names is not None and len(options.names) < len(found):
        raise UserError(
            f"--names {' '.join(options.names)}: {options.path} has the {len(found)} classes "
            f"{', '.join(found)}; name all of them in this order"
        )
    return list(options.names or found)


def _read_one(
    images: FolderIndex,
    names: list[str],
    name: str,
    image: Path | None,
    label: Path | None,
    report: ConvertReport,
) -> Iterator[Annotated]:
    """Yield the annotated image of one label file, or report why there is none."""
    written, labels, polygons, messages = 0, np.zeros((0, 5)), list[np.ndarray](), list[str]()
    try:
        if label is not None:
            labels, polygons, messages, written = read_labels(str(label))
    except OSError as error:
        report.lose_image(UNREADABLE, f"{label}: {error.strerror}")
        return
    if image is None:
        remedy = "give the folder of images as IMAGES; exports often lack them"
        report.miss_image(label or name, images.root, written, remedy)
        return
    report.messages += messages
    if written and not len(labels):  # it would be learnt as background
        report.lose_image("without a valid row", f"{label}: no valid row", written)
        return
    if written > len(labels):
        report.lost_boxes["in rows that are no label, or are there twice"] += written - len(labels)
    found = Annotated(image, image.relative_to(images.root).as_posix(), [], normalised=True)
    for i, (number, xc, yc, w, h) in enumerate(labels.tolist()):
        if number >= len(names):
            report.lose_box(
                "of a class that the list of classes lacks",
                f"{label}: class {number:g} where the list of classes has 0 to {len(names) - 1}",
            )
            continue
        found.boxes.append((int(number), xc - w / 2, yc - h / 2, xc + w / 2, yc + h / 2))
        if polygons:
            found.polygons.append([(float(x), float(y)) for x, y in polygons[i]])
    yield found
