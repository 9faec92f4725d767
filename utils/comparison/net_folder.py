"""Keep what each net of a comparison has reached, so that it can continue."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.comparison.table import NetRow
from utils.files import JsonObject, atomic_text
from utils.training.loggers import read_results
from utils.training.run_folder import RunFolder


@dataclass(frozen=True)
class TrainingRecord:
    """Hold how long a net was trained, over all sessions.

    Attributes:
        source: fingerprint of the file that the net is built from.
        seconds: of the finished sessions.
        started: time of the start of the running session, in seconds; None when the training is finished.
    """

    source: str
    seconds: float = 0.0
    started: float | None = None


@dataclass(frozen=True)
class NetFolder:
    """Name, read and write the files of one net in the run's folder."""

    path: Path

    @property
    def run(self) -> RunFolder:
        """Return the files of the net's training."""
        return RunFolder(self.path)

    @property
    def best(self) -> Path:
        """Return the checkpoint that is measured."""
        return self.run.best

    def read_training(self) -> TrainingRecord | None:
        """Return training.json; None if it is missing or damaged."""
        found = read_json(self.path / "training.json")
        return TrainingRecord(**found) if found else None

    def write_training(self, record: TrainingRecord) -> None:
        """Write training.json."""
        write_json(self.path / "training.json", asdict(record))

    def seconds_before(self) -> float:
        """Return the seconds of all earlier sessions.

        A session that was stopped counts up to its last checkpoint, from which the next one continues.
        """
        record, last = self.read_training(), self.run.last
        if record is None or not last.is_file():
            return 0.0
        if record.started is None:
            return record.seconds
        return record.seconds + max(last.stat().st_mtime - record.started, 0.0)

    def read_row(self) -> tuple[NetRow, str] | None:
        """Return the row of a finished net, and its source's fingerprint; else None."""
        found = read_json(self.path / "result.json")
        if not found or not self.best.is_file():
            return None
        source = str(found.pop("source", ""))
        found["values"] = {name: value for name, value in found["values"].items() if value is not None}
        return NetRow(**found), source

    def write_row(self, row: NetRow, source: str) -> None:
        """Write result.json, which marks the net as finished."""
        write_json(self.path / "result.json", asdict(row) | {"source": source})

    def epochs(self) -> int:
        """Return the number of trained epochs in results.csv; 0 without the file."""
        return len(read_results(self.run.results))


def read_json(path: Path) -> JsonObject:
    """Return a state file's content; empty if it is missing or damaged."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a state file."""
    atomic_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
