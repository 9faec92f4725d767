"""The page of a check: escaped, self-contained, with the part of an image that a finding is about."""

from __future__ import annotations

import base64
import re

import cv2
import numpy as np

from utils.dataset_checks.findings import Finding, Mark, Section
from utils.dataset_checks.page import SHOWN_IMAGES, SHOWN_ROWS, findings_page, view_of
from utils.results.drawing import colour


def pictures(html: str) -> list[np.ndarray]:
    codes = re.findall(r"data:image/jpeg;base64,([^\"]+)", html)
    return [cv2.imdecode(np.frombuffer(base64.b64decode(code), np.uint8), 1) for code in codes]


def test_every_text_is_escaped_and_nothing_is_loaded():
    bad = '<script>"'
    section = Section(bad, {bad: bad}, [Finding(bad, bad, bad, bad, split=bad)])
    html = findings_page(bad, [section], {bad: bad})
    assert bad not in html and html.count("&lt;script&gt;") >= 10
    assert not re.search(r"https?:|href=|src=", html)


def test_nothing_found_is_a_page():
    assert "Nothing was found" in findings_page("t", [Section("Labels", {"train": 1})], {})


def test_the_marks_are_drawn_where_they_are(tmp_path):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, np.zeros((1000, 1000, 3), np.uint8))
    marks = (Mark("label", (3, 0.8, 0.8, 0.1, 0.1)), Mark("model", (2, 0.81, 0.8, 0.1, 0.1)))
    finding = Finding("shifted-box", "a.txt", "v", "r", images=(path, path), marks=marks)
    part, whole = pictures(findings_page("t", [Section("s", {}, [finding])], {}))
    assert whole.shape == (480, 480, 3) and whole.max() < 8  # the other image of a pair has no marks
    assert part.shape == (332, 332, 3) or part.shape == (330, 330, 3) or 320 <= part.shape[0] <= 340
    # The part begins 1.5 of the longer side left of the centre: the label's left edge is a third into it.
    edge = part[len(part) // 2, : len(part) // 2].astype(int)
    assert np.abs(edge - colour(0)).sum(1).min() < 120 and (edge[: len(edge) // 2].max() < 60)


def test_pages_stay_small(tmp_path):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, np.zeros((20, 20, 3), np.uint8))
    many = [Finding("bad-line", f"{i}.txt", "v", "r", images=(path,)) for i in range(SHOWN_ROWS + 30)]
    html = findings_page("t", [Section("s", {}, many)], {})
    assert html.count("<figure>") == SHOWN_IMAGES and html.count('<td class="num">') == SHOWN_ROWS
    assert f"bad-line: {len(many)}, the first {SHOWN_ROWS}" in html


def test_an_image_that_cannot_be_read_costs_its_picture_only(tmp_path):
    gone = Finding("bad-image", "b.png", "v", "r", images=(str(tmp_path / "b.png"),))
    html = findings_page("t", [Section("s", {}, [gone])], {})
    assert "b.png" in html and "<figure>" not in html


def test_views_stay_inside_the_image():
    assert view_of(np.array([[0.0, 0, 10, 10]]), (60, 80)) == (0, 0, 53, 53)
    assert view_of(np.array([[0.0, 0, 80, 60]]), (60, 80)) == (0, 0, 80, 60)
