"""Metrics: values known by hand, properties of the matching rule, sums of the confusion matrix."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from utils.boxes import box_iou
from utils.evaluation.metrics import (
    IOU_THRESHOLDS,
    ConfusionMatrix,
    DetectionStats,
    Metrics,
    ap_per_class,
    average_precision,
    fitness,
    match_predictions,
    save_metrics,
    smooth,
)


def random_image(rng, n, m, nc=3):
    """Labels (m, 5) and detections (n, 6), sorted by confidence, many of them near a label."""
    corner = rng.uniform(0, 200, (m, 2))
    labels = np.concatenate((rng.integers(0, nc, (m, 1)), corner, corner + rng.uniform(20, 90, (m, 2))), 1)
    source = labels[rng.integers(0, m, n)] if m else np.tile([0, 5, 5, 60, 60], (n, 1))
    boxes = source[:, 1:] + rng.normal(0, 6, (n, 4))
    cls = np.where(rng.random(n) < 0.8, source[:, 0], rng.integers(0, nc, n))
    conf = -np.sort(-rng.random(n))
    return torch.from_numpy(np.column_stack((boxes, conf, cls))).float(), torch.from_numpy(labels).float()


def test_matching_by_its_definition():
    """Each detection proposes to its best label of its class; the first that reaches the IoU wins."""
    rng = np.random.default_rng(0)
    rivals = 0
    for _ in range(30):
        detections, labels = random_image(rng, 25, 6)
        found = match_predictions(detections, labels)
        iou = box_iou(detections[:, :4], labels[:, 1:]) * (detections[:, 5:6] == labels[:, 0])
        for column, threshold in enumerate(torch.from_numpy(IOU_THRESHOLDS).float()):
            taken = set()
            for d in range(len(detections)):
                label = int(iou[d].argmax())
                proposes = bool(iou[d, label] >= threshold)
                assert bool(found[d, column]) == (proposes and label not in taken)
                rivals += proposes and label in taken
                taken |= {label} if proposes else set()
    assert rivals > 100


def test_lowest_detection_index_wins_even_with_less_overlap():
    labels = torch.tensor([[0.0, 0, 0, 100, 100]])
    detections = torch.tensor([[0.0, 0, 100, 80, 0.9, 0], [0, 0, 100, 100, 0.8, 0]])  # IoU 0.8, then 1.0
    found = match_predictions(detections, labels)
    assert found[0].tolist() == [True] * 7 + [False] * 3  # 0.50 ... 0.80
    assert found[1].tolist() == [False] * 7 + [True] * 3  # the better box counts where the first falls short


def test_no_match_across_classes_and_for_empty_sides():
    box = torch.tensor([[0.0, 0, 10, 10]])
    detection = torch.cat((box, torch.tensor([[0.9, 1.0]])), 1)
    label = torch.cat((torch.tensor([[0.0]]), box), 1)
    assert not match_predictions(detection, label).any()
    assert match_predictions(detection[:0], label).shape == (0, 10)
    assert match_predictions(detection, label[:0]).tolist() == [[False] * 10]


def test_average_precision_of_known_curves():
    assert average_precision(np.array([0.5, 1.0]), np.array([1.0, 1.0])) == pytest.approx(0.995)
    # One of two labels found, first: precision 1 up to recall 0.5, then it falls linearly to 0 at recall 1.
    assert average_precision(np.array([0.5]), np.array([1.0])) == pytest.approx(0.75)
    # A false detection before the only true one: the envelope is 0.5 from recall 0 on; the last point is 0.
    assert average_precision(np.array([0.0, 1.0]), np.array([0.0, 0.5])) == pytest.approx(0.4975, abs=1e-9)


def test_curves_of_a_hand_made_set():
    """Two labels, three detections (right, wrong, right): precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    correct = np.tile(np.array([[True], [False], [True]]), (1, 10))
    curves = ap_per_class(correct, np.array([0.9, 0.6, 0.3]), np.zeros(3), np.zeros(2))
    at = lambda curve, conf: curve[0, round(conf * 999)]  # noqa: E731
    assert at(curves.recall, 0.95) == 0 and at(curves.precision, 0.95) == 1
    assert at(curves.recall, 0.75) == pytest.approx(0.5, abs=1e-3)
    assert at(curves.precision, 0.75) == pytest.approx(0.75, abs=2e-3)  # halfway between 1 and 1/2
    assert at(curves.recall, 0.45) == pytest.approx(0.75, abs=2e-3)
    assert at(curves.precision, 0.1) == pytest.approx(2 / 3)
    # Envelope: 1 below recall 1/2, from there 2/3, and 0 in the last of the 101 points.
    x = np.linspace(0, 1, 101)
    y = np.where(x < 0.5, 1, 2 / 3)
    y[-1] = 0
    expected = ((y[1:] + y[:-1]) / 2).sum() / 100
    assert curves.ap[0] == pytest.approx(expected, abs=1e-6)


