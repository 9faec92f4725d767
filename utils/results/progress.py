"""How many frames a second are done, and how long the rest will take."""

from __future__ import annotations

import time
from collections import deque


class Pace:
    """Counts frames and knows their rate over the last few seconds.

    Args:
        window: seconds over which the rate is taken.
    """

    def __init__(self, window: float = 5.0) -> None:
        self._window = window
        self._total = 0
        self._marks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def count(self, frames: int) -> None:
        """Note that so many more frames are done."""
        self._total += frames
        now = time.monotonic()
        self._marks.append((now, self._total))
        while len(self._marks) > 2 and now - self._marks[0][0] > self._window:
            self._marks.popleft()

    @property
    def rate(self) -> float:
        """Return frames per second; 0 before the first."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(end - start, 1e-9) if after else 0.0

    def text(self, left: int | None) -> str:
        """Return the rate and, when `left` is known, the time still needed."""
        rate = f"{self.rate:.1f}/s"
        if left is None or not self.rate:
            return rate
        minutes, seconds = divmod(round(left / self.rate), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return f"{rate}, {clock} left"
