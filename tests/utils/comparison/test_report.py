"""The files of a comparison say the same, and name what was measured."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch

from utils.comparison.options import CompareOptions
from utils.comparison.page import Page
from utils.comparison.report import measurement_facts, package_versions, write_report
from utils.comparison.table import Group, NetRow


def row(key: str, score: float, imgsz: int = 64) -> NetRow:
    return NetRow(key, key, "scratch", None, {"map": score, "gflops": 1.0}, data="my.yaml", imgsz=imgsz)


def test_all_files_are_written(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    log.set_level("INFO", "yolo.compare")
    group = Group(1, "conditions unknown", "", [row("a", 0.5)], None)
    failed = [NetRow("b", "b", "scratch", failed="no such file")]
    page = Page("2 detectors", [group], failed, [], {"hardware": "a CPU"}, "python compare.py")
    write_report(page, tmp_path)
    with (tmp_path / "compare.csv").open(encoding="utf-8") as file:
        assert [line["net"] for line in csv.DictReader(file)] == ["a", "b"]
    markdown = (tmp_path / "compare.md").read_text(encoding="utf-8")
    assert "0.500" in markdown and markdown.endswith("Hardware: a CPU.\n")
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "2 detectors" in html and "no such file" in html and "0.500" in html
    assert cv2.imread(str(tmp_path / "pareto.png")).shape == (900, 2100, 3)
    assert "0.500" in log.text and f"results saved to {tmp_path}" in log.text


def test_facts_name_one_size_or_refer_to_the_tables() -> None:
    opt, cpu = CompareOptions(latency_runs=7, imgsz=320), torch.device("cpu")
    data = SimpleNamespace(path=Path("x/my.yaml"), nc=2)
    facts = measurement_facts(opt, data, 12, cpu, [row("a", 0.5), row("b", 0.4)])
    assert (
        facts["accuracy"] == "best checkpoint in float32 on the 12 val images of my.yaml (2 classes), 64 px"
    )
    assert "one image of 64 px" in facts["latency"] and "percentile of 7 runs" in facts["latency"]
    mixed = measurement_facts(opt, data, 12, cpu, [row("a", 0.5), row("b", 0.4, 128)])
    assert mixed["accuracy"].endswith("the size that its table names")
    assert measurement_facts(opt, data, 12, cpu, [])["accuracy"].endswith("320 px")
    assert f"torch {package_versions()['torch']}" in facts["versions"]
