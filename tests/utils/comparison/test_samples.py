"""Pictures of the same images: which ones, what is drawn, and where."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import torch

from utils.comparison.samples import find_boxes, sample_pictures
from utils.nms import NmsOptions
from utils.results.drawing import colour


def images(tmp_path, count: int = 6, side: int = 160):
    """Black images, every other one with a box in its middle."""
    labels = [np.array([[1, 0.5, 0.5, 0.5, 0.5]], np.float32)[: i % 2] for i in range(count)]
    for i in range(count):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((side, 2 * side, 3), np.uint8))
    return SimpleNamespace(
        offsets=np.cumsum([0, *map(len, labels)]),
        path=lambda i: str(tmp_path / f"{i}.png"),
        labels=lambda i: labels[i],
    )


def test_the_same_labelled_images_every_time(tmp_path):
    def nothing(image):
        return np.zeros((0, 6))

    seen = [[s.name for s in sample_pictures(images(tmp_path), {}, n, {"a": nothing})] for n in (2, 2, 9, 0)]
    assert seen == [["1.png", "3.png"], ["1.png", "3.png"], ["1.png", "3.png", "5.png"], []]
    assert sample_pictures(images(tmp_path), {}, 2, {}) == []


def test_truth_first_then_each_net_in_the_image_s_own_pixels(tmp_path):
    shapes = []

    def corner(image):
        shapes.append(image.shape)
        return np.array([[10, 90, 60, 150, 0.9, 0], [100, 90, 150, 150, 0.8, 0]])

    (sample,) = sample_pictures(images(tmp_path, side=480), {0: "x", 1: "y"}, 1, {"net": corner})
    assert [(caption, count) for caption, _, count in sample.pictures] == [("ground truth", 1), ("net", 2)]
    assert shapes == [(480, 960, 3)]
    truth, net = (cv2.imdecode(np.frombuffer(p[1], np.uint8), 1) for p in sample.pictures)
    assert truth.shape == net.shape == (240, 480, 3)  # half as large
    bright = truth.max(2) > 60
    ys, xs = np.nonzero(bright)
    assert abs(xs.min() - 120) <= 3 and abs(xs.max() - 360) <= 3 and abs(ys.max() - 180) <= 3
    assert np.abs(net[60, 3:8].astype(int) - colour(0)).sum(1).min() < 90  # the left edge of the first box
    assert not (net[100:] > 60).any()


class OneBox:
    """A network that finds the box 16, 16, 48, 32 of class 1 in each letterboxed image."""

    device = torch.device("cpu")
    shape = ()

    def prepare(self, images):
        return images.float() / 255

    def infer(self, images, wanted, *, augment=False):
        self.shape = tuple(images.shape)
        return images

    def suppress(self, inferred, wanted, labels=()):
        return [torch.tensor([[16.0, 16.0, 48.0, 32.0, wanted.conf_thres, 1.0]])] * len(inferred)


def test_boxes_are_found_in_the_image_s_own_pixels():
    network = OneBox()
    found = find_boxes(network, 64, NmsOptions(0.5))(np.zeros((100, 200, 3), np.uint8))
    assert network.shape == (1, 3, 64, 64)  # 200 x 100 pixels become 64 x 32, 16 below the upper edge
    assert found.tolist() == [[50.0, 0.0, 150.0, 50.0, 0.5, 1.0]]
