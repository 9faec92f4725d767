"""What is found, in which order, what is refused, and what a damaged file gives."""

import cv2
import numpy as np
import pytest

from utils.errors import UserError
from utils.sources.open_source import open_source, read_media_list


def write_image(path, height=20, width=30, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), value, np.uint8))
    return path


def write_video(path, frames, codec="MJPG", fps=10.0, noise=False):
    """A 64x48 video whose frame k (from 1) has the grey level 20 * k, or noise that does not compress."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, (64, 48))
    assert writer.isOpened()
    rng = np.random.default_rng(0)
    for k in range(1, frames + 1):
        picture = rng.integers(0, 255, (48, 64, 3)) if noise else np.full((48, 64, 3), 20 * k)
        writer.write(picture.astype(np.uint8))
    writer.release()
    return path


def frames_of(source, imgsz=64, stride=32, auto=True, **options):
    return list(open_source(source, imgsz=imgsz, stride=stride, auto=auto, **options))


def test_folder_gives_its_images_then_its_videos(tmp_path):
    write_video(tmp_path / "a.avi", 2)
    for name in ("c.png", "b.JPG", ".hidden.png", "below/d.png"):
        write_image(tmp_path / name)
    (tmp_path / "notes.md").write_text("x")
    frames = frames_of(tmp_path)
    assert [(f.path.rsplit("/", 1)[-1], f.index, f.is_video) for f in frames] == [
        ("b.JPG", 0, False),
        ("c.png", 0, False),
        ("a.avi", 1, True),
        ("a.avi", 2, True),
    ]
    assert [(f.position, f.count) for f in frames] == [(1, 3), (2, 3), (3, 3), (3, 3)]


def test_glob_is_recursive_and_ignores_other_files(tmp_path):
    write_image(tmp_path / "x" / "1.png")
    write_image(tmp_path / "y" / "2.png")
    (tmp_path / "y" / "2.txt").write_text("")
    assert len(frames_of(f"{tmp_path}/**/*")) == 2


def test_a_name_with_brackets_that_exists_is_no_pattern(tmp_path):
    assert len(frames_of(write_image(tmp_path / "a[1].png"))) == 1


def test_text_list_keeps_its_order_and_names_bad_lines(tmp_path, log):
    write_image(tmp_path / "two.png")
    one = write_image(tmp_path / "one.png")
    list_file = tmp_path / "list.txt"
    list_file.write_text(
        f"./two.png\n\n{one}\nnone.png\nlist.txt\nhttp://host/x.jpg\nrtsp://host/1\nhttp://[x/a.jpg\n"
    )
    assert [str(p).rsplit("/", 1)[-1] for p in read_media_list(list_file)] == ["two.png", "one.png", "x.jpg"]
    said = {r.args[1]: r.getMessage() for r in log.records}
    assert set(said) == {4, 5, 7, 8}
    assert "ends in .streams" in said[7] and "not a valid address" in said[8]


def test_binary_text_list_is_refused(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="UTF-8"):
        frames_of(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("https://youtu.be/xyz", "yt-dlp"),
        ("screen 0 10 10", "whole numbers"),
        ("screen 0 10 10 0 50", "width and height"),
        ("cameras.streams", "no such"),
        ("ftp://host/x.jpg", "no such"),
        ("http://[x/a.jpg", r"http://\[x/a.jpg: is not a valid address"),
        ("rtsp://me:secret@[fe80::1/x", r"rtsp://\[fe80::1/x: is not a valid address"),
        ("no/such/file.jpg", "no such"),
        ("no/such/*.jpg", "matches no"),
        ("", "empty source"),
    ],
)
def test_other_sources_are_refused_in_a_sentence(source, word):
    with pytest.raises(UserError, match=word) as error:
        open_source(source, imgsz=64, stride=32, auto=True)
    assert "\n" not in str(error.value) and "secret" not in str(error.value)


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no image or video"):
        open_source(tmp_path, imgsz=64, stride=32, auto=True)


def test_unreadable_image_among_many_costs_a_warning(tmp_path, log):
    write_image(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"not an image")
    (tmp_path / "c.png").write_bytes(b"")
    write_image(tmp_path / "d.png")
    assert [f.path[-5:] for f in frames_of(tmp_path)] == ["a.png", "d.png"]
    assert "b.jpg" in log.text and "c.png" in log.text


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "b.jpg").write_bytes(b"not an image")
    (tmp_path / "v.mp4").write_bytes(b"not a video" * 50)
    with pytest.raises(UserError, match="not one of 2 files"):
        frames_of(tmp_path)


@pytest.mark.parametrize(("auto", "shape"), [(True, (3, 32, 64)), (False, (3, 64, 64))])
def test_input_is_rgb_letterboxed(tmp_path, auto, shape):
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[:, :, 0] = 200  # blue, in BGR
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    (frame,) = frames_of(tmp_path, auto=auto)
    assert frame.image.shape == (100, 200, 3) and frame.input.shape == shape
    assert frame.input.flags["C_CONTIGUOUS"] and frame.input.dtype == np.uint8
    assert frame.input[:, shape[1] // 2, 32].tolist() == [0, 0, 200]
    assert frame.ratio_pad == ((0.32, 0.32), (0, 0 if auto else 16))


def test_video_frames_are_complete_and_in_order(tmp_path):
    frames = frames_of(write_video(tmp_path / "v.avi", 9, fps=12.5))
    assert [f.index for f in frames] == list(range(1, 10))
    assert [round(f.image.mean() / 20) for f in frames] == list(range(1, 10))
    assert {(f.fps, f.total, f.is_video) for f in frames} == {(12.5, 9, True)}


def test_stride_decodes_the_last_of_each_group(tmp_path):
    frames = frames_of(write_video(tmp_path / "v.avi", 10), vid_stride=3)
    assert [round(f.image.mean() / 20) for f in frames] == [3, 6, 9]
    assert [f.index for f in frames] == [1, 2, 3]
    assert frames[0].fps == pytest.approx(10 / 3) and frames[0].total == 3


def test_half_a_video_gives_its_half_and_a_warning(tmp_path, log):
    whole = write_video(tmp_path / "v.avi", 40, noise=True).read_bytes()
    (tmp_path / "v.avi").write_bytes(whole[: len(whole) // 2])
    frames = frames_of(tmp_path / "v.avi")
    assert 10 <= len(frames) <= 25
    assert "v.avi" in log.text and "of the 40 frames" in log.text


def test_an_mp4_without_its_index_is_skipped_by_name(tmp_path, log):
    whole = write_video(tmp_path / "cut.mp4", 20, codec="mp4v", noise=True).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_image(tmp_path / "a.png")
    assert [f.is_video for f in frames_of(tmp_path)] == [False]
    assert "cut.mp4" in log.text
