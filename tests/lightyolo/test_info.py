"""lightyolo info: short, and true of this process."""

from __future__ import annotations

import sys

import torch

from lightyolo.info import facts, main
from utils.files import ROOT
from utils.package import VERSION


def test_facts_are_those_of_this_process(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "sets"))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = facts()
    assert found["light-yolo"] == f"{VERSION}, a checkout in {ROOT}"
    assert f"torch {torch.__version__}, " in found["packages"] and "light-yolo" not in found["packages"]
    assert found["threads"].startswith(f"{torch.get_num_threads()} on ")
    assert found["threads"].endswith("OMP_NUM_THREADS 7")
    assert (found["GPU"] == "none") == (not torch.cuda.is_available())
    assert found["data sets"] == str(tmp_path / "sets") and found["runs"] == str(ROOT / "runs")


def test_it_is_short(monkeypatch, log) -> None:
    monkeypatch.setattr(sys, "argv", ["lightyolo info"])
    with log.at_level("INFO"):
        main()
    assert len(log.messages) == len(facts()) <= 10
