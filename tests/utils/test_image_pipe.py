"""utils/image_pipe.py: pictures are cut apart where they end, whatever arrives in whatever pieces."""

import io

import numpy as np
import pytest
from PIL import Image

from utils import image_pipe
from utils.errors import UserError
from utils.image_pipe import ImagePipe, split_images


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
    assert list(split_images(stream)) == expected


def test_line_breaks_between_pictures_are_skipped():
    one = PICTURES["jpeg"][1]
    assert [data for _, data in split_images(io.BytesIO(one + b"\r\n" + one + b"\n"))] == [one, one]


def test_a_picture_comes_before_the_next_one_is_there():
    class Endless(Drip):
        def read(self, size=-1):
            assert self.at < len(self.data), "read on although the first picture was complete"
            return super().read(size)

    for suffix, data in PICTURES.values():
        assert next(split_images(Endless(data, 1 << 20))) == (suffix, data)


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
    png = PICTURES["png"][1]
    lying = png[:33] + (1 << 31).to_bytes(4, "big") + png[37:]
    with pytest.raises(UserError, match="longer than"):
        list(split_images(io.BytesIO(lying)))


def test_a_pipe_that_does_not_wait_is_asked_again():
    class Hesitant(Drip):
        def read(self, size=-1):
            self.step = 0 if self.step else 5000
            return super().read(size) if self.step else None

    data = PICTURES["png"][1]
    assert list(split_images(Hesitant(data * 2, 5000))) == [(".png", data), (".png", data)]
