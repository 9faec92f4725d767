"""COCO evaluation: the same figures as pycocotools fed by hand, whatever the files are called."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest

import utils.evaluation.coco as coco
from utils.errors import UserError
from utils.evaluation.coco import (
    COCO_CATEGORY_IDS,
    CocoEvaluator,
    coco_evaluate,
    is_coco,
    json_image_id,
    prediction_rows,
)

EVALUATORS = [e[0] for e in coco._EVALUATORS]


def random_set(seed: int, images: int = 12, nc: int = 3):
    """Per image labels (m, 5) and detections (n, 6) near them, native pixels."""
    rng = np.random.default_rng(seed)
    for _ in range(images):
        m, n = int(rng.integers(0, 6)), int(rng.integers(0, 25))
        corner = rng.uniform(0, 300, (m, 2))
        size = rng.uniform(8, 250, (m, 2))
        labels = np.concatenate((rng.integers(0, nc, (m, 1)), corner, corner + size), 1)
        near = labels[rng.integers(0, m, n)] if m else np.tile([0, 10, 10, 90, 90], (n, 1))
        boxes = near[:, 1:] + rng.normal(0, 5, (n, 4))
        cls = np.where(rng.random(n) < 0.8, near[:, 0], rng.integers(0, nc, n))
        yield labels, np.column_stack((boxes, rng.random(n), cls))


def by_hand(data, nc: int = 3) -> np.ndarray:
    """pycocotools' twelve figures, its input built apart from our code."""
    pytest.importorskip("pycocotools", reason="pycocotools is optional")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for image, (labels, detections) in enumerate(data):
        for c, x1, y1, x2, y2 in labels.tolist():
            w, h = x2 - x1, y2 - y1
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 77,
                    "category_id": int(c) + 1,
                    "bbox": [x1, y1, w, h],
                }
            )
            annotations[-1].update(area=w * h, iscrowd=0)
        for x1, y1, x2, y2, s, c in detections.tolist():
            results.append(
                {
                    "image_id": image + 77,
                    "category_id": int(c) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": s,
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": i + 77, "width": 600, "height": 600} for i in range(len(data))],
            "annotations": annotations,
            "categories": [{"id": c + 1, "name": str(c)} for c in range(nc)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_pycocotools_on_random_data(seed, evaluator, monkeypatch):
    if not importlib.util.find_spec(evaluator):
        pytest.skip(f"{evaluator} is optional")
    monkeypatch.setattr(coco, "_EVALUATORS", [e for e in coco._EVALUATORS if e[0] == evaluator])
    data = list(random_set(seed))
    ours = CocoEvaluator({c: str(c) for c in range(3)})
    for labels, detections in data:
        ours.add((600, 600), labels, detections, "the same name.jpg")
    result = ours.evaluate()
    assert result.evaluator == evaluator
    assert 0.05 < result.map < result.map50 < 1
    np.testing.assert_allclose(list(result.stats.values()), by_hand(data)[:12], atol=1e-9)


def test_first_annotation_of_first_image_can_be_matched():
    """pycocotools takes an annotation id of 0 for 'no match'; ours start at 1."""
    label, found = np.array([[0, 10, 10, 60, 60.0]]), np.array([[10, 10, 60, 60, 0.9, 0.0]])
    one = CocoEvaluator({0: "thing"})
    one.add((100, 100), label, found)
    assert one.evaluate().map == pytest.approx(1)


def test_no_detections_and_no_labels_give_zero():
    empty = CocoEvaluator({0: "thing"})
    empty.add((100, 100), np.array([[0, 10, 10, 60, 60.0]]), np.zeros((0, 6)))
    assert empty.evaluate().map == 0
    unlabelled = CocoEvaluator({0: "thing"})
    unlabelled.add((100, 100), np.zeros((0, 5)), np.array([[10, 10, 60, 60, 0.9, 0.0]]))
    assert unlabelled.evaluate().map == 0


def test_only_the_given_images_are_evaluated():
    box = [10.0, 10, 50, 50]
    truth = {
        "images": [{"id": i, "width": 100, "height": 100} for i in (5, 9)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": box, "area": 2500.0, "iscrowd": 0}
            for i in (5, 9)
        ],
    }
    rows = [
        {"image_id": 9, "category_id": 1, "bbox": box, "score": 0.5},
        {"image_id": 4, "category_id": 1, "bbox": box, "score": 1},
    ]
    assert coco_evaluate(truth, rows).map < 0.6
    assert coco_evaluate(truth, rows, [9]).map == pytest.approx(1)
    assert "area" not in rows[0]  # the caller's rows stay as they are


def test_without_an_evaluator_one_sentence(monkeypatch):
    monkeypatch.setattr(coco, "_EVALUATORS", [("no_such_package", "", "", "", "")])
    with pytest.raises(UserError, match="faster-coco-eval or pycocotools"):
        coco.installed_evaluator()


def test_category_ids_run_to_90_with_ten_gaps():
    assert len(COCO_CATEGORY_IDS) == 80
    assert (COCO_CATEGORY_IDS[0], COCO_CATEGORY_IDS[11], COCO_CATEGORY_IDS[79]) == (1, 13, 90)
    assert list(COCO_CATEGORY_IDS) == sorted(COCO_CATEGORY_IDS)


def test_prediction_rows_are_rounded_top_left_boxes():
    detections = np.array([[10.12345, 20, 30.98765, 60, 0.1234567, 11]])
    rows = prediction_rows(json_image_id("a/000000000139.jpg"), detections, COCO_CATEGORY_IDS)
    assert rows == [{"image_id": 139, "category_id": 13, "bbox": [10.123, 20, 20.864, 40], "score": 0.12346}]
    assert prediction_rows("x", detections)[0]["category_id"] == 11
    assert json.loads(json.dumps(rows)) == rows  # plain values


def test_image_ids():
    assert json_image_id("a/0042.png") == 42
    assert json_image_id("a/cat-42.png") == "cat-42"
    assert json_image_id("a/\u00b2.png") == "\u00b2"  # isdigit alone would take a superscript for a number


def test_what_counts_as_coco():
    val = {"val": [Path("coco/val2017.txt")]}
    assert is_coco(Path("my.yaml"), val, 80) and is_coco(Path("data/coco.yaml"), {}, 80)
    assert not is_coco(Path("my.yaml"), val, 3)
    assert not is_coco(Path("my.yaml"), {"val": [Path("images/val")]}, 80)
