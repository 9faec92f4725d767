"""The page of a comparison: escaped, self-contained, and told whatever is missing."""

from __future__ import annotations

import re

from utils.comparison.page import Page, SampleImage, render
from utils.comparison.table import NetRow, group_rows
from utils.training.options import parse_opt

JPEG = b"\xff\xd8 a picture"


def page(
    rows: list[NetRow], failed: list[NetRow], samples: list[SampleImage], first: dict | None = None
) -> str:
    facts = {"hardware": "a <fast> CPU"}
    return render(
        Page("a & b", group_rows(rows, first), failed, samples, facts, "compare.py --cfg 'a<b'"), b"chart"
    )


def conditions(**changes) -> dict:
    opt = vars(parse_opt([])) | {"data": "my.yaml", "nc": 2, "hyp": {"lr0": 0.01}, "patience": None} | changes
    names = "data nc imgsz epochs batch_size optimizer seed cos_lr label_smoothing amp rect multi_scale"
    names += " image_weights single_cls freeze backbone_lr noautoanchor patience hyp"
    return {name: opt[name] for name in names.split()}


def row(label: str, score: float, same: dict | None, **values) -> NetRow:
    figures = {"map": score, "map50": score, "precision": score, "recall": score, "gflops": 1.0, **values}
    return NetRow(label, label, "scratch", same, figures)


def test_every_text_is_escaped():
    bad = '<script>alert("1")</script>'
    rows = [row(bad, 0.1, conditions(data=f"{bad}.yaml")), row("b", 0.2, conditions(data=f"{bad}.yaml"))]
    rows[0].note = bad
    samples = [SampleImage(bad, [(bad, JPEG, 1)])]
    html = page(rows, [NetRow(bad, bad, bad, failed=bad)], samples)
    assert html.count("<script>") == 1  # our own
    assert html.count("&lt;script&gt;alert(&quot;1&quot;)") >= 8
    assert "a &amp; b" in html and "a &lt;fast&gt; CPU" in html and "&#x27;a&lt;b&#x27;" in html


def test_best_cells_and_sortable_figures():
    same = conditions()
    rows = [
        row("a", 0.5, same, torch_ms=9.5, torch_p90=10.0, torch_p95=11.0),
        row("b", 0.4, same, torch_ms=7.25),
    ]
    html = page(rows, [], [], same)
    cells = re.findall(r'<td class="(num[^"]*)" data-value="([^"]*)">([^<]*)', html)
    assert ("num best", "0.5", "0.500") in cells and ("num", "0.4", "0.400") in cells
    assert ("num best", "7.25", "7.2") in cells and ("num", "9.5", "9.5") in cells
    assert "<small>(10.0, 11.0)</small>" in html and "ONNX Runtime ms" not in html
    assert "fastest in PyTorch</span><strong>b</strong><span>7.2 ms</span>" in html
    assert "most accurate</span><strong>a</strong><span>0.500 mAP50-95</span>" in html
    assert html.count('data-column="') == len(re.findall("<button", html)) == 2 + 6


def test_other_conditions_say_how_they_differ():
    same = conditions()
    html = page([row("a", 0.5, same), row("b", 0.4, conditions(epochs=7)), row("c", 0.3, None)], [], [], same)
    assert "Not comparable with conditions 1: epochs 7 instead of 100" in html
    assert "Conditions unknown" in html and "not ranked" in html
    assert html.count("<details>") == 2 and html.count("<dt>hyp lr0</dt><dd>0.01</dd>") == 2
    assert 'class="tile"' not in html and 'class="num best"' not in html  # nothing to choose from


def test_nothing_measured_is_still_a_page():
    html = page([], [NetRow("a", "a", "scratch", failed="no such file")], [])
    assert "failed: no such file" in html and "<img" not in html and "Accuracy over cost" not in html


def test_pictures_are_inside():
    same = conditions()
    sample = SampleImage("0.jpg", [("ground truth", JPEG, 1), ("a", JPEG, 0)])
    html = page([row("a", 0.5, same)], [], [sample], same)
    assert html.count('src="data:image/jpeg;base64,') == 2 and html.count('src="data:image/png;base64,') == 1
    assert html.count("src=") == 3 and "1 box<" in html and "0 boxes<" in html
    assert html.count('<figure class="truth">') == 1 and not re.search(r"https?:|href=", html)
