"""Video files: every frame that can be decoded, and one warning when some are missing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from utils.errors import first_line
from utils.sources.frame import Frame, usable_rate

LOGGER = logging.getLogger("yolo.video")

_MOST_PIXELS = 1 << 28  # of one frame; 16K video has half as many
_HEADER_ERROR = 2  # frames by which a whole file may be shorter than its header says


class VideoFile:
    """One video file, of which every `vid_stride`-th frame is used.

    `shown` is the path in frames and messages, where it is not that of the file itself.
    """

    def __init__(self, path: Path, vid_stride: int = 1, shown: str = "") -> None:
        self.path = path
        self.vid_stride = vid_stride
        self.shown = shown or str(path)

    def frames(self) -> Iterator[Frame]:
        """Yield the frames that can be decoded, upright; a warning says what is missing."""
        try:
            # An open file instead of its name: FFmpeg takes 'a:b.mp4' for a protocol. Without protocols a
            # playlist that calls itself a video cannot open other files or addresses.
            with (
                open(self.path, "rb", buffering=0) as file,
                av.open(file, "r", options={"protocol_whitelist": "none"}) as container,
            ):
                if container.streams.video:
                    yield from self._decode(container)
                else:
                    LOGGER.warning("%s skipped: holds no video; take it off the source", self.shown)
        except (av.FFmpegError, OSError) as error:
            reason = error.strerror or first_line(error)
            LOGGER.warning("%s skipped: not a video that can be decoded, or cut off (%s)", self.shown, reason)

    def _decode(self, container: InputContainer) -> Iterator[Frame]:
        """Yield the frames of an open file, then tell of damage."""
        reading = _Reading(container)
        used = 0
        for picture in reading.pictures():
            if reading.decoded % self.vid_stride:
                continue
            used += 1
            yield Frame(
                self.shown,
                upright_bgr(picture),
                index=used,
                total=reading.claimed // self.vid_stride,
                fps=reading.fps / self.vid_stride,
                is_video=True,
                name=self.path.name,
            )
        if fault := reading.fault():
            LOGGER.warning("%s: %s", self.shown, fault)
        elif not used:
            few = "%s: %d frames are too few for vid-stride %d; choose a smaller one"
            LOGGER.warning(few, self.shown, reading.decoded, self.vid_stride)


def upright_bgr(picture: VideoFrame) -> np.ndarray:
    """Return a decoded frame as BGR uint8 (H,W,3), turned as the file's rotation says."""
    image = picture.to_ndarray(format="bgr24")
    return np.ascontiguousarray(np.rot90(image, picture.rotation // 90)) if picture.rotation else image


class _Reading:
    """Decodes the first video stream of an open file and notes what is missing.

    `decoded` counts frames, `claimed` is how many the header says (0: nothing), `fps` is their mean rate.
    """

    def __init__(self, container: InputContainer) -> None:
        self._container = container
        self._stream: VideoStream = container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.options = {"max_pixels": str(_MOST_PIXELS)}
        self.fps = usable_rate(float(self._stream.average_rate or self._stream.guessed_rate or 0))
        self._start = (container.start_time or 0) / av.time_base
        self._seconds = (container.duration or 0) / av.time_base
        self.claimed = self._stream.frames or round(self._seconds * self.fps)
        self.decoded = self._packets = self._failed = 0
        self._damaged = 0  # the first frame at which damage shows
        self._reached = self._longest = 0.0  # seconds: where the last packet ends, the longest step to one

    def pictures(self) -> Iterator[VideoFrame]:
        """Yield each frame that can be decoded, also after those that cannot."""
        try:
            for packet in self._container.demux():
                self._note_time(packet)
                if packet.stream is not self._stream:
                    continue
                self._packets += 1
                if packet.is_corrupt:
                    self._damaged = self._damaged or self._packets
                for picture in self._decode(packet):
                    self.decoded += 1
                    yield picture
        except (av.FFmpegError, OSError):  # the file itself cannot be read on
            self._note_failure()

    def _decode(self, packet: Packet[Stream]) -> list[VideoFrame]:
        try:
            return self._stream.decode(packet)
        except av.FFmpegError:
            self._note_failure()
            return []

    def _note_failure(self) -> None:
        self._failed += 1
        self._damaged = self._damaged or self.decoded + 1

    def _note_time(self, packet: Packet[Stream]) -> None:
        """Note how far a packet reaches: sound may last longer than the picture."""
        if packet.pts is None:
            return
        end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - self._start
        self._longest = max(self._longest, end - self._reached)
        self._reached = max(self._reached, end)

    def fault(self) -> str:
        """Return what is missing, in words; empty when nothing is."""
        total = max(self.claimed, self.decoded + self._failed)
        if not self._damaged and not self._ends_early():
            return ""
        if total <= self.decoded:
            return f"is damaged near frame {self._damaged}; the pictures there may be wrong"
        first = f"near frame {self._damaged}" if self._damaged else f"frame {self.decoded + 1} at the latest"
        return (
            f"{self.decoded} of the {total} frames could be read, the first that is missing is {first}; "
            "the file is damaged or cut off there"
        )

    def _ends_early(self) -> bool:
        """Return whether the file stops before its header's time and number of frames.

        Both, because a header may state only a duration, which says little of frames whose rate varies.
        """
        slack = max(_HEADER_ERROR / self.fps, self._longest)
        return self._reached + slack < self._seconds and self.decoded + _HEADER_ERROR < self.claimed
