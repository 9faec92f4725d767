"""Live frames are new ones, drops are mended and told, one dead stream stops no other."""

import contextlib
import logging
import threading
import time

import pytest

from tests.mjpeg_server import Camera, number_of
from utils.errors import UserError
from utils.sources import streams
from utils.sources.streams import Streams, is_stream, output_name, read_streams, without_password


@pytest.fixture
def log(log):
    """What streams tell, too: that they are back."""
    log.set_level(logging.INFO, "yolo")
    return log


def collect(batches, until, seconds=20):
    """Frames until a condition on them holds."""
    frames, end = [], time.monotonic() + seconds
    while not until(frames):
        assert time.monotonic() < end, f"only {len(frames)} frames came"
        frames.extend(next(batches))
    return frames


def test_drop_is_mended_and_costs_the_time_without_a_server_only(log):
    with Camera() as camera, contextlib.closing(Streams([camera.url()]).batches()) as batches:
        before = collect(batches, lambda frames: len(frames) >= 5)
        camera.off()
        camera.on()
        after = collect(batches, lambda frames: "connected again" in log.text and len(frames) >= 10)
    frames = before + after
    numbers = [number_of(frame.image) for frame in frames]
    assert numbers == sorted(set(numbers))  # in order, none twice
    assert [frame.index for frame in frames] == list(range(1, len(frames) + 1))
    lost = numbers[-1] - numbers[0] + 1 - len(numbers)
    assert lost <= frames[-1].dropped + 3  # the few that were on their way when the server went
    assert "connection lost" in log.text and "connected again" in log.text


def test_a_server_that_was_away_for_long_is_found_again_at_once():
    with Camera() as camera, contextlib.closing(Streams([camera.url()]).batches()) as batches:
        collect(batches, lambda frames: len(frames) >= 3)
        camera.off()
        time.sleep(3.6)
        camera.on()
        back = time.monotonic()
        collect(batches, lambda frames: len(frames) >= 3)
        assert time.monotonic() - back < 2.5


def test_a_server_that_falls_silent_counts_as_lost_after_one_timeout(log, monkeypatch):
    monkeypatch.setattr(streams, "_TIMEOUT_MS", 1500)
    with Camera() as camera, contextlib.closing(Streams([camera.url()]).batches()) as batches:
        collect(batches, lambda frames: len(frames) >= 5)
        camera.hold()
        held = time.monotonic()

        def resume():
            while "connection lost" not in log.text and time.monotonic() < held + 9:
                time.sleep(0.02)
            lost.append(time.monotonic() - held)
            camera.go_on()

        lost = []
        watcher = threading.Thread(target=resume)
        watcher.start()
        collect(batches, lambda frames: "connected again" in log.text and len(frames) >= 5)
        watcher.join()
    assert 1.4 < lost[0] < 2.8  # twice as long where the frame that OpenCV still had counts as life


def test_slow_reader_gets_new_frames_and_the_rest_is_counted():
    with Camera(period=0.02) as camera, contextlib.closing(Streams([camera.url()]).batches()) as batches:
        frames = []
        for _ in range(4):
            frames.extend(next(batches))
            time.sleep(0.3)
        (last,) = next(batches)
    numbers = [number_of(frame.image) for frame in [*frames, last]]
    assert min(b - a for a, b in zip(numbers, numbers[1:])) >= 3  # it did not queue them
    assert last.dropped - frames[0].dropped == numbers[-1] - numbers[0] - 4  # those between the five taken


def test_stride_uses_every_nth_frame():
    with Camera(limit=9) as camera, contextlib.closing(Streams([camera.url()], 3).batches()) as batches:
        frames = collect(batches, lambda frames: len(frames) >= 2)
    assert {number_of(frame.image) % 3 for frame in frames} == {0}


