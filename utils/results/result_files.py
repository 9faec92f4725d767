"""Write result files: unique names, label lines, crops, JSON rows, encoded images."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from utils.boxes import clip_boxes, xywh2xyxy, xyxy2xywh
from utils.errors import UserError
from utils.files import atomic_write

_FRAME = re.compile(r"(.*)_\d+", re.DOTALL)  # how the labels of a video's frame are called


class StemBook:
    """Hands out one output stem per input file: `x`, then `x-2`, `x-3` and so on.

    A video `clip` writes labels `clip_1.txt`, `clip_2.txt` and so on, so an image `clip_1` clashes with it.
    Letter case is ignored because some file systems ignore it.

    Example:
        >>> book = StemBook()
        >>> [book.claim(stem, False) for stem in ("a", "a", "A")]
        ['a', 'a-2', 'A-3']
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._videos: set[str] = set()
        self._framed: set[str] = set()  # x of each x_7 taken
        # Where counting goes on: what is taken stays taken, so no number below is ever free again.
        self._next: dict[tuple[str, bool], int] = {}

    def claim(self, stem: str, is_video: bool) -> str:
        """Return a stem that clashes with none handed out before."""
        key = stem.lower(), is_video
        number = self._next.get(key, 1)
        while self._clashes((candidate := _numbered(stem, number)).lower(), is_video):
            number += 1
        self._next[key] = number + 1
        taken = candidate.lower()
        self._taken.add(taken)
        if is_video:
            self._videos.add(taken)
        frame_of = _FRAME.fullmatch(taken)
        if frame_of:
            self._framed.add(frame_of[1])
        return candidate

    def _clashes(self, stem: str, is_video: bool) -> bool:
        if stem in self._taken or (is_video and stem in self._framed):
            return True
        frame_of = _FRAME.fullmatch(stem)
        return frame_of is not None and frame_of[1] in self._videos


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem}-{number}"


def folder_names(names: Mapping[int, str]) -> dict[int, str]:
    """Return a safe folder name for each class, no two alike.

    Separators, leading and trailing dots are replaced: `../x` cannot lead out of its folder.

    Example:
        >>> folder_names({0: "../x", 1: "cat", 2: "Cat"})
        {0: '_x', 1: 'cat', 2: 'Cat_2'}
    """
    folders: dict[int, str] = {}
    for index, name in names.items():
        safe = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", str(name)).strip(". ")[:60] or f"class{index}"
        if safe.lower() in {f.lower() for f in folders.values()}:
            safe = f"{safe}_{index}"
        folders[index] = safe
    return folders


class FreePaths:
    """Hands out `x.jpg`, `x2.jpg`, `x3.jpg` and so on, none that exists already."""

    def __init__(self) -> None:
        self._numbers: dict[Path, int] = {}

    def next(self, base: Path) -> Path:
        """Return the next path for `base`, which has no suffix."""
        while True:
            number = self._numbers[base] = self._numbers.get(base, 0) + 1
            path = base.with_name(f"{base.name}{number if number > 1 else ''}.jpg")
            if not path.exists():
                return path


def crop_box(image: np.ndarray, xyxy: np.ndarray, gain: float = 1.02, pad: float = 10) -> np.ndarray:
    """Return the part of an image in a pixel box (4,), slightly enlarged.

    Its sides are gain * size + pad pixels, cut at the image's edges.
    """
    box = xyxy2xywh(np.asarray(xyxy, dtype=np.float64).reshape(1, 4))
    box[:, 2:] = box[:, 2:] * gain + pad
    x1, y1, x2, y2 = clip_boxes(xywh2xyxy(box), image.shape[:2])[0].round().astype(int)
    return image[y1:y2, x1:x2]


def label_lines(
    det: np.ndarray,
    shape: tuple[int, int],
    *,
    corners: bool = False,
    conf: bool = False,
    ids: np.ndarray | None = None,
) -> str:
    r"""Return detections (n,6) in pixels of an image (h, w) as label text.

    A row is `class xc yc w h [conf] [id]`, or with `corners` `class x1 y1 x2 y2 [conf] [id]`; both are
    normalised. `ids` are the objects' numbers (n,).

    Example:
        >>> label_lines(np.array([[20, 10, 60, 30, 0.9, 2]]), (50, 100), conf=True)
        '2 0.4 0.4 0.4 0.4 0.9\n'
    """
    height, width = shape[:2]
    boxes = det[:, :4] if corners else xyxy2xywh(det[:, :4])
    boxes = boxes / np.array([width, height, width, height])
    lines = []
    for number, (row, box) in enumerate(zip(det, boxes)):
        values = [int(row[5]), *box, *([row[4]] if conf else [])]
        end = "" if ids is None else f" {ids[number]}"
        lines.append(" ".join(f"{value:g}" for value in values) + f"{end}\n")
    return "".join(lines)


class JsonRows:
    """Write a JSON array of objects, one a line, whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.part")
        # A file name that is not UTF-8 comes out as JSON escapes, which give the name back.
        self._file = open(self._temporary, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self._before = "[\n"

    def add(self, row: Mapping[str, object]) -> None:
        """Append one object."""
        self._file.write(self._before + json.dumps(row, ensure_ascii=False))
        self._before = ",\n"

    def close(self) -> None:
        """Close the array and give the file its name."""
        with self._file as file:
            file.write("[]\n" if self._before == "[\n" else "\n]\n")
        os.replace(self._temporary, self.path)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a BGR image in the format of its suffix, whole or not at all.

    Raises:
        UserError: the format cannot hold an image of this size.
    """
    try:
        ok, data = cv2.imencode(path.suffix, image)
    except cv2.error:
        ok = False
    if not ok:
        height, width = image.shape[:2]
        raise UserError(f"{path}: {width}x{height} pixels do not fit the format {path.suffix}; pass --nosave")
    atomic_write(path, lambda file: file.write(data.tobytes()))
