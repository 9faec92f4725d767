"""Turn letterboxed images into boxes in the pixels of the original images.

detect.py, val.py, compare.py, training and the model for Python all use this, and report its times.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from utils.device import synchronize
from utils.letterbox import Placement, scale_boxes
from utils.nms import NmsOptions

STAGES = ("preprocess", "inference", "nms")


class Detecting(Protocol):
    """State what a `Detector` needs of a network, such as `models.formats.base.Backend`."""

    device: torch.device

    def prepare(self, images: Tensor) -> Tensor:
        """Return images as the network takes them, on its device."""

    def infer(self, images: Tensor, wanted: NmsOptions, *, augment: bool = False) -> Tensor | list[Tensor]:
        """Run the network, and the NMS inside the file where there is one."""

    def suppress(
        self, inferred: Tensor | list[Tensor], wanted: NmsOptions, labels: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        """Return per image (n, 6) xyxy in pixels of the input, confidence, class; best first."""


@dataclass(frozen=True)
class Found:
    """Hold what a `Detector` found in one batch.

    Attributes:
        boxes: per image (n, 6) float32 on the CPU: xyxy in pixels of the image itself, confidence, class; the
            best first.
        letterboxed: the same in pixels of the batch.
        shape: (N, ch, H, W) of the batch that the network got.
        seconds: of the whole batch, by stage.
    """

    boxes: list[Tensor]
    letterboxed: list[Tensor]
    shape: tuple[int, ...]
    seconds: dict[str, float]

    @property
    def speed(self) -> dict[str, float]:
        """Return milliseconds per image of each stage."""
        return _per_image(self.seconds, len(self.boxes))


class Detector:
    """Find the objects in batches of letterboxed images, and time it.

    Attributes:
        backend: the network.
        nms: the options of NMS.
        augment: test-time augmentation; checkpoints only.
        images: how many images went through.
        seconds: of all batches together, by stage: `preprocess` (letterbox, copy to the device, scale to
            0..1), `inference`, `nms` (NMS, and the boxes scaled to the original image).
    """

    def __init__(self, backend: Detecting, nms: NmsOptions, *, augment: bool = False) -> None:
        self.backend = backend
        self.nms = nms
        self.augment = augment
        self.images = 0
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def __call__(
        self,
        images: Tensor | Sequence[np.ndarray],
        placements: Sequence[Placement],
        *,
        labels: Sequence[Tensor] = (),
        spent: float = 0.0,
    ) -> Found:
        """Detect the objects of one batch.

        Args:
            images: (N, ch, H, W) RGB, uint8 or floating in 0..1; or N arrays (ch, H, W).
            placements: per image its own (height, width), and how `letterbox` placed it.
            labels: per image (m, 5) class + xywh in pixels of the batch, added with confidence 1.
            spent: seconds that the letterbox took before; they count as preprocessing.

        Raises:
            UserError: the file cannot do what the options ask for.
        """
        seconds = dict.fromkeys(STAGES, 0.0)
        with self._timed("preprocess", seconds):
            batch = self.backend.prepare(images if isinstance(images, Tensor) else _stacked(images))
        seconds["preprocess"] += spent
        with self._timed("inference", seconds):
            inferred = self.backend.infer(batch, self.nms, augment=self.augment)
        with self._timed("nms", seconds):
            found = [boxes.cpu() for boxes in self.backend.suppress(inferred, self.nms, labels)]
            size = (batch.shape[-2], batch.shape[-1])
            native = [scale_boxes(size, boxes, *placement) for boxes, placement in zip(found, placements)]
        self._count(len(found), seconds)
        return Found(native, found, tuple(batch.shape), seconds)

    def _count(self, images: int, seconds: Mapping[str, float]) -> None:
        """Add a batch's images and the seconds of its stages to those of all batches."""
        self.images += images
        for stage in STAGES:
            self.seconds[stage] += seconds[stage]

    @property
    def speed(self) -> dict[str, float]:
        """Return milliseconds per image of each stage, over all batches."""
        return _per_image(self.seconds, self.images)

    @contextlib.contextmanager
    def _timed(self, stage: str, seconds: dict[str, float]) -> Iterator[None]:
        """Add the seconds of a stage, waiting for the device at both ends."""
        synchronize(self.backend.device)
        start = time.perf_counter()
        yield
        synchronize(self.backend.device)
        seconds[stage] += time.perf_counter() - start


def _stacked(images: Sequence[np.ndarray]) -> Tensor:
    """Return arrays of one shape as a batch; a single one is not copied."""
    return torch.from_numpy(images[0][None] if len(images) == 1 else np.stack(images))


def _per_image(seconds: dict[str, float], images: int) -> dict[str, float]:
    return {stage: 1000 * spent / max(images, 1) for stage, spent in seconds.items()}
