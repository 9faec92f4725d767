"""Verify the images of a split in parallel, and cache the result.

The cache is an `.npz` of plain arrays. For each image it has the size and the modification time (ns) of the
image and of its label file. What has changed is verified again, and the rest is reused. Faults of the system
are not cached, and a new version of the decoders makes the whole cache invalid.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import PIL

from utils.dataset.image_set import CORRUPT, EMPTY, FOUND, MISSING, Packed, Record, ScanReport, unpack_string
from utils.dataset.labels import MIN_IMAGE_SIDE, find_labels, label_path, verify
from utils.errors import first_line
from utils.files import atomic_write, own_or_user_folder, remove_dead_parts
from utils.images import pixel_limit
from utils.processes import collect_in_processes

LOGGER = logging.getLogger("yolo.datasets")

CACHE_VERSION = 4
"""To be raised when the rules of verification or the arrays change, so that old caches are ignored."""

DECODERS = f"Pillow {PIL.__version__}, OpenCV {cv2.__version__}"
"""What decides whether a file is an image; other versions may decide differently."""

_SHOWN = 20
_KEYS = "stat_keys"
_NEVER = -2  # a key that matches no file
_FIELDS = tuple(f.name for f in fields(Packed))
_KINDS = {
    **dict.fromkeys(("paths", "messages"), np.dtype(np.uint8)),
    **dict.fromkeys(("path_offsets", "offsets", "point_offsets", "message_offsets"), np.dtype(np.int64)),
    "status": np.dtype(np.int8),
    "sizes": np.dtype(np.int32),
    _KEYS: np.dtype(np.int64),
    **dict.fromkeys(("labels", "points"), np.dtype(np.float32)),
}


def scan(
    images: Sequence[str], cache: Path | None, *, workers: int | None, title: str, keypoints: int = 0
) -> tuple[Packed, ScanReport]:
    """Verify images and their labels.

    Args:
        images: paths, without repeats.
        cache: file that keeps the result; None for none.
        workers: see `collect_in_processes`.
        title: text of the progress bar.
        keypoints: see `read_labels`.

    Returns:
        The packed images, including the dropped ones (CORRUPT), and the report.

    Raises:
        UserError: the system ended a process.
    """
    labels, notes = find_labels(images)
    keys = _stat_keys(images, labels)
    rules = f"{DECODERS}, {pixel_limit()} pixels, {keypoints} keypoints"
    known = _read_cache(cache, rules) if cache else None
    if known is not None and _same(known, images, keys):
        packed = known[0]
    else:
        kept = _still_valid(known, images, keys)
        todo = [i for i in range(len(images)) if i not in kept]
        fresh = _verify([(images[i], labels[i], keypoints) for i in todo], workers, title)
        for i, record in zip(todo, fresh):
            kept[i] = record
        packed = Packed.from_records(images, [kept[i] for i in range(len(images))])
        if cache:
            keys[[i for i, record in kept.items() if record.passing]] = _NEVER
            _write_cache(cache, packed, keys, rules)
    report = _report(packed)
    report.messages[:0] = notes
    return packed, report


def log_report(report: ScanReport, title: str) -> None:
    """Log the counts and the first findings; the rest is in `report.messages`."""
    LOGGER.info("%s: %s", title, report.summary())
    log_findings(report.messages)


def log_findings(messages: Sequence[str]) -> None:
    """Log the first messages, and count the others."""
    for message in messages[:_SHOWN]:
        LOGGER.warning("%s", message)
    if len(messages) > _SHOWN:
        LOGGER.warning("... and %d more such findings", len(messages) - _SHOWN)


def _report(packed: Packed) -> ScanReport:
    """Count the results of a scan and collect its messages."""
    counts = np.bincount(packed.status, minlength=4)
    messages: list[str] = []
    for index in np.flatnonzero(np.diff(packed.message_offsets)):
        messages += unpack_string(packed.messages, packed.message_offsets, int(index)).split("\n")
    return ScanReport(
        found=int(counts[FOUND]),
        missing=int(counts[MISSING]),
        empty=int(counts[EMPTY]),
        corrupt=int(counts[CORRUPT]),
        total=len(packed),
        messages=messages,
    )


def _verify(todo: list[tuple[str, str, int]], workers: int | None, title: str) -> list[Record]:
    """Verify (image, label, keypoints) in processes, in order, under a progress bar."""
    return collect_in_processes(
        _verify_chunk, todo, workers, doing="verifying", title=title, name=lambda item: item[0]
    )


def _verify_chunk(todo: Sequence[tuple[str, str, int]]) -> list[Record]:
    return [verify(*item) for item in todo]


def _stat_keys(images: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Return size and mtime (ns) of images and label files, as (n, 4) int64.

    They are -1 where there is no file.
    """
    keys = np.full((len(images), 4), -1, np.int64)
    for row, image, label in zip(keys, images, labels):
        for column, path in ((0, image), (2, label)):
            try:
                stat = os.stat(path)
            except OSError:
                continue  # verification says what is wrong with it
            row[column], row[column + 1] = stat.st_size, stat.st_mtime_ns
    return keys


def _same(known: tuple[Packed, np.ndarray], images: Sequence[str], keys: np.ndarray) -> bool:
    """Return whether the cache holds exactly these files in this order."""
    packed, old_keys = known
    if not np.array_equal(old_keys, keys):
        return False
    return packed.paths.tobytes() == b"".join(map(os.fsencode, images)) and np.array_equal(
        np.diff(packed.path_offsets), [len(os.fsencode(image)) for image in images]
    )


