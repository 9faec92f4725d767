"""Augment images and their labels, by pure functions.

Here an image is BGR uint8 (h, w, 3), labels are (k, 5) float32 rows `class, x1, y1, x2, y2` in pixels, and
polygons are one (p, 2) float32 array of pixels for each label, empty where a label has none. No input is
changed, and all randomness comes from the `numpy.random.Generator` that is passed in. The functions come in
the order in which `DetectionDataset` calls them.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from utils.letterbox import LETTERBOX_GREY

LOGGER = logging.getLogger("yolo.augmentations")

MIN_BOX_SIDE = 2.0
"""A warped box must be wider and higher than this many pixels."""
MIN_AREA_BOX, MIN_AREA_POLYGON = 0.10, 0.01
"""The share of its area that an object must keep; a polygon tells this share better than a box."""
MAX_ASPECT = 100.0
MAX_PASTE_OVERLAP = 0.30
MIXUP_BETA = 32.0
ALBUMENTATIONS_PROBABILITY = 0.01


class LabelledImage(NamedTuple):
    """Hold an image with its labels (k, 5) in pixels and its k polygons."""

    image: np.ndarray
    labels: np.ndarray
    polygons: list[np.ndarray]


def mosaic4(tiles: Sequence[LabelledImage], size: int, rng: np.random.Generator) -> LabelledImage:
    """Put four images around a random centre on a grey canvas.

    The canvas is 2 size x 2 size (YOLOv4, arXiv:2004.10934, section 3.3). The centre is uniform in
    [size/2, 3 size/2] on each axis. The tiles (top left, top right, bottom left, bottom right) touch it with
    one corner each, and are cut off at the edge of the canvas. `random_perspective` with `border=-size // 2`
    then crops the image of size x size.

    >>> white = np.full((64, 64, 3), 255, np.uint8)
    >>> tile = LabelledImage(white, np.float32([[7, 0, 0, 64, 64]]), [np.zeros((0, 2))])
    >>> canvas = mosaic4([tile] * 4, 64, np.random.default_rng(0))
    >>> canvas.image.shape, canvas.labels.shape
    ((128, 128, 3), (4, 5))
    """
    side = 2 * size
    canvas = np.full((side, side, 3), LETTERBOX_GREY[0], np.uint8)
    centre_x, centre_y = (int(v) for v in rng.uniform(size / 2, 3 * size / 2, 2))
    labels, polygons = [], []
    for number, tile in enumerate(tiles):
        height, width = tile.image.shape[:2]
        left = centre_x - (width if number % 2 == 0 else 0)
        top = centre_y - (height if number < 2 else 0)
        x1, y1 = max(left, 0), max(top, 0)
        x2, y2 = min(left + width, side), min(top + height, side)
        canvas[y1:y2, x1:x2] = tile.image[y1 - top : y2 - top, x1 - left : x2 - left]
        moved = tile.labels.copy()
        moved[:, 1:] += (left, top, left, top)
        labels.append(moved)
        polygons += [_shifted(p, left, top, side) for p in tile.polygons]
    rows = np.concatenate(labels)
    np.clip(rows[:, 1:], 0, side, out=rows[:, 1:])
    return LabelledImage(canvas, rows, polygons)


def _shifted(polygon: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """Return a polygon moved by left and top, and clipped to the canvas."""
    return (polygon + np.array((left, top), np.float32)).clip(0, side)


def copy_paste(sample: LabelledImage, probability: float, rng: np.random.Generator) -> LabelledImage:
    """Paste the mirror images of some objects (Simple Copy-Paste, arXiv:2012.07177).

    round(probability x k) objects are drawn. Each is pasted at its mirrored place if it has a polygon and
    covers less than 0.30 of every box that the image has by then.

    >>> image = np.zeros((60, 100, 3), np.uint8)
    >>> triangle = np.float32([[10, 10], [30, 10], [10, 40]])
    >>> sample = LabelledImage(image, np.float32([[7, 10, 10, 30, 40]]), [triangle])
    >>> copy_paste(sample, 1.0, np.random.default_rng(0)).labels.tolist()
    [[7.0, 10.0, 10.0, 30.0, 40.0], [7.0, 70.0, 10.0, 90.0, 40.0]]
    """
    count = len(sample.labels)
    chosen = rng.choice(count, round(probability * count), replace=False) if count else ()
    width = sample.image.shape[1]
    image, labels, polygons = sample.image, sample.labels, list(sample.polygons)
    for j in chosen:
        if len(sample.polygons[j]) < 3:
            continue
        row = sample.labels[j].copy()
        row[[1, 3]] = width - row[[3, 1]]
        if len(labels) and _coverage(row[1:], labels[:, 1:]).max() >= MAX_PASTE_OVERLAP:
            continue
        if image is sample.image:
            image = sample.image.copy()
        _paste_mirrored(image, sample.image, sample.polygons[j])
        labels = np.concatenate([labels, row[None]])
        polygons.append(sample.polygons[j] * np.array((-1, 1), np.float32) + np.array((width, 0), np.float32))
    return LabelledImage(image, labels, polygons)


def _coverage(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the share (n,) of each of `boxes` (n, 4) that `box` (4,) covers."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.prod(np.maximum(high - low, 0), axis=1) / np.maximum(area, 1e-7)


def _paste_mirrored(image: np.ndarray, source: np.ndarray, polygon: np.ndarray) -> None:
    """Copy the pixels of `source` inside `polygon` to their mirrored place in `image`."""
    height, width = source.shape[:2]
    corner = np.round(polygon).astype(np.int32)
    x1, y1 = np.clip(corner.min(0), 0, (width, height))
    x2, y2 = np.clip(corner.max(0) + 1, 0, (width, height))
    if x1 >= x2 or y1 >= y2:
        return
    mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
    cv2.fillPoly(mask, [corner - np.array((x1, y1), np.int32)], (1,))
    here = mask[:, ::-1].astype(bool)
    target = image[y1:y2, width - x2 : width - x1]
    target[here] = source[y1:y2, x1:x2][:, ::-1][here]


def perspective_matrix(
    height: int, width: int, output: tuple[int, int], hyp: Mapping[str, float], rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return a random homography (3, 3), and the scale in it.

    It maps an image of (height, width) to `output` (h, w): M = T S R P C moves the image's centre to the
    origin, applies perspective, rotation with scale and shear, and moves the result to (0.5 +- translate) of
    the output. `hyp` gives degrees, translate, scale, shear (degrees) and perspective.

    >>> matrix, scale = perspective_matrix(200, 200, (100, 100), {}, np.random.default_rng(0))
    >>> matrix.tolist(), scale
    ([[1.0, 0.0, -50.0], [0.0, 1.0, -50.0], [0.0, 0.0, 1.0]], 1.0)
    """
    centre = np.eye(3)
    centre[:2, 2] = -width / 2, -height / 2
    tilt = np.eye(3)
    tilt[2, :2] = rng.uniform(-1, 1, 2) * hyp.get("perspective", 0.0)
    degrees, scale = rng.uniform(-1, 1, 2) * (hyp.get("degrees", 0.0), hyp.get("scale", 0.0))
    scale += 1.0
    rotation = np.eye(3)
    rotation[:2] = cv2.getRotationMatrix2D((0, 0), degrees, scale)
    shear = np.eye(3)
    shear[0, 1], shear[1, 0] = np.tan(np.radians(rng.uniform(-1, 1, 2) * hyp.get("shear", 0.0)))
    shift = np.eye(3)
    shift[:2, 2] = (0.5 + rng.uniform(-1, 1, 2) * hyp.get("translate", 0.0)) * (output[1], output[0])
    return shift @ shear @ rotation @ tilt @ centre, float(scale)


