"""Box formats, IoU, non-maximum suppression, and the letterbox there and back.

Boxes are `xyxy` (left, top, right, bottom) or `xywh` (centre, size), in pixels, or normalised to 0..1 with
an `n` in the name. Functions that convert take torch tensors or numpy arrays (..., 4) and return new ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from utils.errors import UserError

Array = TypeVar("Array", np.ndarray, Tensor)

MAX_CANDIDATES = 30_000  # best-scored candidates per image that enter NMS, as YOLOv5 does
LETTERBOX_GREY = (114, 114, 114)


def _float_copy(x: Array) -> Array:
    """A copy that can hold fractions: integers become float32, floats keep their type."""
    if isinstance(x, Tensor):
        return x.clone() if x.is_floating_point() else x.float()
    return np.array(x, dtype=x.dtype if np.issubdtype(x.dtype, np.floating) else np.float32)


def xyxy2xywh(x: Array) -> Array:
    """(..., 4) corners -> (..., 4) centre and size."""
    y = _float_copy(x)
    y[..., 0] = (x[..., 0] + x[..., 2]) / 2
    y[..., 1] = (x[..., 1] + x[..., 3]) / 2
    y[..., 2] = x[..., 2] - x[..., 0]
    y[..., 3] = x[..., 3] - x[..., 1]
    return y


def xywh2xyxy(x: Array) -> Array:
    """(..., 4) centre and size -> (..., 4) corners."""
    y = _float_copy(x)
    half_w, half_h = x[..., 2] / 2, x[..., 3] / 2
    y[..., 0] = x[..., 0] - half_w
    y[..., 1] = x[..., 1] - half_h
    y[..., 2] = x[..., 0] + half_w
    y[..., 3] = x[..., 1] + half_h
    return y


def xywhn2xyxy(x: Array, w: float, h: float, padw: float = 0, padh: float = 0) -> Array:
    """Normalised centre and size -> pixel corners of a (w, h) image that lies at (padw, padh) of a canvas."""
    y = xywh2xyxy(x)
    y[..., 0] = y[..., 0] * w + padw
    y[..., 1] = y[..., 1] * h + padh
    y[..., 2] = y[..., 2] * w + padw
    y[..., 3] = y[..., 3] * h + padh
    return y


def xyxy2xywhn(x: Array, w: float, h: float, clip: bool = False, eps: float = 0.0) -> Array:
    """Pixel corners -> centre and size normalised by (w, h).

    `clip` first cuts the corners to [0, w - eps] and [0, h - eps]. The input is left as it is.
    """
    y = _float_copy(x)
    if clip:
        clip_boxes(y, (h - eps, w - eps))
    y = xyxy2xywh(y)
    y[..., 0] /= w
    y[..., 1] /= h
    y[..., 2] /= w
    y[..., 3] /= h
    return y


def clip_boxes(boxes: Array, shape: tuple[float, float]) -> Array:
    """Cut pixel corners (..., 4+) to an image of shape (h, w), in place; returns `boxes`."""
    height, width = shape[:2]
    if isinstance(boxes, Tensor):
        boxes[..., 0:3:2].clamp_(0, width)
        boxes[..., 1:4:2].clamp_(0, height)
    else:
        boxes[..., 0:3:2] = boxes[..., 0:3:2].clip(0, width)
        boxes[..., 1:4:2] = boxes[..., 1:4:2].clip(0, height)
    return boxes


def _letterbox_geometry(
    native: tuple[int, int], canvas: tuple[int, int], scaleup: bool = True
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size (h, w) that an image of `native` (h, w) takes on a `canvas` (h, w), and the space (h, w) left."""
    gain = min(canvas[0] / native[0], canvas[1] / native[1])
    if not scaleup:
        gain = min(gain, 1.0)
    resized = max(round(native[0] * gain), 1), max(round(native[1] * gain), 1)
    return resized, (canvas[0] - resized[0], canvas[1] - resized[1])


def _first_half(space: int) -> int:
    """Pixels left of (above) the image when `space` is shared out; an odd pixel goes right (below)."""
    return round(space / 2 - 0.1)


