"""The page of a run: its figures, its pictures, its filters, and names that are HTML."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from utils.dataset.config import DatasetConfig
from utils.evaluation import run_page
from utils.evaluation.coco import CocoResult
from utils.evaluation.evaluate import ValResult
from utils.evaluation.metrics import ConfusionMatrix, DetectionStats
from utils.evaluation.mistakes import Mistakes
from utils.evaluation.run_page import write_run_page

BAD = '<script>alert("x")</script>'
NAMES = {0: "cat", 1: BAD, 2: "$title", 3: "unseen"}


def result(folder: Path, files: int = 3) -> ValResult:
    """A cat that is right, a second box on it, a missed object and one of a wrong class, in each image."""
    stats, confusion, mistakes = DetectionStats(), ConfusionMatrix(len(NAMES)), Mistakes()
    labels = torch.tensor([[0.0, 5, 5, 30, 30], [1, 40, 5, 80, 45], [2, 5, 50, 40, 90]])
    found = torch.tensor(
        [[5.0, 5, 30, 30, 0.9, 0], [5, 50, 40, 90, 0.8, 1], [70, 70, 90, 90, 0.5, 0], [0, 0, 1, 1, 0.01, 0]]
    )
    for number in range(files):
        path = folder / f"<b>{number}.png"
        cv2.imwrite(str(path), np.full((100, 100, 3), 90, np.uint8))
        stats.add(found, labels)
        mistakes.add(str(path), confusion.add(found, labels))
    metrics = stats.compute(NAMES)
    maps = metrics.maps(len(NAMES))
    return ValResult(metrics, confusion, files, stats.instances, maps, {"nms": 1.0}, None, folder, mistakes)


def written(folder: Path, measured: ValResult) -> str:
    config = DatasetConfig(folder / "x.yaml", folder, {}, NAMES)
    return write_run_page(folder, BAD, measured, config, {BAD: BAD}).read_text(encoding="utf-8")


def table(html: str, title: str) -> dict[str, list[str]]:
    """First cell -> the other cells of a section's table, as texts."""
    section = html.split(f"<h2>{title}</h2>")[1].split("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section.split("<tbody>")[1], re.S)
    cells = [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]
    return {first: rest for first, *rest in cells}


def test_the_page_has_the_figures_of_the_validation(tmp_path):
    measured = result(tmp_path)
    html = written(tmp_path, measured)
    tiles = dict(re.findall(r"<span>([^<]*)</span><strong>([^<]*)</strong>", html))
    assert tiles["mAP50-95"] == f"{measured.metrics.map:.3f}" and tiles["images"] == "3"
    assert [tiles[k] for k in ("false positives", "missed objects", "wrong classes")] == ["3", "3", "3"]
    classes = table(html, "Classes")
    assert classes["cat"][:2] == ["3", "3"] and classes["cat"][-3:] == ["3", "0", "0"]
    assert classes["$title"][-3:] == ["0", "0", "3"] and "unseen" not in classes
    sizes = table(html, "Object sizes")
    assert sizes["small"] == ["3", "3", "0", "0", "3", "1.000"]
    assert sizes["medium"] == ["6", "0", "3", "3", "0", "0.000"] and sizes["large"][-1] == ""
    assert table(html, "Most frequent confusions")["$title"][1:] == ["3", "1.000"]


def test_coco_s_figures_by_size_are_in_the_table(tmp_path):
    measured = result(tmp_path, 1)
    stats = {"map_small": 0.125, "map_medium": 0.25, "map_large": -1.0}
    measured.coco = CocoResult(0.0, 0.0, stats, "x")
    sizes = table(written(tmp_path, measured), "Object sizes")
    assert [row[-1] for row in sizes.values()] == ["0.125", "0.250", "-1.000"]


def test_every_name_is_escaped_and_nothing_is_loaded(tmp_path):
    html = written(tmp_path, result(tmp_path))
    assert html.count("<script>") == 1 and "<b>0" not in html and "&lt;b&gt;0.png" in html
    assert BAD not in html and html.count("&lt;script&gt;alert") >= 6
    assert not re.search(r"https?:|href=", html)
    assert html.count("src=") == html.count('src="data:image/') == 6


def test_the_filters_have_every_mistake_that_is_shown(tmp_path):
    html = written(tmp_path, result(tmp_path))
    tags = re.findall(r'<article data-tags="([^"]*)">', html)
    assert tags == ["1-0 2-1 3-1 3-2"] * 3
    first, second = re.findall(r"<select>(.*?)</select>", html)
    assert re.findall(r'value="(\d*)"', first) == ["", "1", "2", "3"]
    assert re.findall(r'value="(\d*)"', second) == ["", "0", "1", "2"]


def test_pictures_show_the_kinds_in_their_colours(tmp_path):
    jpegs = []
    original = run_page.html_figure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_page, "html_figure", lambda jpeg, *a: jpegs.append(jpeg) or original(jpeg, *a))
        written(tmp_path, result(tmp_path, 1))
    pictures = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1).astype(int) for jpeg in jpegs]
    sides = [(115, 158, 0), (0, 159, 230), (167, 121, 204)], [(115, 158, 0), (167, 121, 204), (0, 94, 213)]
    places = [(5, 20), (40, 40), (5, 70)], [(5, 20), (5, 70), (70, 80)]  # on the left sides of the boxes
    for picture, colours, points in zip(pictures, sides, places):
        scale = picture.shape[0] / 100
        for colour, (x, y) in zip(colours, points):
            assert np.abs(picture[round(y * scale), round(x * scale)] - colour).max() < 40


def test_an_image_that_has_gone_leaves_a_sentence(tmp_path):
    measured = result(tmp_path, 2)
    (tmp_path / "<b>0.png").unlink()
    html = written(tmp_path, measured)
    assert html.count("<figure") == 2 and "&lt;b&gt;0.png" in html.split('class="note"')[1].split("</p>")[0]


def test_only_the_worst_images_are_inside(tmp_path, monkeypatch):
    monkeypatch.setattr(run_page, "SHOWN_WORST", 2)
    html = written(tmp_path, result(tmp_path, 5))
    assert html.count("<article") == 2 and "2 of 5 images with mistakes" in html


def test_a_validation_without_mistakes_says_so(tmp_path):
    measured = result(tmp_path, 1)
    measured.mistakes = Mistakes()
    html = written(tmp_path, measured)
    assert "No mistake above confidence 0.25" in html and "<article" not in html