def random_perspective(
    sample: LabelledImage, hyp: Mapping[str, float], rng: np.random.Generator, *, border: int = 0
) -> LabelledImage:
    """Warp an image and its objects by a random homography.

    The image grows by `border` pixels on each side (shrinks, if negative). Boxes are the bounds of the warped
    corners or, for an object with a polygon, of the visible part of the warped polygon, which after rotation
    is much tighter. Objects that keep too little of their area are dropped (`box_candidates`). The result has
    no polygons.

    >>> tile = LabelledImage(np.zeros((80, 80, 3), np.uint8), np.float32([[7, 10, 30, 50, 50]]), [])
    >>> cropped = random_perspective(tile, {}, np.random.default_rng(0), border=-20)
    >>> cropped.image.shape, cropped.labels.tolist()
    ((40, 40, 3), [[7.0, 0.0, 10.0, 30.0, 30.0]])
    """
    height, width = sample.image.shape[:2]
    out_h, out_w = height + 2 * border, width + 2 * border
    matrix, scale = perspective_matrix(height, width, (out_h, out_w), hyp, rng)
    image = sample.image
    if border or (matrix != np.eye(3)).any():
        if hyp.get("perspective", 0.0):
            image = cv2.warpPerspective(image, matrix, (out_w, out_h), borderValue=LETTERBOX_GREY)
        else:
            image = cv2.warpAffine(image, matrix[:2], (out_w, out_h), borderValue=LETTERBOX_GREY)
    count = len(sample.labels)
    if not count:
        return LabelledImage(image, sample.labels, [])
    boxes = warp_boxes(sample.labels[:, 1:], matrix)
    np.clip(boxes, 0, (out_w, out_h, out_w, out_h), out=boxes)
    min_area = np.full(count, MIN_AREA_BOX)
    for j, polygon in enumerate(sample.polygons):
        if len(polygon) >= 3:
            boxes[j] = visible_bounds(warp_points(polygon, matrix), out_w, out_h)
            min_area[j] = MIN_AREA_POLYGON
    keep = box_candidates(sample.labels[:, 1:] * scale, boxes, min_area)
    labels = np.concatenate([sample.labels[keep, :1], boxes[keep]], axis=1, dtype=np.float32)
    return LabelledImage(image, labels, [])


