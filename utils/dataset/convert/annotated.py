"""Define what every converter gives to the writer: classes, annotated images, and losses."""

from __future__ import annotations

import codecs
import contextlib
import math
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from utils.errors import UserError
from utils.files import DATASET_SUFFIXES

NO_IMAGE = "without an image of that name"
NO_AREA = "without area in the image"
NOT_A_BOX = "that are not a box of four numbers"
LEAVES = "whose name leads out of the folder"
UNREADABLE = "that cannot be read"

_LONGEST_TEXT = 64 << 20  # bytes of an annotation file; more than any tool writes for one image
_SLOW_CODECS = frozenset({"idna", "punycode"})  # quadratic in the length of the text
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "default": "train",  # CVAT's name of the only subset
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class ConvertOptions:
    """Hold what the user asks of a conversion.

    Attributes:
        path: the source: a folder, its JSON or CSV, or an archive of it.
        out: the folder to write.
        kind: the name of the source's format, or "auto".
        images: the folder of images when it is not below `path`.
        split: names of splits; VOC also takes NAME=LIST.
        names: classes in order; None takes those that are found.
        name: of the dataset YAML; None takes that of `out`.
        copy: copy images even where a hard link would do.
        allow_loss: write the rest when more than half of the images or boxes is lost.
        drop_difficult: leave out VOC objects marked difficult.
        zero_based: VOC corners are edges counted from 0 instead of pixels counted from 1.
        segments: write COCO polygons instead of boxes.
        keep_crowds: keep boxes of crowds (COCO) and groups (Open Images).
    """

    path: Path
    out: Path
    kind: str = "auto"
    images: Path | None = None
    split: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    name: str | None = None
    copy: bool = False
    allow_loss: bool = False
    drop_difficult: bool = False
    zero_based: bool = False
    segments: bool = False
    keep_crowds: bool = False


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
        normalised: boxes and polygons are fractions of the image's width and height instead.
    """

    image: Path
    name: str
    boxes: list[tuple[int, float, float, float, float]]
    polygons: list[list[tuple[float, float]] | None] = field(default_factory=list)
    stated_size: tuple[int, int] = (0, 0)
    normalised: bool = False


@dataclass
class ConvertReport:
    """Count what a conversion wrote and left out.

    Attributes:
        images: images written.
        boxes: class number -> boxes written.
        lost_images: reason -> images left out.
        lost_boxes: reason -> boxes left out.
        ignored: reason -> boxes left out because the format or the user says so; they are no loss.
        messages: everything left out or changed, one sentence each.
        remedy: what would keep most of what was lost; '' when nothing is known.
    """

    images: int = 0
    boxes: Counter[int] = field(default_factory=Counter)
    lost_images: Counter[str] = field(default_factory=Counter)
    lost_boxes: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)
    remedy: str = ""

    def lose_image(self, reason: str, message: str, boxes: int = 0) -> None:
        """Count an image that is left out, and its boxes."""
        self.lost_images[reason] += 1
        self.lost_boxes.update({f"of images {reason}": boxes} if boxes else {})
        self.messages.append(f"{message}; image left out")

    def miss_image(self, what: object, root: Path, boxes: int, remedy: str = "") -> None:
        """Count an image that is not below `root`, or is there twice.

        Args:
            what: the annotation, or the name of the image.
            boxes: how many are lost with it.
            remedy: what would find it.
        """
        self.lose_image(NO_IMAGE, f"{what}: no image of that name in {root}, or more than one", boxes)
        self.remedy = self.remedy or remedy or "give the folder of images as IMAGES"

    def lose_box(self, reason: str, message: str) -> None:
        """Count a box that is left out."""
        self.lost_boxes[reason] += 1
        self.messages.append(f"{message}; box left out")


@dataclass(frozen=True)
class AnnotatedSet:
    """Hold what a format found.

    Attributes:
        names: class names in order.
        splits: split -> a function that yields its annotated images and reports what it leaves out.
    """

    names: list[str]
    splits: Mapping[str, Callable[[ConvertReport], Iterator[Annotated]]]


@dataclass(frozen=True)
class SourceFormat:
    """Describe a format that can be converted.

    Attributes:
        name: of the subcommand.
        title: in words.
        find: returns what of this format is in a folder, in words, or ''.
        read: returns the classes and images; raises UserError when the folder has another format.
    """

    name: str
    title: str
    find: Callable[[Path], str]
    read: Callable[[ConvertOptions], AnnotatedSet]


class FolderIndex:
    """Find the files below a folder by their name, with or without suffix.

    Attributes:
        root: the folder. Hidden files and folders are left out.
        paths: its files, sorted.
    """

    def __init__(self, root: Path, suffixes: Collection[str] = DATASET_SUFFIXES) -> None:
        self.root = root
        self.paths: list[Path] = []
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
            for name in sorted(files):
                if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."):
                    path = Path(folder, name)
                    self.paths.append(path)
                    self._by_stem[_parts(path.with_suffix("").name)[-1]].append(path)

    def name(self, path: Path) -> str:
        """Return the name of a file below the root, with forward slashes and without suffix."""
        return path.relative_to(self.root).with_suffix("").as_posix()

    def find(self, name: str, split: str = "") -> Path | None:
        """Return the file of this name, or None.

        None: there is no such file, or more than one that fits as well.

        As many folders as both have must agree, counted from the file upwards; `images` agrees with
        `labels`. The file with the same suffix and the most equal folders is taken; of several such that
        whose folders name the split.
        """
        if not (parts := _parts(name)):
            return None
        stem, suffix = os.path.splitext(parts[-1])
        if suffix.lower() not in DATASET_SUFFIXES | {".txt", ".xml"}:
            stem, suffix = parts[-1], ""
        ranks: dict[tuple[bool, int, bool, bool], list[Path]] = defaultdict(list)
        for path in self._by_stem.get(stem, ()):
            folders = _parts(str(path.relative_to(self.root).parent))
            shared = min(len(folders), len(parts) - 1)
            if not shared or folders[-shared:] == parts[-1 - shared : -1]:
                same = path.suffix.lower() == suffix.lower()
                in_split = bool(split) and split_of(*folders) == split
                ranks[same, shared, in_split, len(folders) == len(parts) - 1].append(path)
        best = ranks[max(ranks)] if ranks else []
        return best[0] if len(best) == 1 else None


def _parts(name: str) -> list[str]:
    """Return the folders and the file of a path as a list, comparable across systems."""
    path = PureWindowsPath(unicodedata.normalize("NFC", name))
    parts = (part for part in path.parts if part not in (path.anchor, "..", "."))
    return ["labels" if part.lower() == "images" else part for part in parts]


def renamed(name: str, image: Path) -> str:
    """Return the path below the new images folder: the given name with the image's suffix.

    >>> renamed("day/1", Path("set/1.JPG"))
    'day/1.JPG'
    """
    path = PurePosixPath(name.replace("\\", "/"))
    return f"{path.with_suffix('') if path.suffix.lower() in DATASET_SUFFIXES else path}{image.suffix}"


def read_text(path: Path) -> str:
    """Return the text of a file in the encoding that it declares, or that fits.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is larger than 64 MiB.
    """
    with path.open("rb") as file:
        data = file.read(_LONGEST_TEXT + 1)
    if len(data) > _LONGEST_TEXT:
        raise ValueError(f"is larger than {_LONGEST_TEXT >> 20} MiB")
    encodings = ["utf-8-sig", "gb18030", "latin-1"]
    declared = re.search(rb"""^\s*<\?xml[^>]*encoding\s*=\s*["']([\w.:-]+)["']""", data[:200])
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings.insert(0, "utf-16")
    elif declared and not re.match(rb"(?i)utf-?(16|32|8)|ucs", declared[1]):  # those would not show ASCII
        with contextlib.suppress(LookupError):
            encodings.insert(0, codecs.lookup(declared[1].decode()).name)
    for encoding in encodings:
        with contextlib.suppress(LookupError, ValueError):
            if encoding not in _SLOW_CODECS:
                return data.decode(encoding)
    return data.decode("latin-1")


def read_class_list(path: Path) -> list[str]:
    """Return the classes of a list, one a line.

    An empty line has its number as its name.
    """
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
    return [line or str(i) for i, line in enumerate(lines)]


def split_of(*texts: str) -> str:
    """Return the split that the words of these texts name first, or ''.

    >>> split_of("instances_val2017"), split_of("_annotations.coco", "valid"), split_of("labels")
    ('val', 'val', '')
    """
    for text in texts:
        for word in re.split(r"[\W_]+", text.lower()):
            if word.rstrip("0123456789") in _SPLIT_WORDS:
                return _SPLIT_WORDS[word.rstrip("0123456789")]
    return ""


def places_by_split(options: ConvertOptions, places: Mapping[Path, str]) -> dict[str, Path]:
    """Return split -> file or folder of annotations.

    --split is the name for a single one.

    Args:
        options: with the name that the user gives, if any.
        places: each with the words that may name its split.

    Raises:
        UserError: two are for the same split, or --split is for one of several.
    """
    if options.split and len(places) > 1:
        raise UserError(f"--split {options.split[0]}: {options.path} has several splits; leave --split out")
    found: dict[str, Path] = {}
    for path, words in places.items():
        split = options.split[0] if options.split else split_of(words) or "train"
        if split in found:
            raise UserError(
                f"{path}: is for the split {split}, as is {found[split]}; give one of them as PATH, and add "
                "the other with a second call and --split"
            )
        found[split] = path
    return found


def chosen_names(options: ConvertOptions, found: Collection[str]) -> list[str]:
    """Return the classes that the user names, or else those found, sorted.

    Raises:
        UserError: the user's lack one.
    """
    names = list(options.names or sorted(found))
    if lacking := sorted(set(found) - set(names)):
        raise UserError(f"--names {' '.join(names)}: {options.path} also has {', '.join(lacking)}; add them")
    return names


def to_number(value: object) -> float:
    """Return a finite number for a number or its text; NaN for anything else.

    >>> to_number("1.5"), to_number([1])
    (1.5, nan)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
