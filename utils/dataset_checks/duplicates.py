"""Find images that come twice: the same file, or nearly the same picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from utils.dataset.image_set import ImageSet
from utils.dataset_checks.findings import CheckedData, Finding, Section
from utils.files import read_regular
from utils.images import decode_image
from utils.processes import collect_in_processes

THUMB = 16
"""Side of the grey thumbnails that are compared, in pixels."""

ALIKE = 0.95
"""Least correlation of two thumbnails of nearly the same picture."""

_BLOCK = 2048  # thumbnails that are compared with as many others at a time: 16 MiB


class Fingerprint(NamedTuple):
    """Hold the SHA-256 of an image file, its thumbnail, and why it has none."""

    digest: bytes
    thumb: np.ndarray  # (THUMB * THUMB,) uint8
    fault: str


def check_duplicates(data: CheckedData) -> Section:
    """Report images that are in the data set twice.

    Two images of different splits come as 'leak': the metrics of val would then say too much. Pictures that
    were saved anew, made smaller or brighter are found, those that were cut by 3 % of each side in part;
    mirrored and turned ones are not.
    """
    section = Section("Duplicate images")
    places = [(split, index) for split, images in data.splits.items() for index in range(len(images))]
    paths = [data.splits[split].path(index) for split, index in places]
    prints = fingerprints(paths, data.workers)
    number_of = {split: number for number, split in enumerate(data.splits)}
    splits = np.array([number_of[split] for split, _ in places])
    partner = same_files([p.digest for p in prints], splits)
    alike, correlation = alike_pictures(np.stack([p.thumb for p in prints]), splits)
    found = np.where(partner < 0, alike, partner)
    for j in np.flatnonzero(found >= 0).tolist():
        (split, index), i = places[j], int(found[j])
        exact = partner[j] >= 0
        kind = "leak" if splits[i] != splits[j] else "duplicate" if exact else "near-duplicate"
        what = "the same file as" if exact else f"nearly the same picture ({correlation[j]:.3f}) as"
        value = f"{what} {paths[i]} ({places[i][0]})"
        if exact and not _same_labels(data.splits[split], index, data.splits[places[i][0]], places[i][1]):
            value += ", with other labels"
        score = 1.0 if exact else float(correlation[j])
        shown = (paths[j], paths[i])
        section.findings.append(
            Finding(kind, paths[j], value, _REMEDIES[kind], score=score, split=split, images=shown)
        )
    for (split, _), path, fingerprint in zip(places, paths, prints):
        if fingerprint.fault:
            remedy = "replace the file or take it out of the data set"
            section.findings.append(Finding("bad-image", path, fingerprint.fault, remedy, split=split))
    section.facts["images compared"] = len(paths)
    return section


_REMEDIES = {
    "leak": "keep it in one split only, or the metrics come out too high",
    "duplicate": "delete one of the two, with its labels",
    "near-duplicate": "look at both; delete one if it adds nothing",
}


def fingerprints(paths: Sequence[str], workers: int | None) -> list[Fingerprint]:
    """Read and decode images in processes, and return one fingerprint for each, in order."""
    return collect_in_processes(
        _fingerprint_chunk,
        paths,
        workers,
        doing="comparing",
        title="comparing",
        name=str,
    )


def _fingerprint_chunk(paths: Sequence[str]) -> list[Fingerprint]:
    return [fingerprint_of(path) for path in paths]


def fingerprint_of(path: str) -> Fingerprint:
    """Return the fingerprint of an image file; a fault becomes a text, never an exception."""
    nothing = np.zeros(THUMB * THUMB, np.uint8)
    try:
        content = read_regular(path)
    except OSError as error:
        return Fingerprint(path.encode(), nothing, f"cannot be read ({error.strerror or error})")
    digest = hashlib.sha256(content).digest()
    try:
        return Fingerprint(digest, thumbnail(decode_image(content)), "")
    except ValueError as error:
        return Fingerprint(digest, nothing, str(error))


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return a small grey copy (THUMB * THUMB,) uint8 of a BGR image."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA).ravel()


def same_files(digests: Sequence[bytes], splits: np.ndarray) -> np.ndarray:
    """Return for each file an earlier one with the same content.

    One of another split goes first.

    Args:
        digests: of the files.
        splits: (n,) number of the split of each.

    Returns:
        (n,) index of the earlier file, or -1.

    >>> same_files([b"a", b"b", b"a", b"a"], np.array([0, 0, 0, 1])).tolist()
    [-1, -1, 0, 0]
    """
    partner = np.full(len(digests), -1)
    seen: dict[bytes, dict[int, int]] = {}
    for j, (digest, split) in enumerate(zip(digests, splits.tolist())):
        first = seen.setdefault(digest, {})
        elsewhere = [i for other, i in first.items() if other != split]
        partner[j] = min(elsewhere, default=first.get(split, -1))
        first.setdefault(split, j)
    return partner


def alike_pictures(thumbs: np.ndarray, splits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each thumbnail the most alike earlier one, and their correlation.

    One of another split that is alike goes before a more alike one of the same. Memory does not grow with
    the square of n.

    Args:
        thumbs: (n, k) grey levels. One colour all over is like nothing.
        splits: (n,) number of the split of each.

    Returns:
        (n,) index of the earlier thumbnail, or -1 where none reaches `ALIKE`, and (n,) correlation.
    """
    vectors = thumbs.astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(lengths > THUMB, lengths, np.inf)  # a spread of one grey level is noise
    partner, best = np.full(len(vectors), -1), np.full(len(vectors), ALIKE, np.float32)
    places = np.arange(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        rows = slice(start, start + _BLOCK)
        for first in range(0, start + 1, _BLOCK):
            columns = slice(first, first + _BLOCK)
            likeness = vectors[rows] @ vectors[columns].T
            # Correlations are at most 1, so adding 1 puts those of another split first.
            likeness += (likeness >= ALIKE) & (splits[rows, None] != splits[None, columns])
            likeness[places[rows, None] <= places[None, columns]] = -1
            choice = likeness.argmax(axis=1)
            value = likeness[np.arange(len(choice)), choice]
            better = value >= best[rows] if first == 0 else value > best[rows]
            partner[rows] = np.where(better, first + choice, partner[rows])
            best[rows] = np.where(better, value, best[rows])
    return partner, np.where(best > 1.5, best - 1, best)


def _same_labels(images: ImageSet, index: int, others: ImageSet, other: int) -> bool:
    """Return whether two images have the same labels, in any order."""
    mine, theirs = images.labels(index), others.labels(other)
    return sorted(map(tuple, mine.tolist())) == sorted(map(tuple, theirs.tolist()))