def letterbox(
    image: np.ndarray,
    new_shape: int | tuple[int, int],
    *,
    colour: tuple[int, int, int] = LETTERBOX_GREY,
    auto: bool = True,
    scaleup: bool = True,
    stride: int = 32,
) -> tuple[np.ndarray, tuple[float, float], tuple[int, int]]:
    """Fit an image (h, w[, c]) into `new_shape` (h, w), keeping its aspect, and fill the rest with `colour`.

    Args:
        auto: pad only to the next multiple of `stride` (a rectangle) rather than to the whole of `new_shape`.
        scaleup: also enlarge small images.
    Returns:
        the image, the ratios (height, width) it was really scaled by, and the pixels (left, top) put before
        it, so that `scale_boxes(..., ratio_pad=(ratio, pad))` is the exact way back.
    """
    if isinstance(new_shape, int):
        new_shape = (new_shape, new_shape)
    native = image.shape[:2]
    resized, space = _letterbox_geometry(native, new_shape, scaleup)
    if auto:
        space = space[0] % stride, space[1] % stride
    if resized != native:
        image = cv2.resize(image, (resized[1], resized[0]), interpolation=cv2.INTER_LINEAR)
    top, left = _first_half(space[0]), _first_half(space[1])
    bottom, right = space[0] - top, space[1] - left
    if top or bottom or left or right:
        image = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=colour)
    return image, (resized[0] / native[0], resized[1] / native[1]), (left, top)


def scale_boxes(
    from_shape: tuple[int, int],
    boxes: Array,
    to_shape: tuple[int, int],
    ratio_pad: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> Array:
    """Boxes (n, 4+) xyxy of a letterboxed image `from_shape` (h, w) -> pixels of the native `to_shape`.

    Without `ratio_pad` ((ratio_h, ratio_w), (pad_w, pad_h)) the letterbox is worked out from the two shapes,
    which is right if the image was allowed to scale up. The result is clipped to the native image; columns
    from the fifth on stay as they are. The input is left as it is.
    """
    if ratio_pad is None:
        resized, space = _letterbox_geometry(to_shape[:2], from_shape[:2])
        ratio_h, ratio_w = resized[0] / to_shape[0], resized[1] / to_shape[1]
        pad_w, pad_h = _first_half(space[1]), _first_half(space[0])
    else:
        (ratio_h, ratio_w), (pad_w, pad_h) = ratio_pad
    y = _float_copy(boxes)
    y[..., 0:3:2] = (y[..., 0:3:2] - pad_w) / ratio_w
    y[..., 1:4:2] = (y[..., 1:4:2] - pad_h) / ratio_h
    return clip_boxes(y, to_shape)


def box_iou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """IoU of every pair of xyxy boxes: (n, 4), (m, 4) -> (n, m)."""
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:4], b[None, :, 2:4])
    intersection = (bottom_right - top_left).clamp_(min=0).prod(2)
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return intersection / (area_a[:, None] + area_b[None, :] - intersection + eps)


