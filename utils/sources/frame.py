"""A picture on its way to the model: what every source yields, and its letterbox."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar, Protocol

import numpy as np

from utils.letterbox import UNSCALED, letterbox, rgb_planes

FALLBACK_FPS = 30.0  # for a video or a stream that states no frame rate, or an absurd one


def usable_rate(fps: float) -> float:
    """Return a stated frame rate, or `FALLBACK_FPS` where it is none.

    Some files state a time base.
    """
    return fps if 0 < fps <= 1000 else FALLBACK_FPS


@dataclass
class Frame:
    """One picture on its way to the model.

    Attributes:
        path: where it comes from.
        image: BGR uint8 (H,W,3) in native size.
        index: number of a video's or stream's frame as it is yielded, from 1; 0 for an image.
        total: how many frames a video's header claims; 0: unknown.
        fps: rate of the yielded frames.
        position, count: which of how many files or streams, from 1; a count of 0 is unknown.
        name: the file name that results take theirs from; by default that of `path`.
        time: when a live frame arrived, in seconds of the monotonic clock; None for everything else.
        dropped: frames of a stream that came while the model was busy.
        input: the image letterboxed, or as it is for tiles; RGB uint8 (3,h,w).
        ratio_pad: the way back for `scale_boxes`.
        seconds: time that the letterbox took.
    """

    path: str
    image: np.ndarray
    index: int = 0
    total: int = 0
    fps: float = 0.0
    is_video: bool = False
    position: int = 1
    count: int = 1
    name: str = ""
    time: float | None = None
    dropped: int = 0
    input: np.ndarray | None = None
    ratio_pad: tuple[tuple[float, float], tuple[float, float]] | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.name = self.name or PurePath(self.path).name

    @property
    def is_live(self) -> bool:
        """Return whether it comes from a stream, a webcam or a screen."""
        return self.time is not None


class Source(Protocol):
    """Yields frames in order, logs what it cannot read and closes what it opened.

    A batch goes through the model at once: one frame of a file, or one of each of several streams. A `live`
    source ends only when it is told to, and is not decoded ahead, which would add delay.
    """

    live: ClassVar[bool]

    def batches(self) -> Iterator[list[Frame]]:
        """Yield frames with all but `input`, `ratio_pad` and `seconds`, which the letterbox fills in."""


def as_it_is(batch: list[Frame]) -> list[Frame]:
    """Give every frame the image itself as `input`, without a copy, for tiles."""
    for frame in batch:
        frame.input, frame.ratio_pad = frame.image[..., ::-1].transpose(2, 0, 1), UNSCALED
    return batch


class Letterboxer:
    """Fits frames into the model's input.

    Args:
        size: (h, w) to fit into.
        stride: sides are multiples of it.
        auto: pad only to the next multiple of `stride`, where the frames of a batch then agree in shape.
    """

    def __init__(self, size: tuple[int, int], stride: int, auto: bool) -> None:
        self.size = size
        self.stride = stride
        self.auto = auto

    def __call__(self, batch: list[Frame]) -> list[Frame]:
        """Fill in `input`, `ratio_pad` and `seconds` of every frame; all inputs get one shape."""
        if len({self._fit(frame, self.auto) for frame in batch}) > 1:
            for frame in batch:
                self._fit(frame, False)
        return batch

    def _fit(self, frame: Frame, auto: bool) -> tuple[int, ...]:
        """Put the letterbox on one frame and return the shape of its input."""
        start = time.perf_counter()
        boxed, ratio, pad = letterbox(frame.image, self.size, auto=auto, stride=self.stride)
        frame.input = rgb_planes(boxed)
        frame.ratio_pad = (ratio, pad)
        frame.seconds += time.perf_counter() - start
        return frame.input.shape
