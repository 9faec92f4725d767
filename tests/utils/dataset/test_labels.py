"""Labels and images: what is read, what a fault costs, and what the message names."""

import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.dataset.image_set import CORRUPT, EMPTY, FOUND, MISSING
from utils.dataset.labels import find_labels, image_size, label_path, read_labels, verify
from utils.files import ROOT
from utils.images import load_image


@pytest.fixture
def picture():
    """A photograph-like image, so that no corner of it is flat."""
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (96, 64), interpolation=cv2.INTER_CUBIC)


def _labels(tmp_path, text, keypoints=0):
    path = tmp_path / "a.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(str(path), keypoints)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("/d/images/train/a.jpg", "/d/labels/train/a.txt"),
        ("/images/x/images/a.b.png", "/images/x/labels/a.b.txt"),
        ("/d/images/my images/a.jpg", "/d/labels/my images/a.txt"),
        ("/d/photos/a.jpg", "/d/photos/a.txt"),
        ("images/a.jpg", "labels/a.txt"),
    ],
)
def test_label_lies_in_the_last_images_folders_sibling(image, label):
    assert label_path(image) == label


def test_boxes_are_read_as_written(tmp_path):
    labels, segments, messages, written = _labels(tmp_path, "\ufeff2 0.5 0.25 0.1 0.2\r\n\r\n0 1 1 1e-1 .5\n")
    np.testing.assert_allclose(labels, [[2, 0.5, 0.25, 0.1, 0.2], [0, 1, 1, 0.1, 0.5]], rtol=1e-6)
    assert labels.dtype == np.float32
    assert (segments, messages, written) == ([], [], 2)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("cat 0.5 0.5 0.1 0.1", "cat is not a number"),
        ("0 0.5 0.5 0.1", "4 columns"),
        ("0,0.5,0.5,0.1,0.1", "0,0.5,0.5,0.1,0.1 is not a number"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 columns: the last is a confidence"),
        ("0 0.1 0.1 0.9 0.1 0.9 0.9 0.2", "8 columns"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is negative"),
        ("1.5 0.5 0.5 0.1 0.1", "class 1.5 is not a whole number"),
        ("nan 0.5 0.5 0.1 0.1", "class nan is not a whole number"),
        ("0 1.7 0.5 0.1 0.1", "coordinate 1.7 is outside 0..1"),
        ("0 -0.2 0.5 0.1 0.1", "coordinate -0.2 is outside 0..1"),
        ("0 0.5 nan 0.1 0.1", "coordinate nan is not finite"),
        ("0 0.5 0.5 inf 0.1", "coordinate inf is not finite"),
        ("0 0.5 0.5 0 0.1", "no area"),
        ("0 0.1 0.1 0.5 0.1 0.9 0.1", "no area"),
        ("1 0.5 0.5 0.5 0.5", "same row as line 1"),
    ],
)
def test_a_bad_row_costs_itself_alone_and_is_named(tmp_path, row, fault):
    labels, _, messages, written = _labels(tmp_path, f"1 0.5 0.5 0.5 0.5\n{row}\n")
    assert labels.tolist() == [[1, 0.5, 0.5, 0.5, 0.5]]
    assert written == 2
    assert len(messages) == 1
    assert f"{tmp_path / 'a.txt'}, line 2: " in messages[0]
    assert fault in messages[0]


def test_rounding_is_clipped_and_nothing_more(tmp_path):
    labels, _, messages, _ = _labels(tmp_path, "0 1.000001 0.5 0.1 0.1\n0 1.0001 0.5 0.1 0.1\n")
    assert labels[:, 1].tolist() == [1.0]
    assert len(messages) == 1


def test_polygons_give_their_bounding_box_and_boxes_among_them_their_corners(tmp_path):
    text = "3 0.1 0.2 0.5 0.2 0.3 0.8\n1 0.5 0.5 0.2 0.4\n"
    labels, segments, messages, _ = _labels(tmp_path, text)
    np.testing.assert_allclose(labels, [[3, 0.3, 0.5, 0.4, 0.6], [1, 0.5, 0.5, 0.2, 0.4]], atol=1e-6)
    assert not messages
    np.testing.assert_allclose(segments[0], [[0.1, 0.2], [0.5, 0.2], [0.3, 0.8]], atol=1e-7)
    np.testing.assert_allclose(segments[1], [[0.4, 0.3], [0.6, 0.3], [0.6, 0.7], [0.4, 0.7]], atol=1e-6)


POSE = "0 0.5 0.5 0.2 0.2 "


