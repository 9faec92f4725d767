"""Box formats and the overlap of boxes.

Boxes are `xyxy` (left, top, right, bottom) or `xywh` (centre, size), in pixels. An `n` in the name means
normalised to 0..1. Functions that convert take torch tensors or numpy arrays (..., 4) and return new ones.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)

LARGEST_LOG_SIDE = 6.0
"""The most that a head without anchors may say of a side's logarithm, in cells: 403 of them, not infinity."""


def float_copy(x: Array) -> Array:
    """Return a copy that can hold fractions: integers become float32, floats keep their type.

    >>> float_copy(np.array([1, 2])).dtype
    dtype('float32')
    """
    if isinstance(x, Tensor):
        return x.clone() if x.is_floating_point() else x.float()
    return np.array(x, dtype=x.dtype if np.issubdtype(x.dtype, np.floating) else np.float32)


def xyxy2xywh(x: Array) -> Array:
    """Return corners (..., 4) as centre and size (..., 4).

    >>> xyxy2xywh(np.array([[10, 20, 30, 60]])).tolist()
    [[20.0, 40.0, 20.0, 40.0]]
    """
    y = float_copy(x)
    y[..., 0] = (x[..., 0] + x[..., 2]) / 2
    y[..., 1] = (x[..., 1] + x[..., 3]) / 2
    y[..., 2] = x[..., 2] - x[..., 0]
    y[..., 3] = x[..., 3] - x[..., 1]
    return y


def xywh2xyxy(x: Array) -> Array:
    """Return centre and size (..., 4) as corners (..., 4).

    >>> xywh2xyxy(np.array([[20, 40, 20, 40]])).tolist()
    [[10.0, 20.0, 30.0, 60.0]]
    """
    y = float_copy(x)
    half_w, half_h = x[..., 2] / 2, x[..., 3] / 2
    y[..., 0] = x[..., 0] - half_w
    y[..., 1] = x[..., 1] - half_h
    y[..., 2] = x[..., 0] + half_w
    y[..., 3] = x[..., 1] + half_h
    return y


def xywhn2xyxy(x: Array, w: float, h: float, padw: float = 0, padh: float = 0) -> Array:
    """Return normalised centres and sizes as corners in pixels.

    Args:
        x: (..., 4) xywh in 0..1.
        w, h: the image's width and height in pixels.
        padw, padh: pixels left of it and above it, on a larger image.

    >>> xywhn2xyxy(np.array([[0.5, 0.5, 0.5, 0.5]]), 100, 200, padw=10).tolist()
    [[35.0, 50.0, 85.0, 150.0]]
    """
    y = xywh2xyxy(x)
    y[..., 0] = y[..., 0] * w + padw
    y[..., 1] = y[..., 1] * h + padh
    y[..., 2] = y[..., 2] * w + padw
    y[..., 3] = y[..., 3] * h + padh
    return y


def xyxy2xywhn(x: Array, w: float, h: float, clip: bool = False, eps: float = 0.0) -> Array:
    """Return corners in pixels as normalised centres and sizes; the input stays as it is.

    Args:
        x: (..., 4) xyxy in pixels.
        w, h: the image's width and height in pixels.
        clip: first cut the corners to [0, w - eps] and [0, h - eps].
        eps: pixels.

    >>> xyxy2xywhn(np.array([[-50, 0, 50, 100]]), 100, 200, clip=True).tolist()
    [[0.25, 0.25, 0.5, 0.5]]
    """
    y = float_copy(x)
    if clip:
        clip_boxes(y, (h - eps, w - eps))
    y = xyxy2xywh(y)
    y[..., 0] /= w
    y[..., 1] /= h
    y[..., 2] /= w
    y[..., 3] /= h
    return y


def clip_boxes(boxes: Array, shape: tuple[float, float]) -> Array:
    """Cut corners to an image, in place, and return them.

    Args:
        boxes: (..., 4+) xyxy in pixels.
        shape: (h, w) of the image.

    >>> clip_boxes(torch.tensor([[-5.0, 2.0, 700.0, 900.0]]), (480, 640))
    tensor([[  0.,   2., 640., 480.]])
    """
    height, width = shape[:2]
    if isinstance(boxes, Tensor):
        boxes[..., 0:3:2].clamp_(0, width)
        boxes[..., 1:4:2].clamp_(0, height)
    else:
        boxes[..., 0:3:2] = boxes[..., 0:3:2].clip(0, width)
        boxes[..., 1:4:2] = boxes[..., 1:4:2].clip(0, height)
    return boxes


def box_iou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """Return the IoU (n, m) of every pair of xyxy boxes (n, 4), (m, 4).

    >>> box_iou(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 0, 15, 10], [20, 20, 30, 30]]))
    tensor([[0.3333, 0.0000]])
    """
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:4], b[None, :, 2:4])
    intersection = (bottom_right - top_left).clamp_(min=0).prod(2)
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return intersection / (area_a[:, None] + area_b[None, :] - intersection + eps)


def complete_iou(pred_xywh: Tensor, target_xywh: Tensor, eps: float = 1e-7) -> Tensor:
    """Return the complete IoU (n,) of xywh boxes (n, 4), (n, 4) taken in pairs.

    CIoU = IoU - rho^2 / c^2 - alpha v (Zheng et al., "Distance-IoU Loss", 2020, section on CIoU): rho is the
    distance of the centres, c the diagonal of the enclosing box, v the difference of the aspects.
    alpha = v / (v - IoU + 1) carries no gradient.

    >>> complete_iou(torch.tensor([[5.0, 5, 4, 2]]), torch.tensor([[5.0, 5, 4, 2]]))
    tensor([1.])
    """
    x1, y1, w1, h1 = pred_xywh.unbind(-1)
    x2, y2, w2, h2 = target_xywh.unbind(-1)
    dx, dy = (x2 - x1).abs(), (y2 - y1).abs()
    # Along one axis the sizes' sum is overlap + enclosing side, so both follow from the centres' distance.
    reach_w, reach_h = (w1 + w2) / 2, (h1 + h2) / 2
    overlap_w = torch.minimum(reach_w - dx, torch.minimum(w1, w2)).clamp(min=0)
    overlap_h = torch.minimum(reach_h - dy, torch.minimum(h1, h2)).clamp(min=0)
    enclosing_w = torch.maximum(reach_w + dx, torch.maximum(w1, w2))
    enclosing_h = torch.maximum(reach_h + dy, torch.maximum(h1, h2))

    intersection = overlap_w * overlap_h
    iou = intersection / (w1 * h1 + w2 * h2 - intersection + eps)
    distance = (dx * dx + dy * dy) / (enclosing_w * enclosing_w + enclosing_h * enclosing_h + eps)
    v = (4 / math.pi**2) * (torch.atan(w2 / (h2 + eps)) - torch.atan(w1 / (h1 + eps))) ** 2
    with torch.no_grad():
        alpha = v / (v - iou + (1 + eps))
    return iou - distance - alpha * v