def test_two_streams_are_a_batch_and_one_that_dies_stops_nobody(log):
    with Camera() as good, Camera() as bad:
        streams = Streams([good.url("x"), bad.url("y")], timeout=1.0)
        with contextlib.closing(streams.batches()) as batches:
            assert any(len(next(batches)) == 2 for _ in range(20))
            bad.off()
            frames = collect(batches, lambda frames: "given up" in log.text and frames)
            more = collect(batches, lambda frames: len(frames) >= 5)
            good.off()
            assert all(frame.position == 1 for batch in batches for frame in batch)  # it ends
    assert {frame.position for frame in more} == {1} and {frame.count for frame in more} == {2}
    assert any(frame.position == 1 for frame in frames)
    assert "no stream is left" in log.text
    assert not [t for t in threading.enumerate() if t.name.startswith("stream ")]


def test_nothing_there_to_begin_with_is_an_error():
    camera = Camera().on()
    url = camera.url("stream?key=1")
    camera.off()
    with pytest.raises(UserError, match="cannot be opened") as error:
        next(Streams([url.replace("//", "//me:secret@")]).batches())
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_a_silent_server_holds_up_nobody_but_the_end_of_the_process(monkeypatch):
    """A thread that is left in OpenCV is waited for then: before 3.14 Python would abort the process."""
    kept = []
    monkeypatch.setattr(streams.atexit, "register", lambda *job: kept.append(job))
    monkeypatch.setattr(streams, "_TIMEOUT_MS", 4000)
    with Camera() as camera:
        batches = Streams([camera.url()]).batches()
        collect(batches, lambda frames: len(frames) >= 3)
        camera.hold()
        time.sleep(0.3)
        asked = time.monotonic()
        batches.close()
        assert 1.5 < time.monotonic() - asked < 3.5
        ((join, seconds),) = kept
        assert seconds > 4
        join(seconds)
        assert not [t for t in threading.enumerate() if t.name.startswith("stream ")]
        camera.go_on()


def test_no_camera_is_one_sentence(capfd, log):
    """OpenCV's own log has ten lines for it, an exception among them."""
    with pytest.raises(UserError, match="97: cannot be opened; check the webcam's number"):
        next(Streams(["97"]).batches())
    assert capfd.readouterr().err == "" and not log.records


def test_one_absent_stream_does_not_hold_up_the_other(log):
    absent = Camera().on()
    url = absent.url()
    absent.off()
    with Camera() as camera, contextlib.closing(Streams([url, camera.url()]).batches()) as batches:
        assert {frame.position for frame in next(batches)} == {2}
    assert f"{url}: cannot be opened, trying again" in log.text


def test_names_hide_passwords_and_fit_a_file_system():
    address = "rtsp://user:pa@ss@192.168.0.9:554/h264?channel=1"
    assert without_password(address) == "rtsp://192.168.0.9:554/h264?channel=1"
    assert output_name(address) == "192.168.0.9_554_h264_channel_1"
    assert output_name("0") == "0"


def test_what_is_a_stream():
    assert is_stream("0") and is_stream("RTSP://host/1") and is_stream("http://host/video")
    assert not is_stream("video.mp4") and not is_stream("-1") and not is_stream("ftp://host/1")


def test_list_of_streams(tmp_path):
    path = tmp_path / "cameras.streams"
    path.write_text("# the yard\nrtsp://host/1\n\n 0 \n")
    assert read_streams(path) == ["rtsp://host/1", "0"]
    path.write_text("rtsp://host/1\nyard.mp4\n")
    with pytest.raises(UserError, match="line 2: yard.mp4"):
        read_streams(path)
    path.write_text("rtsp://me:secret@[fe80::1/x\n")
    with pytest.raises(UserError, match=r"line 1: rtsp://\[fe80::1/x: is not a valid address") as error:
        read_streams(path)
    assert "secret" not in str(error.value)
    path.write_text("#\n")
    with pytest.raises(UserError, match="names no stream"):
        read_streams(path)


def test_web_pages_are_refused():
    with pytest.raises(UserError, match="yt-dlp"):
        Streams(["https://www.youtube.com/watch?v=x"])
