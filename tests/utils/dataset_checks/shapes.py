"""Red squares and blue discs that do not touch, and a detector that finds them by their colour."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from tests.utils.dataset_checks.sets import write_data, write_split
from utils.dataset.detection_dataset import BatchOptions
from utils.dataset_checks.findings import TrainedNetwork

SIDE = 96
NAMES = ("square", "disc")


def draw_shapes(seed: int) -> tuple[np.ndarray, list[tuple[float, ...]]]:
    """Four shapes, one in each quarter of an image; their label rows."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 150, (SIDE, SIDE, 3), dtype=np.uint8)
    rows = []
    for x, y in ((0, 0), (48, 0), (0, 48), (48, 48)):
        kind, side = int(rng.integers(2)), int(rng.integers(16, 33))
        left, top = x + int(rng.integers(6)) + 2, y + int(rng.integers(6)) + 2
        if kind == 0:
            image[top : top + side, left : left + side] = (0, 0, 255)
        else:
            side += 1 - side % 2  # a disc's side is odd
            cv2.circle(image, (left + side // 2, top + side // 2), side // 2, (255, 0, 0), -1)
        rows.append((kind, (left + side / 2) / SIDE, (top + side / 2) / SIDE, side / SIDE, side / SIDE))
    return image, rows


def text_of(rows: list[tuple[float, ...]]) -> str:
    """A label file of rows."""
    return "".join(f"{int(row[0])} {' '.join(f'{v:.6f}' for v in row[1:])}\n" for row in rows)


def write_shapes(root: Path, count: int = 12) -> tuple[Path, dict[str, list[tuple[float, ...]]]]:
    """A data set of such images in train; its YAML and the right rows by stem."""
    drawn = {str(i): draw_shapes(i) for i in range(count)}
    rows = {stem: right for stem, (_, right) in drawn.items()}
    images = {f"{stem}.png": image for stem, (image, _) in drawn.items()}
    write_split(root, "train", images, {stem: text_of(right) for stem, right in rows.items()})
    return write_data(root, NAMES), rows


class ByColour:
    """Finds red and blue areas in each image of a batch, with confidence 0.9."""

    device = torch.device("cpu")

    def prepare(self, images):
        return images

    def nearest(self, wanted):
        return wanted

    def infer(self, images, wanted, *, augment=False):
        return images

    def suppress(self, inferred, wanted, labels=()):
        return [self._find(image.numpy().astype(int)) for image in inferred]

    def _find(self, image):
        rows = []
        for kind, channel in ((0, 0), (1, 2)):  # RGB
            mask = (image[channel] > 200) & (image[2 - channel] < 60)
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
            for x, y, w, h, area in stats[1:].tolist():
                if area > 20:
                    rows.append((x, y, x + w, y + h, 0.9, kind))
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)


def colour_network() -> TrainedNetwork:
    """That detector, with its batches."""
    return TrainedNetwork(ByColour(), BatchOptions(SIDE, 4, rect=True, pad=0.5), 0)
