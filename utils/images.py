"""Decode image files to BGR uint8, upright, and refuse damaged ones."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.errors import UserError
from utils.files import IMAGE_FORMATS, read_regular

PIXELS_VARIABLE = "YOLOV5_MAX_PIXELS"
"""The environment variable with the most pixels that an image may have; without it Pillow's limit holds."""
PIXELS_OF_A_SMALL_FILE = 28_000_000  # at most 18 bytes each while it is decoded (WebP), so 480 MiB
PIXELS_PER_BYTE = 26
"""An image with more of both is refused unless the variable allows it: such a file shows one colour."""
MOST_SCANS = 100
"""Passes over the picture of one JPEG; writers make ten, and each costs time however few bytes it has."""

_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_JPEG_SCAN = 0xDA
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segment that tells the picture's size and number of channels."""
_PILLOW_FAULTS = (
    *(OSError, SyntaxError, EOFError, ValueError, LookupError, TypeError, ArithmeticError),
    *(AttributeError, RuntimeError, struct.error),
)
"""Pillow's many ways to say that a file is not what it claims to be."""


class _TooManyPixels(ValueError):
    """Say that a picture is larger than its file or the limit allows."""


class NoMemoryLeft(ValueError):
    """Say that memory was too short to decode an image, which may be good."""


def load_image(path: str | Path) -> np.ndarray:
    """Decode an image file to BGR uint8 (h, w, 3), upright by its EXIF orientation.

    Grey and palette images get three equal channels or their colours, 16-bit ones keep their upper 8 bits,
    alpha is dropped, CMYK and other colour spaces are converted, and of several frames the first is taken.

    Raises:
        UserError: the file is missing, empty, cut short or not an image.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); put the image back or take it off the list"
        ) from None
    try:
        return decode_image(data)
    except ValueError as error:
        raise UserError(f"{path}: {error}; replace the image or take it off the list") from None


def decode_image(data: bytes) -> np.ndarray:
    """Decode the bytes of an image file; see `load_image`.

    Raises:
        ValueError: what is wrong with the data.
    """
    if not data:
        raise ValueError("is empty")
    if not data.startswith(_JPEG_START):
        return _decode_with_pillow(data)
    jpeg = _checked_jpeg(data)
    if not jpeg.ends:
        return _decode_unfinished_jpeg(data)
    # OpenCV decodes a JPEG about twice as fast as Pillow and turns it by its EXIF orientation in all
    # versions. It does not do so for every other format and version, and its CMYK is one level too light.
    image = None if jpeg.channels == 4 else _decode_with_opencv(data, cv2.IMREAD_COLOR)
    return _decode_with_pillow(data) if image is None else image


def inspect_image(data: bytes) -> tuple[int, int, str]:
    """Return width and height after EXIF rotation, and a note on what is odd.

    Every byte is decoded, so `decode_image` reads what is accepted here. Of a JPEG only an eighth of the
    height and width is computed, which takes less than half the time. Without oddities the note is ''.

    Raises:
        ValueError: what is wrong with the data.
    """
    if not data.startswith(_JPEG_START):
        height, width = decode_image(data).shape[:2]
        with contextlib.suppress(ValueError), _open_with_pillow(data) as image:
            if (frames := getattr(image, "n_frames", 1)) > 1:
                return width, height, f"only the first of its {frames} pages or frames is read"
        return width, height, ""
    jpeg = _checked_jpeg(data)
    if not jpeg.ends:
        height, width = _decode_unfinished_jpeg(data).shape[:2]
        return width, height, "JPEG without its end marker, kept because it still decodes"
    # In colour all the same: in grey the decoder would step over what it refuses in the colour channels.
    small = None if jpeg.channels == 4 else _decode_with_opencv(data, cv2.IMREAD_REDUCED_COLOR_8)
    width, height = jpeg.width, jpeg.height
    if small is None or not width * height or 0 < abs(width - height) < 8:
        height, width = decode_image(data).shape[:2]
    elif (small.shape[0] > small.shape[1]) != (height > width):  # OpenCV has turned it
        width, height = height, width
    return width, height, ""


class JpegHeader(NamedTuple):
    """Hold what a JPEG says of its picture; 0 is unknown."""

    width: int = 0  # before EXIF rotation
    height: int = 0
    channels: int = 0  # 1 grey, 3 colours, 4 inks
    ends: bool = False  # whether the picture has its end marker, whatever bytes follow it


def jpeg_header(data: bytes) -> JpegHeader:
    """Read the segments of a JPEG up to its picture.

    The end marker cannot occur within the picture, but it can in the segments before: a thumbnail inside EXIF
    has an end marker of its own.
    """
    found, at = JpegHeader(), 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _JPEG_SCAN:
            return found._replace(ends=data.find(_JPEG_END, at) >= 0)
        if marker in _JPEG_FRAMES:  # marker, length (2 bytes), precision, height (2), width (2), channels
            height, width = (int.from_bytes(data[at + k : at + k + 2], "big") for k in (5, 7))
            found = JpegHeader(width, height, data[at + 9])
        # A marker after 0xFF is a fill byte.
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return found


def _checked_jpeg(data: bytes) -> JpegHeader:
    """Read a JPEG's header, and refuse what would take gigabytes or minutes."""
    jpeg = jpeg_header(data)
    _check_pixels(jpeg.width * jpeg.height, len(data))
    if data.count(bytes((0xFF, _JPEG_SCAN))) > MOST_SCANS:
        raise ValueError(f"has more than {MOST_SCANS} scans; save it again as an ordinary JPEG")
    return jpeg


