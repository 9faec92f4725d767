"""utils/sources/stdin.py: pictures are cut apart where they end, whatever arrives in whatever pieces."""

import io
import os
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from utils.errors import UserError
from utils.sources import stdin as image_pipe
from utils.sources.stdin import ImagePipe, split_images


class Drip(io.RawIOBase):
    """Hands out a few bytes at a time, as a slow pipe does."""

    def __init__(self, data, step):
        self.data, self.at, self.step = data, 0, step

    def read(self, size=-1):
        piece = self.data[self.at : self.at + self.step]
        self.at += len(piece)
        return piece


def encoded(kind, value=0, **options):
    rng = np.random.default_rng(value)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(out, kind, **options)
    return out.getvalue()


def jpeg_with_thumbnail():
    """A JPEG whose EXIF segment holds a JPEG of its own, end marker included."""
    whole, inner = encoded("JPEG", 1), b"Exif\0\0" + encoded("JPEG", 2)
    return whole[:2] + b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner + whole[2:]


PICTURES = {
    "jpeg": (".jpg", encoded("JPEG")),
    "progressive": (".jpg", encoded("JPEG", progressive=True)),
    "restarts": (".jpg", encoded("JPEG", restart_marker_blocks=2)),
    "thumbnail": (".jpg", jpeg_with_thumbnail()),
    "png": (".png", encoded("PNG")),
    "bmp": (".bmp", encoded("BMP")),
    "webp": (".webp", encoded("WEBP")),
}


@pytest.mark.parametrize("step", [1 << 20, 7])
def test_pictures_are_cut_where_they_end(step):
    expected = list(PICTURES.values()) + [(".tif", encoded("TIFF"))]  # a TIFF has no length: the last one
    stream = Drip(b"".join(data for _, data in expected), step)
    assert [piece[:2] for piece in split_images(stream)] == expected


def test_line_breaks_between_pictures_are_skipped():
    one = PICTURES["jpeg"][1]
    assert [piece[1] for piece in split_images(io.BytesIO(one + b"\r\n" + one + b"\n"))] == [one, one]


def test_a_picture_comes_before_the_next_one_is_there():
    class Endless(Drip):
        def read(self, size=-1):
            assert self.at < len(self.data), "read on although the first picture was complete"
            return super().read(size)

    for suffix, data in PICTURES.values():
        assert next(split_images(Endless(data, 1 << 20))) == (suffix, data, False)


def test_cut_off_jpeg_costs_itself_only(log):
    whole = encoded("JPEG", 1)
    stream = io.BytesIO(whole + whole[: len(whole) // 2] + encoded("PNG")[:0] + whole)
    frames = [frame for batch in ImagePipe(stream).batches() for frame in batch]
    assert [frame.path for frame in frames] == ["stdin_1.jpg", "stdin_3.jpg"]
    assert [frame.position for frame in frames] == [1, 3] and frames[0].count == 0
    assert "image 2 of standard input" in log.text


@pytest.mark.parametrize("data", [b"", b"hello, I am a text\n" * 5])
def test_nothing_readable_is_an_error(data):
    with pytest.raises(UserError, match="no image that can be read"):
        list(ImagePipe(io.BytesIO(data)).batches())


def test_what_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr(image_pipe, "MAX_BYTES", 5000)
    with pytest.raises(UserError, match="longer than"):
        list(split_images(io.BytesIO(b"x" * 6000)))


BROKEN_PNG = PICTURES["png"][1][:4000] + bytes(200) + PICTURES["png"][1][4200:]


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (b"SEFH" + bytes(range(40, 100)) + b"\0\0\0\x18ftypmp42", "76 bytes that follow image 1 of standard"),
        (PICTURES["png"][1][:33] + b"\xff" + PICTURES["png"][1][34:], "image 2 of standard input is damaged"),
        (
            PICTURES["jpeg"][1][:4] + b"\xff\xff" + PICTURES["jpeg"][1][6:],
            "image 2 of standard input is damaged",
        ),
    ],
    ids=["what phones write after a JPEG", "PNG with an impossible length", "JPEG with a wrong length"],
)
def test_bytes_of_which_the_end_is_not_known_are_an_error(rest, said):
    """What follows them cannot be told apart from them, and nothing lost may pass for a success."""
    batches = ImagePipe(io.BytesIO(PICTURES["jpeg"][1] + rest)).batches()
    assert next(batches)[0].path == "stdin_1.jpg"
    with pytest.raises(UserError, match=said):
        list(batches)


def test_a_damaged_picture_is_told(log):
    whole = PICTURES["png"][1]
    frames = [batch[0].path for batch in ImagePipe(io.BytesIO(whole + BROKEN_PNG + whole)).batches()]
    assert frames == ["stdin_1.png", "stdin_3.png"]
    assert "skipped: image 2 of standard input" in log.text


def test_pixels_that_look_like_a_start_are_pixels():
    """The colour (B 255, G 216, R 255) is how a JPEG starts."""
    array = np.full((40, 60, 3), (255, 216, 255), np.uint8)
    array[::3, ::5] = (5, 0, 224)
    out = io.BytesIO()
    Image.fromarray(array).save(out, "BMP")
    assert list(split_images(io.BytesIO(out.getvalue() * 3))) == [(".bmp", out.getvalue(), False)] * 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_a_pipe_that_does_not_wait_is_made_to(monkeypatch):
    """Whoever started the program may have left its standard input without blocking."""
    out, into = os.pipe()
    os.set_blocking(out, False)
    data = PICTURES["png"][1]
    with open(out) as stdin, open(into, "wb", 0) as writer:
        monkeypatch.setattr(sys, "stdin", stdin)
        batches = ImagePipe().batches()
        late = threading.Timer(0.2, lambda: (writer.write(data), writer.close()))
        late.start()
        assert [frame.path for batch in batches for frame in batch] == ["stdin_1.png"]
        late.join()
