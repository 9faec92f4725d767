"""What a net's folder remembers: its row, its source and its seconds of training."""

from __future__ import annotations

import json
import os
from pathlib import Path

from utils.comparison.net_folder import NetFolder, TrainingRecord, read_json, write_json
from utils.comparison.table import NetRow


def with_checkpoint(folder: NetFolder, path: Path, seconds: float = 0.0) -> None:
    """Write a file in the place of a checkpoint, last changed at a time in seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    os.utime(path, (seconds, seconds))


def test_a_row_comes_back_with_its_source(tmp_path: Path) -> None:
    folder = NetFolder(tmp_path / "n")
    row = NetRow(
        "n", "n (ImageNet)", "imagenet", {"nc": 2}, {"map": 0.5, "epochs": 3}, "n.pt", data="d", imgsz=64
    )
    with_checkpoint(folder, folder.best)
    assert folder.read_row() is None
    folder.write_row(row, "abc")
    assert folder.read_row() == (row, "abc")
    state = folder.path / "result.json"
    older = json.loads(state.read_text())
    older["values"]["gflops"] = None  # earlier versions named what was not measured
    state.write_text(json.dumps(older))
    assert folder.read_row() == (row, "abc")
    folder.best.unlink()
    assert folder.read_row() is None  # its figures cannot be completed


def test_seconds_of_a_stopped_session_count_up_to_its_last_checkpoint(tmp_path: Path) -> None:
    folder = NetFolder(tmp_path)
    assert folder.read_training() is None and folder.seconds_before() == 0.0
    stopped = TrainingRecord("abc", seconds=20.0, started=1000.0)
    folder.write_training(stopped)
    assert folder.read_training() == stopped
    assert folder.seconds_before() == 0.0  # no checkpoint: it starts again
    with_checkpoint(folder, folder.run.last, 1007.5)
    assert folder.seconds_before() == 27.5
    with_checkpoint(folder, folder.run.last, 900.0)  # of the session before
    assert folder.seconds_before() == 20.0
    folder.write_training(TrainingRecord("abc", seconds=31.0))
    assert folder.seconds_before() == 31.0


def test_a_damaged_state_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert read_json(path) == {}
    for text in ('{"a": ', "[1]", "\udc80"):
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        assert read_json(path) == {}
    write_json(path, {"a": "\u4e2d", "b": [1]})
    assert read_json(path) == {"a": "\u4e2d", "b": [1]} and "\u4e2d" in path.read_text(encoding="utf-8")


def test_epochs_are_counted_in_the_results(tmp_path: Path) -> None:
    folder = NetFolder(tmp_path)
    assert folder.epochs() == 0
    lines = ["header", *(",".join(["1"] * 14) for _ in range(3)), "damaged"]
    folder.run.results.write_text("\n".join(lines))
    assert folder.epochs() == 3