def _check_pixels(pixels: int, size: int) -> None:
    """Refuse a picture with too many pixels, also for a file of `size` bytes."""
    if pixels > pixel_limit():
        raise _TooManyPixels(_too_large())
    if PIXELS_VARIABLE not in os.environ and pixels > max(PIXELS_OF_A_SMALL_FILE, PIXELS_PER_BYTE * size):
        raise _TooManyPixels(
            f"has {pixels} pixels in only {size} bytes; if it is meant to, set the environment variable "
            f"{PIXELS_VARIABLE} to at least that number"
        )


def _decode_unfinished_jpeg(data: bytes) -> np.ndarray:
    """Decode a JPEG without end marker; refuse one that is cut short.

    That one has a flat corner at its bottom right.
    """
    image = _decode_with_pillow(data.rstrip(b"\0") + _JPEG_END)
    corner = image[-16:, -16:]
    if (corner == corner[-1, -1]).all():
        raise ValueError("is a truncated JPEG")
    return image


def _decode_with_opencv(data: bytes, flags: int) -> np.ndarray | None:
    """Return the picture that OpenCV makes of the data, or None."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise NoMemoryLeft("cannot be decoded for lack of memory") from None
        return None


def _decode_with_pillow(data: bytes) -> np.ndarray:
    with _open_with_pillow(data) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return pillow_to_bgr(image)


@contextlib.contextmanager
def _open_with_pillow(data: bytes) -> Iterator[Image.Image]:
    """Open an image without decoding it; what Pillow raises at it becomes a ValueError."""
    pixel_limit()  # Pillow is to hold to it, too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes on odd metadata, which say nothing about the picture
        try:
            with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                _check_pixels(image.width * image.height, len(data))
                yield image
        except _TooManyPixels:
            raise
        except UnidentifiedImageError:  # its own words name a buffer in memory
            raise ValueError("is not an image of a known format") from None
        except Image.DecompressionBombError:
            raise ValueError(_too_large()) from None
        except MemoryError:
            raise NoMemoryLeft("cannot be decoded for lack of memory") from None
        except _PILLOW_FAULTS as error:
            raise ValueError(f"cannot be decoded as an image ({error})".replace("\n", " ")) from None


def pixel_limit() -> int:
    """Return how many pixels an image may have.

    It is twice Pillow's MAX_IMAGE_PIXELS, as in Pillow, unless the environment variable sets another.

    Raises:
        UserError: the variable holds no number.
    """
    given = os.environ.get(PIXELS_VARIABLE)
    if given is not None:
        if not given.isdecimal():
            raise UserError(f"{PIXELS_VARIABLE}={given}: is no whole number; give a number of pixels")
        Image.MAX_IMAGE_PIXELS = -(-int(given) // 2)
    return sys.maxsize if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def _too_large() -> str:
    """Say that an image has too many pixels, and what to do."""
    return (
        f"has more than {pixel_limit()} pixels; the environment variable {PIXELS_VARIABLE} raises the limit"
    )


def pillow_to_bgr(image: Image.Image) -> np.ndarray:
    """Return a decoded Pillow image of any mode as BGR uint8 (h, w, 3)."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
    elif image.mode == "I":  # 16-bit PNGs in older versions of Pillow
        values = np.clip(np.asarray(image), 0, 65535)
        grey = (values >> 8 if values.max() > 255 else values).astype(np.uint8)
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image), posinf=255.0, neginf=0.0)
        grey = np.clip(values * 255.0 if values.max() <= 1.0 else values, 0, 255).round().astype(np.uint8)
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")  # convert would copy it
        return cv2.cvtColor(np.asarray(rgb), cv2.COLOR_RGB2BGR)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)


def training_size(width: int, height: int, imgsz: int) -> tuple[int, int]:
    """Return width and height at a long side of `imgsz`.

    The short side is rounded up.

    Example:
        >>> training_size(640, 427, 320)
        (320, 214)
    """
    long_side = max(width, height)
    # Integer arithmetic: a ratio in floating point can round a side that fits exactly up by one pixel.
    return -(-width * imgsz // long_side), -(-height * imgsz // long_side)


def resize_long_side(image: np.ndarray, imgsz: int, *, augment: bool) -> np.ndarray:
    """Scale an image up or down so that its long side is `imgsz` pixels.

    Linear interpolation for training (`augment`) or when enlarging, area averaging when reducing for
    validation.
    """
    height, width = image.shape[:2]
    size = training_size(width, height, imgsz)
    if size == (width, height):
        return image
    enlarging = imgsz > max(width, height)
    interpolation = cv2.INTER_LINEAR if augment or enlarging else cv2.INTER_AREA
    return cv2.resize(image, size, interpolation=interpolation)


@contextlib.contextmanager
def single_threaded_opencv() -> Iterator[None]:
    """Keep OpenCV to the threads that call it, and restore its own number afterwards."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
