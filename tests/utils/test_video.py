"""utils/video.py: what a damaged video gives and says, whole videos, the time of live frames."""

import cv2
import numpy as np
import pytest

from utils.errors import UserError
from utils.video import VideoFileWriter


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