def warp_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return points (p, 2) mapped by a homography (3, 3), as (p, 2) float64.

    >>> warp_points(np.array([[1.0, 2.0]]), np.diag([2.0, 2.0, 1.0])).tolist()
    [[2.0, 4.0]]
    """
    homogeneous = points @ matrix[:, :2].T + matrix[:, 2]
    return homogeneous[:, :2] / homogeneous[:, 2:]


def warp_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the bounds (k, 4) of the warped corners of boxes (k, 4).

    >>> quarter_turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    >>> warp_boxes(np.array([[1.0, 2.0, 3.0, 5.0]]), quarter_turn).tolist()
    [[-5.0, 1.0, -2.0, 3.0]]
    """
    corners = warp_points(boxes[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(-1, 2), matrix).reshape(-1, 4, 2)
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def visible_bounds(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the bounds (4,) xyxy of the visible part of a polygon (p, 2).

    They are zeros if no part is inside the frame. Every edge is clipped to the frame (Liang and Barsky,
    1984), and the frame's own corners count where they are inside the polygon, so the bounds are exact.

    >>> visible_bounds(np.array([[-10.0, 5.0], [10.0, 5.0], [10.0, 25.0]]), 20, 20).tolist()
    [0.0, 5.0, 10.0, 20.0]
    """
    low, high = polygon.min(0), polygon.max(0)
    if low.min() >= 0 and high[0] <= width and high[1] <= height:
        return np.concatenate([low, high])
    if low[0] >= width or low[1] >= height or high.max() <= 0 or high.min() <= 0:
        return np.zeros(4)
    start, step = polygon, np.roll(polygon, -1, axis=0) - polygon
    frame = np.array((width, height), float)
    moving = step != 0
    safe = np.where(moving, step, 1.0)
    first, second = -start / safe, (frame - start) / safe
    outside = ~moving & ((start < 0) | (start > frame))  # parallel to a side of the frame, and outside
    enter = np.where(moving, np.minimum(first, second), -np.inf).max(1).clip(0, None)
    leave = np.where(moving, np.maximum(first, second), np.inf).min(1).clip(None, 1)
    hit = (enter <= leave) & ~outside.any(1)
    inside = [start[hit] + step[hit] * enter[hit, None], start[hit] + step[hit] * leave[hit, None]]
    outline = polygon.astype(np.float32)
    corners = [(x, y) for x in (0.0, float(width)) for y in (0.0, float(height))]
    inside.append(
        np.array([c for c in corners if cv2.pointPolygonTest(outline, c, False) >= 0]).reshape(-1, 2)
    )
    points = np.concatenate(inside).clip(0, frame)
    return np.concatenate([points.min(0), points.max(0)]) if len(points) else np.zeros(4)


def box_candidates(before: np.ndarray, after: np.ndarray, min_area: np.ndarray | float) -> np.ndarray:
    """Return which boxes (k, 4) to keep `after` a warp, as (k,) bool.

    A kept box is wider and higher than 2 px, has more than `min_area` of its area `before` at the same scale,
    and an aspect ratio under 100.

    >>> before = np.array([[0.0, 0.0, 100.0, 100.0]] * 3)
    >>> after = np.array([[0.0, 0.0, 100.0, 50.0], [0.0, 0.0, 100.0, 5.0], [0.0, 0.0, 1.0, 100.0]])
    >>> box_candidates(before, after, 0.1).tolist()
    [True, False, False]
    """
    w1, h1 = before[:, 2] - before[:, 0], before[:, 3] - before[:, 1]
    w2, h2 = after[:, 2] - after[:, 0], after[:, 3] - after[:, 1]
    aspect = np.maximum(w2 / (h2 + 1e-16), h2 / (w2 + 1e-16))
    share = w2 * h2 / (w1 * h1 + 1e-16)
    return (w2 > MIN_BOX_SIDE) & (h2 > MIN_BOX_SIDE) & (share > min_area) & (aspect < MAX_ASPECT)


def mixup(first: LabelledImage, second: LabelledImage, rng: np.random.Generator) -> LabelledImage:
    """Blend two images of one size and take both labels (arXiv:1710.09412).

    The ratio is from Beta(32, 32), so both images stay visible.

    >>> black = LabelledImage(np.zeros((8, 8, 3), np.uint8), np.float32([[0, 1, 1, 5, 5]]), [])
    >>> white = LabelledImage(np.full((8, 8, 3), 255, np.uint8), np.float32([[1, 2, 2, 6, 6]]), [])
    >>> mixed = mixup(black, white, np.random.default_rng(0))
    >>> bool(60 < mixed.image.mean() < 195), mixed.labels[:, 0].tolist()
    (True, [0.0, 1.0])
    """
    ratio = rng.beta(MIXUP_BETA, MIXUP_BETA)
    image = cv2.addWeighted(first.image, ratio, second.image, 1 - ratio, 0)
    return LabelledImage(
        image, np.concatenate([first.labels, second.labels]), [*first.polygons, *second.polygons]
    )


def hsv(image: np.ndarray, gains: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Multiply hue, saturation and value by a random factor each.

    The factor is 1 + U(-1, 1) x gain; hue is taken modulo 180, OpenCV's full circle.

    >>> grey = np.full((1, 1, 3), 100, np.uint8)
    >>> changed = hsv(grey, (0.0, 0.0, 0.5), np.random.default_rng(0))[0, 0]
    >>> bool(50 <= changed[0] <= 150), bool((changed == changed[0]).all())
    (True, True)
    """
    if not any(gains):
        return image
    factors = 1 + rng.uniform(-1, 1, 3) * gains
    levels = np.arange(256)
    table = np.empty((1, 256, 3), np.uint8)
    table[0, :, 0] = (levels * factors[0]) % 180
    table[0, :, 1:] = np.clip(levels[:, None] * factors[1:], 0, 255)
    changed = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), table)
    return cv2.cvtColor(changed, cv2.COLOR_HSV2BGR, dst=changed)