def test_order_of_detections_does_not_matter():
    rng = np.random.default_rng(1)
    correct, conf, cls = rng.random((50, 10)) < 0.5, rng.permutation(50) / 50, rng.integers(0, 3, 50)
    target, order = rng.integers(0, 3, 40), rng.permutation(50)
    one = ap_per_class(correct, conf, cls, target)
    two = ap_per_class(correct[order], conf[order], cls[order], target)
    np.testing.assert_array_equal(one.ap, two.ap)
    assert one.best == two.best


def test_smooth_keeps_length_constants_and_width():
    assert smooth(np.full(1000, 0.3), 0.1) == pytest.approx(0.3)
    pulse = np.zeros(1000)
    pulse[500] = 1
    found = smooth(pulse, 0.1)
    assert len(found) == 1000 and (found > 1e-12).sum() == 101 and found.sum() == pytest.approx(1)


def stats_of(images, nc=3) -> Metrics:
    stats = DetectionStats()
    for detections, labels in images:
        stats.add(detections, labels)
    return stats.compute({c: f"name{c}" for c in range(nc)})


def test_perfect_predictor_reaches_0_995():
    rng = np.random.default_rng(2)
    images = []
    for _ in range(5):
        _, labels = random_image(rng, 0, 6)
        conf = torch.full((6, 1), 0.9)
        images.append((torch.cat((labels[:, 1:], conf, labels[:, :1]), 1), labels))
    metrics = stats_of(images)
    assert metrics.map50 == pytest.approx(0.995) and metrics.map == pytest.approx(0.995)
    assert metrics.precision == pytest.approx(1) and metrics.recall == pytest.approx(1)
    assert fitness(metrics) == pytest.approx(0.995)


def test_no_detections_give_zero_and_every_image_counts():
    stats = DetectionStats()
    label = torch.tensor([[1.0, 0, 0, 10, 10]])
    for labels in (label, label, torch.zeros(0, 5)):
        stats.add(torch.zeros(0, 6), labels)
    metrics = stats.compute({1: "one"})
    assert (metrics.precision, metrics.recall, metrics.map50, metrics.map) == (0, 0, 0, 0)
    assert stats.seen == 3 and stats.instances == 2
    row = metrics.per_class[0]
    assert (row["class"], row["name"], row["images"], row["instances"]) == (1, "one", 2, 2)


def test_nothing_at_all_gives_zero():
    assert DetectionStats().compute({}).map == 0
    assert stats_of([(torch.tensor([[0.0, 0, 5, 5, 0.9, 0]]), torch.zeros(0, 5))]).map50 == 0


