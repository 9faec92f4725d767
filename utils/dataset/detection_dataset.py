"""Load one training or validation sample: image, boxes, augmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.boxes import xywhn2xyxy, xyxy2xywhn
from utils.dataset.augmentations import Sample, copy_paste, finish, mixup, mosaic4, random_perspective
from utils.dataset.batch_sampler import Key, rect_batches
from utils.dataset.image_cache import open_reader
from utils.dataset.image_set import ImageSet
from utils.letterbox import Placement, letterbox, rgb_planes

Batch = tuple[Tensor, Tensor, list[str], list[Placement]]
"""Images (N, 3, H, W) uint8 RGB, targets (M, 6) float32 `image, class, xc, yc, w, h`, paths, shapes."""


class Item(NamedTuple):
    """One image ready for a batch."""

    image: np.ndarray  # (H, W, 3) uint8, still BGR
    labels: np.ndarray  # (k, 5) float32: class, xc, yc, w, h normalised
    path: str
    shape: Placement


class DetectionDataset(Dataset):
    """Images of a set, loaded and augmented; items are keyed by (epoch, index) or (epoch, index, repeat).

    Args:
        images: the verified images of a split.
        imgsz: side of a training image, the long side of any other, in pixels.
        batch_size: images that share one shape when `rect`.
        hyp: augmentation hyperparameters (mosaic, mixup, copy_paste, degrees, translate, scale, shear,
            perspective, hsv_h, hsv_s, hsv_v, flipud, fliplr); what is absent is off.
        augment: apply `hyp`; otherwise images are only scaled and padded.
        rect: batches of rectangles, sorted by aspect ratio, instead of squares; turns mosaic off.
        stride: sides of rectangles are multiples of this.
        pad: extra padding of rectangles, in strides (0 for training, 0.5 for validation).
        frame: (height, width) that every image is letterboxed into, whatever its own shape, for networks of
            one size; None: the square of `imgsz`, or the rectangles of `rect`.
        cache: None, 'ram' or 'disk' (see `utils.dataset.image_cache`).
        single_cls: every label becomes class 0.
        seed: seed of all augmentation.
    """

    def __init__(
        self,
        images: ImageSet,
        imgsz: int,
        *,
        batch_size: int,
        hyp: Mapping[str, float] | None = None,
        augment: bool = False,
        rect: bool = False,
        stride: int = 32,
        pad: float = 0.0,
        frame: tuple[int, int] | None = None,
        cache: str | None = None,
        single_cls: bool = False,
        seed: int = 0,
    ) -> None:
        self.images, self.imgsz, self.augment, self.seed = images, imgsz, augment, seed
        self.single_cls = single_cls
        self.hyp = {key: float(value) for key, value in (hyp or {}).items() if isinstance(value, int | float)}
        self.rect = rect_batches(images.sizes, imgsz, batch_size, stride, pad) if rect else None
        self.frame = frame or (imgsz, imgsz)
        self.mosaic = augment and not rect
        # The images that mosaic and mixup draw from. Shared memory, so that drawing images by weight also
        # reaches workers that are already running.
        self.population = torch.arange(len(images)).share_memory_() if self.mosaic else None
        self._reader = open_reader(images, imgsz, augment=augment, cache=cache)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Item:
        """The image of `key` = (epoch, index[, repeat]): the same pixels and labels in whatever process.

        Raises:
            UserError: the file cannot be read any more.
        """
        index = key[1]
        rng = np.random.default_rng((self.seed, *key))
        if self.mosaic and rng.random() < self.hyp.get("mosaic", 0.0):
            sample = self._mosaic(index, rng)
            if rng.random() < self.hyp.get("mixup", 0.0):
                sample = mixup(sample, self._mosaic(self._draw(1, rng)[0], rng), rng)
            shape = None
        else:
            sample, shape = self._letterboxed(index)
            if self.augment:
                sample, shape = random_perspective(sample, self.hyp, rng), None
        height, width = sample.image.shape[:2]
        labels = sample.labels.copy()
        labels[:, 1:] = xyxy2xywhn(labels[:, 1:], width, height, clip=True, eps=CLIP_EPS)
        image = sample.image
        if self.augment:
            image, labels = finish(image, labels, self.hyp, rng)
        # Augmented pixels have no way back to a file: boxes in them are boxes in this very image.
        shape = shape or ((height, width), ((1.0, 1.0), (0.0, 0.0)))
        return Item(image, labels, self.images.path(index), shape)

    def _draw(self, count: int, rng: np.random.Generator) -> list[int]:
        chosen = rng.integers(len(self.images), size=count)
        return self.population[torch.from_numpy(chosen)].tolist()

    def _mosaic(self, index: int, rng: np.random.Generator) -> Sample:
        tiles = rng.permutation([index, *self._draw(3, rng)]).tolist()
        canvas = mosaic4([self._load(i)[0] for i in tiles], self.imgsz, rng)
        if self.hyp.get("copy_paste", 0.0):
            canvas = copy_paste(canvas, self.hyp["copy_paste"], rng)
        return random_perspective(canvas, self.hyp, rng, border=-self.imgsz // 2)

    def _load(self, index: int) -> tuple[Sample, tuple[int, int]]:
        """Image `index` at training scale with its objects in pixels, and its native (height, width)."""
        image, native = self._reader.read(index)
        height, width = image.shape[:2]
        labels = self._labels(index)
        labels[:, 1:] = xywhn2xyxy(labels[:, 1:], width, height)
        return Sample(image, labels, [p * np.float32((width, height)) for p in self._polygons(index)]), native

    def _letterboxed(self, index: int) -> tuple[Sample, Placement]:
        image, native = self._reader.read(index)
        scaled = image.shape[:2]
        target = self.rect.shape(index) if self.rect else self.frame
        image, ratio, pad = letterbox(image, target, auto=False, scaleup=self.augment)
        height, width = scaled[0] * ratio[0], scaled[1] * ratio[1]
        labels = self._labels(index)
        labels[:, 1:] = xywhn2xyxy(labels[:, 1:], width, height, pad[0], pad[1])
        polygons = [p * np.float32((width, height)) + np.float32(pad) for p in self._polygons(index)]
        ratios = height / native[0], width / native[1]
        return Sample(image, labels, polygons), (native, (ratios, pad))

    def _labels(self, index: int) -> np.ndarray:
        labels = self.images.labels(index).copy()
        if self.single_cls:
            labels[:, 0] = 0
        return labels

    def _polygons(self, index: int) -> list[np.ndarray]:
        """One polygon per label, empty where there is none; without augmentation nobody asks for them."""
        if not self.augment:
            return []
        labels = len(self.images.labels(index))
        return self.images.segments(index) or [np.zeros((0, 2), np.float32)] * labels


def collate(items: Sequence[Item]) -> Batch:
    """Items of one shape -> a batch."""
    height, width = items[0].image.shape[:2]
    images = torch.empty((len(items), 3, height, width), dtype=torch.uint8)
    targets = np.zeros((sum(len(item.labels) for item in items), 6), np.float32)
    row = 0
    for number, (planes, item) in enumerate(zip(images.numpy(), items)):
        rgb_planes(item.image, out=planes)
        rows = targets[row : row + len(item.labels)]
        rows[:, 0], rows[:, 1:] = number, item.labels
        row += len(item.labels)
    return images, torch.from_numpy(targets), [item.path for item in items], [item.shape for item in items]


CLIP_EPS = 1e-3
"""How far inside the image the clipped boxes of a batch end, in pixels."""
