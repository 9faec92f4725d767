"""A picture on its way to the model: what every source yields, its letterbox, decoding ahead in a thread."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from queue import Full, Queue
from threading import Event, Thread
from typing import ClassVar, Protocol, TypeVar

import numpy as np

from utils.letterbox import letterbox, rgb_planes

FALLBACK_FPS = 30.0  # for a video or a stream that states no frame rate, or an absurd one

_LAST_WAIT = 2.0  # seconds for a thread to finish the frame that it is at

T = TypeVar("T")


def usable_rate(fps: float) -> float:
    """Return a stated frame rate, or `FALLBACK_FPS` where it is none: some files state a time base."""
    return fps if 0 < fps <= 1000 else FALLBACK_FPS


@dataclass
class Frame:
    """One picture on its way to the model.

    `path` says where it comes from; `name` is the file name that outputs take theirs from (default: that of
    `path`). `image` is BGR uint8 (H,W,3) in native size; `input` the same letterboxed, RGB uint8 (3,h,w), and
    `ratio_pad` the way back for `scale_boxes`. `index` counts a video's or stream's frames from 1 as they are
    yielded (0 for an image) and `total` is how many a video's container claims (0: unknown). `position` of
    `count` files or streams, from 1; a count of 0 is unknown. `seconds` went into the letterbox. `fps` is
    that of the yielded frames. `time` is when a live frame arrived, in seconds of the monotonic clock; None
    for everything else. `dropped` counts the frames of a stream that came while the model was busy.
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
        """Whether it comes from a stream, a webcam or a screen."""
        return self.time is not None


class Source(Protocol):
    """Anything that yields frames in order; it ends, logs what it cannot read and closes what it opened.

    A batch is what goes through the model at once: one frame of a file, or one of each of several streams.
    `live` sources end only when they are told to, and are not worth decoding ahead: that would add delay.
    """

    live: ClassVar[bool]

    def batches(self) -> Iterator[list[Frame]]:
        """Yield frames with `path`, `image` and the counters filled in; the letterbox is put on later."""


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
        for frame in batch:
            self._fit(frame, self.auto)
        if len({frame.input.shape for frame in batch}) > 1:
            for frame in batch:
                self._fit(frame, False)
        return batch

    def _fit(self, frame: Frame, auto: bool) -> None:
        start = time.perf_counter()
        boxed, ratio, pad = letterbox(frame.image, self.size, auto=auto, stride=self.stride)
        frame.input = rgb_planes(boxed)
        frame.ratio_pad = (ratio, pad)
        frame.seconds += time.perf_counter() - start


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield `items` in order while a thread works up to `depth` of them ahead.

    An exception of the items is raised here, in its place. Closing the generator early stops the thread; one
    that is held up by a silent pipe or by a slow download is not waited for, and ends with the process.
    """
    queue: Queue[tuple[str, object]] = Queue(depth)
    stop = Event()

    def put(kind: str, value: object) -> bool:
        while not stop.is_set():
            try:
                queue.put((kind, value), timeout=0.05)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # noqa: BLE001 raised again in the reader's thread
            put("error", error)

    thread = Thread(target=work, name="decode", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = queue.get()
            if kind == "end":
                return
            if kind == "error":
                raise value  # type: ignore[misc]
            yield value  # type: ignore[misc]
    finally:
        stop.set()
        thread.join(_LAST_WAIT)
