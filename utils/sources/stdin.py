"""Images from standard input, one after the other as they arrive: `--source -`.

The pictures are simply concatenated, as `cat *.jpg` or `ffmpeg -f image2pipe` write them. JPEG, PNG, BMP and
WebP carry their own end or length, so any number of them may follow each other; of any other format (TIFF,
say) one image may come, as the last. Where an end or a length is wrong, and behind bytes that belong to no
picture, reading goes on where the next of those four begins.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, ClassVar

from utils.errors import UserError
from utils.images import decode_image
from utils.sources.frame import Frame

LOGGER = logging.getLogger("yolo.sources")

_BLOCK = 1 << 16
_PAUSE = 0.01  # seconds
MAX_BYTES = 1 << 28  # one image; a stream that is none must not fill the memory
_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8\xff"
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length: TEM, RST0-7
_JPEG_SOI, _JPEG_END, _JPEG_SCAN = 0xD8, 0xD9, 0xDA
_JPEG_SEGMENTS = frozenset(
    {*range(0xC0, 0xFF)} - {0xC8, *range(0xD0, 0xDA)}
)  # with a length; others are damage
_JPEG_NOTES = frozenset({*range(0xE0, 0xF0), 0xFE})  # segments that may hold anything: EXIF, comments
# Within a scan 0xFF is data when 0 follows, a restart marker with D0-D7, and a fill byte before another FF.
_JPEG_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# How a picture begins, in more bytes than chance repeats within another's data.
_STARTS = (
    re.compile(rb"\xff\xd8\xff[\xc0-\xc2\xc4\xdb\xdd\xe0-\xef\xfe]"),
    re.compile(rb"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
    re.compile(rb"RIFF....WEBPVP8[ LX]", re.DOTALL),
    re.compile(rb"BM....\0\0\0\0..\0\0[\x0c(48@l|]\0\0\0", re.DOTALL),
)
_START_BYTES = 18  # the longest of them
_TIFF_STARTS = (b"II*\0", b"MM\0*")
_OTHERS = re.compile(  # what Pillow may know besides: GIF, JPEG 2000, AVIF (not a phone's MP4), PNM, QOI, PSD
    rb"GIF8|\0\0\0\x0cjP |\xffO\xffQ|....ftyp(?:avi[fs]|mif1)|P[1-7fF]\s|qoif|8BPS", re.DOTALL
)
_BMP_UNCOMPRESSED = (0, 3, 6)
_BMP_SLACK = 1 << 16  # bytes besides pixels and headers: padding, a colour profile


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
        """Whether the first `size` bytes exist; reads until they do.

        Raises:
            UserError: more than `MAX_BYTES` came.
        """
        while len(self.data) < size and not self.ended:
            if len(self.data) > MAX_BYTES:
                raise UserError(
                    f"-: what comes on standard input is longer than {MAX_BYTES >> 20} MiB; is it an image?"
                )
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

    def next_start(self, at: int) -> int:
        """Where the next picture begins, from `at` on, else the stream's end; reads until then."""
        while True:
            found = first_start(self.data, at)
            if found is not None and (self.ended or not self._cut_short(found)):
                return found
            at = max(at, len(self.data) - _START_BYTES if found is None else found)
            if not self.has(len(self.data) + 1) and found is None:
                return len(self.data)

    def _cut_short(self, at: int) -> bool:
        """Whether more bytes may show that what looks like a picture's start is none."""
        return self.data[at] == 0xFF and _second_segment(self.data, at) is None

    def cut(self, size: int) -> bytes:
        """Take the first `size` bytes out."""
        head = bytes(self.data[:size])
        del self.data[:size]
        return head


def first_start(data: bytearray, at: int, end: int | None = None, *, sure: bool = False) -> int | None:
    """Where the first picture begins in data[at:end]; a JPEG of too few bytes counts unless `sure`."""
    end = len(data) if end is None else end
    refused = (False, None) if sure else (False,)
    found = []
    for start in _STARTS:
        match = start.search(data, at, end)
        while match and data[match.start()] == 0xFF and _second_segment(data, match.start()) in refused:
            match = start.search(data, match.start() + 1, end)
        if match:
            found.append(match.start())
            end = min(end, match.end())
    return min(found, default=None)


def _second_segment(data: bytearray, at: int) -> bool | None:
    """Whether a second segment follows the first of what looks like a JPEG; None when too little came."""
    after = at + 4 + int.from_bytes(data[at + 4 : at + 6], "big")
    if at + 6 > len(data) or after + 2 > len(data):
        return None
    return data[after] == 0xFF and (data[after + 1] in _JPEG_SEGMENTS or data[after + 1] == 0xFF)


