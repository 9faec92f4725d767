"""Read live streams and webcams: the newest frame only, connected again after a drop.

A reader takes frames as fast as they come and keeps the last. A model that is slower than the camera sees
fewer frames, never old ones.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Condition, Event, Thread
from typing import ClassVar
from urllib.parse import urlunsplit

import cv2
import numpy as np

from utils.downloads import split_url
from utils.errors import UserError
from utils.sources.frame import Frame, usable_rate

LOGGER = logging.getLogger("yolo.streams")

_SCHEMES = ("http", "https", "rtmp", "rtmps", "rtsp", "rtsps", "tcp", "udp", "srt", "rtp")
_UNRESOLVED = ("youtube.com", "youtu.be", "twitch.tv")
_TIMEOUT_MS = 10_000
"""Milliseconds without an answer or a byte after which a connection counts as lost."""
_PAUSES = (0.25, 0.5, *[1.0] * 60, 5.0)
"""Seconds between tries, the last one for ever: so much is lost at most after a server has come back."""
_TOLD = 3  # failures in a row that are told one by one
_REMINDER = 60.0  # seconds between warnings about a stream that stays away
_GATHER = 0.05  # seconds that the first new frame of a batch waits for those of the other streams


def is_stream(text: str) -> bool:
    """Return whether the text is a stream's address or a webcam's number."""
    return text.isdecimal() or text.lower().startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))


def without_password(address: str) -> str:
    """Return the address without its user and password, as it may be shown.

    Example:
        >>> without_password("rtsp://me:secret@host/1")
        'rtsp://host/1'
    """
    if address.isdecimal():
        return address
    parts = split_url(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def output_name(address: str) -> str:
    """Return a file name for the results of a stream, without scheme, password and separators."""
    return re.sub(r"[^\w.-]+", "_", without_password(address).partition("://")[2] or address).strip("._")


def read_streams(path: Path) -> list[str]:
    """Return the streams named in a `.streams` file, one a line.

    Blank lines and `#` comments are left out.

    Raises:
        UserError: a line that is no stream or no valid address, or a file without any.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; expected one stream a line") from None
    found = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if not is_stream(text):
            raise UserError(
                f"{path}, line {number}: {text} is neither the address of a stream (rtsp://...) nor a webcam "
                "number; files are listed in a file that ends in .txt"
            )
        try:
            split_url(text)
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        found.append(text)
    if not found:
        raise UserError(f"{path}: names no stream; give one address or webcam number a line")
    return found


class Streams:
    """Read several live streams as one source.

    A batch holds the newest frame of each that has a new one.

    Args:
        addresses: URLs or webcam numbers.
        vid_stride: every how many frames of a stream one is used.
        timeout: seconds without a frame after which a stream is given up; None: never.
    """

    live: ClassVar[bool] = True

    def __init__(self, addresses: Sequence[str], vid_stride: int = 1, timeout: float | None = None) -> None:
        for address in addresses:
            host = (split_url(address).hostname or "").removeprefix("www.")
            if host in _UNRESOLVED:
                raise UserError(
                    f"{address}: is a web page, not a stream; give the address that 'yt-dlp -g' prints for it"
                )
        self._news = Condition()
        self._readers = [
            _Reader(address, position, len(addresses), vid_stride, timeout, self._news)
            for position, address in enumerate(addresses, start=1)
        ]

    def batches(self) -> Iterator[list[Frame]]:
        """Yield batches until every stream has been given up; closing the iterator stops the readers.

        Raises:
            UserError: none of the streams can be opened to begin with.
        """
        with _quiet_opencv():
            for reader in self._readers:
                reader.start()
            try:
                self._wait_for_one()
                while batch := self._next_batch():
                    yield batch
                LOGGER.warning("no stream is left, all have been given up")
            finally:
                for reader in self._readers:
                    reader.stop()
                for reader in self._readers:
                    reader.join()

    def _wait_for_one(self) -> None:
        """Wait until one stream is there, or all have failed once."""
        with self._news:
            while not any(r.connected for r in self._readers):
                if all(r.tries for r in self._readers):
                    names = ", ".join(r.shown for r in self._readers)
                    raise UserError(
                        f"{names}: cannot be opened; check the {self._readers[0].kind} and whether it is on"
                    )
                self._news.wait(0.2)  # in turns, so that Ctrl-C gets through

    def _next_batch(self) -> list[Frame]:
        """Return the newest frames, [] at the end.

        It waits for the first, and a little for the others.
        """
        with self._news:
            while not any(r.latest for r in self._readers):
                if all(r.ended for r in self._readers):
                    return []
                self._news.wait(0.2)
            patience = time.monotonic() + _GATHER
            while any(r.connected and not r.latest for r in self._readers):
                left = patience - time.monotonic()
                if left <= 0:
                    break
                self._news.wait(left)
            return [frame for reader in self._readers if (frame := reader.take())]


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Silence OpenCV's own log, which has ten lines for a missing camera; FFmpeg's stays."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


