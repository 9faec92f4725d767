"""Whole videos that browsers play, the source's rate, the time of live frames."""

import signal
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from utils.errors import UserError
from utils.results.video_writer import VideoFileWriter


def test_video_is_whole_or_absent(tmp_path):
    path = tmp_path / "out.mp4"
    writer = VideoFileWriter(path, 12.5, (64, 48))
    for k in range(7):
        writer.write(np.full((48, 64, 3), 30 * k, np.uint8))
    writer.write(np.zeros((96, 128, 3), np.uint8))  # another size: resized, not dropped
    assert not path.exists()
    writer.close()
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    count = 0
    while capture.read()[0]:
        count += 1
    assert count == 8
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_video_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        VideoFileWriter(tmp_path / "missing" / "out.mp4", 10, (64, 48))


def grey_levels(path):
    capture, levels = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        levels.append(round(read[1].mean() / 20))
    return levels


def test_live_frames_last_as_long_as_they_were_to_be_seen(tmp_path):
    """At 10 frames/s: 0.3 s without a frame shows the one before, 60 s are cut out."""
    writer = VideoFileWriter(tmp_path / "out.mp4", 10, (64, 48))
    for level, arrived in ((1, 100.0), (2, 100.1), (3, 100.4), (4, 160.4), (5, 160.5), (6, 160.7)):
        writer.write(np.full((48, 64, 3), 20 * level, np.uint8), arrived)
    writer.close()
    assert grey_levels(tmp_path / "out.mp4") == [1, 2, 2, 2, 3, 4, 5, 5, 6]


@pytest.mark.parametrize(
    "rate", [Fraction(30000, 1001), Fraction(10000, 1001), Fraction(25, 2), Fraction(1, 3)]
)
def test_browsers_play_it_at_exactly_the_rate_of_the_source(tmp_path, rate):
    writer = VideoFileWriter(tmp_path / "out.mp4", float(rate), (64, 48))
    for level in range(6):
        writer.write(np.full((48, 64, 3), 20 * level, np.uint8))
    writer.close()
    with av.open(str(tmp_path / "out.mp4")) as written:
        (stream,) = written.streams.video
        assert (stream.codec.name, stream.format.name) == ("h264", "yuv420p")
        assert stream.average_rate == rate and stream.frames == 6
        assert [frame.pts * frame.time_base * rate for frame in written.decode(stream)] == list(range(6))


@pytest.mark.parametrize("size", [(65, 49), (1, 1), (64, 49)])
def test_odd_sides_get_one_more_line(tmp_path, size):
    width, height = size
    writer = VideoFileWriter(tmp_path / "out.mp4", 10, size)
    writer.write(np.full((height, width, 3), (40, 90, 200), np.uint8))
    writer.close()
    image = cv2.VideoCapture(str(tmp_path / "out.mp4")).read()[1]
    assert image.shape == (height + height % 2, width + width % 2, 3)
    assert np.abs(image.astype(int) - (40, 90, 200)).max() <= 6


def test_colours_and_details_come_back(tmp_path):
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 255, (6, 8, 3)).astype(np.uint8), (160, 120))
    writer = VideoFileWriter(tmp_path / "out.mp4", 10, (160, 120))
    for _ in range(5):
        writer.write(picture)
    writer.close()
    with av.open(str(tmp_path / "out.mp4")) as written:
        for frame in written.decode(video=0):
            assert cv2.PSNR(frame.to_ndarray(format="bgr24"), picture) > 35


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path):
    writer = VideoFileWriter(tmp_path / "out.mp4", 10, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    resource = pytest.importorskip("resource", reason="other systems limit no file's size")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(UserError, match="could not be written whole"):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
