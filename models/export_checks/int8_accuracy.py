"""Prepare a data set for int8: images to calibrate with, mAP before and after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.backends import check_channels, load_backend
from models.formats.base import Backend
from models.formats.exporter import network_input
from utils.dataset.config import DatasetConfig, check_classes, load_dataset
from utils.dataset.images import load_images
from utils.dataset.loader import build_loader, workers_beside
from utils.evaluation.evaluate import evaluate
from utils.evaluation.metrics import Metrics


@dataclass(frozen=True)
class Accuracy:
    """Hold the mAP on the validation images.

    It is that of the exported file and of the checkpoint in float32.
    """

    map: float
    map50: float
    pytorch_map: float
    pytorch_map50: float


class Quantiser:
    """Use a data set for quantisation.

    Training images calibrate, validation images measure.

    Images go the way they go in validation: read, letterboxed to the exported size, RGB in 0..1.
    """

    def __init__(
        self, data: str, count: int, weights: Path, shape: tuple[int, int, int, int], device: torch.device
    ) -> None:
        """Choose the images and check that they suit the network.

        Args:
            data: dataset YAML.
            count: how many images to calibrate with; all of them when there are fewer.
            weights: the checkpoint, to measure against.
            shape: (N, ch, H, W) of the export.
            device: which it is for.

        Raises:
            UserError: no train or val split, no image, classes other than the checkpoint's, or a network
                whose channels no image has.
        """
        self.weights, self.device = weights, device
        self._known: dict[bool, Metrics] = {}
        self.batch, self.ch, *size = shape
        self.size = (size[0], size[1])
        check_channels(weights, self.ch, ", so there is nothing that --int8 could calibrate it with")
        self.config = load_dataset(data)
        images = load_images(self.config, "train")
        # Evenly over the list, which is sorted: a set in which the classes come one after the other is
        # covered as well, and the choice is the same every time.
        chosen = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
        self.paths = [images.path(int(i)) for i in chosen]

    def batches(self) -> Iterator[Tensor]:
        """Yield (N, ch, H, W) float32 in 0..1 on the CPU.

        N is the exported batch; the last one is filled up.
        """
        paths = [*self.paths, *self.paths[: -len(self.paths) % self.batch]]
        paths += [paths[-1]] * (-len(paths) % self.batch)
        for start in range(0, len(paths), self.batch):
            yield torch.stack(
                [network_input(path, self.size, self.ch) for path in paths[start : start + self.batch]]
            )

    def accuracy(self, path: Path) -> Accuracy:
        """Return the mAP of an exported file and of the checkpoint, on equal batches."""
        backend = load_backend(path, self.device, names=self.config.label_names)
        found, wanted = self._measure(backend), self._wanted(backend.rect_ok)
        return Accuracy(found.map, found.map50, wanted.map, wanted.map50)

    def _wanted(self, rect: bool) -> Metrics:
        """Return the checkpoint's own metrics for square or for rectangular batches.

        Each is measured once.
        """
        if rect not in self._known:
            self._known[rect] = self._measure(load_backend(self.weights, self.device), rect)
        return self._known[rect]

    def _measure(self, backend: Backend, rect: bool | None = None) -> Metrics:
        return measure(backend, self.config, self.size, self.batch, rect=rect)


def measure(
    backend: Backend, config: DatasetConfig, size: tuple[int, int], batch: int, *, rect: bool | None = None
) -> Metrics:
    """Validate on a data set's val images as val.py does.

    Args:
        size: (height, width) in pixels; of rectangles of their own the images have its longer side.
        batch: images a batch.
        rect: whether every batch has the rectangle that suits it; None: where the file allows it. A file of a
            fixed size sees every image letterboxed into that, and other figures are comparable with its own
            only from such images too.

    Raises:
        UserError: classes that differ.
    """
    check_classes(backend.path, backend.names, config)
    options = backend.batch_options(max(size), batch, rect=rect is not False, frame=size)
    images = load_images(config, "val")
    loader = build_loader(images, options, workers=workers_beside(backend.device, None))
    try:
        return evaluate(backend, loader, config.names).metrics
    finally:
        loader.close()