def _still_valid(
    known: tuple[Packed, np.ndarray] | None, images: Sequence[str], keys: np.ndarray
) -> dict[int, Record]:
    """Return the records of the cache whose files are unchanged, by new index."""
    if known is None:
        return {}
    packed, old_keys = known
    rows = {unpack_string(packed.paths, packed.path_offsets, i): i for i in range(len(packed))}
    valid: dict[int, Record] = {}
    for index, image in enumerate(images):
        row = rows.get(image)
        if row is not None and keys[index, 0] >= 0 and np.array_equal(old_keys[row], keys[index]):
            valid[index] = packed.record(row)
    return valid


def cache_path(source: Path, sources: Sequence[Path]) -> Path:
    """Return the cache file of a split.

    Args:
        source: the first folder or list of the split.
        sources: all of them; with more than one the name has a digest of them.

    >>> cache_path(Path("d/images/train"), [Path("d/images/train")]).as_posix()
    'd/labels/train.cache.npz'
    >>> cache_path(Path("d/train.txt"), [Path("d/train.txt")]).as_posix()
    'd/train.cache.npz'
    """
    beside = source.with_suffix("") if source.suffix == ".txt" else Path(label_path(f"{source}/x")).parent
    tag = ""
    if len(sources) > 1:
        digest = hashlib.sha256("\n".join(map(str, sources)).encode("utf-8", "surrogateescape"))
        tag = "." + digest.hexdigest()[:8]
    return beside.with_name(f"{beside.name}{tag}.cache.npz")


def _read_cache(cache: Path, rules: str) -> tuple[Packed, np.ndarray] | None:
    """Return what the cache holds; None if it is missing, damaged or of other rules."""
    path = _place(cache)
    try:
        _refuse_foreign(path)
        with np.load(path, allow_pickle=False) as file:
            if int(file["version"]) != CACHE_VERSION or str(file["rules"]) != rules:
                return None
            packed, keys = Packed(**{name: file[name] for name in _FIELDS}), file[_KEYS]
        if _consistent(packed, keys) and _plausible(packed):
            return packed, keys
        reason: object = "its arrays do not fit each other"
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 zipfile and numpy have many ways to say that bytes are damaged
        reason = first_line(error)
    LOGGER.warning("%s: unreadable label cache (%s), labels are verified again", path, reason)
    return None


def _refuse_foreign(path: Path) -> None:
    """Refuse a cache that claims more than its file holds, or other kinds of numbers.

    Raises:
        ValueError: an array is compressed, or is not of the bytes that its shape needs.
    """
    if not path.is_file():
        raise FileNotFoundError
    with zipfile.ZipFile(path) as archive:
        for name, kind in _KINDS.items():
            member = archive.getinfo(f"{name}.npy")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
                shape, _, dtype = read(file) if read else ((), False, np.dtype(object))
                bytes_ = math.prod(shape) * dtype.itemsize
                if dtype != kind or member.compress_type or file.tell() + bytes_ != member.file_size:
                    raise ValueError(f"its {name} are no array of {kind}")


def _plausible(packed: Packed) -> bool:
    """Return whether sizes and labels are such as verification gives."""
    used, boxes = packed.sizes[packed.status != CORRUPT], packed.labels[:, 1:]
    classes = packed.labels[:, 0]
    return bool(
        (used >= MIN_IMAGE_SIDE).all()
        and (used.astype(np.int64).prod(1) <= pixel_limit()).all()
        and ((boxes >= 0) & (boxes <= 1)).all()
        and ((classes >= 0) & (classes == np.floor(classes))).all()
        and ((packed.points >= 0) & (packed.points <= 1)).all()
    )


def _consistent(packed: Packed, keys: np.ndarray) -> bool:
    """Return whether the arrays fit each other, so that no index can leave them."""
    n, rows = len(packed), len(packed.labels)
    ragged = [
        (packed.path_offsets, n, len(packed.paths)),
        (packed.offsets, n, rows),
        (packed.message_offsets, n, len(packed.messages)),
    ]
    if len(packed.point_offsets):
        ragged.append((packed.point_offsets, rows, len(packed.points)))
    return (
        keys.shape == (n, 4)
        and packed.sizes.shape == (n, 2)
        and packed.labels.shape == (rows, 5)
        and packed.points.shape[1:] == (2,)
        and all(array.ndim == 1 for array in (packed.paths, packed.messages, packed.status))
        and bool(np.isin(packed.status, (FOUND, MISSING, EMPTY, CORRUPT)).all())
        and all(
            o.shape == (count + 1,) and o[0] == 0 and o[-1] == end and (np.diff(o) >= 0).all()
            for o, count, end in ragged
        )
    )


def _write_cache(cache: Path, packed: Packed, keys: np.ndarray, rules: str) -> None:
    """Write the cache, or warn when that is not possible."""
    arrays: dict[str, np.ndarray] = {name: getattr(packed, name) for name in _FIELDS}
    arrays |= {_KEYS: keys, "version": np.array(CACHE_VERSION), "rules": np.array(rules)}
    path = _place(cache)
    try:
        remove_dead_parts(path.parent)
        atomic_write(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
    except OSError as error:
        reason = error.strerror or error
        LOGGER.warning(
            "%s: label cache could not be written (%s), labels are verified again next time", path, reason
        )
        return
    if path != cache and cache.parent.is_dir():
        LOGGER.warning("%s: read-only folder, so the label cache is in %s", cache.parent, path)


def _place(cache: Path) -> Path:
    """Return where a cache is, for a folder that is read-only too."""
    return own_or_user_folder(cache.parent, "yolo-datasets") / cache.name
