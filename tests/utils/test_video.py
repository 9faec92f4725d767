"""utils/video.py: what a damaged video gives and says, whole videos, the time of live frames."""

import logging

import cv2
import numpy as np
import pytest

from utils.errors import UserError
from utils.video import VideoFile, VideoFileWriter


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


def test_warning_names_the_first_frame_that_is_missing(tmp_path, caplog):
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(40):
        writer.write(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8))
    writer.release()
    whole = (tmp_path / "v.avi").read_bytes()
    (tmp_path / "v.avi").write_bytes(whole[: len(whole) // 2])
    logger = logging.getLogger("yolo")
    logger.addHandler(caplog.handler)
    frames = list(VideoFile(tmp_path / "v.avi").frames())
    logger.removeHandler(caplog.handler)
    assert 10 <= len(frames) <= 25
    assert f"{len(frames)} of the 40 frames" in caplog.text
    assert f"frame {len(frames) + 1} is the first" in caplog.text
