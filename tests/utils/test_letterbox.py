"""The letterbox there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.letterbox import LUMA, common_shape, letterbox, letterbox_tensor, rgb_planes, scale_boxes


@pytest.mark.parametrize("native", [(480, 640), (427, 640), (333, 77), (1, 900), (101, 103), (640, 640)])
@pytest.mark.parametrize("auto", [True, False])
def test_letterbox_there_and_back(native, auto):
    image = np.full((*native, 3), 7, np.uint8)
    out, ratio, (left, top) = letterbox(image, (320, 416), auto=auto)
    height, width = out.shape[:2]
    if auto:
        assert height % 32 == 0 or height == 320 and width % 32 == 0
    else:
        assert (height, width) == (320, 416)
    inside = (out != 114).any(2)
    ys, xs = np.nonzero(inside)
    assert (xs.min(), ys.min()) == (left, top)
    there = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], np.float32)
    for ratio_pad in (None, (ratio, (left, top))):
        back = scale_boxes((height, width), there, native, ratio_pad)
        np.testing.assert_allclose(back, [[0, 0, native[1], native[0]]], atol=1e-3)


def test_letterbox_rounds_halves_to_the_right_and_below():
    out, _, (left, top) = letterbox(np.zeros((32, 27, 3), np.uint8), 32, auto=False)
    assert (left, top) == (2, 0)  # five columns are left over: two on the left, three on the right
    assert (out[0, :, 0] == 114).tolist() == [True] * 2 + [False] * 27 + [True] * 3


def test_letterbox_without_scaleup_leaves_small_images():
    out, ratio, pad = letterbox(np.zeros((20, 30, 3), np.uint8), (64, 64), auto=False, scaleup=False)
    assert out.shape == (64, 64, 3) and ratio == (1, 1) and pad == (17, 22)
    box = torch.tensor([[17.0, 22, 47, 42, 0.5, 1]])
    assert scale_boxes((64, 64), box, (20, 30), (ratio, pad)).tolist() == [[0, 0, 30, 20, 0.5, 1]]
    assert box[0, 0] == 17


def test_letterbox_auto_is_the_smallest_rectangle_of_the_stride():
    out, *_ = letterbox(np.zeros((400, 640, 3), np.uint8), 640, auto=True, stride=32)
    assert out.shape == (416, 640, 3)


def test_batch_is_a_letterboxed_square():
    image = np.zeros((32, 64, 3), np.uint8)
    image[..., 0] = 255  # blue
    batch = letterbox_tensor(image, 64)
    assert batch.shape == (1, 3, 64, 64) and batch[0, :, 32, 32].tolist() == [0, 0, 1]
    assert batch[0, :, 2, 2].tolist() == [114 / 255] * 3 or abs(batch[0, 0, 2, 2] - 114 / 255) < 1e-6


@pytest.mark.parametrize("view", [lambda a: a, lambda a: a[:, ::-1], lambda a: a[::-1, ::2]])
def test_planes_are_the_channels_in_rgb(view):
    image = view(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8))
    assert np.array_equal(rgb_planes(image), image[..., ::-1].transpose(2, 0, 1))
    assert np.array_equal(rgb_planes(image, bgr=False), image.transpose(2, 0, 1))
    out = np.zeros((2, 3, *image.shape[:2]), np.uint8)
    rgb_planes(image, out=out[1])
    assert np.array_equal(out[1], rgb_planes(image)) and not out[0].any()


def test_a_tensor_has_as_many_channels_as_the_network():
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    rgb = letterbox_tensor(image, 32)
    assert torch.equal(letterbox_tensor(image, (32, 32), ch=5), rgb[:, [0, 1, 2, 0, 1]])
    luma = sum(weight * plane for weight, plane in zip(LUMA, rgb[0]))
    torch.testing.assert_close(letterbox_tensor(image, 32, ch=1)[0, 0], luma)


@pytest.mark.parametrize("native", [(480, 640), (333, 77), (1, 900), (640, 640)])
def test_one_image_gets_the_rectangle_of_its_letterbox(native):
    boxed, *_ = letterbox(np.zeros((*native, 3), np.uint8), (320, 416), auto=True)
    assert common_shape([native], (320, 416), 32) == boxed.shape[:2]
