"""List, verify and pack the images of a split."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils.dataset.config import DatasetConfig
from utils.dataset.image_set import CORRUPT, ImageSet, Packed, ScanReport
from utils.dataset.labels import find_labels, label_path
from utils.dataset.verification import cache_path, log_report, scan
from utils.errors import UserError, shown
from utils.files import DATASET_SUFFIXES, read_path_list

LOGGER = logging.getLogger("yolo.datasets")

_BESIDE_IMAGES = frozenset(
    ("", ".txt", ".xml", ".json", ".csv", ".yaml", ".yml", ".npy", ".npz", ".cache", ".md")
)


def load_images(
    config: DatasetConfig,
    split: str,
    *,
    workers: int | None = None,
    use_cache: bool = True,
    require_labels: bool = False,
) -> ImageSet:
    """Return the verified images of a split, with their labels.

    With `single_cls` every label of the result has class 0; the files are checked against the YAML's names
    all the same.

    Args:
        config: from `load_dataset`.
        split: 'train', 'val' or 'test'.
        workers: processes for the verification, at most 8; None: as many as fit.
        use_cache: reuse what an earlier scan found for files that have not changed.
        require_labels: raise when the split has no label at all (training); otherwise warn.

    Raises:
        UserError: no such split or folder, no usable image, a class beyond the names, no labels.
    """
    if split not in config.splits:
        known = ", ".join(config.splits)
        raise UserError(f"{config.path}: no '{split}' images (it has {known}); add a '{split}:' line to it")
    sources = config.splits[split]
    paths, notes = list_images(sources, config.root)
    cache = cache_path(sources[0], sources) if use_cache else None
    title = f"{config.path.name} {split}"
    packed, report = scan(paths, cache, workers=workers, title=title, keypoints=config.keypoints)
    report.messages[:0] = notes
    log_report(report, title)
    images = _usable(packed, report, f"{config.path}: none of the {report.total} {split} images")
    _check_label_classes(images, config)
    if not len(images.all_labels):
        _report_no_labels(images, config, split, require_labels)
    if config.single_cls:
        images.all_labels[:, 0] = 0
    return images


def load_unlabelled(paths: list[str], *, workers: int | None = None) -> ImageSet:
    """Return the verified images of paths, for work that reads no labels.

    Labels beside them may be of any classes: nothing is said of them, and the result may hold them.

    Raises:
        UserError: no image can be used.
    """
    packed, report = scan(paths, None, workers=workers, title="images without labels")
    return _usable(packed, report, f"none of the {report.total} images")


def _usable(packed: Packed, report: ScanReport, none_of_them: str) -> ImageSet:
    """Return the images that are not dropped; refuse none at all."""
    usable = packed.take(np.flatnonzero(packed.status != CORRUPT)) if report.corrupt else packed
    if not len(usable):
        raise UserError(f"{none_of_them} is usable ({report.messages[-1]})")
    return ImageSet(usable, report)


def list_images(sources: list[Path], root: Path) -> tuple[list[str], list[str]]:
    """Return the images of folders and lists, and notes on what was left out.

    Each comes once. Those of a folder are sorted; those of a list keep its order.

    Raises:
        UserError: a source is missing or holds no image.
    """
    listed: list[str] = []
    notes: list[str] = []
    for source in sources:
        if source.is_dir():
            found = _read_folder(source, notes)
        elif source.is_file() and source.suffix.lower() in DATASET_SUFFIXES:
            found = [str(source)]
        elif source.is_file():
            found = _read_list(source, root, notes)
        else:
            raise UserError(
                f"{source}: no such folder or list of images; check the dataset YAML's path and splits"
            )
        if not found:
            known = " ".join(sorted(DATASET_SUFFIXES))
            raise UserError("; ".join([f"{source}: no images in it (known suffixes: {known})", *notes[-1:]]))
        listed += found
    unique = list(dict.fromkeys(listed))
    if len(unique) < len(listed):
        notes.append(
            f"{', '.join(map(str, sources))}: {len(listed) - len(unique)} images listed more than once"
        )
    return unique, notes


def _read_list(source: Path, root: Path, notes: list[str]) -> list[str]:
    """Return the images that a text file names, one a line.

    Lines that are left out, and paths that are found only in another spelling, get a note.
    """
    found: list[str] = []
    respelled: list[str] = []
    for number, name, file in read_path_list(source, root):
        if file.suffix.lower() not in DATASET_SUFFIXES:
            notes.append(f"{source}, line {number}: {shown(name)} has no image suffix; line ignored")
            continue
        found.append(str(file))
        if not found[-1].endswith(os.path.normpath(name)):
            respelled.append(f"line {number}: {name} is read as {file}")
    if respelled:
        notes.append(f"{source}: {len(respelled)} paths are not there as written, such as {respelled[0]}")
    return found


def _read_folder(folder: Path, notes: list[str]) -> list[str]:
    """Return the images below a folder; files of other kinds are counted in a note."""
    files = sorted(_walk(folder))
    suffixes = [os.path.splitext(file)[1].lower() for file in files]
    left_out = Counter(suffix for suffix in suffixes if suffix not in DATASET_SUFFIXES | _BESIDE_IMAGES)
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common(5))
        notes.append(
            f"{folder}: {left_out.total()} files of other suffixes left out ({kinds}); convert those that "
            "are images (.heic is read after pip install pillow-heif)"
        )
    return [file for file, suffix in zip(files, suffixes) if suffix in DATASET_SUFFIXES]


def _walk(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, without hidden ones.

    Links are followed, but no folder is visited twice.
    """
    visited: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in visited:
            folders.clear()
            continue
        visited.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from (os.path.join(place, name) for name in files if not name.startswith("."))


def _check_label_classes(images: ImageSet, config: DatasetConfig) -> None:
    """Refuse labels whose class number has no name in the YAML.

    Raises:
        UserError: the first such label, with its file and line.
    """
    classes, nc = images.all_labels[:, 0], len(config.label_names)
    bad = np.flatnonzero(classes >= nc)
    if not len(bad):
        return
    image = int(np.searchsorted(images.offsets, bad[0], side="right")) - 1
    (path,), _ = find_labels([images.path(image)])
    value = int(classes[bad[0]])
    line = _line_of_class(path, value)
    raise UserError(
        f"{path}, line {line}: class {value}, but {config.path} names {nc} classes, so "
        f"0 to {nc - 1} are allowed ({len(bad)} such labels); correct the labels or add the names"
    )


def _line_of_class(path: str, value: int) -> int:
    """Return the first line of a label file with this class.

    It is 0 when the file has changed since it was verified.
    """
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            with contextlib.suppress(ValueError, IndexError):
                if float(line.split()[0]) == value:
                    return number
    return 0


def _report_no_labels(images: ImageSet, config: DatasetConfig, split: str, required: bool) -> None:
    """Raise or warn because a split has no label at all."""
    first = images.path(0)
    text = (
        f"{config.path}: no labels for any of the {len(images)} {split} images; the labels of {first} are "
        f"expected in {label_path(first)}, as rows 'class xc yc w h'"
    )
    if required:
        raise UserError(text)
    LOGGER.warning("%s", text)
