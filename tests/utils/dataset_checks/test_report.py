"""The text is short and the JSON complete."""

from __future__ import annotations

import json

from tests.utils.dataset_checks.sets import checked, noise, write_data, write_split
from utils.dataset_checks.findings import Finding, Mark, Section
from utils.dataset_checks.report import SHOWN_LINES, findings_json, findings_text

MANY = [Finding("bad-line", f"{i}.txt", "no number", "correct it", line=i, score=i / 30) for i in range(30)]


def test_the_text_has_the_worst_of_each_kind():
    lines = findings_text([Section("Labels", {"train": "3 images"}, MANY)]).splitlines()
    assert lines[1:4] == ["Labels", "  train: 3 images", "  bad-line: 30"]
    assert lines[4] == "    29.txt, line 29: no number; correct it"
    assert len(lines) == 4 + SHOWN_LINES + 1 and lines[-1].strip() == "... and 20 more"


def test_the_json_has_everything(tmp_path):
    write_split(tmp_path, "train", {"a.png": noise(0)}, {})
    data = checked(write_data(tmp_path))
    shown = Finding("leak", "ü.png", "v", "r", images=("ü.png",), marks=(Mark("cat", (0, 0.5, 0.5, 1, 1)),))
    report = json.loads(
        findings_json(data, [Section("A", {"x": 1}, MANY), Section("B", {"y": "z"}, [shown])])
    )
    assert report["counts"] == {"bad-line": 30, "leak": 1} and len(report["findings"]) == 31
    assert report["facts"] == {"A": {"x": 1}, "B": {"y": "z"}} and report["imgsz"] == 64
    last = report["findings"][-1]
    assert last["file"] == "ü.png" and last["marks"] == [{"caption": "cat", "row": [0, 0.5, 0.5, 1, 1]}]