@pytest.mark.parametrize(
    ("row", "keypoints"),
    [
        (POSE + "0.45 0.45 0.55 0.45 0.45 0.55 0.55 0.55", 8),  # 4 points x y, as the YAML says
        (POSE + "0.1 0.1 2 0.9 0.9 1", 6),
        (POSE + "0.1 0.1 2", 0),  # an even number of columns is no polygon
        (POSE + "0.58 0.63 2 0.69 0.61 2 0.75 0.59 0 0.78 0.56 1 0 0 0", 0),
        (POSE + "0.1 0.1 2 0.9 0.9 1", 0),  # nor is one with a 2
        (POSE + "1.3 -0.2 2 0.9 0.9 1", 0),  # points may lie outside the image
    ],
)
def test_keypoints_leave_the_box_as_it_is(tmp_path, row, keypoints):
    labels, segments, messages, _ = _labels(tmp_path, row + "\n", keypoints)
    np.testing.assert_allclose(labels, [[0, 0.5, 0.5, 0.2, 0.2]], rtol=1e-6)
    assert (segments, messages) == ([], [])


def test_what_may_be_a_polygon_is_one(tmp_path):
    row = POSE + "0.1 0.1 1 0.9 0.9 1\n"  # 11 columns, and x, y, 1 might be a corner at the image's edge
    assert len(_labels(tmp_path, row)[1][0]) == 5
    assert len(_labels(tmp_path, row, 8)[1][0]) == 5  # the YAML's keypoints have another number of columns


def test_binary_rubbish_as_a_label_is_a_message(tmp_path):
    labels, _, messages, written = _labels(tmp_path, bytes(range(128, 256)) + b"\n")
    assert len(labels) == 0
    assert written == len(messages) >= 1


def test_status_of_found_missing_empty_and_all_rows_bad(tmp_path, picture):
    image, label = str(tmp_path / "a.png"), tmp_path / "a.txt"
    cv2.imwrite(image, picture)
    assert verify(image, str(label)).status == MISSING
    label.write_text("\n \n")
    assert verify(image, str(label)).status == EMPTY
    label.write_text("0 0.5 0.5 0.1 0.1\n")
    record = verify(image, str(label))
    assert (record.status, record.width, record.height) == (FOUND, 96, 64)
    label.write_text("0 0.5 0.5 1.7 0.1\n")
    record = verify(image, str(label))
    assert record.status == CORRUPT
    assert "coordinate 1.7" in record.messages[0]
    assert "no valid row" in record.messages[1]


def test_unreadable_label_costs_the_image(tmp_path, picture):
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    (tmp_path / "a.txt").mkdir()
    record = verify(str(tmp_path / "a.png"), str(tmp_path / "a.txt"))
    assert record.status == CORRUPT
    assert "cannot be read" in record.messages[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"hello", "not an image"), (b"\xff\xd8\xff\xe0rest", "JPEG|image|decoded")],
)
def test_files_that_are_no_images_are_dropped_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        image_size(str(path))
    assert verify(str(path), str(tmp_path / "a.txt")).status == CORRUPT


def test_missing_image_is_dropped(tmp_path):
    record = verify(str(tmp_path / "none.jpg"), str(tmp_path / "none.txt"))
    assert record.status == CORRUPT
    assert "no such image" in record.messages[0]


@pytest.mark.parametrize("side", [9, 10])
def test_images_under_ten_pixels_are_dropped(tmp_path, side):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, np.zeros((side, 40, 3), np.uint8))
    assert (verify(path, "none").status == CORRUPT) == (side < 10)