def complete_iou(pred_xywh: Tensor, target_xywh: Tensor, eps: float = 1e-7) -> Tensor:
    """Complete IoU of boxes taken in pairs: (n, 4), (n, 4) xywh -> (n,).

    CIoU = IoU - rho^2 / c^2 - alpha v (Zheng et al., "Distance-IoU Loss", 2020, section on CIoU): rho is the
    distance of the centres, c the diagonal of the enclosing box, v the difference of the aspects.
    alpha = v / (v - IoU + 1) carries no gradient.
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


def _candidates(rows: Tensor, conf_thres: float, multi_label: bool, keep_class: Tensor | None) -> Tensor:
    """Rows (k, 5+nc) of one image -> (n, 6) xyxy, confidence, class, best first; the 30 000 best at most."""
    rows = rows[rows[:, :4].isfinite().all(1)]
    scores = rows[:, 5:] * rows[:, 4:5]
    if multi_label:
        above = scores > conf_thres
        if keep_class is not None:
            above &= keep_class
        index, cls = above.nonzero(as_tuple=True)
        conf = scores[index, cls]
    else:
        conf, cls = scores.max(1)
        above = conf > conf_thres
        if keep_class is not None:
            above &= keep_class[cls]
        index = above.nonzero(as_tuple=True)[0]
        conf, cls = conf[index], cls[index]
    if conf.numel() > MAX_CANDIDATES:
        conf, best = conf.topk(MAX_CANDIDATES)
    else:
        conf, best = conf.sort(descending=True, stable=True)
    boxes = xywh2xyxy(rows[index[best], :4])
    return torch.cat((boxes, conf[:, None], cls[best, None].to(boxes.dtype)), 1)


def _suppress(found: Tensor, iou_thres: float, agnostic: bool, max_det: int) -> Tensor:
    """Greedy NMS of candidates (n, 6) sorted by confidence -> the first `max_det` that stay.

    Whether a box stays depends on better-scored boxes only, so the first `max_det` survivors of a prefix are
    those of the whole: prefixes grow until they hold enough. That is exact, and keeps early epochs, where
    tens of thousands of candidates pass a threshold of 0.001, from costing seconds. Classes are kept apart by
    an offset, in float64 because 7680 x 79 leaves float32 only 1/16 pixel.
    """
    boxes = found[:, :4].double()
    if not agnostic:
        extent = boxes.max() - boxes.min() + 1
        boxes = boxes + found[:, 5:6].double() * extent
    size = 4 * max_det
    while True:
        kept = nms(boxes[:size], found[:size, 4].double(), iou_thres)
        if len(kept) >= max_det or size >= len(found):
            return found[kept[:max_det]]
        size *= 4


@torch.no_grad()
def non_max_suppression(
    prediction: Tensor,
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    *,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_det: int = 300,
    labels: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Decoded predictions of a batch -> detections per image, however long it takes.

    Args:
        prediction: (N, boxes, 5 + nc): xywh in pixels, objectness, class probabilities.
        conf_thres: candidates need objectness, and objectness x class probability, above it.
        iou_thres: of two boxes that overlap more, the less confident one goes.
        classes: keep these only.
        agnostic: boxes suppress each other across classes too.
        multi_label: one box may be several classes (validation); otherwise its best class.
        labels: per image (m, 5) class + xywh in pixels, added with confidence 1 (hybrid labelling).
    Returns:
        per image (n, 6) float32, xyxy in pixels, confidence, class; best first; n <= max_det.
    """
    for name, value in (("confidence", conf_thres), ("IoU", iou_thres)):
        if not 0 <= value <= 1:
            raise UserError(
                f"The {name} threshold of NMS must lie in 0..1, not {value}; give a value such as 0.25."
            )
    if max_det < 1:
        raise UserError(f"max-det must be at least 1, not {max_det}.")
    home = prediction.device
    if home.type == "mps":  # torchvision has no NMS there
        prediction = prediction.cpu()
    nc = prediction.shape[2] - 5
    multi_label &= nc > 1
    keep_class = None
    if classes is not None:
        keep_class = torch.zeros(nc, dtype=torch.bool, device=prediction.device)
        keep_class[[c for c in classes if 0 <= c < nc]] = True

    output = []
    for i, rows in enumerate(prediction):
        rows = rows[rows[:, 4] > conf_thres].float()
        if len(labels) and len(labels[i]):
            truth = labels[i].to(rows.device)
            extra = rows.new_zeros(len(truth), rows.shape[1])
            extra[:, :4] = truth[:, 1:5]
            extra[:, 4] = 1
            extra[torch.arange(len(truth)), 5 + truth[:, 0].long()] = 1
            rows = torch.cat((rows, extra))
        found = _candidates(rows, conf_thres, multi_label, keep_class)
        if len(found):
            found = _suppress(found, iou_thres, agnostic, max_det)
        output.append(found.to(home))
    return output


@dataclass(frozen=True)
class NmsOptions:
    """What is asked of `non_max_suppression`, whoever carries it out; the fields are its arguments."""

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    classes: Sequence[int] | None = None
    agnostic: bool = False
    multi_label: bool = False
    max_det: int = 300

    def suppress(self, prediction: Tensor, labels: Sequence[Tensor] = ()) -> list[Tensor]:
        """Decoded predictions (N, boxes, 5 + nc) -> per image (n, 6)."""
        return non_max_suppression(
            prediction,
            self.conf_thres,
            self.iou_thres,
            classes=self.classes,
            agnostic=self.agnostic,
            multi_label=self.multi_label,
            max_det=self.max_det,
            labels=labels,
        )
