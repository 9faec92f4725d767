"""Hold the images of a split in a dozen flat arrays: paths, sizes, boxes, polygons.

A million images take a few hundred megabytes of plain memory and no Python object each. Forked workers share
the pages, because no reference count is ever written; spawned workers get them through shared memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

FOUND, MISSING, EMPTY, CORRUPT = range(4)
"""The result of verifying an image: labelled, no label file, an empty label file, or dropped."""


class Record(NamedTuple):
    """Hold one verified image, until it is packed."""

    status: int
    width: int
    height: int
    labels: np.ndarray  # (k, 5) float32: class, xc, yc, w, h normalised
    segments: list[np.ndarray]  # k polygons (p, 2) float32 normalised, or none at all
    messages: list[str]
    passing: bool = False  # dropped for a fault of the system, not of the files: not cached


@dataclass
class ScanReport:
    """Count the results of a scan.

    `found + missing + empty + corrupt == total` images.

    Attributes:
        found: images with at least one valid label row.
        missing: images without a label file (background).
        empty: images whose label file holds no row (background).
        corrupt: images dropped, because the image or every row of its label file is unusable.
        total: images looked at.
        messages: every finding, one sentence each: file, line, value.
    """

    found: int = 0
    missing: int = 0
    empty: int = 0
    corrupt: int = 0
    total: int = 0
    messages: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return one line of counts for the log.

        >>> ScanReport(found=2, missing=1, total=3).summary()
        '3 images: 2 labelled, 1 background (1 without a label file, 0 with an empty one), 0 dropped'
        """
        return (
            f"{self.total} images: {self.found} labelled, {self.missing + self.empty} background "
            f"({self.missing} without a label file, {self.empty} with an empty one), {self.corrupt} dropped"
        )


def pack_offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return where each row of n rows starts and ends, as (n + 1,) int64.

    >>> pack_offsets([2, 0, 3]).tolist()
    [0, 2, 2, 5]
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.asarray(lengths, np.int64), out=offsets[1:])
    return offsets


