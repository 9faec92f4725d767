"""Check whether the anchors fit the boxes of a data set, and search better ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

LOGGER = logging.getLogger("yolo.anchors")

ENOUGH_RECALL = 0.98
MIN_ANCHOR_SIDE = 2.0  # pixels; nothing is learnt from smaller boxes and anchors
KMEANS_ROUNDS = 30
MAX_EVOLVED = 50_000  # boxes the mutation rounds look at; more change the result by less than its own noise


class LabelledImages(Protocol):
    """Describe what is read of an image set.

    Attributes:
        sizes: width and height of each image (n, 2) in pixels.
        all_labels: class, xc, yc, w, h (L, 5) of all images, normalised.
        offsets: (n + 1,); labels offsets[i] to offsets[i + 1] belong to image i.
    """

    sizes: np.ndarray
    all_labels: np.ndarray
    offsets: np.ndarray


class AnchoredLayer(Protocol):
    """Describe what is read of a Detect layer.

    Attributes:
        anchors: widths and heights (nl, na, 2) in units of each layer's stride.
        stride: pixels per cell of each layer (nl,).
    """

    anchors: Tensor
    stride: Tensor


@dataclass
class AnchorReport:
    """Hold the result of a check of anchors.

    Attributes:
        recall: best possible recall of the anchors before the check.
        anchors_per_box: mean number of those anchors that match a box.
        new_recall: best possible recall of the anchors after the check.
        changed: whether the anchors or their order changed.
        anchors: the anchors after the check (nl * na, 2), in pixels.
    """

    recall: float
    anchors_per_box: float
    new_recall: float
    changed: bool
    anchors: np.ndarray


def _fit(wh: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Return the worse of both ratios of sides (L, n), at most 1."""
    with np.errstate(divide="ignore"):  # placeholder anchors may have a side of 0: they fit nothing
        ratio = wh[:, None] / anchors[None]
        return np.minimum(ratio, 1.0 / ratio).min(axis=2)


def best_possible_recall(wh: np.ndarray, anchors_px: np.ndarray, thr: float) -> tuple[float, float]:
    """Return the share of boxes that any anchor matches, and the mean matches per box.

    Args:
        wh: widths and heights of the boxes (L, 2) in pixels.
        anchors_px: anchors (n, 2) in pixels.
        thr: largest allowed ratio of sides (`anchor_t`).

    >>> anchors = np.array([[10, 10], [40, 40]])
    >>> best_possible_recall(np.array([[20, 20], [200, 40]]), anchors, thr=4.0)  # both match, none matches
    (0.5, 1.0)
    """
    fit = _fit(np.asarray(wh, np.float32), np.asarray(anchors_px, np.float32))
    return float((fit.max(axis=1) > 1.0 / thr).mean()), float((fit > 1.0 / thr).sum(axis=1).mean())


def _fitness(wh: np.ndarray, anchors: np.ndarray, thr: float) -> float:
    """Return the mean fit of the boxes' best anchors, 0 for unmatched boxes."""
    best = _fit(wh, anchors).max(axis=1)
    return float((best * (best > 1.0 / thr)).mean())


