"""benchmarks/tiles.py: the canvases hold what their labels say."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.tiles import GAP, compose, fading
from utils.boxes import box_iou, xywhn2xyxy


def test_objects_lie_where_the_labels_say_and_apart():
    patch = np.zeros((42, 28, 3), np.uint8)
    patch[6:36, 4:24] = (0, 0, 255)
    objects = [(7, patch, np.array([4.0, 6, 24, 36]))]
    canvas, labels = compose(np.random.default_rng(0), objects, (900, 1000), 30)
    assert min(canvas.shape[:2]) >= 900 and max(canvas.shape[:2]) <= 1000 and (labels[:, 0] == 7).all()
    boxes = xywhn2xyxy(labels[:, 1:], canvas.shape[1], canvas.shape[0])
    heights = boxes[:, 3] - boxes[:, 1]
    assert len(labels) > 20 and 11.9 < heights.min() < 31 and (heights < 32).mean() > 0.5
    for x1, y1, x2, y2 in boxes.round().astype(int).tolist():
        middle = canvas[(y1 + y2) // 2, (x1 + x2) // 2].astype(int)
        assert np.abs(middle - (0, 0, 255)).max() <= 8, "the object is in the middle of its box"
    overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).fill_diagonal_(0)
    assert overlap.max() == 0 and GAP > 0
    again, _ = compose(np.random.default_rng(0), objects, (900, 1000), 30)
    assert np.array_equal(canvas, again)


def test_a_patch_fades_at_its_edges_only():
    weights = fading(100, 60)[..., 0]
    assert weights[50, 30] == 1 and weights[20:80, 15:45].min() == 1 and weights[0].max() < 0.1
