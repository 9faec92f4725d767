"""Data sets for the checks, read from files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch

from utils.dataset.config import load_dataset
from utils.dataset_checks.findings import CheckedData, TrainedNetwork
from utils.files import save_yaml

HEAD = SimpleNamespace(
    anchors=torch.tensor([[[1.0, 1.0], [2.0, 2.0]], [[2.0, 2.0], [4.0, 4.0]]]),
    stride=torch.tensor([8.0, 16.0]),
)
"""Anchors of 8, 16, 32 and 64 px."""


def noise(seed: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A smooth picture of `size` (width, height) that is like no other seed's."""
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)


def write_split(root: Path, split: str, images: dict[str, np.ndarray], labels: dict[str, str]) -> None:
    """Write the images of a split by file name, and label files by stem."""
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        cv2.imwrite(str(root / "images" / split / name), image)
    for stem, text in labels.items():
        (root / "labels" / split / f"{stem}.txt").write_text(text)


def write_data(root: Path, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Write the YAML of the splits that are there."""
    splits = {s: f"images/{s}" for s in ("train", "val", "test") if (root / "images" / s).is_dir()}
    save_yaml(root / "d.yaml", {"path": str(root), **splits, "names": list(names)})
    return root / "d.yaml"


def checked(yaml_path: Path, imgsz: int = 64, network: TrainedNetwork | None = None) -> CheckedData:
    """What the checks read of a data set."""
    config = load_dataset(yaml_path, fetch=False)
    return CheckedData.read(config, imgsz, HEAD, 0, network)