def split_images(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Yield (suffix, bytes) of each image in a stream of concatenated ones.

    A damaged image ends where the next one begins. Bytes between images that belong to none, such as what
    phones write behind a JPEG, are left out with a warning.

    Raises:
        UserError: an image, or something that is none, that is longer than `MAX_BYTES`.
    """
    window = _Window(stream)
    number = 0
    while window.has(1):
        window.has(_START_BYTES)
        kind = _format_of(bytes(window.data[:_START_BYTES]))
        if kind is None:
            size = window.next_start(1)
            place = f"behind image {number}" if number else "at the start"
            LOGGER.warning("skipped: %d bytes %s of standard input, which are no image", size, place)
            window.cut(size)
            continue
        suffix, measure = kind
        size = measure(window)
        number += 1
        yield suffix, window.cut(size)
        while window.has(1) and window.data[0] in b"\r\n\0":  # what some tools put between pictures
            window.cut(1)


def _format_of(head: bytes) -> tuple[str, Callable[[_Window], int]] | None:
    """Suffix and measure of the image that begins like this; None when it is no image."""
    if head.startswith(_JPEG_START):
        return ".jpg", _jpeg_size
    if head.startswith(_PNG_START):
        return ".png", _png_size
    if head.startswith(b"BM"):
        return ".bmp", _bmp_size
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return ".webp", _webp_size
    if head.startswith(_TIFF_STARTS):
        return ".tif", _Window.rest
    return (".jpg", _Window.rest) if _OTHERS.match(head) else None


def _whole(window: _Window, size: int, checked: int) -> int:
    """`size`, or where the next picture begins, if that comes before; sought from `checked` on."""
    window.has(size)
    # Pixels may look like a start by chance: only one that is sure counts.
    inside = first_start(window.data, checked, size, sure=True)
    if inside is not None:
        return inside
    return size if len(window.data) >= size else window.next_start(checked)


def _bmp_size(window: _Window) -> int:
    """Bytes that the header states, if they fit the pixels it states; else up to the next picture."""
    if not window.has(34):
        return window.next_start(2)
    head = window.data
    size, offset, header = (int.from_bytes(head[at : at + 4], "little") for at in (2, 10, 14))
    if header >= 40:  # the old one of 12 bytes has no field for the compression
        width, height = (int.from_bytes(head[at : at + 4], "little", signed=True) for at in (18, 22))
        bits, compression = (int.from_bytes(head[at : at + 2], "little") for at in (28, 30))
        pixels = (width * bits + 31) // 32 * 4 * abs(height)
        if compression in _BMP_UNCOMPRESSED and not 0 <= size - offset - pixels <= _BMP_SLACK:
            size = 0
    if not 26 <= size <= MAX_BYTES:
        return window.next_start(2)
    return _whole(window, size, min(max(offset, 34), size))


def _webp_size(window: _Window) -> int:
    """Bytes up to where the header and the chunks say that it ends; else up to the next picture."""
    end = 8 + (int.from_bytes(window.data[4:8], "little") + 1) // 2 * 2
    at = last = 12
    while at < end and window.has(at + 8):
        kind, length = bytes(window.data[at : at + 4]), int.from_bytes(window.data[at + 4 : at + 8], "little")
        fits = at + 8 + length <= min(end, MAX_BYTES)
        if kind == b"RIFF" or not kind.replace(b" ", b"").isalnum() or not fits:
            return window.next_start(last)
        last, at = at, at + 8 + (length + 1) // 2 * 2
        if kind.startswith(b"VP8"):  # the picture itself; what the others hold may have pictures inside
            stop = _whole(window, at, last)
            if stop < at:
                return stop
    return end if at == end and window.has(end) else window.next_start(last)


def _png_size(window: _Window) -> int:
    """Bytes up to the end of the IEND chunk; up to the next picture when a chunk leads nowhere."""
    at = last = len(_PNG_START)
    while window.has(at + 8):
        length, kind = int.from_bytes(window.data[at : at + 4], "big"), bytes(window.data[at + 4 : at + 8])
        if not kind.isalpha() or at + length > MAX_BYTES:
            break
        last, at = at, at + 12 + length  # length, kind, data, checksum
        if kind == b"IEND" and window.has(at):
            return at
    return window.next_start(last)


def _jpeg_size(window: _Window) -> int:
    """Bytes up to the end marker; up to the next picture when a segment leads nowhere.

    Segments are stepped over by their lengths, because a thumbnail inside one has an end marker of its own.
    One whose own length is wrong is taken for the next picture.
    """
    at = last = 2
    while window.has(at + 2):
        if window.data[at] != 0xFF:
            break
        marker = window.data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker == _JPEG_END:
            return at + 2
        elif marker == _JPEG_SOI:  # this picture was cut off, the next one starts
            return at
        elif marker in _JPEG_ALONE:
            at += 2
        elif marker not in _JPEG_SEGMENTS or not window.has(at + 4):
            break
        else:
            last, at = at, at + 2 + max(int.from_bytes(window.data[at + 2 : at + 4], "big"), 2)
            if marker == _JPEG_SCAN:
                at = _next_marker(window, at)
            if marker not in _JPEG_NOTES:  # no table and no scan can look like a start: it was cut off here
                window.has(at + 2)
                inside = first_start(window.data, last, at + 2)
                if inside is not None:
                    return inside
    return window.next_start(last)


def _next_marker(window: _Window, at: int) -> int:
    """Where the first marker after a scan's data stands, neither stuffing nor a restart; else the end."""
    while True:
        match = _JPEG_NEXT_MARKER.search(window.data, at)
        if match:
            return match.start()
        at = max(at, len(window.data) - 1)  # the last byte may be the first half of a marker
        if not window.has(len(window.data) + 1):
            return len(window.data)
