"""utils/sources/video_file.py: every frame once and upright, what a damaged video gives and says."""

import os
import re
import struct

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from utils.sources import video_file as video
from utils.sources.video_file import VideoFile


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
    assert f"the first that is missing is near frame {len(frames) + 1}" in log.text


def test_what_lies_behind_a_damaged_place_is_read(tmp_path, log):
    data = bytearray(noise(tmp_path / "v.avi"))
    for place in [found.start() for found in re.finditer(b"00dc", data)][10:12]:
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        data[place + 8 : place + 8 + length] = bytes(length)
    (tmp_path / "v.avi").write_bytes(data)
    frames = list(VideoFile(tmp_path / "v.avi").frames())
    assert [frame.index for frame in frames] == list(range(1, 39))
    told = re.search(r"38 of the 40 frames could be read, the first .* is near frame (\d+)", log.text)
    assert 9 <= int(told[1]) <= 11
    assert len(list(VideoFile(tmp_path / "v.avi", vid_stride=2).frames())) in (18, 19, 20)


@pytest.mark.parametrize(("seconds", "warned"), [(4.0, False), (4.1, False), (4.2, False), (8.0, True)])
def test_a_duration_that_is_a_frame_or_two_off_is_no_fault(tmp_path, log, seconds, warned):
    """Matroska states a duration, from which the number of frames is worked out."""
    whole = noise(tmp_path / "v.mkv")
    entry = b"\x44\x89\x88" + struct.pack(">d", 4000.0)
    assert whole.count(entry) == 1
    (tmp_path / "v.mkv").write_bytes(whole.replace(entry, entry[:3] + struct.pack(">d", seconds * 1000)))
    assert len(list(VideoFile(tmp_path / "v.mkv").frames())) == 40
    assert ("40 of the 80 frames could be read, the first that is missing is frame 41" in log.text) == warned
    assert bool(log.records) == warned


def transport_stream(path, kept, damaged):
    """A video of 40 frames of noise in packets of 188 bytes; those of frames not kept are zeros or absent.

    Where they are absent without damage, the others are counted on as if they had never been there.
    """
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 25, (64, 48))
    for _ in range(40):
        writer.write(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    writer.release()
    data, number, counter, out = path.read_bytes(), 0, 0, []
    for at in range(0, len(data), 188):
        packet = bytearray(data[at : at + 188])
        if int.from_bytes(packet[1:3], "big") & 0x1FFF == 0x100:
            number += bool(packet[1] & 0x40)  # the first packet of a frame
            if not kept(number):
                out.append(bytes(188) if damaged else b"")
                continue
            if not damaged:
                packet[3] = packet[3] & 0xF0 | counter & 0x0F
                counter += 1
        out.append(packet)
    path.write_bytes(b"".join(out))


def test_frames_that_vanish_between_others_are_told(tmp_path, log):
    """A reader of this format skips what it cannot parse: no frame fails, and the last one comes in time."""
    transport_stream(tmp_path / "v.ts", lambda number: not 10 <= number < 25, damaged=True)
    read = len(list(VideoFile(tmp_path / "v.ts").frames()))
    assert 22 <= read <= 26
    told = re.search(r"(\d+) of the (\d+) frames could be read, the first .* is near frame (\d+)", log.text)
    assert int(told[1]) == read and 14 <= int(told[2]) - read <= 17 and 8 <= int(told[3]) <= 11


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
    """The same gaps in time where no packet was lost, or a rate of which nothing can be said."""
    transport_stream(tmp_path / "v.ts", kept, damaged=False)
    assert 20 <= len(list(VideoFile(tmp_path / "v.ts").frames())) <= 32
    assert not log.records


def test_names_that_look_like_addresses_and_names_that_are_no_text(tmp_path):
    """FFmpeg takes `a:b.mp4` for a protocol."""
    noise(tmp_path / "v.avi", 3)
    for name in (
        "2024-11-14T22:57:44.avi",
        "concat:x.avi",
        "pipe:1.avi",
        "shot_%02d.avi",
        "a?b=1&c.avi",
        os.fsdecode(b"\xfe.avi"),
    ):
        (tmp_path / name).write_bytes((tmp_path / "v.avi").read_bytes())
        assert len(list(VideoFile(tmp_path / name).frames())) == 3, name


@pytest.mark.parametrize(
    ("matrix", "size", "corner"),
    [
        ((0, 1, -1, 0), (96, 48), (0, -1)),
        ((-1, 0, 0, -1), (48, 96), (-1, -1)),
        ((0, -1, 1, 0), (96, 48), (-1, 0)),
    ],
    ids=["90", "180", "270"],
)
def test_frames_are_turned_as_the_file_says(tmp_path, matrix, size, corner):
    """Phones write upright video lying on its side, with a matrix for the player."""
    path = tmp_path / "v.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 48))
    picture = np.zeros((48, 96, 3), np.uint8)
    picture[:24, :48] = 255
    writer.write(picture)
    writer.release()
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # version and flags, times, layer, volume; then 9 numbers of 4 bytes
    a, b, c, d = (number << 16 for number in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    (frame,) = VideoFile(path).frames()
    assert frame.image.shape == (*size, 3) and frame.image.flags.c_contiguous
    inner = [5 if place == 0 else -6 for place in corner]
    assert frame.image[tuple(inner)].min() > 200 and frame.image.mean() < 90


def test_a_list_that_calls_itself_a_video_opens_no_other_file(tmp_path, log):
    noise(tmp_path / "other.avi")
    (tmp_path / "v.mp4").write_text("ffconcat version 1.0\nfile other.avi\n")
    assert not list(VideoFile(tmp_path / "v.mp4").frames())
    assert "v.mp4 skipped" in log.text


def test_a_frame_of_absurd_size_is_refused(tmp_path, log, monkeypatch):
    noise(tmp_path / "v.avi")
    monkeypatch.setattr(video, "_MOST_PIXELS", 64 * 48 - 1)
    assert not list(VideoFile(tmp_path / "v.avi").frames())
    assert "0 of the 40 frames" in log.text


def test_a_rate_that_varies_gives_every_frame_once_and_the_mean_rate(tmp_path, log):
    pictures = [Image.fromarray(np.full((30, 40, 3), 40 * k, np.uint8)) for k in range(5)]
    times = [100, 100, 500, 100, 200]
    pictures[0].save(tmp_path / "v.gif", save_all=True, append_images=pictures[1:], duration=times)
    frames = list(VideoFile(tmp_path / "v.gif").frames())
    assert [round(frame.image.mean() / 40) for frame in frames] == [0, 1, 2, 3, 4]
    assert frames[0].fps == pytest.approx(5.0) and frames[0].total == 5 and not log.records


def test_sound_that_lasts_longer_than_the_picture_is_no_damage(tmp_path, log):
    with av.open(str(tmp_path / "v.mkv"), "w") as out:
        picture = out.add_stream("mpeg4", rate=10, width=64, height=48, pix_fmt="yuv420p")
        sound = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        for level in range(10):
            image = np.full((48, 64, 3), 20 * level, np.uint8)
            out.mux(picture.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        out.mux(picture.encode(None))
        for second in range(3):
            wave = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
            wave.sample_rate, wave.pts = 8000, 8000 * second
            out.mux(sound.encode(wave))
        out.mux(sound.encode(None))
    assert len(list(VideoFile(tmp_path / "v.mkv").frames())) == 10
    assert not log.records
