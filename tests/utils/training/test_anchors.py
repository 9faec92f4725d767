"""Recall by hand, k-means that beats bad anchors, and a check that keeps good ones."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from utils.training.anchors import (
    best_possible_recall,
    box_sizes,
    check_anchors,
    kmean_anchors,
    order_anchors,
)

STRIDES = torch.tensor([8.0, 16, 32])
COCO = [
    [[10.0, 13], [16, 30], [33, 23]],
    [[30, 61], [62, 45], [59, 119]],
    [[116, 90], [156, 198], [373, 326]],
]


def make_detect(pixels: list) -> SimpleNamespace:
    return SimpleNamespace(anchors=torch.tensor(pixels) / STRIDES[:, None, None], stride=STRIDES)


def make_images(wh: np.ndarray, size: tuple[int, int] = (640, 480)) -> SimpleNamespace:
    """One box of wh pixels in each image."""
    n = len(wh)
    labels = np.zeros((n, 5), np.float32)
    labels[:, 3:5] = wh / np.array(size)
    return SimpleNamespace(
        sizes=np.tile(np.array(size, np.int32), (n, 1)), all_labels=labels, offsets=np.arange(n + 1)
    )


def test_recall_counts_boxes_whose_worse_side_is_within_the_ratio() -> None:
    anchors = np.array([[10, 10], [40, 40]])
    wh = np.array([[10, 10], [39, 2.4], [20, 20], [170, 40]])  # matches one, none, both, none
    assert best_possible_recall(wh, anchors, 4.0) == (0.5, 0.75)


def test_boxes_are_measured_with_the_long_side_at_the_image_size() -> None:
    images = make_images(np.array([[64, 48]] * 500))
    wh = box_sizes(images, 320, np.random.default_rng(0))
    assert wh[:, 0].min() >= 32 * 0.9 and wh[:, 0].max() <= 32 * 1.1 and wh[:, 0].std() > 1
    assert np.allclose(wh[:, 0] / wh[:, 1], 4 / 3)


def test_kmeans_finds_the_clusters_that_are_there() -> None:
    rng = np.random.default_rng(1)
    centres = np.array([[20.0, 30], [60, 40], [200, 150]])
    wh = np.concatenate([c * rng.normal(1, 0.03, (60, 2)) for c in centres])
    found = kmean_anchors(wh, 3, 640, 4.0, np.random.default_rng(0), generations=50)
    assert np.allclose(found, centres, rtol=0.1)
    again = kmean_anchors(wh, 3, 640, 4.0, np.random.default_rng(0), generations=50)
    assert np.array_equal(found, again)


def test_mutation_improves_what_kmeans_found() -> None:
    wh = np.exp(np.random.default_rng(2).normal(3, 0.8, (400, 2))).astype(np.float32)

    def mean_fit(generations: int) -> float:
        anchors = kmean_anchors(wh, 6, 640, 4.0, np.random.default_rng(0), generations)
        ratio = wh[:, None] / anchors[None]
        return float(np.minimum(ratio, 1 / ratio).min(2).max(1).mean())

    assert mean_fit(300) > mean_fit(0) + 0.01


def test_too_few_boxes_still_give_anchors() -> None:
    found = kmean_anchors(np.array([[30.0, 40]] * 4), 9, 320, 4.0, np.random.default_rng(0), generations=20)
    assert found.shape == (9, 2) and found.min() >= 2 and (np.diff(found.prod(1)) >= 0).all()


def test_anchors_that_fit_stay() -> None:
    detect = make_detect(COCO)
    before = detect.anchors.clone()
    report = check_anchors(make_images(np.array([[30, 40], [100, 120], [300, 200]])), detect, 640, 4.0)
    assert not report.changed and report.recall == 1.0 and torch.equal(detect.anchors, before)


def test_anchors_that_do_not_fit_are_replaced_in_stride_units() -> None:
    rng = np.random.default_rng(3)
    wide = np.stack([rng.uniform(200, 500, 200), rng.uniform(8, 20, 200)], 1)
    detect = make_detect(COCO)
    report = check_anchors(make_images(wide), detect, 640, 4.0, seed=0, generations=100)
    assert report.changed and report.recall < 0.5 and report.new_recall > 0.98
    pixels = (detect.anchors * STRIDES[:, None, None]).view(-1, 2)
    assert torch.allclose(pixels, torch.from_numpy(report.anchors))
    assert (pixels[:, 0] / pixels[:, 1]).min() > 5 and (pixels.prod(1).diff() >= 0).all()


def test_placeholder_anchors_with_a_zero_side_are_replaced() -> None:
    detect = make_detect(np.tile(np.arange(6, dtype=np.float32).reshape(3, 2), (3, 1, 1)).tolist())
    boxes = np.random.default_rng(0).uniform(20, 300, (80, 2))
    report = check_anchors(make_images(boxes), detect, 640, 4.0, generations=50)
    assert report.changed and report.new_recall > 0.98


@pytest.mark.parametrize("reverse", [False, True])
def test_layers_in_the_wrong_order_are_turned_round(reverse: bool) -> None:
    detect = make_detect(COCO[::-1] if reverse else COCO)
    assert order_anchors(detect) is reverse
    assert torch.allclose(detect.anchors, torch.tensor(COCO) / STRIDES[:, None, None])