def flipud(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip an image and its labels upside down.

    Labels are (k, 5) `class, xc, yc, w, h` normalised.

    >>> flipud(np.zeros((4, 4, 3), np.uint8), np.array([[0, 0.5, 0.25, 0.1, 0.1]]))[1].tolist()
    [[0.0, 0.5, 0.75, 0.1, 0.1]]
    """
    labels = labels.copy()
    labels[:, 2] = 1 - labels[:, 2]
    return cv2.flip(image, 0), labels


def fliplr(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror an image and its labels left to right.

    Labels are (k, 5) `class, xc, yc, w, h` normalised.

    >>> fliplr(np.zeros((4, 4, 3), np.uint8), np.array([[0, 0.25, 0.5, 0.1, 0.1]]))[1].tolist()
    [[0.0, 0.75, 0.5, 0.1, 0.1]]
    """
    labels = labels.copy()
    labels[:, 1] = 1 - labels[:, 1]
    return cv2.flip(image, 1), labels


def colour_and_flip(
    image: np.ndarray, labels: np.ndarray, hyp: Mapping[str, float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Apply the last stages: albumentations, HSV, flips.

    The labels are (k, 5) `class, xc, yc, w, h` normalised, before and after.

    >>> image, labels = np.zeros((4, 4, 3), np.uint8), np.array([[0, 0.25, 0.5, 0.1, 0.1]])
    >>> colour_and_flip(image, labels, {"fliplr": 1.0}, np.random.default_rng(0))[1].tolist()
    [[0.0, 0.75, 0.5, 0.1, 0.1]]
    """
    image = albumentations_stage(image, rng)
    image = hsv(image, [hyp.get(key, 0.0) for key in ("hsv_h", "hsv_s", "hsv_v")], rng)
    up_down, left_right = rng.random(2)
    if up_down < hyp.get("flipud", 0.0):
        image, labels = flipud(image, labels)
    if left_right < hyp.get("fliplr", 0.0):
        image, labels = fliplr(image, labels)
    return image, labels


def albumentations_stage(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply blur, median blur, grey and CLAHE, probability 0.01 each.

    Without the package albumentations the image stays as it is.
    """
    # Transforms and seed are drawn here, with or without the package. Its own generator would make a batch
    # depend on the worker, and all later random numbers would depend on whether the package is installed.
    fired, seed = rng.random(4) < ALBUMENTATIONS_PROBABILITY, int(rng.integers(2**31))
    if not fired.any():
        return image
    rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    for apply in itertools.compress(_albumentations(), fired):
        apply.set_random_seed(seed)
        rgb = apply(image=rgb)["image"]
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)


@functools.cache
def _albumentations() -> list[Any]:  # Any: the package is optional, so its types are not known
    """Return the four transforms of the albumentations package.

    None without the package, or where its version takes no seed.
    """
    if importlib.util.find_spec("albumentations") is None:
        return []
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version
    try:
        import albumentations  # type: ignore[import-not-found,unused-ignore]  # optional
    except ImportError as error:
        LOGGER.warning("albumentations is not used, because it cannot be imported (%s)", error)
        return []
    if not hasattr(albumentations.Compose, "set_random_seed"):
        version = albumentations.__version__
        LOGGER.warning("albumentations %s cannot be seeded and is not used; 1.4.21 or later can", version)
        return []
    names = ("Blur", "MedianBlur", "ToGray", "CLAHE")
    return [albumentations.Compose([getattr(albumentations, name)(p=1.0)]) for name in names]
