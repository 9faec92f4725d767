"""Every kind of image file arrives as upright BGR uint8, and a broken one as a sentence with its name."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.dataset.labels import image_size
from utils.errors import UserError
from utils.images import (
    MOST_SCANS,
    PIXELS_VARIABLE,
    decode_image,
    inspect_image,
    jpeg_header,
    load_image,
    resize_long_side,
    single_threaded_opencv,
    training_size,
)

ROWS, COLUMNS = np.mgrid[0:64, 0:96]
RGB = np.stack([COLUMNS * 2, ROWS * 3, 255 - COLUMNS], axis=2).astype(np.uint8)
BGR = RGB[:, :, ::-1]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def distance(a, b) -> float:
    assert a.shape == b.shape
    assert a.dtype == np.uint8
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "JPEG", "WEBP"])
def test_formats_keep_the_colours(kind):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 98} if kind == "JPEG" else {}
    assert distance(decode_image(encoded(Image.fromarray(RGB), kind, **options)), BGR) <= (kind == "JPEG") * 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 98} if kind == "JPEG" else {}
    upright = [
        BGR,
        BGR[:, ::-1],
        BGR[::-1, ::-1],
        BGR[::-1],
        BGR.transpose(1, 0, 2),
        np.rot90(BGR, -1),
        BGR[::-1, ::-1].transpose(1, 0, 2),
        np.rot90(BGR),
    ]
    found = decode_image(encoded(Image.fromarray(RGB), kind, exif=exif, **options))
    assert distance(found, upright[orientation - 1]) < 3


def test_grey_palette_and_two_level_images_get_three_channels():
    grey = Image.fromarray(RGB).convert("L")
    expected = np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)
    assert distance(decode_image(encoded(grey, "PNG")), expected) == 0
    assert distance(decode_image(encoded(grey, "JPEG", quality=98)), expected) < 2
    palette = Image.fromarray(RGB // 64 * 64).quantize(256)
    expected = np.asarray(palette.convert("RGB"))[:, :, ::-1]
    assert distance(decode_image(encoded(palette, "PNG")), expected) == 0
    assert set(np.unique(decode_image(encoded(grey.convert("1"), "PNG")))) == {0, 255}


def test_sixteen_bits_keep_the_upper_eight():
    deep = (RGB[:, :, 0].astype(np.uint16) << 8) | 37
    grey = np.repeat(RGB[:, :, :1], 3, axis=2)
    assert distance(decode_image(encoded(Image.fromarray(deep), "PNG")), grey) == 0
    assert distance(decode_image(encoded(Image.fromarray(deep), "TIFF")), grey) == 0
    colour = (BGR.astype(np.uint16) << 8) | 200
    for suffix in (".png", ".tiff"):
        assert distance(decode_image(cv2.imencode(suffix, colour)[1].tobytes()), BGR) == 0


def test_floats_are_read_by_their_range():
    unit = Image.fromarray((RGB[:, :, 0] / 255).astype(np.float32))
    grey = np.repeat(RGB[:, :, :1], 3, axis=2)
    assert distance(decode_image(encoded(unit, "TIFF")), grey) == 0
    bytes_ = Image.fromarray(RGB[:, :, 0].astype(np.float32))
    assert distance(decode_image(encoded(bytes_, "TIFF")), grey) == 0


def test_alpha_is_dropped_and_ink_becomes_light():
    alpha = np.dstack([RGB, ROWS.astype(np.uint8)])
    assert distance(decode_image(encoded(Image.fromarray(alpha), "PNG")), BGR) == 0
    ink = Image.fromarray(RGB).convert("CMYK")
    assert distance(decode_image(encoded(ink, "JPEG", quality=98)), BGR) < 3
    assert distance(decode_image(encoded(ink, "TIFF")), BGR) < 3


def test_inks_are_converted_as_for_a_picture_that_pillow_opened():
    """OpenCV's colours would be a level lighter, so that a path and a PIL image gave two results."""
    for options in ({}, {"progressive": True}):
        data = encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=90, **options)
        with Image.open(io.BytesIO(data)) as picture:
            assert np.array_equal(decode_image(data), np.asarray(picture.convert("RGB"))[:, :, ::-1])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_truncated_file_is_named(tmp_path, kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=rf"cut\.{kind.lower()}: .*replace the image") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


