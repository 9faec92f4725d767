"""Draw the bundled data set: digits in many fonts on photographs and textures.

Each image has its own generator, seeded by (seed, split, index), so it depends neither on the number of
processes nor on the number of images. Boxes are measured on the drawn characters.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.dataset.bundled.glyphs import FONTS, HELD_OUT, draw
from utils.dataset.bundled.grounds import ground, random_colour
from utils.errors import UserError
from utils.processes import collect_in_processes

LOGGER = logging.getLogger("yolo.digits")

_SPLITS = ("train", "val")
SIDES = (256, 384)
"""Range of an image's width and of its height, in pixels."""
HEIGHTS = (12.0, 120.0)
"""Range of an upright digit's height, in pixels."""
PER_IMAGE = (6, 11)
MAX_ANGLE = 25.0
"""Degrees to either side; with more a 6 and a 9 look alike."""
MAX_COVER = 0.25
"""The part of a digit that later ones may hide."""
MAX_COMMON = 0.2
"""The part of the smaller of two boxes that may overlap the other."""
MIN_CONTRAST = 55.0
"""Least difference in luminance (0..255) between a digit and a plain ground; a textured one needs more."""
_JPEG_QUALITY = 90
_CHUNK = 8
LETTERS = "ACEFHKLMNRTUVWXYcefhkmnrtuvwx"
"""Distractors: letters that do not look like a digit."""


@dataclass
class _Placed:
    """Hold a drawn digit: class, mask, corner of the mask, and its visible pixels."""

    number: int
    mask: np.ndarray
    left: int
    top: int
    visible: np.ndarray


