"""Video files: every frame that can be decoded, what is said of a damaged one, and writing one whole."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError
from utils.frames import FALLBACK_FPS, Frame

LOGGER = logging.getLogger("yolo.video")

_LONGEST_GAP = 2.0  # seconds of a live stream without a frame that its video still shows
_MOST_FAILURES = 1000  # frames in a row that cannot be grabbed, after which a file has ended
_HEADER_ERROR = 2  # frames by which a whole file may be shorter than its header makes it
_STEADY = (0.5, 1.5)  # times between frames, in frames, that belong to a steady rate
_HOLE = 2.5  # a time between two frames, in frames, from which on some are missing there
_UNSTEADY = 0.1  # part of the times between frames; above it a rate varies and says nothing of holes
_MATROSKA = b"\x1a\x45\xdf\xa3"  # the first bytes of .mkv and .webm, which wrap frames in few bytes


def frame_rate(capture: cv2.VideoCapture) -> float:
    """Frames per second that an open video or stream states, else `FALLBACK_FPS`."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    # MPEG-4 cannot be written above 65535 ticks a second; such figures are time bases, not frame rates.
    return fps if 0 < fps <= 1000 else FALLBACK_FPS


def _is_utf8(path: Path) -> bool:
    """Whether a path is proper text; names written under another encoding are not."""
    try:
        str(path.absolute()).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class VideoFile:
    """One video file: grabs `vid_stride` frames at a time and decodes the last of them.

    `shown` is the path that frames and messages carry, where it is not that of the file itself.
    """

    def __init__(self, path: Path, vid_stride: int = 1, shown: str = "") -> None:
        self.path = path
        self.vid_stride = vid_stride
        self.shown = shown or str(path)

    def frames(self) -> Iterator[Frame]:
        """Yield what can be decoded; a warning says when that is nothing, or less than the header claims."""
        if not _is_utf8(self.path):
            LOGGER.warning("%s skipped: OpenCV cannot open a name that is not UTF-8; rename it", self.shown)
            return
        capture = cv2.VideoCapture(str(self.path))
        try:
            if not capture.isOpened():
                LOGGER.warning("%s skipped: not a video that can be decoded, or cut off", self.shown)
                return
            yield from self._decode(capture)
        finally:
            capture.release()

    def _decode(self, capture: cv2.VideoCapture) -> Iterator[Frame]:
        grabs = _Grabs(capture)
        decoded = 0
        for number in grabs:
            if number % self.vid_stride:
                continue
            ok, image = capture.retrieve()
            if not ok:
                grabs.failed.append(number)
                continue
            decoded += 1
            yield Frame(
                self.shown,
                image,
                index=decoded,
                total=grabs.claimed // self.vid_stride,
                fps=grabs.fps / self.vid_stride,
                is_video=True,
                name=self.path.name,
            )
        if fault := grabs.fault(self.path):
            LOGGER.warning("%s: %s", self.shown, fault)
        elif not decoded:
            LOGGER.warning(
                "%s: %d frames are too few for vid-stride %d", self.shown, grabs.last, self.vid_stride
            )


class _Grabs:
    """The frames of an open file, grabbed one after the other, and whether that was the whole file.

    OpenCV fails once for every packet that it cannot decode, and for ever at the end: what can be read behind
    a damaged place is found by asking on.
    """

    def __init__(self, capture: cv2.VideoCapture) -> None:
        self.capture = capture
        self.fps = frame_rate(capture)
        self.claimed = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        self.last = 0
        self.failed: list[int] = []
        self._clock = _Clock()

    def __iter__(self) -> Iterator[int]:
        """Yield the number of each frame that was grabbed, counted from 1 with those that failed."""
        number = 0
        while number < max(self.claimed, self.last + 1) and number - self.last <= _MOST_FAILURES:
            number += 1
            if not self.capture.grab():
                continue
            self.failed.extend(range(self.last + 1, number))
            self.last = number
            self._clock.tick(number, self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3 * self.fps)
            yield number

    def fault(self, path: Path) -> str:
        """What is missing, in words; empty when nothing is."""
        if self.failed:
            return (
                f"{len(self.failed)} frames could not be decoded, the first near frame {self.failed[0]}; "
                "it is damaged there"
            )
        if self._has_holes(path):
            return (
                f"about {max(self._clock.lost, self.claimed - self.last)} frames are missing, frame "
                f"{self._clock.hole + 1} is the first; it is damaged there, or was recorded with a pause"
            )
        if not self._ends_early():
            return ""
        return (
            f"{self.last} of the {self.claimed} frames its header claims could be read, the first that is "
            f"missing is frame {self.last + 1} at the latest; it may be cut off or damaged, or was trimmed "
            "without being encoded again"
        )

    def _has_holes(self, path: Path) -> bool:
        """Whether frames were lost between others, without a failure: readers skip what they cannot parse.

        A gap in time alone is no damage: where the rate varies, or the camera paused, there never was a
        frame. It is damage when the rate is steady else, the header claims about as many frames more as the
        gaps could hold, and the file has the bytes of at least a third of them (or those of its sound: OpenCV
        does not tell, so the sentence leaves that open).
        """
        lost, missing = self._clock.lost, self.claimed - self.last
        if not self._clock.steady() or missing < max(_HEADER_ERROR, lost - _HEADER_ERROR):
            return False
        return _frames_in_unread_bytes(path) >= lost / 3

    def _ends_early(self) -> bool:
        """Whether more is missing at the end than a header may be wrong by.

        Many containers state a duration only, of which OpenCV makes a number of frames: it is off by a frame
        or two, and by many where the time between frames changes. So the time is looked at, too.
        """
        reached = self._clock.now + self._clock.longest
        return self.claimed > max(self.last, reached) + _HEADER_ERROR