def test_means_are_over_classes_with_ground_truth():
    label = torch.tensor([[0.0, 0, 0, 10, 10], [2, 50, 50, 70, 70]])
    detections = torch.tensor([[0.0, 0, 10, 10, 0.9, 0], [200, 200, 240, 240, 0.8, 1]])
    metrics = stats_of([(detections, label)])
    assert [row["class"] for row in metrics.per_class] == [0, 2]
    assert metrics.map50 == pytest.approx(
        0.995 / 2
    )  # class 2 missed; class 1, false but without truth, left out
    assert metrics.maps(3) == pytest.approx([0.995, 0.995 / 2, 0])


def test_false_positives_in_unlabelled_images_lower_precision():
    box = torch.tensor([[0.0, 0, 10, 10, 0.5, 0]])
    label = torch.tensor([[0.0, 0, 0, 10, 10]])
    stray = torch.tensor([[0.0, 0, 10, 10, 0.9, 0]])
    clean = stats_of([(box, label)])
    dirty = stats_of([(box, label), (stray, torch.zeros(0, 5))])
    assert dirty.map50 < 0.51 < clean.map50


def test_confusion_matrix_sums():
    """Columns sum to the labels of each class, rows to the detections of each above the confidence."""
    rng = np.random.default_rng(4)
    confusion, labels_of, found_of = ConfusionMatrix(3), np.zeros(3), np.zeros(3)
    for n, m in [(25, 6), (10, 0), (0, 4), (0, 0), (40, 9)]:
        detections, labels = random_image(rng, n, m)
        confusion.add(detections, labels)
        labels_of += np.bincount(labels[:, 0].long(), minlength=3)
        found_of += np.bincount(detections[detections[:, 4] > 0.25][:, 5].long(), minlength=3)
    matrix = confusion.matrix
    assert matrix[:, :3].sum(0).tolist() == labels_of.tolist()
    assert matrix[:3].sum(1).tolist() == found_of.tolist()
    assert matrix[3, 3] == 0 and np.diag(matrix)[:3].sum() > 0


def test_confusion_matrix_cells():
    confusion = ConfusionMatrix(2)
    labels = torch.tensor([[0.0, 0, 0, 10, 10], [1, 50, 50, 70, 70]])
    detections = torch.tensor(
        [
            [0.0, 0, 10, 6, 0.9, 1],  # IoU 0.6 with label 0, loses it to the next: false positive of class 1
            [0.0, 0, 10, 9, 0.8, 1],  # IoU 0.9: class 1 seen where class 0 is
            [50.0, 50, 70, 58, 0.7, 1],  # IoU 0.4 with label 1: below 0.45
            [50.0, 50, 70, 70, 0.25, 1],  # not above the confidence
        ]
    )
    confusion.add(detections, labels)
    assert confusion.matrix.tolist() == [[0, 0, 0], [1, 0, 2], [0, 1, 0]]


def test_confusion_matrix_counts_detections_where_nothing_matches():
    confusion = ConfusionMatrix(1)
    stray = torch.tensor([[0.0, 0, 10, 10, 0.9, 0]])
    confusion.add(stray, torch.zeros(0, 5))
    confusion.add(stray, torch.tensor([[0.0, 50, 50, 60, 60]]))
    assert confusion.matrix.tolist() == [[0, 2], [1, 0]]


def test_save_metrics_holds_what_the_run_found(tmp_path):
    metrics = stats_of([(torch.tensor([[0.0, 0, 10, 10, 0.9, 0]]), torch.tensor([[0.0, 0, 0, 10, 10]]))])
    speed = {"preprocess": 1.0, "inference": 20.0, "nms": 2.5}
    save_metrics(
        tmp_path / "metrics.json",
        metrics,
        parameters=7,
        gflops=None,
        speed=speed,
        imgsz=64,
        nc=3,
        seed=0,
    )
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["map50"] == pytest.approx(0.995) and report["ms_per_image"] == 23.5
    assert (
        report["per_class"][0]["name"] == "name0" and report["parameters"] == 7 and report["gflops"] is None
    )
    assert {"precision", "recall", "map", "imgsz", "nc", "seed", "versions"} <= report.keys()
