"""How often to show each image: more for rare classes and for those the model does badly."""

from __future__ import annotations

import numpy as np


def class_weights(classes: np.ndarray, nc: int) -> np.ndarray:
    """Inverse frequency of each class (nc,), normalised to a mean of 1; a class never seen counts as once."""
    counts = np.bincount(classes.astype(np.int64), minlength=nc).astype(np.float64)
    weights = 1.0 / np.maximum(counts, 1.0)
    return weights / weights.sum() * nc


def image_weights(labels: np.ndarray, offsets: np.ndarray, nc: int, maps: np.ndarray | None) -> np.ndarray:
    """Weight of each image (n,): the sum over its boxes of the class's weight times (1 - mAP)^2.

    Args:
        labels: (L, 5) class first; offsets: (n + 1,) where each image's labels begin.
        maps: mAP50-95 of each class (nc,) at the last validation; None before the first.
    """
    classes = labels[:, 0].astype(np.int64)
    missed = 1.0 if maps is None else (1.0 - maps) ** 2
    per_class = class_weights(classes, nc) * missed / nc
    running = np.concatenate(([0.0], np.cumsum(per_class[classes])))
    weights = np.maximum(running[offsets[1:]] - running[offsets[:-1]], 0.0)
    return weights if weights.sum() > 0 else np.ones(len(weights))
