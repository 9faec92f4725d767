"""Fit images into the shape that a network takes, and bring boxes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.boxes import Array, clip_boxes, float_copy
from utils.image_size import whole_strides

LETTERBOX_GREY = (114, 114, 114)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, R G B

RatioPad: TypeAlias = tuple[tuple[float, float], tuple[float, float]]
"""Ratios (height, width) that an image was scaled by, and the pixels (left, top) put before it."""
Placement: TypeAlias = tuple[tuple[int, int], RatioPad]
"""An image's own (height, width), and how it lies in the letterboxed one."""
UNSCALED: RatioPad = (1.0, 1.0), (0.0, 0.0)
"""An image that is neither scaled nor padded."""


def _letterbox_geometry(
    native: tuple[int, int], canvas: tuple[int, int], scaleup: bool = True
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size of an image (h, w) on a canvas, and the space left."""
    gain = min(canvas[0] / native[0], canvas[1] / native[1])
    if not scaleup:
        gain = min(gain, 1.0)
    resized = max(round(native[0] * gain), 1), max(round(native[1] * gain), 1)
    return resized, (canvas[0] - resized[0], canvas[1] - resized[1])


def _first_half(space: int) -> int:
    """Return the share of `space` left of (above) the image.

    An odd pixel goes right (below).
    """
    return round(space / 2 - 0.1)


def letterbox(
    image: np.ndarray,
    new_shape: int | tuple[int, int] = 640,
    colour: tuple[int, int, int] = LETTERBOX_GREY,
    auto: bool = True,
    scaleup: bool = True,
    stride: int = 32,
) -> tuple[np.ndarray, tuple[float, float], tuple[int, int]]:
    """Fit an image into a shape, keep its aspect ratio, and fill the rest.

    Args:
        image: (h, w) or (h, w, c) uint8.
        new_shape: (h, w), or one side of a square, in pixels.
        colour: of the rest.
        auto: pad only to the next multiple of `stride` (a rectangle), not to the whole of `new_shape`.
        scaleup: also enlarge small images.

    Returns:
        The image, the ratios (height, width) it was really scaled by, and the pixels (left, top) put before
        it. `scale_boxes(..., ratio_pad=(ratio, pad))` is the exact inverse.

    >>> image, ratio, pad = letterbox(np.zeros((200, 320, 3), np.uint8), 640)
    >>> image.shape, ratio, pad
    ((416, 640, 3), (2.0, 2.0), (0, 8))
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
    from_shape: tuple[int, int], boxes: Array, to_shape: tuple[int, int], ratio_pad: RatioPad | None = None
) -> Array:
    """Return boxes of a letterboxed image in the pixels of the image itself.

    The result is cut to the image. Columns from the fifth on stay, and so does the input.

    Args:
        from_shape: (h, w) of the letterboxed image.
        boxes: (n, 4+) xyxy in its pixels.
        to_shape: (h, w) of the image itself.
        ratio_pad: as `letterbox` gave it. Without it the letterbox is computed from the two shapes, which is
            right for an image that was allowed to be enlarged.

    >>> scale_boxes((416, 640), torch.tensor([[20.0, 28.0, 640.0, 408.0]]), (200, 320))
    tensor([[ 10.,  10., 320., 200.]])
    """
    if ratio_pad is None:
        resized, space = _letterbox_geometry(to_shape[:2], from_shape[:2])
        ratio_h, ratio_w = resized[0] / to_shape[0], resized[1] / to_shape[1]
        pad_w, pad_h = float(_first_half(space[1])), float(_first_half(space[0]))
    else:
        (ratio_h, ratio_w), (pad_w, pad_h) = ratio_pad
    y = float_copy(boxes)
    y[..., 0:3:2] = (y[..., 0:3:2] - pad_w) / ratio_w
    y[..., 1:4:2] = (y[..., 1:4:2] - pad_h) / ratio_h
    return clip_boxes(y, to_shape)


def common_shape(sizes: Sequence[tuple[int, int]], size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return the (h, w) that a batch of images is letterboxed to.

    It is the largest of their scaled sides, rounded up to whole strides. For one image that is the rectangle
    of `letterbox(..., auto=True)`.

    Args:
        sizes: (h, w) of each image.
        size: (h, w) that each image is scaled into.
        stride: pixels.

    >>> common_shape([(200, 320), (100, 100)], (640, 640), 32)
    (640, 640)
    >>> common_shape([(200, 320)], (640, 640), 32)
    (416, 640)
    """
    fitted = [_letterbox_geometry(native, size)[0] for native in sizes]
    return whole_strides(max(h for h, _ in fitted), stride), whole_strides(max(w for _, w in fitted), stride)


def rgb_planes(image: np.ndarray, *, bgr: bool = True, out: np.ndarray | None = None) -> np.ndarray:
    """Return an image (H, W, 3) uint8 as RGB planes (3, H, W) uint8, contiguous.

    OpenCV does it without holding Python's lock.

    Args:
        image: channels last, as OpenCV reads it.
        bgr: whether its channels are blue, green, red; otherwise they are RGB already.
        out: where to write the planes; None: a new array.

    >>> rgb_planes(np.uint8([[[1, 2, 3]]])).tolist()
    [[[3]], [[2]], [[1]]]
    """
    planes = np.empty((3, *image.shape[:2]), np.uint8) if out is None else out
    for channel in range(3):
        cv2.extractChannel(image, 2 - channel if bgr else channel, planes[channel])
    return planes


def to_unit(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in 0..1.

    >>> to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([0.0000, 0.2000, 1.0000])
    """
    return images.float() / 255


def to_luma(images: Tensor) -> Tensor:
    """Return the luma (N, 1, H, W) of RGB images (N, 3, H, W).

    >>> to_luma(torch.ones(1, 3, 1, 1)).shape
    torch.Size([1, 1, 1, 1])
    """
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def letterbox_tensor(image: np.ndarray, size: int | tuple[int, int], ch: int = 3) -> Tensor:
    """Return an image letterboxed to `size` as a float batch of one.

    Args:
        image: (h, w, 3) BGR uint8.
        size: (H, W), or one side of a square, in pixels.
        ch: channels. One channel is the luma; other numbers than 1 and 3 repeat R, G, B.

    Returns:
        (1, ch, H, W) float32 RGB in 0..1.

    >>> letterbox_tensor(np.zeros((20, 30, 3), np.uint8), 64, ch=4).shape
    torch.Size([1, 4, 64, 64])
    """
    batch = to_unit(torch.from_numpy(rgb_planes(letterbox(image, size, auto=False)[0])))[None]
    return to_luma(batch) if ch == 1 else batch[:, [channel % 3 for channel in range(ch)]]
