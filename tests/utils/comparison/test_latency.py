"""Latencies: timed together, kept while nothing changes, and written into the rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from utils.comparison.latency import Latencies
from utils.comparison.net_folder import read_json
from utils.comparison.table import NetRow


def test_latencies_are_taken_again_only_when_something_changes(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()

    def call(name: str) -> None:
        seen[name] += 1

    calls = {"a": {"torch": partial(call, "a/torch"), "onnx": partial(call, "a/onnx")}}
    calls["b"] = {"torch": partial(call, "b/torch")}
    latencies = Latencies(tmp_path / "latency.json", {"nets": {"a": [1], "b": [2]}}, 4, torch.device("cpu"))
    rows = [NetRow("a", "a"), NetRow("b", "b")]
    latencies.fill_in(rows, calls)
    assert set(seen) == {"a/torch", "a/onnx", "b/torch"} and len(set(seen.values())) == 1
    assert seen["a/torch"] >= 4
    a, b = (row.values for row in rows)
    assert set(a) == {f"{e}_{n}" for e in ("torch", "onnx") for n in ("ms", "p90", "p95")}
    assert set(b) == {"torch_ms", "torch_p90", "torch_p95"}
    assert 0 < a["onnx_ms"] <= a["onnx_p90"] <= a["onnx_p95"]

    again = [NetRow("a", "a"), NetRow("b", "b")]
    before = dict(seen)
    latencies.fill_in(again, calls)
    assert dict(seen) == before and [row.values for row in again] == [a, b]
    for changed in (
        replace(latencies, runs=5),
        replace(latencies, conditions={"nets": {"a": [1], "b": [3]}}),
    ):
        count = seen["b/torch"]
        changed.fill_in(again, calls)
        assert seen["b/torch"] > count
    assert read_json(tmp_path / "latency.json")["nets"] == {"a": [1], "b": [3]}