class _Reader:
    """Read one stream in a thread of its own, and connect again after a drop.

    `latest`, `connected`, `tries` (failed in a row) and `ended` are guarded by the condition `news`, which is
    notified when they change.
    """

    def __init__(
        self, address: str, position: int, count: int, vid_stride: int, timeout: float | None, news: Condition
    ) -> None:
        self.address = address
        self.shown = without_password(address)
        self.name = output_name(address)
        self.kind = "webcam's number" if address.isdecimal() else "address"
        self.latest: Frame | None = None
        self.connected = self.ended = False
        self.tries = 0
        self._place = position, count
        self._vid_stride = vid_stride
        self._timeout = timeout
        self._news = news
        self._stop = Event()
        self._grabbed = self._taken = self._dropped = 0
        self._seen_at = time.monotonic()
        self._told_at = 0.0
        self._thread = Thread(target=self._run, name=f"stream {self.shown}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stop.set()

    def join(self) -> None:
        """Wait for the thread, unless its camera is silent.

        Python before 3.14 aborts the process when such a thread comes back from OpenCV while it ends.
        """
        self._thread.join(2.0)
        if self._thread.is_alive():
            atexit.register(self._thread.join, _TIMEOUT_MS / 1e3 + 1)

    def take(self) -> Frame | None:
        """Return the latest frame if there is a new one; `news` must be held."""
        frame, self.latest = self.latest, None
        if frame is None:
            return None
        self._taken += 1
        frame.index = self._taken
        frame.dropped = self._dropped
        return frame

    def _run(self) -> None:
        while not self._stop.is_set():
            capture = self._connect()
            if capture is not None:
                try:
                    self._read(capture)
                finally:
                    capture.release()
            if self._stop.is_set() or self._give_up():
                break
            self._stop.wait(self._pause())
        with self._news:
            self.connected, self.ended = False, True
            self._news.notify_all()

    def _connect(self) -> cv2.VideoCapture | None:
        if self.address.isdecimal():
            capture = cv2.VideoCapture(int(self.address))
        else:
            waits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT_MS]
            capture = cv2.VideoCapture(self.address, cv2.CAP_FFMPEG, waits)
        if capture.isOpened():
            return capture
        capture.release()
        with self._news:
            self.tries += 1
            self._news.notify_all()
        if not self._stop.is_set() and self._worth_telling():
            self._told_at = time.monotonic()
            LOGGER.warning("%s: cannot be opened, trying again in %.4g s", self.shown, self._pause())
        return None

    def _worth_telling(self) -> bool:
        """Return whether to warn of another failure.

        The first one of the only stream is an error instead, and not each that follows for hours is news.
        """
        if self.tries == 1 and not self._grabbed and self._place[1] == 1:
            return False
        return self.tries <= _TOLD or time.monotonic() - self._told_at >= _REMINDER

    def _pause(self) -> float:
        """Return seconds until the next try, at most until the stream is given up."""
        pause = _PAUSES[min(self.tries, len(_PAUSES)) - 1]
        if self._timeout is None:
            return pause
        return max(min(pause, self._seen_at + self._timeout - time.monotonic()), 0.0)

    def _read(self, capture: cv2.VideoCapture) -> None:
        """Read frames until the connection is lost or the reader is stopped."""
        fps = usable_rate(capture.get(cv2.CAP_PROP_FPS)) / self._vid_stride
        news = "connected again" if self._grabbed else "connected"
        silent = False
        while not self._stop.is_set() and not silent:
            asked = time.monotonic()
            if not capture.grab():
                break
            # After a silence that is too long OpenCV hands out a frame it still had, and waits as long again.
            silent = time.monotonic() - asked > _TIMEOUT_MS / 1e3
            self._grabbed += 1
            if self._grabbed % self._vid_stride:
                continue
            ok, image = capture.retrieve()
            if not ok:
                continue
            if news:
                size = "x".join(map(str, image.shape[1::-1]))
                LOGGER.info("%s: %s, %s, %.4g frames/s", self.shown, news, size, fps * self._vid_stride)
                news = ""
            self._show(image, fps)
        with self._news:
            self.connected = False
            self.tries += 1
            self._news.notify_all()
        if not self._stop.is_set():
            LOGGER.warning("%s: connection lost, trying again in %.4g s", self.shown, self._pause())

    def _show(self, image: np.ndarray, fps: float) -> None:
        position, count = self._place
        self._seen_at = time.monotonic()
        frame = Frame(
            self.shown,
            image,
            fps=fps,
            is_video=True,
            position=position,
            count=count,
            name=self.name,
            time=self._seen_at,
        )
        with self._news:
            self._dropped += self.latest is not None
            self.latest = frame
            self.connected, self.tries = True, 0
            self._news.notify_all()

    def _give_up(self) -> bool:
        silent = time.monotonic() - self._seen_at
        if self._timeout is None or silent < self._timeout:
            return False
        LOGGER.warning("%s: given up after %.0f s without a frame", self.shown, silent)
        return True
