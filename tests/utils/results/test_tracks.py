"""Numbers of objects from frame to frame, and counts at a line."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from utils.errors import UserError
from utils.results.tracks import START_CONFIDENCE, Tracking, read_line
from utils.sources.frame import Frame

trackers = pytest.importorskip("trackers")
supervision = pytest.importorskip("supervision")
NAMES = {0: "car", 1: "bus"}
NOTHING = np.zeros((100, 200, 3), np.uint8)


def frame(index: int, path: str = "a.mp4", position: int = 1, time: float | None = None) -> Frame:
    return Frame(path, NOTHING, index, fps=25.0, is_video=True, position=position, time=time)


def boxes(index: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """A car that goes down and a bus that goes up, and a box of little confidence; in random order."""
    down, up = 10 + 4 * index, 80 - 4 * index
    rows = [[20, down, 40, down + 10, 0.9, 0], [100, up, 130, up + 12, 0.8, 1], [160, 10, 170, 20, 0.1, 0]]
    order = rng.permutation(3) if rng else [0, 1, 2]
    return np.array(rows, np.float32)[order]


def test_objects_keep_their_numbers_and_the_rows_their_order(tmp_path):
    rng = np.random.default_rng(0)
    with Tracking(tmp_path, NAMES) as tracking:
        seen = {}
        for index in range(15):
            rows = boxes(index, rng)
            found = tracking.update(frame(index + 1), rows)
            assert found.ids.shape == (3,) and found.line is None
            for row, number in zip(rows, found.ids.tolist()):
                seen.setdefault(float(row[4]), []).append(number)
    sure, other, weak = (seen[value] for value in sorted(seen, reverse=True))
    assert sure[0] == other[0] == -1, "one frame is not enough"
    assert (
        len(set(sure[1:])) == len(set(other[1:])) == 1
        and sure[-1] != other[-1]
        and min(sure[-1], other[-1]) >= 0
    )
    assert set(weak) == {-1} and START_CONFIDENCE > 0.1
    assert not list(tmp_path.iterdir())


def test_numbers_are_those_of_the_library_fed_with_the_same_boxes(tmp_path):
    rng = np.random.default_rng(1)
    library = trackers.ByteTrackTracker(
        frame_rate=25.0, track_activation_threshold=START_CONFIDENCE, high_conf_det_threshold=START_CONFIDENCE
    )
    tracking = Tracking(tmp_path, NAMES)
    for index in range(20):
        rows = boxes(index)[rng.random(3) < 0.8]  # some are missed
        ours = tracking.update(frame(index + 1), rows).ids
        given = supervision.Detections(
            xyxy=rows[:, :4].astype(float),
            confidence=rows[:, 4].astype(float),
            class_id=rows[:, 5].astype(int),
        )
        theirs = library.update(given)
        expected = {
            tuple(box): number for box, number in zip(theirs.xyxy.tolist(), theirs.tracker_id.tolist())
        }
        assert [expected[tuple(row)] for row in rows[:, :4].astype(float).tolist()] == ours.tolist()


def test_what_crosses_the_line_is_counted_by_direction_and_class(tmp_path):
    with Tracking(tmp_path, NAMES, read_line("0,50,200,50")) as tracking:
        last = [tracking.update(frame(index + 1), boxes(index)) for index in range(15)][-1]
        assert (last.entered, last.left, last.line) == (1, 1, (0, 50, 200, 50))
        tracking.update(frame(1, "b.mp4", 2), boxes(0))
    first, second = json.loads((tmp_path / "counts.json").read_text())
    assert (
        first["file"] == "a.mp4"
        and first["line"] == [0, 50, 200, 50]
        and (first["in"], first["out"]) == (1, 1)
    )
    # To the right along the line, up is to its left: in.
    assert first["classes"] == {"car": {"in": 0, "out": 1}, "bus": {"in": 1, "out": 0}}
    assert second == {"file": "b.mp4", "line": [0, 50, 200, 50], "in": 0, "out": 0, "classes": {}}


def test_streams_that_take_turns_are_followed_apart_and_files_begin_anew(tmp_path):
    tracking = Tracking(tmp_path, NAMES)
    for index in range(6):
        ids = [
            tracking.update(frame(index + 1, f"rtsp://{n}", n, time=index / 25), boxes(index))
            .ids[:2]
            .tolist()
            for n in (1, 2)
        ]
    assert ids == [[0, 1], [0, 1]]
    assert tracking.update(frame(1), boxes(0)).ids.tolist() == [-1] * 3


def test_frames_without_boxes_and_images(tmp_path):
    tracking = Tracking(tmp_path, NAMES, read_line("0,50,200,50"))
    assert tracking.update(frame(1), np.zeros((0, 6), np.float32)).ids.shape == (0,)
    tracking.update(frame(2), boxes(0))
    assert tracking.update(frame(3), np.zeros((0, 6), np.float32)).ids.shape == (0,)
    with pytest.raises(
        UserError, match="x.jpg: is a single image, and --track follows objects through videos"
    ):
        tracking.update(Frame("x.jpg", NOTHING), boxes(0))


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,x", "1,2,1,2", "nan,0,1,1", ""])
def test_a_line_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--count-line .*: must be x1,y1,x2,y2"):
        read_line(text)


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(UserError, match="--track: the package trackers .* run pip install trackers"):
        Tracking(tmp_path, NAMES)
