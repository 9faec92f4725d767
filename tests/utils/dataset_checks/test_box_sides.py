"""Boxes are measured at the training size, and those that training drops are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.utils.dataset_checks.sets import checked, noise, write_data, write_split
from utils.dataset_checks.box_sides import check_box_sides


def test_sides_are_those_of_the_scaled_image(tmp_path):
    write_split(tmp_path, "train", {"a.png": noise(0, (200, 100))}, {"a": "0 0.5 0.5 0.25 0.5\n"})
    data = checked(write_data(tmp_path))
    (split,) = data.labels()
    assert np.allclose(split[1].box_sides(64), [[16, 16]])
    assert np.allclose(split[1].box_sides(400), [[100, 100]])


def test_only_boxes_that_training_drops_are_findings(tmp_path):
    text = "0 0.5 0.5 0.25 0.5\n1 0.5 0.5 0.5 0.05\n\n1 0.5 0.5 0.01 0.05\n"
    write_split(tmp_path, "train", {"a.png": noise(0, (200, 100))}, {"a": text})
    section = check_box_sides(checked(write_data(tmp_path), imgsz=64))
    thin, least = sorted(section.kinds()["small-box"], key=lambda f: f.line)
    assert (Path(thin.file).name, thin.line, thin.value) == ("a.txt", 2, "'dog' is 32.0 x 1.6 px at 64 px")
    assert least.line == 4 and least.score > thin.score
    assert thin.marks[0].caption == "dog" and np.allclose(thin.marks[0].row, (1, 0.5, 0.5, 0.5, 0.05))
    assert "3 boxes" in section.facts["train"] and "66.7% under 8 px" in section.facts["train"]
    section = check_box_sides(checked(tmp_path / "d.yaml", imgsz=640))
    assert not section.findings and "33.3% under 8 px" in section.facts["train"]


def test_no_boxes(tmp_path):
    write_split(tmp_path, "train", {"a.png": noise(0)}, {})
    assert check_box_sides(checked(write_data(tmp_path))).facts == {"train": "no boxes"}
