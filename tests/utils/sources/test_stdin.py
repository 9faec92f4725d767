"""utils/sources/stdin.py: pictures are cut apart where they end, whatever arrives in whatever pieces."""

import io

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


def jpeg_with_wrong_length():
    data = PICTURES["jpeg"][1]
    return data[:4] + b"\xff\xff" + data[6:]


def png_with_wrong_length(length):
    data = PICTURES["png"][1]
    return data[:33] + length.to_bytes(4, "big") + data[37:]


def bmp_with_wrong_length():
    data = PICTURES["bmp"][1]
    return data[:2] + (len(data) + 5000).to_bytes(4, "little") + data[6:]


def webp_with_wrong_length():
    data = PICTURES["webp"][1]
    return data[:4] + (len(data) + 5000).to_bytes(4, "little") + data[8:]


DAMAGED = {
    "jpeg with a wrong length": jpeg_with_wrong_length(),
    "jpeg cut in its head": PICTURES["jpeg"][1][:100],
    "jpeg cut in its scan": PICTURES["jpeg"][1][:-900],
    "jpeg cut in the head of its scan": PICTURES["jpeg"][1][: PICTURES["jpeg"][1].index(b"\xff\xda") + 4],
    "jpeg cut near the end of it": PICTURES["jpeg"][1][: PICTURES["jpeg"][1].index(b"\xff\xda") + 12],
    "jpeg with zeros": PICTURES["jpeg"][1][:300] + bytes(200) + PICTURES["jpeg"][1][500:],
    "png with a wrong length": png_with_wrong_length(3000),
    "png with a huge length": png_with_wrong_length(1 << 30),
    "png with an impossible length": png_with_wrong_length((1 << 32) - 1),
    "png cut": PICTURES["png"][1][:4000],
    "png cut in its signature": PICTURES["png"][1][:6],
    "bmp with a wrong length": bmp_with_wrong_length(),
    "bmp cut": PICTURES["bmp"][1][:4000],
    "webp with a wrong length": webp_with_wrong_length(),
    "webp cut": PICTURES["webp"][1][:-300],
}


@pytest.mark.parametrize("step", [1 << 20, 100])
@pytest.mark.parametrize("following", ["jpeg", "png", "bmp", "webp"])
@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_damage_costs_the_damaged_picture_only(damaged, following, step):
    whole = PICTURES[following]
    pieces = list(split_images(Drip(whole[1] + damaged + whole[1] * 3, step)))
    assert [piece for piece in pieces if piece == whole] == [whole] * 4
    assert len(pieces) <= 5


def test_what_phones_write_behind_a_jpeg_is_left_out(log):
    jpeg = PICTURES["jpeg"][1]
    trailer = b"SEFH" + bytes(range(40, 100)) + b"\0\0\0\x18ftypmp42" + bytes(50)
    frames = [batch[0].path for batch in ImagePipe(io.BytesIO((jpeg + trailer) * 3)).batches()]
    assert frames == ["stdin_1.jpg", "stdin_2.jpg", "stdin_3.jpg"]
    assert len({record.getMessage() for record in log.records}) == 3
    assert f"skipped: {len(trailer)} bytes behind image 2 of standard input" in log.text


def test_a_damaged_picture_is_told(log):
    whole = PICTURES["png"][1]
    frames = [batch[0].path for batch in ImagePipe(io.BytesIO(whole + whole[:4000] + whole)).batches()]
    assert frames == ["stdin_1.png", "stdin_3.png"]
    assert "skipped: image 2 of standard input" in log.text


def test_pixels_that_look_like_a_start_are_pixels():
    """The colour (B 255, G 216, R 255) is how a JPEG starts."""
    array = np.full((40, 60, 3), (255, 216, 255), np.uint8)
    array[::3, ::5] = (5, 0, 224)
    out = io.BytesIO()
    Image.fromarray(array).save(out, "BMP")
    assert list(split_images(io.BytesIO(out.getvalue() * 3))) == [(".bmp", out.getvalue())] * 3


def test_a_pipe_that_does_not_wait_is_asked_again():
    class Hesitant(Drip):
        def read(self, size=-1):
            self.step = 0 if self.step else 5000
            return super().read(size) if self.step else None

    data = PICTURES["png"][1]
    assert list(split_images(Hesitant(data * 2, 5000))) == [(".png", data), (".png", data)]
