"""Videos written whole or not at all, as H.264, which every browser plays."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from utils.errors import UserError, first_line

_LONGEST_GAP = 2.0  # seconds of a live stream without a frame that its video still shows
_FINEST_RATE = 1 << 16  # the largest denominator of a rate: 30000/1001 comes back from its decimals
# The fastest preset costs half of the next one; at this quality it is as sharp as what OpenCV writes.
_QUALITY = {"preset": "ultrafast", "crf": "21"}
_BT601 = 5  # the colours that the conversion from BGR makes; unsaid, players guess by the size


class VideoFileWriter:
    """Write an H.264 mp4 at a constant rate, whole or not at all.

    Sides are even: an odd one gets one more column or row, a copy of the last.

    Args:
        path: the file to write.
        fps: frames per second.
        size: width and height of the frames.

    Raises:
        UserError: the file or the encoder cannot be opened.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self.path = path
        self.size = size
        self.fps = fps
        self._temporary = path.with_name(f".{path.stem}.part.mp4")
        self._written = 0
        self._last: np.ndarray | None = None
        self._skew = 0.0  # seconds between the clock of live frames and the place in the video
        width, height = size
        with contextlib.ExitStack() as opened:
            try:
                # An open file instead of its name, which may be no UTF-8.
                self._file = opened.enter_context(open(self._temporary, "wb"))
                self._container = opened.enter_context(av.open(self._file, "w", format="mp4"))
                rate = Fraction(fps).limit_denominator(_FINEST_RATE)
                self._stream = self._container.add_stream("libx264", rate=rate, options=dict(_QUALITY))
                self._stream.width, self._stream.height = width + width % 2, height + height % 2
                self._stream.pix_fmt = "yuv420p"
                self._stream.codec_context.colorspace = _BT601
                self._container.start_encoding()
            except (av.FFmpegError, OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or first_line(error)
                raise UserError(
                    f"{path}: PyAV cannot write an H.264 video of {width}x{height} at {fps:g} frames/s "
                    f"({reason}); check the folder, or pass --nosave"
                ) from None
            self._opened = opened.pop_all()

    def write(self, image: np.ndarray, arrived: float | None = None) -> None:
        """Append a BGR frame (H,W,3) uint8; one of another size is resized.

        Before a live frame that `arrived` at a time in seconds, the frame before it is repeated as long as it
        was to be seen: a video without the frames that a slow model left out still has the right speed. A
        pause longer than `_LONGEST_GAP` is cut out.
        """
        if (image.shape[1], image.shape[0]) != self.size:
            image = cv2.resize(image, self.size, interpolation=cv2.INTER_LINEAR)
        for picture in [image if self._last is None else self._last] * self._missing(arrived) + [image]:
            self._encode(picture)
            self._written += 1
        self._last = image

    def _encode(self, image: np.ndarray) -> None:
        odd_height, odd_width = image.shape[0] % 2, image.shape[1] % 2
        if odd_height or odd_width:
            image = cv2.copyMakeBorder(image, 0, odd_height, 0, odd_width, cv2.BORDER_REPLICATE)
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))

    def _missing(self, arrived: float | None) -> int:
        """Return how many frames are missing before the time of a live frame."""
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
        """Finish the file and rename it.

        Raises:
            UserError: it could not be written whole; nothing is left of it.
        """
        try:
            with self._opened:
                self._container.mux(self._stream.encode(None))
        except (av.FFmpegError, OSError) as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)
            reason = error.strerror or first_line(error)
            raise UserError(
                f"{self.path}: the video could not be written whole ({reason}); is the disk full?"
            ) from None
        os.replace(self._temporary, self.path)
