"""Boxes: conversions, IoU against hand-computed values, NMS against a slow reference, letterbox and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from utils.boxes import (
    box_iou,
    clip_boxes,
    complete_iou,
    letterbox,
    non_max_suppression,
    scale_boxes,
    xywh2xyxy,
    xywhn2xyxy,
    xyxy2xywh,
    xyxy2xywhn,
)
from utils.errors import UserError


def random_xyxy(rng: np.random.Generator, n: int, size: float = 640) -> np.ndarray:
    corner = rng.uniform(0, size * 0.8, (n, 2))
    return np.concatenate((corner, corner + rng.uniform(2, size * 0.2, (n, 2))), 1).astype(np.float32)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_conversions_are_inverse(kind):
    boxes = random_xyxy(np.random.default_rng(0), 20)
    if kind == "torch":
        boxes = torch.from_numpy(boxes)
    before = boxes.clone() if kind == "torch" else boxes.copy()
    np.testing.assert_allclose(xywh2xyxy(xyxy2xywh(boxes)), boxes, atol=1e-3)
    normalised = xyxy2xywhn(boxes, 640, 480, clip=False)
    np.testing.assert_allclose(
        xywhn2xyxy(normalised, 640, 480, 3, 5), np.asarray(boxes) + [3, 5, 3, 5], atol=1e-3
    )
    np.testing.assert_array_equal(boxes, before)  # nothing was changed in place


def test_conversion_values_and_integers():
    assert xyxy2xywh(np.array([[0, 0, 3, 5]])).tolist() == [[1.5, 2.5, 3, 5]]
    assert xywh2xyxy(torch.tensor([[1, 1, 1, 3]])).tolist() == [[0.5, -0.5, 1.5, 2.5]]


def test_xyxy2xywhn_clips_without_touching_its_input():
    boxes = np.array([[-10.0, 0, 50, 120]])
    assert xyxy2xywhn(boxes, 100, 100, clip=True).tolist() == [[0.25, 0.5, 0.5, 1.0]]
    assert boxes[0, 0] == -10


def test_clip_boxes_works_in_place_and_spares_other_columns():
    for boxes in (np.array([[-5.0, -6, 700, 900, 950]]), torch.tensor([[-5.0, -6, 700, 900, 950]])):
        clip_boxes(boxes, (480, 640))
        assert boxes.tolist() == [[0, 0, 640, 480, 950]]


def test_box_iou_hand_computed():
    a = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    b = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 10, 20, 20]])
    expected = torch.tensor([[1, 1 / 3, 0], [0, 0, 0]])
    assert torch.allclose(box_iou(a, b), expected, atol=1e-6)
    assert box_iou(a[:0], b).shape == (0, 3)


@pytest.mark.parametrize(
    "pred, target, iou, distance, v",
    [
        # same box
        ([5, 5, 4, 2], [5, 5, 4, 2], 1.0, 0.0, 0.0),
        # shifted by half its width: IoU 50/150, centres 5 apart, enclosing box 15 x 10
        ([5, 5, 10, 10], [10, 5, 10, 10], 1 / 3, 25 / 325, 0.0),
        # apart: IoU 0, centres (20, 0) apart, enclosing box 30 x 10
        ([5, 5, 10, 10], [25, 5, 10, 10], 0.0, 400 / 1000, 0.0),
        # one inside the other, same centre, other aspect: IoU 32/100
        ([5, 5, 10, 10], [5, 5, 8, 4], 0.32, 0.0, 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2),
    ],
)
def test_complete_iou_hand_computed(pred, target, iou, distance, v):
    alpha = v / (v - iou + 1 + 1e-7)
    found = complete_iou(
        torch.tensor([pred], dtype=torch.float64), torch.tensor([target], dtype=torch.float64)
    )
    assert found.item() == pytest.approx(iou - distance - alpha * v, abs=1e-6)


def test_complete_iou_is_iou_minus_distance_minus_aspect():
    """On random pairs every term is computed the long way, by corners."""
    rng = np.random.default_rng(1)
    a, b = (torch.from_numpy(random_xyxy(rng, 300, 60)).double() for _ in range(2))
    iou = box_iou(a, b).diagonal()
    enclosing = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    wa, wb = xyxy2xywh(a), xyxy2xywh(b)
    distance = (wa[:, :2] - wb[:, :2]).square().sum(1) / (enclosing.square().sum(1) + 1e-7)
    v = 4 / math.pi**2 * (torch.atan(wb[:, 2] / wb[:, 3]) - torch.atan(wa[:, 2] / wa[:, 3])) ** 2
    alpha = v / (v - iou + 1)
    assert iou.max() > 0.3 and iou.min() == 0
    assert torch.allclose(complete_iou(wa, wb), iou - distance - alpha * v, atol=1e-6)


def test_complete_iou_gradient_is_finite_and_alpha_carries_none():
    pred = torch.tensor([[5.0, 5, 10, 10], [50, 5, 1e-3, 9]], requires_grad=True)
    target = torch.tensor([[5.5, 5, 8, 4], [5, 5, 10, 10]])
    complete_iou(pred, target).sum().backward()
    assert pred.grad.isfinite().all() and pred.grad.abs().sum() > 0

    def with_fixed_alpha(x: torch.Tensor) -> torch.Tensor:
        iou = box_iou(xywh2xyxy(x), xywh2xyxy(target[:1]))[0, 0]
        v = 4 / math.pi**2 * (math.atan(2) - torch.atan(x[0, 2] / x[0, 3])) ** 2
        alpha = (v / (v - iou + 1)).detach()
        enclosing = 10.0**2 + 10.0**2  # the target lies inside the prediction
        return iou - ((x[0, :2] - target[0, :2]) ** 2).sum() / enclosing - alpha * v

    x = torch.tensor([[5.0, 5, 10, 10]], requires_grad=True)
    with_fixed_alpha(x).backward()
    assert torch.allclose(x.grad[0, :2], pred.grad[0, :2], atol=1e-5)


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


@pytest.mark.parametrize("native", [(480, 640), (427, 640), (333, 77), (1, 900), (101, 103), (640, 640)])
@pytest.mark.parametrize("auto", [True, False])
def test_letterbox_there_and_back(native, auto):
    image = np.full((*native, 3), 7, np.uint8)
    out, ratio, (left, top) = letterbox(image, (320, 416), auto=auto)
    height, width = out.shape[:2]
    if auto:
        assert height % 32 == 0 or height == 320 and width % 32 == 0
    else:
        assert (height, width) == (320, 416)
    inside = (out != 114).any(2)
    ys, xs = np.nonzero(inside)
    assert (xs.min(), ys.min()) == (left, top)
    there = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], np.float32)
    for ratio_pad in (None, (ratio, (left, top))):
        back = scale_boxes((height, width), there, native, ratio_pad)
        np.testing.assert_allclose(back, [[0, 0, native[1], native[0]]], atol=1e-3)


def test_letterbox_rounds_halves_to_the_right_and_below():
    out, _, (left, top) = letterbox(np.zeros((32, 27, 3), np.uint8), 32, auto=False)
    assert (left, top) == (2, 0)  # five columns are left over: two on the left, three on the right
    assert (out[0, :, 0] == 114).tolist() == [True] * 2 + [False] * 27 + [True] * 3


def test_letterbox_without_scaleup_leaves_small_images():
    out, ratio, pad = letterbox(np.zeros((20, 30, 3), np.uint8), (64, 64), auto=False, scaleup=False)
    assert out.shape == (64, 64, 3) and ratio == (1, 1) and pad == (17, 22)
    box = torch.tensor([[17.0, 22, 47, 42, 0.5, 1]])
    assert scale_boxes((64, 64), box, (20, 30), (ratio, pad)).tolist() == [[0, 0, 30, 20, 0.5, 1]]
    assert box[0, 0] == 17


def test_letterbox_auto_is_the_smallest_rectangle_of_the_stride():
    out, *_ = letterbox(np.zeros((400, 640, 3), np.uint8), 640, auto=True, stride=32)
    assert out.shape == (416, 640, 3)
