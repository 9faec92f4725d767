"""Follow objects through a video, and count those that cross a line.

The tracker is ByteTrack and the counter LineZone, of the packages `trackers` (Apache-2.0) and `supervision`
(MIT), which are optional: nothing of them is imported before `Tracking` is made.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import atomic_text
from utils.results.drawing import class_name
from utils.sources.frame import Frame

START_CONFIDENCE = 0.25
"""Least confidence of a box that begins a track; less confident boxes only continue one."""
Line = tuple[float, float, float, float]
# Any: what optional packages define is not known to the type checker.
Foreign = Any


def read_line(text: str) -> Line:
    """Return a line from its text `x1,y1,x2,y2`, in pixels of the video.

    Raises:
        UserError: it is not four numbers, or both ends are one point.

    >>> read_line("0,120,640,120")
    (0.0, 120.0, 640.0, 120.0)
    """
    try:
        x1, y1, x2, y2 = (float(part) for part in text.split(","))
    except ValueError:
        x1 = y1 = x2 = y2 = float("nan")
    if not np.isfinite((x1, y1, x2, y2)).all() or (x1, y1) == (x2, y2):
        raise UserError(f"--count-line {text}: must be x1,y1,x2,y2, two different points in pixels")
    return x1, y1, x2, y2


@dataclass(frozen=True)
class Tracks:
    """Hold the numbers of a frame's objects, and what crossed the line until then.

    Attributes:
        ids: (n,) of each box, from 0; -1: not yet followed over several frames.
        line: where objects are counted; None: nowhere.
        entered, left: how many crossed it in each direction.
    """

    ids: np.ndarray
    line: Line | None = None
    entered: int = 0
    left: int = 0


class Tracking:
    """Follow the objects of each video or stream of a run.

    Args:
        folder: where counts.json is written in the end, when objects were counted.
        names: of the classes.
        line: where objects are counted, in pixels; None: nowhere.

    Use it as a context manager, which writes the file also after Ctrl-C.

    Raises:
        UserError: the package `trackers` is not installed.
    """

    def __init__(self, folder: Path, names: Mapping[int, str], line: Line | None = None) -> None:
        self.folder, self.names, self.line = folder, names, line
        self._trackers: Foreign = _module("trackers")
        self._supervision: Foreign = _module("supervision")
        self._open: dict[tuple[int, str], tuple[Foreign, Foreign]] = {}
        self._counted: list[tuple[str, Foreign]] = []

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        if self._counted:
            atomic_text(self.folder / "counts.json", json.dumps(self.counts(), indent=1, ensure_ascii=False))

    def update(self, frame: Frame, boxes: np.ndarray) -> Tracks:
        """Return the numbers of a frame's boxes (n, 6).

        The frames of a video come in order; those of several streams may take turns.

        Raises:
            UserError: the frame is none of a video or stream.
        """
        if not frame.is_video:
            raise UserError(f"{frame.path}: is a single image, and --track follows objects through videos")
        tracker, zone = self._of(frame)
        found = self._supervision.Detections(
            xyxy=boxes[:, :4].astype(np.float64),
            confidence=boxes[:, 4].astype(np.float64),
            class_id=boxes[:, 5].astype(int),
            data={"row": np.arange(len(boxes))},
        )
        tracked = tracker.update(found, timestamp=frame.time)
        ids = np.full(len(boxes), -1)
        if len(tracked):
            ids[tracked.data["row"]] = tracked.tracker_id
        if zone is None:
            return Tracks(ids)
        zone.trigger(tracked)
        return Tracks(ids, self.line, zone.in_count, zone.out_count)

    def _of(self, frame: Frame) -> tuple[Foreign, Foreign]:
        """Return tracker and counter of a frame's video; only live streams take turns."""
        key = (frame.position, frame.path)
        if key not in self._open:
            if not frame.is_live:
                self._open.clear()
            tracker = self._trackers.ByteTrackTracker(
                frame_rate=frame.fps,
                track_activation_threshold=START_CONFIDENCE,
                high_conf_det_threshold=START_CONFIDENCE,
            )
            zone = None
            if self.line is not None:
                point = self._supervision.Point
                zone = self._supervision.LineZone(start=point(*self.line[:2]), end=point(*self.line[2:]))
                self._counted.append((frame.path, zone))
            self._open[key] = tracker, zone
        return self._open[key]

    def counts(self) -> list[dict[str, object]]:
        """Return for each video how many objects crossed the line, by class."""
        return [
            {
                "file": path,
                "line": self.line,
                "in": zone.in_count,
                "out": zone.out_count,
                "classes": {
                    class_name(self.names, index): {
                        "in": zone.in_count_per_class.get(index, 0),
                        "out": zone.out_count_per_class.get(index, 0),
                    }
                    for index in sorted({*zone.in_count_per_class, *zone.out_count_per_class})
                },
            }
            for path, zone in self._counted
        ]


def _module(name: str) -> Foreign:
    """Import a package of the tracker; say how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--track: the package trackers cannot be imported ({error}); run pip install trackers -c "
            "constraints.txt"
        ) from None