def test_truncated_jpeg_is_dropped_and_never_rewritten(tmp_path, picture):
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    record = verify(str(path), "none")
    assert record.status == CORRUPT
    assert "truncated JPEG" in record.messages[0]
    assert path.read_bytes() == whole[: len(whole) // 2]
    path.write_bytes(whole[: len(whole) // 2] + bytes(500))  # a download that was never finished
    assert verify(str(path), "none").status == CORRUPT


def test_jpeg_that_lost_only_its_end_marker_or_has_bytes_after_it_is_kept(tmp_path, picture):
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    width, height, note = image_size(str(path))
    assert (width, height) == (96, 64)
    assert "end marker" in note
    path.write_bytes(whole + b"camera notes")
    assert image_size(str(path)) == (96, 64, "")


@pytest.mark.parametrize("kind", ["baseline", "progressive", "CMYK"])
def test_a_damaged_jpeg_that_is_kept_is_one_that_the_loader_reads(tmp_path, picture, kind):
    path, data = tmp_path / "a.jpg", io.BytesIO()
    image = Image.fromarray(picture).convert("CMYK" if kind == "CMYK" else "RGB")
    image.save(data, "JPEG", progressive=kind == "progressive")
    kept = dropped = 0
    for at in range(2, len(data.getvalue()) - 2, 3):  # the end marker stays
        damaged = bytearray(data.getvalue())
        damaged[at] ^= 0x55
        path.write_bytes(damaged)
        record = verify(str(path), "none")
        if record.status == CORRUPT:
            dropped += 1
        else:
            kept += 1
            assert load_image(path).shape[1::-1] == (record.width, record.height)
    assert kept > 20 and dropped > 20


def test_what_the_system_refuses_is_no_verdict_on_the_file(tmp_path, picture):
    image, label = tmp_path / "a.png", tmp_path / "a.txt"
    image.mkdir()
    assert verify(str(image), str(label)).passing
    image.rmdir()
    cv2.imwrite(str(image), picture)
    label.mkdir()
    assert verify(str(image), str(label)).passing
    image.write_bytes(b"no image")
    assert not verify(str(image), str(label)).passing


def _verify_in_little_memory(chunk):
    import resource  # not on Windows

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20), resource.RLIM_INFINITY))
    return [verify(path, "none") for path in chunk]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells how much memory is in use")
def test_a_lack_of_memory_is_no_verdict_on_the_file(tmp_path):
    large = str(tmp_path / "large.png")
    cv2.imwrite(large, np.zeros((5200, 5200, 3), np.uint8))
    # In a process of its own: this one may keep freed memory that would be enough.
    code = "import sys; from tests.utils.dataset.test_labels import _verify_in_little_memory as verify; "
    code += "record, = verify(sys.argv[1:]); print(record.status, record.passing, record.messages[0])"
    command = [sys.executable, "-c", code, large]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.startswith(f"{CORRUPT} True") and "lack of memory" in told
    assert verify(large, "none").status == MISSING


def test_truncated_png_is_dropped(tmp_path, picture):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), picture)
    path.write_bytes(path.read_bytes()[:-2000])
    assert verify(str(path), "none").status == CORRUPT


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png", "webp"])
@pytest.mark.parametrize(
    ("orientation", "size"), [(1, (96, 64)), (3, (96, 64)), (6, (64, 96)), (8, (64, 96))]
)
def test_size_is_that_after_exif_rotation(tmp_path, picture, orientation, size, suffix):
    exif, path = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[274] = orientation
    Image.fromarray(picture).save(path, exif=exif)
    assert image_size(str(path))[:2] == size
    assert load_image(path).shape[1::-1] == size  # what the loader will see


def _touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_label_files_that_lie_elsewhere_are_found_and_one_of_them_is_named(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    _touch(
        tmp_path, "images/a.txt", "labels/b.TXT", f"labels/{decomposed}.txt", "labels/e.txt", "images/e.txt"
    )
    images = [str(tmp_path / "images" / f"{name}.jpg") for name in ("a", "b", composed, "none", "e")]
    labels, notes = find_labels(images)
    found = ["images/a.txt", "labels/b.TXT", f"labels/{decomposed}.txt", "labels/none.txt", "labels/e.txt"]
    assert labels == [str(tmp_path / name) for name in found]
    (note,) = notes
    assert note.startswith("3 label files are not where they are expected")
    assert str(tmp_path / "labels/a.txt") in note and str(tmp_path / "images/a.txt") in note
    _touch(tmp_path, "labels/a.txt")
    assert find_labels(images[:1]) == ([str(tmp_path / "labels/a.txt")], [])


def test_images_that_share_a_label_file_are_counted(tmp_path):
    _touch(tmp_path, "labels/a.txt", "labels/b.txt")
    images = [str(tmp_path / "images" / name) for name in ("a.jpg", "a.png", "b.jpg", "c.jpg", "c.png")]
    _, (note,) = find_labels(images)
    assert (
        note.startswith("1 label files belong to several images") and str(tmp_path / "labels/a.txt") in note
    )


@pytest.mark.parametrize("suffix", ["tif", "gif", "png", "webp"])
def test_pages_and_frames_beyond_the_first_are_said(tmp_path, picture, suffix):
    path, frames = tmp_path / f"a.{suffix}", [Image.fromarray(picture), Image.fromarray(255 - picture)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert image_size(str(path)) == (96, 64, "only the first of its 2 pages or frames is read")
    assert np.abs(load_image(path)[..., ::-1].astype(int) - picture).mean() < 20
    frames[0].save(path)
    assert image_size(str(path)) == (96, 64, "")