def test_missing_empty_and_foreign_files_are_named(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not a picture")
    for name, words in (
        ("empty.jpg", "is empty"),
        ("text.png", "is not an image of a known format;"),
        ("gone.jpg", "No such"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            load_image(tmp_path / name)
        assert name in str(caught.value)


def test_the_end_of_a_jpeg_is_not_mistaken_for_that_of_its_thumbnail():
    thumbnail = encoded(Image.fromarray(RGB).resize((16, 12)), "JPEG")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + thumbnail
    whole = encoded(Image.fromarray(RGB), "JPEG", exif=exif)
    assert whole.count(b"\xff\xd9") == 2
    assert jpeg_header(whole).ends
    assert jpeg_header(whole + b"\0 trailing bytes of a camera").ends
    assert not jpeg_header(whole[: len(whole) // 2 + len(thumbnail) // 2]).ends
    assert not jpeg_header(whole[:-2]).ends


def test_a_jpeg_without_its_end_marker_alone_is_read_as_its_verification_says(tmp_path):
    whole = encoded(Image.fromarray(RGB), "JPEG", quality=95)
    path = tmp_path / "open.jpg"
    path.write_bytes(whole[:-2])
    assert image_size(str(path))[:2] == (96, 64)
    assert distance(load_image(path), BGR) < 3


@pytest.mark.parametrize(
    ("size", "imgsz", "expected"),
    [((640, 480), 320, (320, 240)), ((480, 640), 320, (240, 320)), ((100, 33), 320, (320, 106))]
    + [((300, 150), 320, (320, 160)), ((1000, 1), 100, (100, 1)), ((641, 480), 640, (640, 480))],
)
def test_the_long_side_fits_and_the_short_one_is_rounded_up(size, imgsz, expected):
    assert training_size(*size, imgsz) == expected
    image = np.zeros((size[1], size[0], 3), np.uint8)
    assert resize_long_side(image, imgsz, augment=False).shape[1::-1] == expected


def test_reducing_averages_for_validation_and_interpolates_for_training():
    stripes = np.zeros((80, 80, 3), np.uint8)
    stripes[:, 0::4] = 200
    averaged = resize_long_side(stripes, 20, augment=False)
    assert averaged.min() == averaged.max() == 50
    assert set(np.unique(resize_long_side(stripes, 20, augment=True))) != {50}
    small = BGR[:20, :20].copy()
    both = [resize_long_side(small, 40, augment=a) for a in (True, False)]
    assert np.array_equal(*both)


def test_opencv_gets_its_threads_back_also_after_an_error():
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        with pytest.raises(ZeroDivisionError), single_threaded_opencv():
            assert cv2.getNumThreads() == 1  # OpenCV's word for: the calling thread alone
            raise ZeroDivisionError
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_the_limit_of_pixels_is_one_for_all_formats_and_can_be_set(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # to have it back afterwards
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encoded(Image.fromarray(RGB), kind))
    for limit, fits in ((96 * 64 - 2, False), (96 * 64, True)):
        monkeypatch.setenv(PIXELS_VARIABLE, str(limit))
        if fits:
            assert load_image(path).shape[:2] == image_size(str(path))[1::-1] == (64, 96)
            continue
        for read in (load_image, image_size):
            with pytest.raises(
                (UserError, ValueError), match=f"more than {limit} pixels; .*{PIXELS_VARIABLE}"
            ):
                read(path)
    monkeypatch.setenv(PIXELS_VARIABLE, "many")
    with pytest.raises(UserError, match=f"{PIXELS_VARIABLE}=many: is no whole number"):
        load_image(path)


def test_a_jpeg_that_claims_to_be_vast_costs_nothing():
    data = bytearray(encoded(Image.fromarray(RGB), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xfd\xe8\xfd\xe8"  # 65000 x 65000
    with pytest.raises(ValueError, match="more than 178956970 pixels"):
        decode_image(bytes(data))


def test_a_format_for_which_pillow_starts_another_program_is_none():
    data = encoded(Image.fromarray(RGB), "EPS")
    assert Image.open(io.BytesIO(data)).format == "EPS"
    with pytest.raises(ValueError, match="not an image of a known format"):
        decode_image(data)


def _png_that_says(width, height):
    """A few bytes with a valid header and no picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("side", "words"), [(65000, "more than 178956970 pixels"), (12000, "only 65 bytes")])
def test_a_small_file_of_many_pixels_is_refused_before_decoding(side, words, monkeypatch):
    monkeypatch.delenv(PIXELS_VARIABLE, raising=False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)
    for read in (decode_image, inspect_image):
        with pytest.raises(ValueError, match=words):
            read(_png_that_says(side, side))
    monkeypatch.setenv(PIXELS_VARIABLE, str(65000 * 65000))  # the user's own limit is the only one
    with pytest.raises(ValueError, match="cannot be decoded|truncated"):
        decode_image(_png_that_says(1200, 1200))


def test_a_jpeg_of_a_thousand_scans_is_refused():
    data = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    at = data.index(b"\xff\xda")
    with pytest.raises(ValueError, match=f"more than {MOST_SCANS} scans"):
        decode_image(data[:at] + (b"\xff\xda" + b"\0" * 8) * 200 + data[at:])


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (64, 64), (64, 60), (60, 64)])
@pytest.mark.parametrize("kind", [3, 9])
def test_size_is_that_of_the_decoded_picture_also_with_a_damaged_orientation(size, kind):
    """OpenCV turns a JPEG by an orientation of another type of number, which Pillow does not read."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0%c\0\0\0\x01\0\x06\0\0\0\0\0\0" % kind
    data = encoded(Image.fromarray(RGB).resize(size), "JPEG", exif=exif)
    height, width = decode_image(data).shape[:2]
    assert inspect_image(data) == (width, height, "") and (width, height) == size[::-1]
