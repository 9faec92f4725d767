"""Rows side by side: the front, groups of equal conditions, and tables that say the same figures."""

from __future__ import annotations

import csv
import io

import pytest

from utils.comparison.table import (
    CSV_COLUMNS,
    NET_COLUMNS,
    RECIPE,
    NetRow,
    conditions_of,
    group_rows,
    hyp_name,
    pareto_front,
    start_of,
    tell_apart,
    to_csv,
    to_markdown,
)
from utils.files import ROOT
from utils.training.hyp import load_hyp
from utils.training.options import parse_opt


def meta(**changes) -> dict:
    """What train.py writes into a checkpoint, options changed; `lr0` goes into the hyperparameters."""
    hyp = load_hyp("hyp.digits.yaml")
    if "lr0" in changes:
        hyp["lr0"] = changes.pop("lr0")
    opt = vars(parse_opt(["--data", "data/digits.yaml", "--cfg", "x.yaml", "--epochs", "30"])) | changes
    return {"opt": opt, "hyp": hyp}


def row(key: str, score: float = 0.5, conditions: dict | None = None, **values) -> NetRow:
    figures = {"map": score, "map50": 0.8, "precision": 0.7, "recall": 0.6, "parameters": 1234567}
    figures |= {"parameters_fused": 1230000, "gflops": 4.47, "size_mb": 3.9, "epochs": 30} | values
    return NetRow(key, key, "scratch", conditions, figures, f"{key}/weights/best.pt")


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(1, 1)], [0]),
        ([(1, 0.5), (2, 0.6), (3, 0.55), (4, 0.7)], [0, 1, 3]),
        ([(4, 0.7), (1, 0.5), (3, 0.55), (2, 0.6)], [1, 3, 0]),
        ([(1, 0.5), (1, 0.6)], [1]),  # of one cost the better
        ([(1, 0.5), (2, 0.5)], [0]),  # of one value the cheaper
        ([(2, 0.6), (1, 0.5), (2, 0.6)], [1, 0, 2]),  # equal points stand together
    ],
)
def test_front(points, front):
    assert pareto_front(points) == front


def test_conditions_of_what_train_writes():
    found = conditions_of(meta(), 10)
    assert found["data"] == str(ROOT / "data" / "digits.yaml") and found["nc"] == 10
    assert set(RECIPE) < set(found) and found["epochs"] == 30 and found["hyp"]["lr0"] > 0
    assert found["patience"] is None and conditions_of(meta(patience=0), 10) == found  # neither ever stops
    assert conditions_of(meta(patience=5), 10)["patience"] == 5
    assert (
        conditions_of(meta(data=str(ROOT / "data" / "digits.yaml")), 10) == found
    )  # one file, two spellings
    assert conditions_of(meta(workers=1, device="0", name="other"), 10) == found
    assert conditions_of({}, 10) is None and conditions_of({"opt": {"data": "x"}, "hyp": {}}, 10) is None


def test_start():
    assert start_of(meta()) == "scratch" and start_of(meta(backbone_weights="imagenet")) == "imagenet"
    assert start_of(meta(weights="yolov5n.pt")) == "checkpoint" and start_of({}) == "checkpoint"
    taught = meta(backbone_weights="imagenet", teacher="runs/train/big/weights/best.pt")
    taught["hyp"] |= {"distill_head": 1.0, "distill_neck": 0.5}
    assert conditions_of(taught, 10) == conditions_of(meta(), 10)
    assert start_of(taught) == "imagenet, teacher big"
    assert start_of(meta(neck_weights="yolov5n.pt")) == "scratch, neck yolov5n"
    assert start_of(meta(teacher="x.pt")) == "scratch, teacher x"


def test_other_conditions_are_kept_apart_and_said():
    first, longer = conditions_of(meta(), 10), conditions_of(meta(epochs=60, lr0=0.5), 10)
    rows = [
        row("unknown", 0.9),
        row("long", 0.8, longer),
        row("worse", 0.3, first),
        row("better", 0.4, first),
    ]
    rows.append(NetRow("broken", "broken", failed="no such file"))
    groups = group_rows(rows, first)
    assert [[r.key for r in group.rows] for group in groups] == [["better", "worse"], ["long"], ["unknown"]]
    recipe = "640 px, 30 epochs, batch 16, SGD, seed 0, hyp.digits.yaml"
    assert groups[0].title == f"digits.yaml, 10 classes, {recipe}"
    assert "60 epochs" in groups[1].title and "hyperparameters of its own" in groups[1].title
    assert groups[1].difference.startswith("epochs 60 instead of 30; hyp lr0 0.5 instead of 0.0")
    assert [group.ranked for group in groups] == [True, True, False]
    assert [r.key for r in groups[0].front("gflops")] == ["better"] and groups[2].front("gflops") == []
    assert groups[0].best(NET_COLUMNS[0]) == "0.400" and groups[1].best(NET_COLUMNS[0]) is None
    for changes, classes in (({"imgsz": 320}, 10), ({"seed": 1}, 10), ({"data": "my.yaml"}, 10), ({}, 3)):
        assert conditions_of(meta(**changes), classes) != first


