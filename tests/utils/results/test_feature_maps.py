"""Which layers are kept, what is written, and that the network is left as it was."""

import cv2
import numpy as np
import torch
from torch import nn

from utils.results.feature_maps import FeatureRecorder, feature_grid


def test_recorder_saves_maps_and_leaves_no_hooks(tmp_path):
    layers = nn.Sequential(nn.Conv2d(3, 40, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    with FeatureRecorder(layers) as recorder, torch.no_grad():
        layers(images)
        first = layers[0](images)[0].numpy()
        layers(images * 0)  # a second pass of the same image (test-time augmentation) is not kept
        paths = recorder.save(tmp_path, 0)
        recorder.clear()
        assert recorder.maps == {}
    assert [p.name for p in paths] == ["layer00_Conv2d.png"]
    np.testing.assert_array_equal(np.load(tmp_path / "layer00_Conv2d.npy"), first)  # all 40 channels
    assert cv2.imread(str(paths[0])).shape == (4 * 8 - 2, 8 * 10 - 2, 3)  # 32 of them, 8 in a row
    assert not any(layer._forward_hooks for layer in layers)


def test_each_image_of_a_batch_has_its_own_maps(tmp_path):
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    images = torch.rand(3, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    with FeatureRecorder(layers) as recorder, torch.no_grad():
        expected = layers(images).numpy()
        for index in range(3):
            recorder.save(tmp_path / str(index), index)
    for index in range(3):
        np.testing.assert_array_equal(np.load(tmp_path / str(index) / "layer00_Conv2d.npy"), expected[index])


def test_grid_scales_each_channel_by_itself():
    features = np.zeros((2, 2, 2), np.float32)
    features[0, 0, 0], features[1, 0, 0] = 1e-3, 1e3
    grid = feature_grid(features)
    np.testing.assert_array_equal(grid[:, :2], grid[:, 4:])
    assert (grid[:, 2:4] == 255).all()
