"""The anchors' best possible recall is that of training, and the network's own anchors stay."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.utils.dataset_checks.sets import HEAD, checked, noise, write_data, write_split
from utils.dataset_checks.anchor_fit import check_anchor_fit


def boxes(tmp_path, sides):
    """A data set with boxes of these sides in an image of 640 x 640 px."""
    text = "".join(f"0 0.5 0.5 {w / 640} {h / 640}\n" for w, h in sides)
    write_split(tmp_path, "train", {"a.png": noise(0, (640, 640))}, {"a": text})
    return checked(write_data(tmp_path), imgsz=640)


def test_boxes_that_fit_need_nothing(tmp_path):
    section = check_anchor_fit(boxes(tmp_path, [(10, 12), (30, 20), (60, 60)]))
    assert section.facts["best possible recall"] == 1.0 and not section.findings


def test_boxes_that_no_anchor_matches(tmp_path):
    before = HEAD.anchors.clone()
    section = check_anchor_fit(boxes(tmp_path, [(10, 12), (500, 400), (400, 500), (30, 20)]))
    assert section.facts["best possible recall"] == 0.5
    (found,) = section.findings
    assert found.kind == "anchor-fit" and found.score == pytest.approx(0.5)
    assert section.facts["recall after train.py's own search"] == 1.0 and "x" in found.remedy
    assert (HEAD.anchors == before).all()


def test_a_head_without_anchors_has_none_to_check(tmp_path):
    data = replace(boxes(tmp_path, [(10, 12)]), anchors=None)
    section = check_anchor_fit(data)
    assert section.facts == {"head": "has no anchors"} and not section.findings


def test_without_boxes(tmp_path):
    section = check_anchor_fit(boxes(tmp_path, []))
    assert section.facts == {"train": "no boxes"} and not section.findings