def test_what_was_measured_heads_a_table_and_another_training_is_said():
    small, digits = str(ROOT / "data" / "coco128.yaml"), str(ROOT / "data" / "digits.yaml")
    here, there = conditions_of(meta(data=small, imgsz=128), 10), conditions_of(meta(imgsz=64), 10)
    rows = [row("there", 0.9, there), row("here", 0.2, here), row("own", 0.1, there), row("odd", 0.1)]
    rows[0].data, rows[0].imgsz = small, 128
    rows[1].data, rows[1].imgsz = small, 128
    rows[2].data, rows[2].imgsz = digits, 64
    rows[3].data, rows[3].imgsz = small, 640
    groups = group_rows(rows, here)
    assert [[r.key for r in group.rows] for group in groups] == [["here"], ["there"], ["own"], ["odd"]]
    recipe = "30 epochs, batch 16, SGD, seed 0, hyp.digits.yaml"
    assert groups[0].title == f"coco128.yaml, 10 classes, 128 px, {recipe}"
    told = "trained on digits.yaml at 64 px"
    assert groups[1].title == f"coco128.yaml, 10 classes, 128 px, {told}, {recipe}"
    said = f"trained with data {digits} instead of {small}; trained with imgsz 64 instead of 128"
    assert groups[1].difference == said
    assert groups[2].title == f"digits.yaml, 10 classes, 64 px, {recipe}"
    assert groups[2].difference == f"data {digits} instead of {small}; imgsz 64 instead of 128"
    assert groups[3].title == "conditions unknown, measured on coco128.yaml at 640 px"
    assert "**Conditions unknown, measured on coco128.yaml" in to_markdown(groups, [], ())
    other = group_rows([rows[0], rows[2]], None)[1]  # one training, measured twice
    assert other.difference == f"measured on {digits} instead of {small}; measured at 64 px instead of 128 px"


def test_a_step_fitted_to_the_data_does_not_hide_the_hyperparameters_file():
    stock = ROOT / "data" / "hyps" / "hyp.scratch-low.yaml"
    hyp = load_hyp(stock)
    assert "nominal_batch" not in hyp
    assert hyp_name(hyp | {"nominal_batch": 16}, [stock]) == stock.name  # train.py fills it in
    assert hyp_name(hyp | {"nominal_batch": 16, "lr0": 0.5}, [stock]) == "hyperparameters of its own"


def test_options_off_the_usual_are_in_the_title():
    conditions = conditions_of(meta(cos_lr=True, freeze=["backbone"], amp="off"), 1)
    (group,) = group_rows([row("a", conditions=conditions)], None)
    assert "1 class, " in group.title
    assert group.title.endswith("hyp.digits.yaml, --cos-lr, --amp off, --freeze backbone")


def table_of(markdown: str) -> list[dict[str, str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    cells = [[cell.strip().strip("*") for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(cells[0], row)) for row in cells[1:]]


def test_csv_and_markdown_hold_the_same_figures():
    same = conditions_of(meta(), 10)
    timed = {"torch_ms": 12.3456, "torch_p90": 13.0, "torch_p95": 14.25}
    rows = [row("a", 0.41234, same, **timed, train_seconds=61.6), row("b", 0.3, same, **timed)]
    rows[1].values["size_mb"] = 2.0
    failed = [NetRow("c", "c", "scratch", failed="models/c.yaml: row 3, is wrong")]
    groups = group_rows(rows, same)
    table = list(csv.DictReader(io.StringIO(to_csv(groups, failed))))
    assert list(table[0]) == list(CSV_COLUMNS)
    assert [(r["net"], r["status"]) for r in table] == [
        ("a", "ok"),
        ("b", "ok"),
        ("c", "failed: models/c.yaml: row 3, is wrong"),
    ]
    assert float(table[0]["map"]) == 0.41234 and table[0]["onnx_ms"] == ""
    markdown = to_markdown(groups, failed, ["Hardware: a CPU."])
    shown = table_of(markdown.split("\n\n| net | start | status")[0])
    assert len(shown) == 2 and "ONNX Runtime ms (p90, p95)" not in shown[0]  # empty throughout
    for from_csv, from_md in zip(table, shown):
        for column in NET_COLUMNS:
            if column.title not in from_md or not from_md[column.title]:
                assert from_csv[column.keys[0]] == ""
                continue
            text = from_md[column.title].replace("(", " ").replace(")", " ")
            numbers = column.keys[0] == "parameters" and ["1234567", "1230000"]
            numbers = numbers or text.replace(",", " ").split()
            for key, figure in zip(column.keys, numbers, strict=True):
                assert float(figure) == pytest.approx(float(from_csv[key]), abs=0.51)
    assert "| 1 234 567 (1 230 000) |" in markdown.replace("**", "")
    assert "**0.412**" in markdown and "**2.0**" in markdown and "| 3.9 |" in markdown
    assert "**12.3 (13.0, 14.2)**" in markdown and markdown.count("**12.3") == 2  # equal as printed
    assert "failed: models/c.yaml: row 3, is wrong" in markdown and markdown.endswith("Hardware: a CPU.\n")


def test_names_are_no_markup():
    same = conditions_of(meta(), 10)
    odd = row("x", conditions=same)
    odd.label = "a|b <script>\n*c*"
    text = to_markdown(group_rows([odd], same), [], ())
    assert "a\\|b &lt;script&gt; \\*c\\*" in text and "<script>" not in text
    (line,) = list(csv.reader(io.StringIO(to_csv(group_rows([odd], same), []))))[1:]
    assert line[0] == odd.label


def test_one_label_twice_gets_the_folder():
    rows = [NetRow("best", "n"), NetRow("best-2", "n"), NetRow("other", "m")]
    tell_apart(rows)
    assert [r.label for r in rows] == ["n [best]", "n [best-2]", "m"]
