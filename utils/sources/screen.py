"""The screen as a source: `screen [n] [left top width height]`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from utils.errors import UserError, first_line
from utils.sources.frame import FALLBACK_FPS, Frame


def parse_screen(text: str) -> tuple[int, tuple[int, int, int, int] | None]:
    """Return the monitor's number and the part of it (None: all) that a source names.

    Raises:
        UserError: other words than `screen [n] [left top width height]`, or a part without size.

    Example:
        >>> parse_screen("screen 1 0 0 640 480")
        (1, (0, 0, 640, 480))
    """
    words = text.split()[1:]
    if len(words) not in (0, 1, 4, 5) or not all(re.fullmatch(r"-?\d+", word) for word in words):
        raise UserError(f"{text}: expected 'screen [n] [left top width height]', all whole numbers")
    numbers = [int(word) for word in words]
    monitor = numbers.pop(0) if len(numbers) in (1, 5) else 0
    if monitor < 0 or (numbers and min(numbers[2:]) < 1):
        raise UserError(f"{text}: the monitor counts from 0 (all monitors), width and height from 1")
    if not numbers:
        return monitor, None
    left, top, width, height = numbers
    return monitor, (left, top, width, height)


class Screen:
    """Capture a monitor, or a part of one, whenever the model is ready.

    Monitor 0 is all of them together, 1 the first; left and top count from the monitor's own corner.
    """

    live: ClassVar[bool] = True

    def __init__(self, text: str, vid_stride: int = 1) -> None:
        self.text = text
        self.monitor, self.part = parse_screen(text)
        if vid_stride != 1:
            raise UserError(f"{text}: a screen has no frames to leave out; take --vid-stride off")
        try:
            import mss
        except ImportError:
            raise UserError(f"{text}: capturing the screen needs a package; pip install mss") from None
        self._mss = mss

    def batches(self) -> Iterator[list[Frame]]:
        """Yield captures until the iterator is closed.

        Raises:
            UserError: there is no screen, or no such monitor.
        """
        try:
            capture = self._mss.mss()
        except (self._mss.exception.ScreenShotError, OSError) as error:
            reason = first_line(error)
            raise UserError(f"{self.text}: there is no screen to capture here ({reason})") from None
        with capture:
            region = self._region(capture.monitors)
            index = 0
            while True:
                index += 1
                try:
                    shot = np.asarray(capture.grab(region))
                except self._mss.exception.ScreenShotError as error:
                    reason = first_line(error)
                    raise UserError(
                        f"{self.text}: cannot be captured ({reason}); check the numbers"
                    ) from None
                yield [
                    Frame(
                        self.text,
                        np.ascontiguousarray(shot[:, :, :3]),
                        index=index,
                        fps=FALLBACK_FPS,
                        is_video=True,
                        name=self.text.replace(" ", "_"),
                        time=time.monotonic(),
                    )
                ]

    def _region(self, monitors: list[dict[str, int]]) -> dict[str, int]:
        if self.monitor >= len(monitors):
            raise UserError(
                f"{self.text}: there is no monitor {self.monitor}; the last is {len(monitors) - 1}"
            )
        monitor = monitors[self.monitor]
        left, top, width, height = self.part or (0, 0, monitor["width"], monitor["height"])
        return {"left": monitor["left"] + left, "top": monitor["top"] + top, "width": width, "height": height}