def kmean_anchors(
    wh: np.ndarray, n: int, imgsz: int, thr: float, rng: np.random.Generator, generations: int = 1000
) -> np.ndarray:
    """Find `n` anchors for boxes by k-means and random mutations.

    k-means works on sides divided by their standard deviation. Then come `generations` mutations, of which
    the improvements are kept. With too few distinct boxes the start is random.

    Args:
        wh: widths and heights of the boxes (L, 2) in pixels.
        imgsz: pixels; the largest side of a random start.
        thr: largest allowed ratio of sides (`anchor_t`).

    Returns:
        Anchors (n, 2) in pixels, sorted by area.

    >>> boxes = np.array([[10, 10], [10, 10], [60, 80], [60, 80]])
    >>> kmean_anchors(boxes, 2, 640, 4.0, np.random.default_rng(0)).round(3).tolist()
    [[10.0, 10.0], [60.0, 80.0]]
    """
    wh = np.asarray(wh, np.float32)
    wh = wh[(wh >= MIN_ANCHOR_SIDE).any(axis=1)]
    centres = _kmeans(wh, n, rng)
    if centres is None:
        LOGGER.warning("anchors: %d boxes are too few for %d clusters; starting from random ones", len(wh), n)
        centres = np.sort(rng.random((n, 2)), axis=0) * imgsz
    anchors = _by_area(np.maximum(centres, MIN_ANCHOR_SIDE))
    if len(wh) == 0:
        return anchors
    if len(wh) > MAX_EVOLVED:
        wh = wh[rng.choice(len(wh), MAX_EVOLVED, replace=False)]
    return _by_area(_evolve(anchors, wh, thr, rng, generations))


