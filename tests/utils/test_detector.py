"""The way from a letterboxed batch to boxes in the images' own pixels, and what is said of its time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from utils.detector import STAGES, Detector
from utils.letterbox import letterbox, rgb_planes
from utils.nms import NmsOptions


class Everywhere:
    """Finds the left half of every input, and notes what it was given."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def prepare(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def infer(self, images: Tensor, wanted: NmsOptions, *, augment: bool = False) -> Tensor:
        self.seen.append(images)
        height, width = images.shape[-2:]
        rows = torch.tensor([[width / 4, height / 2, width / 2, height, 1, 0.9]])
        return rows.expand(len(images), 1, 6)

    def suppress(self, inferred: Tensor, wanted: NmsOptions, labels: Sequence[Tensor] = ()) -> list[Tensor]:
        return wanted.suppress(inferred, labels)


def batch(*sizes: tuple[int, int], side: int = 64):
    """Planes and placements of grey images of these (h, w), letterboxed to a square."""
    planes, placements = [], []
    for size in sizes:
        boxed, ratio, pad = letterbox(np.full((*size, 3), 51, np.uint8), side, auto=False)
        planes.append(rgb_planes(boxed))
        placements.append((size, (ratio, pad)))
    return planes, placements


def test_boxes_come_back_in_each_image_s_own_pixels():
    network = Everywhere()
    found = Detector(network, NmsOptions())(*batch((32, 64), (128, 128), (20, 10)))
    assert [boxes[0, :4].tolist() for boxes in found.boxes] == [
        [0, 0, 32, 32],
        [0, 0, 64, 128],
        [0, 0, 5, 20],
    ]
    assert all(boxes[0, :4].tolist() == [0, 0, 32, 64] for boxes in found.letterboxed)
    assert all(boxes[0, 4:].tolist() == pytest.approx([0.9, 0]) for boxes in found.boxes)
    assert found.shape == (3, 3, 64, 64)
    (images,) = network.seen
    assert images.dtype == torch.float32 and images[0, 0, 32, 32] == pytest.approx(0.2)


def test_arrays_and_a_tensor_are_the_same_batch():
    planes, placements = batch((32, 64), (64, 64))
    network = Everywhere()
    detect = Detector(network, NmsOptions())
    first, second = detect(planes, placements), detect(torch.from_numpy(np.stack(planes)), placements)
    assert torch.equal(*network.seen)
    assert all(torch.equal(a, b) for a, b in zip(first.boxes, second.boxes))


def test_labels_and_thresholds_reach_nms():
    planes, placements = batch((64, 64))
    label = torch.tensor([[0.0, 56, 8, 16, 16]])
    found = Detector(Everywhere(), NmsOptions(conf_thres=0.95))(planes, placements, labels=[label])
    assert found.boxes[0].tolist() == [[48, 0, 64, 16, 1, 0]]


def test_times_are_per_image_and_sum_up_over_batches():
    detect = Detector(Everywhere(), NmsOptions())
    assert detect.speed == dict.fromkeys(STAGES, 0.0)
    first = detect(*batch((64, 64), (64, 64)), spent=5.0)
    second = detect(*batch((64, 64)), spent=1.0)
    assert first.speed["preprocess"] == pytest.approx(1000 * first.seconds["preprocess"] / 2) and (
        first.seconds["preprocess"] >= 5
    )
    assert detect.images == 3
    for stage in STAGES:
        assert detect.seconds[stage] == pytest.approx(first.seconds[stage] + second.seconds[stage])
        assert detect.speed[stage] == pytest.approx(1000 * detect.seconds[stage] / 3)
        assert first.seconds[stage] > 0
