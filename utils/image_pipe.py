"""Images from standard input, one after the other as they arrive: `--source -`.

The pictures are simply concatenated, as `cat *.jpg` or `ffmpeg -f image2pipe` write them. JPEG, PNG, BMP and
WebP carry their own end or length, so any number of them may follow each other; of any other format (TIFF,
say) one image may come, as the last.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, ClassVar

from utils.errors import UserError
from utils.frames import Frame
from utils.images import decode_image

LOGGER = logging.getLogger("yolo.sources")

_BLOCK = 1 << 16
_PAUSE = 0.01  # seconds
MAX_BYTES = 1 << 28  # one image; a stream that is none must not fill the memory
_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8\xff"
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length: TEM, RST0-7
_JPEG_SOI, _JPEG_END, _JPEG_SCAN = 0xD8, 0xD9, 0xDA
# Within a scan 0xFF is data when 0 follows, a restart marker with D0-D7, and a fill byte before another FF.
_JPEG_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class ImagePipe:
    """The images of a byte stream, standard input by default.

    A picture that cannot be decoded costs a warning; what follows it is read on.
    """

    live: ClassVar[bool] = False

    def __init__(self, stream: BinaryIO | None = None) -> None:
        if stream is None and sys.stdin.isatty():
            raise UserError("-: standard input is a keyboard; pipe images in, as in: cat *.jpg | python ...")
        # Without a buffer: its lock, held by a thread that waits for bytes, keeps Python from ending.
        self.stream = open(sys.stdin.fileno(), "rb", 0, closefd=False) if stream is None else stream  # noqa: SIM115

    def batches(self) -> Iterator[list[Frame]]:
        """Yield each image when its last byte has come; its path is `stdin_1.jpg`, `stdin_2.png`, ...

        Raises:
            UserError: no image came at all.
        """
        decoded = 0
        for number, (suffix, data) in enumerate(split_images(self.stream), start=1):
            path = f"stdin_{number}{suffix}"
            try:
                image = decode_image(data)
            except ValueError as error:
                LOGGER.warning("skipped: image %d of standard input %s", number, error)
                continue
            decoded += 1
            yield [Frame(path, image, position=number, count=0)]
        if not decoded:
            raise UserError("-: standard input held no image that can be read; pipe JPEG or PNG files in")


class _Window:
    """The bytes of a stream from the present image on, read as far as they are asked for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._read = getattr(stream, "read1", stream.read)  # read1 hands over what is there: no delay
        self.data = bytearray()
        self.ended = False

    def has(self, size: int) -> bool:
        """Whether the first `size` bytes exist; reads until they do."""
        if size > MAX_BYTES:
            raise UserError(
                f"-: what comes on standard input is longer than {MAX_BYTES >> 20} MiB; is it an image?"
            )
        while len(self.data) < size and not self.ended:
            block = self._read(_BLOCK)
            if block is None:  # a pipe that does not wait, and nothing in it yet
                time.sleep(_PAUSE)
                continue
            self.data += block
            self.ended = not block
        return len(self.data) >= size

    def rest(self) -> int:
        """Read to the end; how many bytes there are."""
        while self.has(len(self.data) + 1):
            pass
        return len(self.data)

    def cut(self, size: int) -> bytes:
        """Take the first `size` bytes out."""
        head = bytes(self.data[:size])
        del self.data[:size]
        return head


def split_images(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Yield (suffix, bytes) of each image in a stream of concatenated ones.

    An image that is cut off, or of a format without a length, takes all bytes that are left.

    Raises:
        UserError: an image that is longer than `MAX_BYTES`.
    """
    window = _Window(stream)
    while window.has(1):
        window.has(16)
        suffix, measure = _format_of(bytes(window.data[:16]))
        size = measure(window)
        if size is None or not window.has(size):
            size = window.rest()
        yield suffix, window.cut(size)
        while window.has(1) and window.data[0] in b"\r\n\0":  # what some tools put between pictures
            window.cut(1)


def _format_of(head: bytes) -> tuple[str, Callable[[_Window], int | None]]:
    if head.startswith(_JPEG_START):
        return ".jpg", _jpeg_size
    if head.startswith(_PNG_START):
        return ".png", _png_size
    if head.startswith(b"BM"):
        return ".bmp", lambda window: max(int.from_bytes(window.data[2:6], "little"), 26)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return ".webp", lambda window: 8 + (int.from_bytes(window.data[4:8], "little") + 1) // 2 * 2
    if head.startswith((b"II*\0", b"MM\0*")):
        return ".tif", lambda window: None
    return ".jpg", lambda window: None


def _png_size(window: _Window) -> int | None:
    """Bytes up to the end of the IEND chunk; None when the stream ends before."""
    at = len(_PNG_START)
    while window.has(at + 8):
        length, kind = int.from_bytes(window.data[at : at + 4], "big"), bytes(window.data[at + 4 : at + 8])
        at += 12 + length  # length, kind, data, checksum
        if kind == b"IEND":
            return at
    return None


def _jpeg_size(window: _Window) -> int | None:
    """Bytes up to the end marker; None when the stream ends before.

    Segments are stepped over by their lengths, because a thumbnail inside one has an end marker of its own.
    """
    at = 2
    while window.has(at + 2):
        if window.data[at] != 0xFF:
            return None  # damaged: where it ends cannot be known
        marker = window.data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker == _JPEG_END:
            return at + 2
        elif marker == _JPEG_SOI:  # this picture was cut off, the next one starts
            return at
        elif marker in _JPEG_ALONE:
            at += 2
        else:
            if not window.has(at + 4):
                return None
            at += 2 + int.from_bytes(window.data[at + 2 : at + 4], "big")
            if marker == _JPEG_SCAN:
                found = _next_marker(window, at)
                if found is None:
                    return None
                at = found
    return None


def _next_marker(window: _Window, at: int) -> int | None:
    """Where the next marker after a scan's data stands that is neither stuffing nor a restart."""
    while True:
        match = _JPEG_NEXT_MARKER.search(window.data, at)
        if match:
            return match.start()
        at = max(at, len(window.data) - 1)  # the last byte may be the first half of a marker
        if not window.has(len(window.data) + 1):
            return None
