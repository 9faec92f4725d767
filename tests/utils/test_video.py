"""utils/video.py: what a damaged video gives and says, whole videos, the time of live frames."""

import re
import struct

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


def noise(path, frames=40):
    """A video of noise, every frame a JPEG of its own, at 10 frames/s; its bytes."""
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(frames):
        writer.write(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8))
    writer.release()
    return path.read_bytes()


def test_warning_names_the_first_frame_that_is_missing(tmp_path, log):
    whole = noise(tmp_path / "v.avi")
    (tmp_path / "v.avi").write_bytes(whole[: len(whole) // 2])
    frames = list(VideoFile(tmp_path / "v.avi").frames())
    assert 10 <= len(frames) <= 25
    assert f"{len(frames)} of the 40 frames" in log.text
    assert f"the first that is missing is frame {len(frames) + 1} at the latest" in log.text


def test_what_lies_behind_a_damaged_place_is_read(tmp_path, log):
    data = bytearray(noise(tmp_path / "v.avi"))
    for place in [found.start() for found in re.finditer(b"00dc", data)][10:12]:
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        data[place + 8 : place + 8 + length] = bytes(length)
    (tmp_path / "v.avi").write_bytes(data)
    frames = list(VideoFile(tmp_path / "v.avi").frames())
    assert [frame.index for frame in frames] == list(range(1, 39))
    assert "2 frames could not be decoded, the first near frame" in log.text
    assert "header claims" not in log.text
    assert len(list(VideoFile(tmp_path / "v.avi", vid_stride=2).frames())) in (18, 19, 20)


@pytest.mark.parametrize(("seconds", "warned"), [(4.0, False), (4.1, False), (4.2, False), (8.0, True)])
def test_a_duration_that_is_a_frame_or_two_off_is_no_fault(tmp_path, log, seconds, warned):
    """Matroska states a duration, of which OpenCV makes a number of frames."""
    whole = noise(tmp_path / "v.mkv")
    entry = b"\x44\x89\x88" + struct.pack(">d", 4000.0)
    assert whole.count(entry) == 1
    (tmp_path / "v.mkv").write_bytes(whole.replace(entry, entry[:3] + struct.pack(">d", seconds * 1000)))
    assert len(list(VideoFile(tmp_path / "v.mkv").frames())) == 40
    assert ("40 of the 80 frames its header claims" in log.text) == warned
    assert bool(log.records) == warned


def transport_stream(path, kept=lambda number: True, rest=lambda packet: b""):
    """A video of 40 frames of noise, in packets of 188 bytes; those of frames not kept become `rest`."""
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 25, (64, 48))
    for _ in range(40):
        writer.write(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    writer.release()
    data, number, out = path.read_bytes(), 0, []
    for at in range(0, len(data), 188):
        packet = data[at : at + 188]
        is_picture = int.from_bytes(packet[1:3], "big") & 0x1FFF == 0x100
        number += is_picture and bool(packet[1] & 0x40)  # the first packet of a frame
        out.append(packet if not is_picture or kept(number) else rest(packet))
    path.write_bytes(b"".join(out))


def test_frames_that_vanish_between_others_are_told(tmp_path, log):
    """A reader of this format skips what it cannot parse: no grab fails, and the last frame comes in time."""
    transport_stream(tmp_path / "v.ts", lambda number: not 10 <= number < 25, lambda p: bytes(len(p)))
    assert 22 <= len(list(VideoFile(tmp_path / "v.ts").frames())) <= 26
    told = re.search(r"about (\d+) frames are missing, frame (\d+) is the first", log.text)
    assert 14 <= int(told[1]) <= 17 and 8 <= int(told[2]) <= 11


@pytest.mark.parametrize(
    "kept",
    [
        lambda number: not 10 <= number < 25,
        lambda number: number < 20 or not number % 2,
        lambda number: number % 7 in (0, 1, 3, 4),
    ],
    ids=["pause", "slower", "irregular"],
)
def test_a_rate_that_varies_is_no_damage(tmp_path, log, kept):
    """The same gaps in time without bytes for any frame in them, or a rate of which nothing can be said."""
    transport_stream(tmp_path / "v.ts", kept)
    assert 20 <= len(list(VideoFile(tmp_path / "v.ts").frames())) <= 32
    assert not log.records
