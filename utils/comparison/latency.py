"""Time several nets in rounds, and keep the figures until something changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.comparison.net_folder import read_json, write_json
from utils.comparison.table import NetRow
from utils.profiling import interleaved

LOGGER = logging.getLogger("yolo.compare")

ROUNDS = 10  # the timed runs of a net are spread over so many rounds through all nets

EngineCalls = Mapping[str, Mapping[str, Callable[[], object]]]
"""Net -> engine, 'torch' or 'onnx' -> a call that runs the net once on one image."""


@dataclass(frozen=True)
class Latencies:
    """Measure the latencies of all nets together, or read those of an earlier session.

    Args:
        file: latency.json, where they are kept.
        conditions: as plain values, all that decides them besides `runs`; if any changes, all nets are timed
            again.
        runs: timed runs of each net and engine.
        device: where the nets run.
    """

    file: Path
    conditions: Mapping[str, object]
    runs: int
    device: torch.device

    def fill_in(self, rows: Sequence[NetRow], calls: EngineCalls) -> None:
        """Write median, 90th and 95th percentile in ms into the values of the rows."""
        found = self._read_or_time(calls)
        for row in rows:
            for engine in calls[row.key]:
                ms = found[f"{row.key}/{engine}"]
                row.values[f"{engine}_ms"] = ms["median"]
                row.values |= {f"{engine}_{name}": ms[name] for name in ("p90", "p95")}

    def _read_or_time(self, calls: EngineCalls) -> dict[str, dict[str, float]]:
        """Return percentiles by 'net/engine'."""
        conditions = {"runs": self.runs, **self.conditions}
        found = read_json(self.file)
        if all(found.get(name) == value for name, value in conditions.items()):
            kept: dict[str, dict[str, float]] = found["ms"]
            return kept
        LOGGER.info("timing %d nets in %d rounds", len(calls), ROUNDS)
        flat = {f"{net}/{engine}": call for net, engines in calls.items() for engine, call in engines.items()}
        timed = interleaved(flat, self.runs, ROUNDS, self.device)
        write_json(self.file, conditions | {"ms": timed})
        return timed
