"""NMS against a slow reference that reads as the definition does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.boxes import box_iou
from utils.errors import UserError
from utils.nms import non_max_suppression


def brute_force_nms(rows, conf_thres, iou_thres, multi_label, agnostic, max_det):
    """Greedy NMS as its definition reads, one pair at a time."""
    found = []
    for row in rows.tolist():
        if row[4] <= conf_thres:
            continue
        scores = [s * row[4] for s in row[5:]]
        classes = range(len(scores)) if multi_label else [int(np.argmax(scores))]
        x, y, w, h = row[:4]
        box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        found += [[*box, scores[c], c] for c in classes if scores[c] > conf_thres]
    found.sort(key=lambda d: -d[4])
    kept = []
    for d in found:
        rivals = torch.tensor([k[:4] for k in kept if agnostic or k[5] == d[5]]).reshape(-1, 4)
        if not (box_iou(torch.tensor([d[:4]]), rivals) > iou_thres).any():
            kept.append(d)
    return torch.tensor(kept[:max_det]).reshape(-1, 6)


def random_prediction(rng, n, nc, size=200.0) -> torch.Tensor:
    xy = rng.uniform(0, size, (n, 2))
    wh = rng.uniform(10, size / 2, (n, 2))
    return torch.from_numpy(np.concatenate((xy, wh, rng.uniform(0, 1, (n, 1 + nc))), 1)).float()


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("max_det", [1, 7, 300])
def test_nms_equals_brute_force(multi_label, agnostic, max_det):
    rng = np.random.default_rng(max_det)
    batch = torch.stack([random_prediction(rng, 120, 3) for _ in range(2)])
    found = non_max_suppression(batch, 0.2, 0.5, multi_label=multi_label, agnostic=agnostic, max_det=max_det)
    for rows, detections in zip(batch, found):
        expected = brute_force_nms(rows, 0.2, 0.5, multi_label, agnostic, max_det)
        assert len(expected) > 0
        assert torch.allclose(detections, expected, atol=1e-4)


def test_nms_prefixes_grow_until_enough_survive():
    """One great pile of boxes above everything else: the survivors below it must still be found."""
    pile = torch.tensor([50.0, 50, 40, 40, 0.99, 1]).repeat(500, 1)
    apart = torch.tensor([[500.0 + 100 * i, 500, 40, 40, 0.5 - 0.01 * i, 1] for i in range(5)])
    found = non_max_suppression(torch.cat((apart, pile))[None], 0.1, 0.5, max_det=4)[0]
    assert found[:, 0].tolist() == [30, 480, 580, 680]


def test_nms_keeps_far_classes_apart_exactly():
    """With 1000 classes a float32 offset would move boxes by whole pixels; these are compared in float64."""
    rows = torch.zeros(2, 1005)
    rows[:, :4] = torch.tensor([[10.0, 10, 4.0, 4.0], [10.9, 10, 4.0, 4.0]])  # IoU 3.1 / 4.9 = 0.633
    rows[:, 4] = 1
    rows[:, 1004] = torch.tensor([0.9, 0.8])
    assert len(non_max_suppression(rows[None], 0.1, 0.64)[0]) == 2
    assert len(non_max_suppression(rows[None], 0.1, 0.62)[0]) == 1


def test_nms_filters_classes_and_ignores_non_finite_boxes():
    rng = np.random.default_rng(3)
    rows = random_prediction(rng, 50, 4)
    rows[0, :4] = float("inf")
    rows[1, 2] = float("nan")
    rows[:2, 4:] = 1
    found = non_max_suppression(rows[None], 0.1, 0.5, classes=[1, 3], multi_label=True)[0]
    assert set(found[:, 5].tolist()) == {1.0, 3.0}
    assert found.isfinite().all()


def test_nms_hybrid_labels_come_first_at_confidence_one():
    rows = torch.tensor([[50.0, 50, 20, 20, 0.6, 0.1, 0.9]])
    label = torch.tensor([[1.0, 50, 50, 20, 20], [0, 150, 150, 10, 10]])
    found = non_max_suppression(rows[None], 0.1, 0.5, labels=[label])[0]
    assert found[:, 4].tolist() == [1, 1]
    assert sorted(found[:, 5].tolist()) == [0, 1]


def test_nms_of_nothing_and_of_empty_images():
    assert [d.shape for d in non_max_suppression(torch.zeros(2, 10, 7))] == [(0, 6), (0, 6)]
    assert non_max_suppression(torch.zeros(1, 0, 7))[0].shape == (0, 6)


@pytest.mark.parametrize("options", [{"conf_thres": 1.1}, {"iou_thres": -0.1}, {"max_det": 0}])
def test_nms_refuses_thresholds_out_of_range(options):
    with pytest.raises(UserError):
        non_max_suppression(torch.zeros(1, 1, 7), **options)
