"""A data set of a few drawn shapes and a network small enough to learn them in seconds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from utils.cli import setup_logging
from utils.files import save_yaml

NAMES = ["square", "disc"]

TINY_MODEL = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[12, 12, 20, 20], [28, 28, 44, 44]],
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [24, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "Conv", [48, 3, 2]],
    ],
    "head": [[[2, 3], 1, "Detect", ["nc", "anchors"]]],
}

TINY_FREE = {key: value for key, value in TINY_MODEL.items() if key != "anchors"} | {
    "head": [[[2, 3], 1, "DetectFree", ["nc"]]]
}


class TinyRows(nn.Module):
    """Rows as a DetectionModel has them."""

    def __init__(self) -> None:
        super().__init__()
        block = [nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)) for _ in range(2)]
        block[1][0] = nn.Conv2d(4, 4, 3)
        self.model = nn.Sequential(*block, nn.MultiheadAttention(4, 2), nn.LayerNorm(4))
        self.register_buffer("anchors", torch.ones(2))


def tensors(value: object) -> list[torch.Tensor]:
    """All tensors of nested data, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value, key=str)]
    return [t for item in value for t in tensors(item)] if isinstance(value, list | tuple) else []


def be_silent() -> None:
    """Make a forked process one that says nothing and computes with one thread."""
    torch.set_num_threads(1)
    setup_logging(verbose=False)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 until the process ends


def write_model(folder: Path) -> Path:
    """tiny.yaml in a folder."""
    path = folder / "tiny.yaml"
    save_yaml(path, TINY_MODEL)
    return path


def write_set(folder: Path, train: int = 24, val: int = 8, size: int = 96, seed: int = 0) -> Path:
    """Red squares and blue discs on noise, one to three an image; returns the dataset YAML."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image, rows = _draw(rng, size)
            cv2.imwrite(str(folder / "images" / split / f"{i}.png"), image)
            text = "".join(f"{c} {x} {y} {w} {h}\n" for c, x, y, w, h in rows)
            (folder / "labels" / split / f"{i}.txt").write_text(text)
    path = folder / "shapes.yaml"
    save_yaml(path, {"path": str(folder), "train": "images/train", "val": "images/val", "names": NAMES})
    return path


def _draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple]]:
    image = rng.integers(90, 150, (size, size, 3), dtype=np.uint8)
    rows = []
    for _ in range(rng.integers(1, 4)):
        c, side = int(rng.integers(2)), int(rng.integers(16, 34))
        x, y = (int(v) for v in rng.integers(0, size - side, 2))
        if c == 0:
            image[y : y + side, x : x + side] = (30, 30, 230)
        else:
            cv2.circle(image, (x + side // 2, y + side // 2), side // 2, (230, 60, 30), -1)
        rows.append((c, (x + side / 2) / size, (y + side / 2) / size, side / size, side / size))
    return image, rows
