"""Offer `letterbox` as YOLOv5's `utils.augmentations` does."""

from __future__ import annotations

import cv2
import numpy as np

from utils import letterbox as ours


def letterbox(
    im: np.ndarray,
    new_shape: int | tuple[int, int] = (640, 640),
    color: tuple[int, int, int] = ours.LETTERBOX_GREY,
    auto: bool = True,
    scaleFill: bool = False,  # noqa: N803 YOLOv5's name
    scaleup: bool = True,
    stride: int = 32,
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
    """Fit an image into a shape.

    Args:
        im: (h, w, c).
        new_shape: (h, w), or one side of a square.
        color: of the border.
        auto: pad to the next multiple of `stride` only.
        scaleFill: stretch the image over the whole shape instead; nothing is padded.
        scaleup: also enlarge small images.

    Returns:
        The image, the ratios (width, height) it was scaled by, and half of the border (width, height).
    """
    height, width = (new_shape, new_shape) if isinstance(new_shape, int) else new_shape
    h, w = im.shape[:2]
    if scaleFill:
        return cv2.resize(im, (width, height)), (width / w, height / h), (0.0, 0.0)
    boxed, (ratio_h, ratio_w), _ = ours.letterbox(im, (height, width), color, auto, scaleup, stride)
    ratio = min(height / h, width / w, *([] if scaleup else [1.0]))
    border_w, border_h = boxed.shape[1] - round(w * ratio_w), boxed.shape[0] - round(h * ratio_h)
    return boxed, (ratio, ratio), (border_w / 2, border_h / 2)
