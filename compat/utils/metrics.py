"""Offer the overlap of boxes and the fitness as YOLOv5's `utils.metrics` does."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from utils.boxes import box_iou, xywh2xyxy

__all__ = ["bbox_iou", "box_iou", "fitness"]


def bbox_iou(
    box1: Tensor,
    box2: Tensor,
    xywh: bool = True,
    GIoU: bool = False,  # noqa: N803 YOLOv5's names
    DIoU: bool = False,  # noqa: N803
    CIoU: bool = False,  # noqa: N803
    eps: float = 1e-7,
) -> Tensor:
    """Return the IoU (n, 1) of boxes (n, 4) taken in pairs.

    One of the two may be a single box (1, 4).

    `GIoU`, `DIoU` or `CIoU` give these instead; `xywh` says the form of both.
    """
    if xywh:
        box1, box2 = xywh2xyxy(box1), xywh2xyxy(box2)
    box1, box2 = torch.broadcast_tensors(box1, box2)
    if not (GIoU or DIoU or CIoU):
        low, high = box1[:, :2].maximum(box2[:, :2]), box1[:, 2:].minimum(box2[:, 2:])
        shared = (high - low).clamp(min=0).prod(1, keepdim=True)
        areas = [(box[:, 2:] - box[:, :2]).prod(1, keepdim=True) for box in (box1, box2)]
        return shared / (areas[0] + areas[1] - shared + eps)
    loss = complete_box_iou_loss if CIoU else distance_box_iou_loss if DIoU else generalized_box_iou_loss
    return (1 - loss(box1, box2, eps=eps))[:, None]


def fitness(x: np.ndarray) -> np.ndarray:
    """Return the fitness (n,) of rows (n, 4+) of precision, recall, mAP50, mAP50-95."""
    return 0.1 * x[:, 2] + 0.9 * x[:, 3]
