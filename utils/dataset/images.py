"""List, verify and pack the images of a split."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils.dataset.config import DatasetConfig, _read_list
from utils.dataset.image_set import CORRUPT, ImageSet, Packed, ScanReport
from utils.dataset.labels import label_path
from utils.dataset.verification import cache_path, log_report, scan
from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES

LOGGER = logging.getLogger("yolo.datasets")


def load_images(
    config: DatasetConfig,
    split: str,
    *,
    workers: int | None = None,
    use_cache: bool = True,
    require_labels: bool = False,
) -> ImageSet:
    """List, verify and pack the images of a split.

    Args:
        config: from `load_dataset`.
        split: 'train', 'val' or 'test'.
        workers: processes for the verification, at most 8; None: as many as fit.
        use_cache: take over what an earlier scan found for files that have not changed.
        require_labels: no label at all is an error (training), not a warning.

    Raises:
        UserError: no such split or folder, no usable image, a class beyond the names, no labels.
    """
    if split not in config.splits:
        known = ", ".join(config.splits)
        raise UserError(f"{config.path}: no '{split}' images (it has {known}); add a '{split}:' line to it")
    sources = config.splits[split]
    images, notes = list_images(sources, config.root)
    cache = cache_path(sources[0], sources) if use_cache else None
    title = f"{config.path.name} {split}"
    packed, report = scan(images, cache, workers=workers, title=title)
    report.messages[:0] = notes
    log_report(report, title)
    usable = packed.take(np.flatnonzero(packed.status != CORRUPT)) if report.corrupt else packed
    if not len(usable):
        raise UserError(
            f"{config.path}: none of the {report.total} {split} images is usable ({report.messages[0]})"
        )
    _check_classes(config, usable)
    if not len(usable.labels):
        _no_labels(config, split, usable, report, require_labels)
    if config.single_cls:
        usable = replace(usable, labels=usable.labels.copy())
        usable.labels[:, 0] = 0
    return ImageSet(usable, report)


def list_images(sources: list[Path], root: Path) -> tuple[list[str], list[str]]:
    """The images of folders and lists, sorted within a folder, each once, and notes on what was left out.

    Raises:
        UserError: a source is missing or holds no image.
    """
    listed: list[str] = []
    notes: list[str] = []
    for source in sources:
        if source.is_dir():
            found = _walk(source)
        elif source.is_file() and source.suffix.lower() in IMAGE_SUFFIXES:
            found = [str(source)]
        elif source.is_file():
            found, more = _read_list(source, root)
            notes += more
        else:
            raise UserError(
                f"{source}: no such folder or list of images; check the dataset YAML's path and splits"
            )
        if not found:
            raise UserError(f"{source}: no images in it (known suffixes: {' '.join(sorted(IMAGE_SUFFIXES))})")
        listed += found
    unique = list(dict.fromkeys(listed))
    if len(unique) < len(listed):
        notes.append(
            f"{', '.join(map(str, sources))}: {len(listed) - len(unique)} images listed more than once"
        )
    return unique, notes


def _walk(folder: Path) -> list[str]:
    """Images below a folder, links followed but none twice, hidden files left out."""
    found: list[str] = []
    visited: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in visited:
            folders.clear()
            continue
        visited.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [
            os.path.join(place, name)
            for name in files
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def _check_classes(config: DatasetConfig, packed: Packed) -> None:
    """Refuse a class that the names do not have, naming file and line."""
    classes, nc = packed.labels[:, 0], len(config.label_names)
    bad = np.flatnonzero(classes >= nc)
    if not len(bad):
        return
    image = int(np.searchsorted(packed.offsets, bad[0], side="right")) - 1
    images = ImageSet(packed, ScanReport())
    path, value = label_path(images.path(image)), int(classes[bad[0]])
    line = _line_of_class(path, value)
    raise UserError(
        f"{path}, line {line}: class {value}, but {config.path} names {nc} classes, so 0 to {nc - 1} are "
        f"allowed ({len(bad)} such labels); mend the labels or add the names"
    )


def _line_of_class(path: str, value: int) -> int:
    """The first line of a label file that has this class, 0 when the file has changed since."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            with contextlib.suppress(ValueError, IndexError):
                if float(line.split()[0]) == value:
                    return number
    return 0


def _no_labels(
    config: DatasetConfig, split: str, packed: Packed, report: ScanReport, require_labels: bool
) -> None:
    """No box in the whole split: an error in training, a warning otherwise."""
    first = ImageSet(packed, report).path(0)
    text = (
        f"{config.path}: no labels for any of the {len(packed)} {split} images; the labels of {first} are "
        f"expected in {label_path(first)}, as rows 'class xc yc w h'"
    )
    if require_labels:
        raise UserError(text)
    LOGGER.warning("%s", text)
