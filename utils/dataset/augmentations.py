"""Augmentation: pure functions of images, labels and a generator, in the order the loader calls them.

Here an image is BGR uint8 (h, w, 3), labels are (k, 5) float32 rows `class, x1, y1, x2, y2` in pixels, and
polygons are one (p, 2) float32 array of pixels for each label, empty where a label has none. No input is
written to, and whatever is random comes from the `numpy.random.Generator` passed in.
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

MIN_SIDE = 2.0
"""A warped box must keep more than this many pixels in width and in height."""
MIN_AREA_BOX, MIN_AREA_POLYGON = 0.10, 0.01
"""The share of its area that an object must keep; a polygon says better than a box what is left of it."""
MAX_ASPECT = 100.0
MAX_PASTE_OVERLAP = 0.30
MIXUP_BETA = 32.0
ALBUMENTATIONS_PROBABILITY = 0.01


class Sample(NamedTuple):
    """An image with its objects: labels (k, 5) in pixels and k polygons (see the module)."""

    image: np.ndarray
    labels: np.ndarray
    polygons: list[np.ndarray]


def mosaic4(tiles: Sequence[Sample], size: int, rng: np.random.Generator) -> Sample:
    """Four images around a random centre on a grey canvas of 2 size x 2 size (YOLOv4, section 3.3).

    The centre is uniform in [size/2, 3 size/2] on each axis; the tiles, top left, top right, bottom left and
    bottom right, touch it with a corner each and what reaches over the canvas is cut off.
    `random_perspective` with `border=-size // 2` then takes the image of size x size out of it.
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
    return Sample(canvas, rows, polygons)


def _shifted(polygon: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    return (polygon + np.float32((left, top))).clip(0, side) if len(polygon) else polygon


def copy_paste(sample: Sample, probability: float, rng: np.random.Generator) -> Sample:
    """Paste the mirror images of some objects back in (Simple Copy-Paste, arXiv:2012.07177).

    round(probability x k) objects are drawn; one is pasted at its mirrored place if it has a polygon and
    covers less than 0.30 of every box that is there by then.
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
        polygons.append(sample.polygons[j] * np.float32((-1, 1)) + np.float32((width, 0)))
    return Sample(image, labels, polygons)


def _coverage(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The share of each of `boxes` (n, 4) that `box` (4,) covers -> (n,)."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.prod(np.maximum(high - low, 0), axis=1) / np.maximum(area, 1e-7)


def _paste_mirrored(image: np.ndarray, source: np.ndarray, polygon: np.ndarray) -> None:
    """Write the pixels of `source` inside `polygon` to their mirrored place in `image`."""
    height, width = source.shape[:2]
    corner = np.round(polygon).astype(np.int32)
    x1, y1 = np.clip(corner.min(0), 0, (width, height))
    x2, y2 = np.clip(corner.max(0) + 1, 0, (width, height))
    if x1 >= x2 or y1 >= y2:
        return
    mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
    cv2.fillPoly(mask, [corner - np.int32((x1, y1))], 1)
    here = mask[:, ::-1].astype(bool)
    target = image[y1:y2, width - x2 : width - x1]
    target[here] = source[y1:y2, x1:x2][:, ::-1][here]


def perspective_matrix(
    height: int, width: int, output: tuple[int, int], hyp: Mapping[str, float], rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """A random homography (3, 3) from an image (height, width) to `output` (h, w), and the scale in it.

    M = T S R P C: the image's centre to the origin, perspective, rotation with scale, shear, and translation
    to (0.5 +- translate) of the output. `hyp` gives degrees, translate, scale, shear (degrees) and
    perspective.
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
    sample: Sample, hyp: Mapping[str, float], rng: np.random.Generator, *, border: int = 0
) -> Sample:
    """Warp an image and its objects by a random homography; the frame grows by `border` pixels on each side.

    Boxes are the bounds of the warped corners or, where there is a polygon, of the warped polygon as far as
    it lies in the frame, which for a rotation is much tighter. Objects of which too little is left are
    dropped. The polygons are not carried further.
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
        return Sample(image, sample.labels, [])
    boxes = warp_boxes(sample.labels[:, 1:], matrix)
    np.clip(boxes, 0, (out_w, out_h, out_w, out_h), out=boxes)
    min_area = np.full(count, MIN_AREA_BOX)
    for j, polygon in enumerate(sample.polygons):
        if len(polygon) >= 3:
            boxes[j] = visible_bounds(warp_points(polygon, matrix), out_w, out_h)
            min_area[j] = MIN_AREA_POLYGON
    keep = box_candidates(sample.labels[:, 1:] * scale, boxes, min_area)
    labels = np.concatenate([sample.labels[keep, :1], boxes[keep]], axis=1, dtype=np.float32)
    return Sample(image, labels, [])


def warp_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (p, 2) through a homography (3, 3) -> (p, 2) float64."""
    homogeneous = points @ matrix[:, :2].T + matrix[:, 2]
    return homogeneous[:, :2] / homogeneous[:, 2:]