class _Clock:
    """Where the frames of a file stand in time, which is counted in frames of its stated rate.

    `now` is the furthest place; `longest` the longest time between two frames; `hole` the frame before the
    first time that is too long for a steady rate, 0 without; `lost` what could have stood in all such times.
    """

    def __init__(self) -> None:
        self.now = self.longest = 0.0
        self.hole = self.lost = 0
        self._ticks = self._unsteady = 0

    def tick(self, number: int, place: float) -> None:
        """Note that frame `number`, counted from 1, stands at `place`."""
        step = place - self.now
        self.now, self.longest = max(self.now, place), max(self.longest, step)
        if number == 1 or step <= 0:  # some files give their last frame no time
            return
        self._ticks += 1
        self._unsteady += not _STEADY[0] <= step <= _STEADY[1]
        if step >= _HOLE:
            self.hole = self.hole or number - 1
            self.lost += round(step) - 1

    def steady(self) -> bool:
        """Whether the frames come at the stated rate but for few, among them a hole."""
        return bool(self.hole) and self._unsteady <= max(_UNSTEADY * self._ticks, 1)


def _frames_in_unread_bytes(path: Path) -> float:
    """How many frames of middling size the bytes of a file could hold that are in none of its frames.

    Reads the file's packets without decoding them; 0 where OpenCV cannot. Sound counts as unread.
    """
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    sizes = []
    try:
        if capture.isOpened() and capture.set(cv2.CAP_PROP_FORMAT, -1):
            while capture.grab():
                sizes.append(capture.retrieve()[1].size)
    finally:
        capture.release()
    if not sizes:
        return 0.0
    unread = path.stat().st_size - sum(sizes) - _wrapping(path, sum(sizes), len(sizes))
    return unread / (sum(sizes) / len(sizes))


def _wrapping(path: Path, size: int, frames: int) -> float:
    """Bytes that a container may add to frames of `size` bytes in all: headers, padding, an index."""
    with path.open("rb") as file:
        is_matroska = file.read(len(_MATROSKA)) == _MATROSKA
    return 4096 + 16 * frames if is_matroska else 0.02 * size + 128 * frames


class VideoFileWriter:
    """An mp4 (codec mp4v) written under a temporary name and renamed when it is whole."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self.path = path
        self.size = size
        self._temporary = path.with_name(f".{path.stem}.part.mp4")
        fourcc = cv2.VideoWriter_fourcc(*"mp4v")
        self.fps = fps
        self._writer = cv2.VideoWriter(str(self._temporary), fourcc, fps, size)
        self._written = 0
        self._last: np.ndarray | None = None
        self._skew = 0.0  # seconds between the clock of live frames and the place in the video
        if not self._writer.isOpened():
            raise UserError(
                f"{path}: OpenCV cannot write an mp4 of {size[0]}x{size[1]} at {fps:g} frames/s here; "
                "check the folder, or pass --nosave"
            )

    def write(self, image: np.ndarray, arrived: float | None = None) -> None:
        """Append a BGR frame; one of another size is resized, because OpenCV drops it without a word.

        Before a live frame that `arrived` at a time in seconds, the one before it is repeated as long as it
        was to be seen: a video that lacks the frames a slow model had to leave out still runs as fast as the
        world. A pause longer than `_LONGEST_GAP` is cut out.
        """
        if (image.shape[1], image.shape[0]) != self.size:
            image = cv2.resize(image, self.size, interpolation=cv2.INTER_LINEAR)
        for picture in [self._last] * self._missing(arrived) + [image]:
            self._writer.write(picture)
            self._written += 1
        self._last = image

    def _missing(self, arrived: float | None) -> int:
        """How many frames the video is behind the time at which a live frame arrived."""
        if arrived is None:
            return 0
        if self._last is None:
            self._skew = arrived
        gap = arrived - self._skew - self._written / self.fps
        if gap > _LONGEST_GAP:
            self._skew += gap
            gap = 0.0
        return max(round(gap * self.fps), 0)

    def close(self) -> None:
        """Finish the file and rename it, once it opens: OpenCV says nothing about a full disk."""
        self._writer.release()
        check = cv2.VideoCapture(str(self._temporary))
        whole = check.isOpened()
        check.release()
        if not whole:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)
            raise UserError(f"{self.path}: the video could not be written whole; is the disk full?")
        os.replace(self._temporary, self.path)
