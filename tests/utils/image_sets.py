"""Small image sets on disk, packed without a dataset YAML, and small data sets with one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.dataset.image_set import EMPTY, FOUND, ImageSet, Packed, Record, ScanReport

SIZES = [
    (120, 80),
    (80, 120),
    (100, 100),
    (64, 48),
    (150, 60),
    (60, 150),
    (96, 96),
    (90, 80),
    (70, 110),
    (50, 50),
]
HYP = {
    "mosaic": 0.7,
    "mixup": 0.3,
    "copy_paste": 0.5,
    "degrees": 5.0,
    "translate": 0.1,
    "scale": 0.5,
    "shear": 2.0,
    "perspective": 0.0,
    "hsv_h": 0.015,
    "hsv_s": 0.7,
    "hsv_v": 0.4,
    "flipud": 0.1,
    "fliplr": 0.5,
}


def write_images(folder: Path, sizes: Sequence[tuple[int, int]], *, polygons: bool = False) -> ImageSet:
    """One JPEG for each (width, height): smooth noise with i % 4 bright boxes in image i."""
    paths, records = [], []
    folder.mkdir(parents=True, exist_ok=True)
    for i, (width, height) in enumerate(sizes):
        generator = np.random.default_rng(i)
        noise = generator.integers(40, 120, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
        image = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        labels, segments = [], []
        for kind in range(i % 4):
            w, h = (float(v) for v in generator.uniform(0.15, 0.4, 2))
            x, y = (float(v) for v in generator.uniform(0.22, 0.78, 2))
            x1, y1, x2, y2 = x - w / 2, y - h / 2, x + w / 2, y + h / 2
            image[int(y1 * height) : int(y2 * height), int(x1 * width) : int(x2 * width)] = 240
            labels.append((kind, x, y, w, h))
            segments.append(np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float32))
        path = folder / f"{i:03d}.jpg"
        cv2.imwrite(str(path), image)
        paths.append(str(path))
        rows = np.array(labels, np.float32).reshape(-1, 5)
        status = FOUND if labels else EMPTY
        records.append(Record(status, width, height, rows, segments if polygons else [], []))
    return ImageSet(Packed.from_records(paths, records), ScanReport(total=len(paths)))


def write_image(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    """A grey image of `size` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), 99, np.uint8))


def make_dataset(root: Path, labels: Sequence[str | None], split: str = "train") -> Path:
    """A data set with one image for each text of `labels`; None has no label file."""
    for i, text in enumerate(labels):
        write_image(root / "images" / split / f"{i}.png", (40 + i, 30))
        if text is not None:
            path = root / "labels" / split / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return root


def write_yaml(
    root: Path, text: str = "train: images/train\nval: images/train\nnames: [a, b, c]\n", name: str = "d.yaml"
) -> Path:
    """The YAML of such a data set."""
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return root / name