def warp_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Bounds (k, 4) of the warped corners of boxes (k, 4)."""
    corners = warp_points(boxes[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(-1, 2), matrix).reshape(-1, 4, 2)
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def visible_bounds(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bounds (4,) xyxy of the part of a polygon (p, 2) inside the frame; zeros if none of it is.

    Exact, where points sampled along the outline would only come near: every edge is clipped to the frame
    (Liang and Barsky, 1984), and the frame's own corners count where they lie inside the polygon.
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
    outside = ~moving & ((start < 0) | (start > frame))  # parallel to a side of the frame, and beyond it
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
    """Which boxes (k, 4) are worth learning `after` a warp, compared with `before` at the same scale -> (k,).

    Width and height above 2 px, more than `min_area` of the area left, and an aspect ratio under 100.
    """
    w1, h1 = before[:, 2] - before[:, 0], before[:, 3] - before[:, 1]
    w2, h2 = after[:, 2] - after[:, 0], after[:, 3] - after[:, 1]
    aspect = np.maximum(w2 / (h2 + 1e-16), h2 / (w2 + 1e-16))
    share = w2 * h2 / (w1 * h1 + 1e-16)
    return (w2 > MIN_SIDE) & (h2 > MIN_SIDE) & (share > min_area) & (aspect < MAX_ASPECT)


def mixup(first: Sample, second: Sample, rng: np.random.Generator) -> Sample:
    """Blend two images of one size, ratio from Beta(32, 32), and take both labels (arXiv:1710.09412)."""
    ratio = rng.beta(MIXUP_BETA, MIXUP_BETA)
    image = cv2.addWeighted(first.image, ratio, second.image, 1 - ratio, 0)
    return Sample(image, np.concatenate([first.labels, second.labels]), [*first.polygons, *second.polygons])


def hsv(image: np.ndarray, gains: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Multiply hue (modulo 180), saturation and value by 1 + U(-1, 1) x their gain each."""
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
    """Upside down: image, and labels (k, 5) `class, xc, yc, w, h` normalised."""
    labels = labels.copy()
    labels[:, 2] = 1 - labels[:, 2]
    return cv2.flip(image, 0), labels


def fliplr(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrored left to right: image, and labels (k, 5) `class, xc, yc, w, h` normalised."""
    labels = labels.copy()
    labels[:, 1] = 1 - labels[:, 1]
    return cv2.flip(image, 1), labels


def finish(
    image: np.ndarray, labels: np.ndarray, hyp: Mapping[str, float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The last stages, which leave the geometry alone but for mirroring: albumentations, HSV, flips.

    `labels` are (k, 5) `class, xc, yc, w, h` normalised, before and after.
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
    """Blur, median blur, grey and CLAHE, probability 0.01 each, if albumentations is installed."""
    # What is applied, and with which seed, is drawn here whether the package is there or not: its own
    # generator would make a batch depend on its worker, and nothing else should change with the package.
    fired, seed = rng.random(4) < ALBUMENTATIONS_PROBABILITY, int(rng.integers(2**31))
    if not fired.any():
        return image
    rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    for apply in itertools.compress(_albumentations(), fired):
        apply.set_random_seed(seed)
        rgb = apply(image=rgb)["image"]
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)


@functools.cache
def _albumentations() -> list[Any]:
    """The four transforms of the albumentations package; none without it, or with one that takes no seed."""
    if importlib.util.find_spec("albumentations") is None:
        return []
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version
    try:
        import albumentations
    except ImportError as error:
        LOGGER.warning("albumentations is installed but cannot be imported (%s) and is not used", error)
        return []
    if not hasattr(albumentations.Compose, "set_random_seed"):
        version = albumentations.__version__
        LOGGER.warning("albumentations %s cannot be seeded and is not used; 1.4.21 or later can", version)
        return []
    names = ("Blur", "MedianBlur", "ToGray", "CLAHE")
    return [albumentations.Compose([getattr(albumentations, name)(p=1.0)]) for name in names]
