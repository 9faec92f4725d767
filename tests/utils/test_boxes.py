"""Boxes: conversions, and IoU against hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from utils.boxes import box_iou, clip_boxes, complete_iou, xywh2xyxy, xywhn2xyxy, xyxy2xywh, xyxy2xywhn


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
