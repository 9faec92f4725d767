"""Images from standard input, one after the other as they arrive: `--source -`.

The pictures follow each other, as `cat *.jpg` or `ffmpeg -f image2pipe` write them. JPEG, PNG, BMP and WebP
say where they end. Of any other format (TIFF, say) one image may come, as the last.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import BinaryIO, ClassVar, Literal

from utils.errors import UserError
from utils.images import decode_image
from utils.sources.frame import Frame

LOGGER = logging.getLogger("yolo.sources")

_BLOCK = 1 << 16
MAX_BYTES = 1 << 28  # of one image; a stream that is none must not fill the memory
_BETWEEN = b"\r\n\0"  # what some tools write between pictures
_JPEG_SCAN = 0xDA
# Within a scan 0xFF begins a marker: D9 is the end, and D8 the start of the next picture if this was cut off.
_JPEG_END = re.compile(rb"\xff[\xd8\xd9]")


class ImagePipe:
    """Yields the images of a byte stream, standard input by default.

    A picture that cannot be decoded costs a warning, if the place where it ends is known.
    """

    live: ClassVar[bool] = False

    def __init__(self, stream: BinaryIO | None = None) -> None:
        if stream is None:
            if sys.stdin.isatty():
                raise UserError(
                    "-: standard input is a keyboard; pipe images in, as in: cat *.jpg | python ..."
                )
            os.set_blocking(sys.stdin.fileno(), True)
            # Without a buffer: its lock, held by a thread that waits for bytes, keeps Python from ending.
            stream = open(sys.stdin.fileno(), "rb", 0, closefd=False)  # noqa: SIM115
        self.stream = stream

    def batches(self) -> Iterator[list[Frame]]:
        """Yield each image when its last byte has come; its path is `stdin_1.jpg`, `stdin_2.png`, ...

        Raises:
            UserError: no image came at all, or what follows an image cannot be told apart.
        """
        decoded = 0
        for number, (suffix, data, is_rest) in enumerate(split_images(self.stream), start=1):
            try:
                image = decode_image(data)
            except ValueError as error:
                if is_rest and decoded:
                    raise UserError(
                        f"-: {len(data)} bytes that follow image {number - 1} of standard input are no image "
                        f"({error}); pipe whole files in, or give their folder as --source"
                    ) from None
                LOGGER.warning("skipped: image %d of standard input %s", number, error)
                continue
            decoded += 1
            yield [Frame(f"stdin_{number}{suffix}", image, position=number, count=0)]
        if not decoded:
            raise UserError("-: standard input held no image that can be read; pipe JPEG or PNG files in")


class _Window:
    """Hold the bytes of a stream from the present image on."""

    def __init__(self, stream: BinaryIO) -> None:
        self._read = getattr(stream, "read1", stream.read)  # read1 hands over what is there: no delay
        self.data = bytearray()
        self._ended = False

    def has(self, size: int) -> bool:
        """Read until there are `size` bytes; return whether there are.

        Raises:
            UserError: more than `MAX_BYTES` came.
        """
        while len(self.data) < size and not self._ended:
            if len(self.data) > MAX_BYTES:
                raise UserError(
                    f"-: what comes on standard input is longer than {MAX_BYTES >> 20} MiB; is it an image?"
                )
            block = self._read(_BLOCK)
            self.data += block
            self._ended = not block
        return len(self.data) >= size

    def number(self, at: int, size: int, order: Literal["big", "little"]) -> int:
        """Return the unsigned number of `size` bytes at a place, 0 at the end."""
        return int.from_bytes(self.data[at : at + size], order) if self.has(at + size) else 0

    def cut(self, size: int) -> bytes:
        """Take the first `size` bytes out."""
        head = bytes(self.data[:size])
        del self.data[:size]
        return head


def split_images(stream: BinaryIO) -> Iterator[tuple[str, bytes, bool]]:
    """Yield suffix and bytes of each image, and whether it is the rest.

    Raises:
        UserError: an image is damaged so that its end is not known, or is longer than `MAX_BYTES`.
    """
    window = _Window(stream)
    number = 0
    while True:
        while window.has(1) and window.data[0] in _BETWEEN:
            window.cut(1)
        if not window.has(1):
            return
        number += 1
        suffix, size = _measure(window)
        if size == 0:
            raise UserError(
                f"-: image {number} of standard input is damaged, and the next one cannot be found; "
                "pipe whole files in, or give their folder as --source"
            )
        if size is None:
            while window.has(len(window.data) + 1):
                pass
            yield suffix, window.cut(len(window.data)), True
        else:
            window.has(size)
            yield suffix, window.cut(size), False


def _measure(window: _Window) -> tuple[str, int | None]:
    """Return suffix and size in bytes of the next image.

    0: damaged, None: its format does not state it.
    """
    window.has(12)
    head = bytes(window.data[:12])
    if head.startswith(b"\xff\xd8\xff"):
        return ".jpg", _jpeg_size(window)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png", _png_size(window)
    if head.startswith(b"BM"):
        return ".bmp", int.from_bytes(head[2:6], "little")
    if head.startswith(b"RIFF") and head[8:] == b"WEBP":
        return ".webp", 8 + (int.from_bytes(head[4:8], "little") + 1) // 2 * 2
    return ".tif" if head[:4] in (b"II*\0", b"MM\0*") else ".jpg", None


def _png_size(window: _Window) -> int:
    """Return where the IEND chunk ends, 0 when there is none."""
    at = 8
    while window.has(at + 8):
        length, kind = window.number(at, 4, "big"), bytes(window.data[at + 4 : at + 8])
        at += 12 + length  # length, kind, data, checksum
        if kind == b"IEND":
            return at
        if not kind.isalpha():
            return 0
    return 0


def _jpeg_size(window: _Window) -> int:
    """Return where the picture ends, 0 when its scan is not found.

    Segments before the scan are stepped over, because a thumbnail in one has an end marker of its own.
    """
    at = 2
    while window.number(at, 1, "big") == 0xFF:
        marker = window.number(at + 1, 1, "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2 + window.number(at + 2, 2, "big")
        if marker == _JPEG_SCAN:
            break
    else:
        return 0
    while True:
        end = _JPEG_END.search(window.data, at)
        if end:
            return end.start() if end[0] == b"\xff\xd8" else end.end()
        at = max(at, len(window.data) - 1)  # the last byte may be the first half of a marker
        if not window.has(len(window.data) + 1):
            return len(window.data)
