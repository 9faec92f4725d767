"""A small network with what makes quantisation hard, saved as a checkpoint, and images to feed it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.checkpoint import save_checkpoint
from models.yolo import DetectionModel

STRIDE = 8
DEPTHWISE = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[12, 12, 20, 20], [28, 28, 44, 44]],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "InvertedResidual", [16, 2, 6]],
        [-1, 1, "InvertedResidual", [24, 2, 6]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 1], 1, "Concat", [1]],
        [[4, 2], 1, "Detect", ["nc", "anchors"]],
    ],
}


def save_net(path: Path) -> DetectionModel:
    """Write the network with fixed random weights and norms; returns it in eval mode."""
    torch.manual_seed(0)
    model = DetectionModel(DEPTHWISE)
    model.names = {0: "square", 1: "disc"}
    for name, buffer in model.named_buffers():
        if "running_var" in name:
            buffer.uniform_(0.5, 2)
    for conv in model.detect.m:
        conv.weight.data.normal_(0, 0.3)  # scores over the whole of 0..1, as after training
    save_checkpoint(path, model, meta={})
    return model.eval()


def images(n: int, height: int = 64, width: int = 64) -> Tensor:
    """(n, 3, height, width) uint8 noise, the same for the same n."""
    return torch.from_numpy(np.random.default_rng(n).integers(0, 256, (n, 3, height, width), np.uint8))


def reference(model: DetectionModel, batch: Tensor) -> Tensor:
    """The network's decoded rows for uint8 images."""
    with torch.no_grad():
        return model(batch / 255)[0]