def _kmeans(wh: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray | None:
    """Run Lloyd's algorithm from k-means++ seeds (Arthur et al. 2007).

    Returns:
        Centres (n, 2); None if the boxes have fewer than n different sizes.
    """
    if len(wh) < n:
        return None
    spread = wh.std(axis=0)
    spread[spread == 0] = 1.0
    points = (wh / spread).astype(np.float32)
    centres = points[rng.integers(len(points))][None]
    nearest = ((points - centres) ** 2).sum(axis=1)
    while len(centres) < n:
        total = float(nearest.sum(dtype=np.float64))
        if total <= 0:
            return None
        pick = np.searchsorted(np.cumsum(nearest, dtype=np.float64), rng.random() * total)
        centre = points[min(int(pick), len(points) - 1)]
        centres = np.concatenate((centres, centre[None]))
        nearest = np.minimum(nearest, ((points - centre) ** 2).sum(axis=1))
    for _ in range(KMEANS_ROUNDS):
        distances = (centres**2).sum(axis=1)[None] - 2.0 * points @ centres.T
        owner = distances.argmin(axis=1)
        counts = np.bincount(owner, minlength=n)
        sums = np.stack([np.bincount(owner, points[:, i], minlength=n) for i in (0, 1)], axis=1)
        moved = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
        if np.allclose(moved, centres, rtol=0, atol=1e-6):
            break
        centres = moved.astype(np.float32)
    return centres * spread


def _evolve(
    anchors: np.ndarray, wh: np.ndarray, thr: float, rng: np.random.Generator, generations: int
) -> np.ndarray:
    """Mutate the anchors, and keep what fits better.

    Each side changes with probability 0.9 by a factor of mean 1 and sigma 0.1, within 0.3 to 3.
    """
    best, fitness = anchors, _fitness(wh, anchors, thr)
    for _ in range(generations):
        mutate = rng.random(anchors.shape) < 0.9
        factor = np.clip(1.0 + mutate * rng.standard_normal(anchors.shape) * 0.1, 0.3, 3.0)
        candidate = np.maximum(best * factor, MIN_ANCHOR_SIDE).astype(np.float32)
        candidate_fitness = _fitness(wh, candidate, thr)
        if candidate_fitness > fitness:
            best, fitness = candidate, candidate_fitness
    return best


def _by_area(anchors: np.ndarray) -> np.ndarray:
    """Sort anchors (n, 2) by area."""
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")].astype(np.float32)


def box_sizes(images: LabelledImages, imgsz: int, rng: np.random.Generator) -> np.ndarray:
    """Return the sides (L, 2) of all boxes, in pixels of the scaled images.

    The long side of each image becomes `imgsz` times a random factor of 0.9 to 1.1.

    >>> from types import SimpleNamespace
    >>> images = SimpleNamespace(
    ...     sizes=np.array([[200, 100]]),
    ...     all_labels=np.array([[0, 0.5, 0.5, 0.5, 0.5]]),
    ...     offsets=np.array([0, 1]),
    ... )
    >>> ((w, h),) = box_sizes(images, 100, np.random.default_rng(0))
    >>> bool(45 <= w <= 55), round(float(w / h), 3)
    (True, 2.0)
    """
    sizes = np.asarray(images.sizes, np.float64)
    scale = imgsz / sizes.max(axis=1, keepdims=True) * rng.uniform(0.9, 1.1, (len(sizes), 1))
    per_box = np.repeat(sizes * scale, np.diff(images.offsets), axis=0)
    return (np.asarray(images.all_labels)[:, 3:5] * per_box).astype(np.float32)


@torch.no_grad()
def check_anchors(
    images: LabelledImages,
    detect: AnchoredLayer,
    imgsz: int,
    thr: float = 4.0,
    seed: int = 0,
    generations: int = 1000,
    force: bool = False,
) -> AnchorReport:
    """Check the anchors of `detect`; replace them in place if others fit the boxes better.

    Anchors with a best possible recall above 0.98 are kept. The order of the layers is corrected always.

    Args:
        imgsz: pixels that the images are scaled to.
        thr: largest allowed ratio of sides (`anchor_t`).
        seed: of the search.
        generations: rounds of mutation.
        force: whether the anchors are placeholders, which are replaced even if they fit.
    """
    rng = np.random.default_rng((seed, 0xA2C4))
    stride = detect.stride.to(detect.anchors).view(-1, 1, 1)
    current = (detect.anchors * stride).cpu().numpy().reshape(-1, 2).astype(np.float32)
    wh = box_sizes(images, imgsz, rng)
    wh = wh[(wh > 0).all(axis=1)]
    if len(wh) == 0:
        return AnchorReport(0.0, 0.0, 0.0, False, current)
    recall, per_box = best_possible_recall(wh, current, thr)
    new_recall, changed = recall, False
    found = f"anchors: {per_box:.2f} match each box, best possible recall {recall:.4f}"
    if recall > ENOUGH_RECALL and not force:
        LOGGER.info("%s: they fit the data", found)
    else:
        LOGGER.info("%s: looking for better ones", found)
        better = kmean_anchors(wh, len(current), imgsz, thr, rng, generations)
        found_recall, _ = best_possible_recall(wh, better, thr)
        if found_recall > recall or (force and found_recall == recall):
            new_recall, changed = found_recall, True
            detect.anchors.copy_(torch.from_numpy(better).view_as(detect.anchors).to(detect.anchors) / stride)
            LOGGER.info("anchors: new ones reach %.4f: %s", found_recall, better.round(1).tolist())
        else:
            LOGGER.info("anchors: the search found no better ones (%.4f); the model's are kept", found_recall)
    changed = order_anchors(detect) or changed
    in_use = (detect.anchors * stride).cpu().numpy().reshape(-1, 2)
    return AnchorReport(recall, per_box, new_recall, changed, in_use)


@torch.no_grad()
def order_anchors(detect: AnchoredLayer) -> bool:
    """Reverse the anchors of the layers in place if areas fall while strides rise.

    Returns:
        Whether they were reversed.

    >>> from types import SimpleNamespace
    >>> anchors = torch.tensor([[[8.0, 8.0]], [[1.0, 1.0]]])  # 64 pixels at stride 8, 16 pixels at stride 16
    >>> detect = SimpleNamespace(anchors=anchors, stride=torch.tensor([8.0, 16.0]))
    >>> order_anchors(detect), detect.anchors.flatten().tolist()
    (True, [2.0, 2.0, 4.0, 4.0])
    """
    stride = detect.stride.to(detect.anchors).view(-1, 1, 1)
    pixels = detect.anchors * stride
    area = pixels.prod(2).mean(1)
    rises, runs = (area[-1] - area[0]).sign(), (stride[-1] - stride[0]).sign().squeeze()
    if rises == 0 or rises == runs:
        return False
    detect.anchors.copy_(pixels.flip(0) / stride)
    return True