def scene(seed: int, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image.

    Args:
        seed: seed of the whole set.
        split: 'train' or 'val'; only val has the fonts of `glyphs.HELD_OUT`.
        index: number of the image.

    Returns:
        BGR uint8 (h, w, 3) and labels (k, 5) float32: class, xc, yc, w, h normalised.
    """
    rng = np.random.default_rng((seed, _SPLITS.index(split), index))
    height, width = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    image = ground(rng, height, width).astype(np.float32)
    fonts = [f for f in FONTS if split == "val" or f not in HELD_OUT]
    for _ in range(rng.integers(2, 7)):
        _clutter(rng, image, fonts)
    placed: list[_Placed] = []
    wanted = int(rng.integers(PER_IMAGE[0], PER_IMAGE[1] + 1))
    sizes = sorted(
        (_digit_height(rng) for _ in range(wanted)), reverse=True
    )  # large ones first, because they need most room
    for size in sizes:
        _place_digit(rng, image, placed, fonts, size)
    image = _finish(rng, image)
    labels = np.array([_label(p, width, height) for p in placed], np.float32).reshape(-1, 5)
    return image, labels


def _digit_height(rng: np.random.Generator) -> float:
    """Return a random height within HEIGHTS; large ones are more frequent than log-uniform."""
    low, high = np.log(HEIGHTS)
    return float(np.exp(low + (high - low) * rng.random() ** 0.55))


def _place_digit(
    rng: np.random.Generator, image: np.ndarray, placed: list[_Placed], fonts: list[str], size: float
) -> None:
    """Draw one digit where it hides little of the others.

    After 30 places without success it draws none.
    """
    number = int(rng.integers(10))
    font = fonts[rng.integers(len(fonts))]
    angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE) if rng.random() < 0.7 else 0.0
    mask = draw(font, str(number), size, angle, rng.uniform(-0.15, 0.15), rng.uniform(0.85, 1.2))
    h, w = mask.shape
    if h >= image.shape[0] - 4 or w >= image.shape[1] - 4:
        return
    for _ in range(30):
        top, left = int(rng.integers(2, image.shape[0] - h - 1)), int(rng.integers(2, image.shape[1] - w - 1))
        digit = _Placed(number, mask, left, top, mask > 0.5)
        if _fits(digit, placed):
            break
    else:
        return
    _paint(rng, image[top : top + h, left : left + w], mask, image[_around(digit, image.shape)])
    for other in placed:
        _hide(other, digit)
    placed.append(digit)


def _fits(digit: _Placed, placed: list[_Placed]) -> bool:
    """Return whether every earlier digit stays visible, and none is inside another."""
    for other in placed:
        window = _overlap(other, digit)
        if window is None:
            continue
        mine, theirs = window
        lost = (other.visible[theirs] & (digit.mask[mine] > 0.2)).sum()
        if other.visible.sum() - lost < (1 - MAX_COVER) * (other.mask > 0.5).sum():
            return False
        if other.mask[theirs].size > MAX_COMMON * min(other.mask.size, digit.mask.size):
            return False
    return True


def _hide(other: _Placed, digit: _Placed) -> None:
    """Mark the pixels of a digit that a later one covers as not visible."""
    window = _overlap(other, digit)
    if window is not None:
        mine, theirs = window
        other.visible[theirs] &= digit.mask[mine] <= 0.2


def _overlap(other: _Placed, digit: _Placed) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Return the common rectangle of two masks, as slices of each, or None."""
    top, left = max(other.top, digit.top), max(other.left, digit.left)
    bottom = min(other.top + other.mask.shape[0], digit.top + digit.mask.shape[0])
    right = min(other.left + other.mask.shape[1], digit.left + digit.mask.shape[1])
    if top >= bottom or left >= right:
        return None
    mine, theirs = (
        (slice(top - p.top, bottom - p.top), slice(left - p.left, right - p.left)) for p in (digit, other)
    )
    return mine, theirs


def _around(digit: _Placed, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the digit's box with a margin, within the image."""
    h, w = digit.mask.shape
    margin = max(h // 6, 2)
    rows = slice(max(digit.top - margin, 0), min(digit.top + h + margin, shape[0]))
    return rows, slice(max(digit.left - margin, 0), min(digit.left + w + margin, shape[1]))


def _luminance(bgr: np.ndarray) -> np.ndarray:
    """Return the Rec. 601 luma of BGR, 0..255."""
    return bgr @ np.array([0.114, 0.587, 0.299], np.float32)


def _paint(rng: np.random.Generator, window: np.ndarray, mask: np.ndarray, ground_pixels: np.ndarray) -> None:
    """Blend a character into a window of the image, in a contrasting colour."""
    luma = _luminance(ground_pixels)
    level, spread = float(luma.mean()), float(luma.std())
    fill = _contrasting(rng, level, MIN_CONTRAST + 0.7 * spread)
    pixels = fill
    if rng.random() < 0.25:  # from one colour to its neighbour, top to bottom
        other = np.clip(fill + rng.normal(0, 20, 3), 0, 255)
        weight = np.linspace(0, 1, len(mask))[:, None, None]
        pixels = fill * (1 - weight) + other * weight
    alpha = (mask * rng.uniform(0.88, 1.0))[..., None]
    window += alpha * (pixels - window)


def _contrasting(rng: np.random.Generator, level: float, distance: float) -> np.ndarray:
    """Return a colour whose luminance differs from `level` by `distance`.

    After 20 colours without success it is black or white.

    Returns:
        BGR float32 (3,).
    """
    for _ in range(20):
        candidate = random_colour(rng)
        if abs(float(_luminance(candidate)) - level) >= distance:
            return candidate
    return np.full(3, 0.0 if level > 127 else 255.0, np.float32)


def _clutter(rng: np.random.Generator, image: np.ndarray, fonts: list[str]) -> None:
    """Draw one distractor: a letter, a line, a polygon or a frame."""
    height, width = image.shape[:2]
    kind = rng.integers(4)
    tone = random_colour(rng).tolist()
    if kind == 0:
        letters = [f for f in fonts if f != "seven-segment"]
        font = letters[rng.integers(len(letters))]
        letter = LETTERS[rng.integers(len(LETTERS))]
        mask = draw(font, letter, rng.uniform(12, 70), rng.uniform(-25, 25), 0.0, 1.0)
        h, w = mask.shape
        if h < height and w < width:
            top, left = int(rng.integers(height - h)), int(rng.integers(width - w))
            window = image[top : top + h, left : left + w]
            _paint(rng, window, mask, window)
        return
    points = rng.integers(0, (width, height), (int(rng.integers(3, 6)), 2)).astype(np.int32)
    if kind == 1:
        cv2.polylines(image, [points], False, tone, int(rng.integers(1, 4)), cv2.LINE_AA)
        return
    overlay = image.copy()
    if kind == 2:
        points = points[0] + (points - points[0]) // 3
        cv2.fillPoly(overlay, [points], tone, cv2.LINE_AA)
    else:
        corner, (long, short) = points[0], np.sort(points[1])[::-1] // (1, 2)
        frame = (*corner.tolist(), int(long), int(short))  # wider than high: a high one looks like a zero
        cv2.rectangle(overlay, frame, tone, int(rng.integers(2, 8)))
    cv2.addWeighted(overlay, 0.6, image, 0.4, 0, dst=image)


def _finish(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add what a camera adds: slight blur in some images, slight noise in all."""
    if rng.random() < 0.2:
        image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.4, 0.8))
    image = image + rng.normal(0, rng.uniform(0.5, 4), image.shape)
    return np.clip(image, 0, 255).round().astype(np.uint8)


def _label(digit: _Placed, width: int, height: int) -> tuple[float, ...]:
    """Return class and box of the drawn pixels, normalised."""
    h, w = digit.mask.shape
    return digit.number, (digit.left + w / 2) / width, (digit.top + h / 2) / height, w / width, h / height


def _stem(split: str, index: int) -> str:
    """Return the name of an image and of its label file, without suffix."""
    return f"{split}_{index:05d}"


def _write(job: tuple[str, int, str, int]) -> int:
    """Draw and write one image and its labels, and return the number of digits."""
    folder, seed, split, index = job
    image, labels = scene(seed, split, index)
    stem = _stem(split, index)
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise RuntimeError(f"OpenCV could not encode {stem}")
    Path(folder, "images", split, f"{stem}.jpg").write_bytes(data.tobytes())
    rows = [f"{int(c)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, x, y, w, h in labels.tolist()]
    Path(folder, "labels", split, f"{stem}.txt").write_text("".join(rows), encoding="utf-8")
    return len(rows)


def _write_many(jobs: Sequence[tuple[str, int, str, int]]) -> list[int]:
    return [_write(job) for job in jobs]


def generate(
    folder: str | Path, seed: int = 0, train: int = 640, val: int = 160, *, workers: int = 8
) -> Path:
    """Write the data set, whole or not at all.

    Args:
        folder: to be made: images/{train,val}/*.jpg and labels/{train,val}/*.txt.
        seed: another seed draws another set.
        train: number of training images.
        val: number of validation images.
        workers: processes, at most the number of cores.

    Returns:
        `folder`.

    Raises:
        UserError: `folder` exists with something in it or cannot be made, or the system ended a process.
    """
    folder = Path(folder).absolute()
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder}: exists, but is not the whole digits data set; move it away and start again"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); set YOLOV5_DATASETS_DIR to a writable folder"
        ) from None
    try:
        for kind in ("images", "labels"):
            for split in _SPLITS:
                (temporary / kind / split).mkdir(parents=True)
        counts = {"train": train, "val": val}
        jobs = [(str(temporary), seed, split, i) for split in _SPLITS for i in range(counts[split])]
        counted = collect_in_processes(
            _write_many,
            jobs,
            workers,
            chunk=_CHUNK,
            doing="drawing",
            title="drawing digits",
            name=lambda job: _stem(job[2], job[3]),
            remedy="free some memory and run again",
        )
        temporary.chmod(0o755)
        _rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    LOGGER.info("%s: %d train and %d val images with %d digits", folder, train, val, sum(counted))
    return folder


def _rename(temporary: Path, folder: Path) -> None:
    """Move the finished folder to its place.

    When another process was faster, its folder stays: it is the same.
    """
    try:
        os.replace(temporary, folder)
    except OSError:
        if not (folder / "labels" / "val").is_dir():
            raise
