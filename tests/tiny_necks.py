"""A detector small enough to be made in a test, and another backbone under its neck and head."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from models.weights.checkpoint import save_checkpoint
from models.yolo import DetectionModel
from utils.device import seeded
from utils.files import save_yaml

_SHARED = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[12, 12, 20, 20], [28, 28, 44, 44]],
}
UP = [-1, 1, "nn.Upsample", ["None", 2, "nearest"]]
SOURCE = _SHARED | {
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [24, 3, 2]],  # 2, stride 8
        [-1, 1, "Conv", [32, 3, 2]],  # 3, stride 16
        [-1, 1, "SPPF", [32, 5]],
    ],
    "head": [
        [-1, 1, "Conv", [16, 1, 1]],  # 5
        UP,
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "C3", [16, False]],  # 8
        [-1, 1, "Conv", [16, 3, 2]],
        [[-1, 5], 1, "Concat", [1]],
        [-1, 1, "C3", [32, False]],  # 11
        [[8, 11], 1, "Detect", ["nc", "anchors"]],
    ],
}
CARRY = _SHARED | {
    "mean": [0.4, 0.4, 0.4],
    "backbone": [
        [-1, 1, "ConvBNReLU", [16, 3, 2]],
        [-1, 1, "ConvBNReLU", [24, 3, 2]],
        [-1, 1, "ConvBNReLU", [32, 3, 2]],  # 2, stride 8
        [-1, 1, "ConvBNReLU", [40, 3, 2]],  # 3, stride 16
    ],
    "head": [
        [-1, 1, "Conv", [32, 1, 1]],  # 4, adapter
        [-1, 1, "SPPF", [32, 5]],
        [-1, 1, "Conv", [16, 1, 1]],  # 6
        UP,
        [2, 1, "Conv", [24, 1, 1]],  # 8, adapter
        [[-2, -1], 1, "Concat", [1]],
        [-1, 1, "C3", [16, False]],  # 10
        [-1, 1, "Conv", [16, 3, 2]],
        [[-1, 6], 1, "Concat", [1]],
        [-1, 1, "C3", [32, False]],  # 13
        [[10, 13], 1, "Detect", ["nc", "anchors"]],
    ],
}
PAIRS = {5: 4, 6: 5, 7: 6, 9: 7, 10: 8, 11: 9, 12: 10, 13: 11, 14: 12}  # rows of CARRY and of SOURCE
JOINTS = {4: 3, 8: 2}


def build(cfg: dict, seed: int = 0) -> DetectionModel:
    """A network whose norms have the statistics of blurred noise, so that its maps tell images apart."""
    with seeded(seed):
        model = DetectionModel(cfg)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
        with torch.no_grad():
            model.train()(nn.functional.interpolate(torch.rand(8, 3, 8, 8), scale_factor=8, mode="bilinear"))
        for norm in norms:
            norm.momentum = 0.03
    return model.eval()


def write_source(folder: Path, names: tuple[str, ...] = ("disc", "star"), licence: str = "") -> Path:
    """A checkpoint of SOURCE, with anchors that are not its YAML's."""
    model = build(SOURCE | {"nc": len(names)}, seed=7)
    model.names, model.licence = dict(enumerate(names)), licence
    with torch.no_grad():
        model.detect.anchors.mul_(1.25)
    save_checkpoint(folder / "source.pt", model, meta={})
    return folder / "source.pt"


def write_carry(folder: Path) -> Path:
    """CARRY as a YAML."""
    save_yaml(folder / "carry.yaml", CARRY)
    return folder / "carry.yaml"


def write_pictures(folder: Path, count: int) -> None:
    """Write images of blocks of colour, which a source's backbone tells apart."""
    rng = np.random.default_rng(0)
    for number in range(count):
        blocks = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = cv2.resize(blocks, (96, 64), interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(str(folder / f"{number:02}.png"), image)