def pack_strings(strings: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Pack strings as (bytes uint8, offsets int64); undecodable file names are kept as they are."""
    encoded = [os.fsencode(s) for s in strings]
    return np.frombuffer(b"".join(encoded), np.uint8), pack_offsets([len(e) for e in encoded])


def unpack_string(blob: np.ndarray, offsets: np.ndarray, index: int) -> str:
    """Return the string at `index` of a packed list."""
    return os.fsdecode(blob[offsets[index] : offsets[index + 1]].tobytes())


def take_ragged(values: np.ndarray, offsets: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values and offsets of the rows `keep` (m,) of a ragged array.

    >>> values, offsets = take_ragged(np.arange(5), np.array([0, 2, 2, 5]), np.array([2, 0]))
    >>> values.tolist(), offsets.tolist()
    ([2, 3, 4, 0, 1], [0, 3, 5])
    """
    lengths = np.diff(offsets)[keep]
    taken = pack_offsets(lengths)
    source = np.arange(taken[-1]) + np.repeat(offsets[:-1][keep] - taken[:-1], lengths)
    return values[source], taken


@dataclass
class Packed:
    """Hold n images with L labels in flat arrays.

    `status` (n,) is one of FOUND, MISSING, EMPTY, CORRUPT. `points` (P, 2) and `point_offsets` (L + 1,) hold
    one polygon per label; without any polygon in the split both are empty.
    """

    paths: np.ndarray
    path_offsets: np.ndarray
    status: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    points: np.ndarray
    point_offsets: np.ndarray
    messages: np.ndarray
    message_offsets: np.ndarray

    @classmethod
    def from_records(cls, paths: Sequence[str], records: Sequence[Record]) -> Packed:
        """Pack one Record per path."""
        blob, path_offsets = pack_strings(paths)
        labels = [r.labels for r in records if len(r.labels)]
        points, point_offsets = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
        if any(r.segments for r in records):
            nothing = np.zeros((0, 2), np.float32)
            polygons = [p for r in records for p in (r.segments or [nothing] * len(r.labels))]
            points = np.concatenate(polygons).astype(np.float32)
            point_offsets = pack_offsets([len(p) for p in polygons])
        messages, message_offsets = pack_strings("\n".join(r.messages) for r in records)
        return cls(
            paths=blob,
            path_offsets=path_offsets,
            status=np.array([r.status for r in records], np.int8),
            sizes=np.array([(r.width, r.height) for r in records], np.int32).reshape(-1, 2),
            labels=np.concatenate(labels) if labels else np.zeros((0, 5), np.float32),
            offsets=pack_offsets([len(r.labels) for r in records]),
            points=points,
            point_offsets=point_offsets,
            messages=messages,
            message_offsets=message_offsets,
        )

    def __len__(self) -> int:
        return len(self.status)

    def record(self, index: int) -> Record:
        """Return the Record that image `index` was packed from."""
        start, stop = self.offsets[index], self.offsets[index + 1]
        text = unpack_string(self.messages, self.message_offsets, index)
        return Record(
            int(self.status[index]),
            int(self.sizes[index, 0]),
            int(self.sizes[index, 1]),
            self.labels[start:stop],
            _segments(self.points, self.point_offsets, start, stop),
            text.split("\n") if text else [],
        )

    def take(self, keep: np.ndarray) -> Packed:
        """Return the images with indices `keep` (m,), in that order."""
        paths, path_offsets = take_ragged(self.paths, self.path_offsets, keep)
        messages, message_offsets = take_ragged(self.messages, self.message_offsets, keep)
        labels, offsets = take_ragged(self.labels, self.offsets, keep)
        points, point_offsets = self.points, self.point_offsets
        if len(point_offsets):
            rows, _ = take_ragged(np.arange(len(self.labels)), self.offsets, keep)
            points, point_offsets = take_ragged(points, point_offsets, rows)
        return Packed(
            paths,
            path_offsets,
            self.status[keep],
            self.sizes[keep],
            labels,
            offsets,
            points,
            point_offsets,
            messages,
            message_offsets,
        )


def _segments(points: np.ndarray, offsets: np.ndarray, start: int, stop: int) -> list[np.ndarray]:
    """Return the polygons of labels start..stop; empty when these labels have none."""
    if not len(offsets) or offsets[start] == offsets[stop]:
        return []
    return [points[offsets[j] : offsets[j + 1]] for j in range(start, stop)]


class ImageSet:
    """Hold the usable images of one split, with their labels.

    Attributes:
        sizes: (n, 2) int32, width and height in pixels after EXIF rotation.
        all_labels: (L, 5) float32, class, xc, yc, w, h normalised to the image.
        offsets: (n + 1,) int64; the labels of image i are rows offsets[i] .. offsets[i + 1].
        report: what the scan found, the dropped images included.
    """

    _ARRAYS = ("_paths", "_path_offsets", "sizes", "all_labels", "offsets", "_points", "_point_offsets")

    def __init__(self, packed: Packed, report: ScanReport) -> None:
        self._paths, self._path_offsets = packed.paths, packed.path_offsets
        self.sizes, self.all_labels, self.offsets = packed.sizes, packed.labels, packed.offsets
        self._points, self._point_offsets = packed.points, packed.point_offsets
        self.report = report
        self._shared: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def path(self, index: int) -> str:
        """Return the path of image `index`."""
        return unpack_string(self._paths, self._path_offsets, self._row(index))

    def labels(self, index: int) -> np.ndarray:
        """Return the labels of image `index`, a view (k, 5) float32 of `all_labels`."""
        index = self._row(index)
        return self.all_labels[self.offsets[index] : self.offsets[index + 1]]

    def segments(self, index: int) -> list[np.ndarray]:
        """Return the polygons (p, 2) of image `index`, normalised, one for each label.

        The list is empty when the image has none.
        """
        index = self._row(index)
        return _segments(self._points, self._point_offsets, self.offsets[index], self.offsets[index + 1])

    def box_sides(self, imgsz: int) -> np.ndarray:
        """Return width and height (L, 2) of all boxes in pixels, images scaled to `imgsz`."""
        scaled = self.sizes * (imgsz / self.sizes.max(1, keepdims=True))
        return np.asarray(
            self.all_labels[:, 3:5] * np.repeat(scaled, np.diff(self.offsets), axis=0), np.float64
        )

    def fingerprint(self) -> dict[str, int | str]:
        """Return the number of images and a digest of their names, bytes, sizes and labels.

        The folder is not part of it, so a data set may be moved.
        """
        digest = hashlib.sha256()
        for index in range(len(self)):
            path = self.path(index)
            try:
                bytes_ = os.path.getsize(path)
            except OSError:
                bytes_ = -1
            digest.update(f"{os.path.basename(path)}\0{bytes_}\0".encode("utf-8", "surrogateescape"))
        for array in (self.sizes, self.all_labels, self.offsets):
            digest.update(np.ascontiguousarray(array).tobytes())
        return {"images": len(self), "digest": digest.hexdigest()}

    def _row(self, index: int) -> int:
        """Return an index counted from the front.

        Raises:
            IndexError: numpy slices would take one past the end for an empty image.
        """
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return row

    def __getstate__(self) -> dict[str, object]:
        # torch pickles a tensor as a handle to shared memory, where numpy would send a copy. The tensors are
        # kept, so that the second worker gets the same memory as the first.
        if not self._shared:
            self._shared = {
                k: torch.from_numpy(np.require(getattr(self, k), requirements=["C", "W"]))
                for k in self._ARRAYS
            }
        return {"arrays": self._shared, "report": self.report}

    # Any: what `__getstate__` returned: tensors by name, and the report.
    def __setstate__(self, state: dict[str, Any]) -> None:
        for key, tensor in state["arrays"].items():
            setattr(self, key, tensor.numpy())
        self.report = state["report"]
        self._shared = state["arrays"]
