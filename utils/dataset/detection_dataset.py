"""Load one image of a training or validation batch: pixels, boxes, augmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.boxes import xywhn2xyxy, xyxy2xywhn
from utils.dataset.augmentations import (
    LabelledImage,
    colour_and_flip,
    copy_paste,
    mixup,
    mosaic4,
    random_perspective,
)
from utils.dataset.batch_sampler import Key, rect_batches
from utils.dataset.image_cache import NativeReader, open_reader
from utils.dataset.image_set import ImageSet
from utils.letterbox import Placement, letterbox, rgb_planes

Batch = tuple[Tensor, Tensor, list[str], list[Placement]]
"""Images (N, 3, H, W) uint8 RGB, targets (M, 6) float32 `image, class, xc, yc, w, h`, paths, placements."""

CLIP_EPS = 1e-3
"""How far inside the image the clipped boxes of a batch end, in pixels."""


class Item(NamedTuple):
    """Hold one image that is ready for a batch."""

    image: np.ndarray  # (H, W, 3) uint8, still BGR
    labels: np.ndarray  # (k, 5) float32: class, xc, yc, w, h normalised
    path: str
    placement: Placement


@dataclass(frozen=True)
class BatchOptions:
    """Say how images become batches.

    Attributes:
        imgsz: side of a training image, the long side of any other, in pixels.
        batch_size: images per batch of this process; the last batch may be smaller and is kept, but in
            training a lone last image joins the batch before.
        hyp: augmentation hyperparameters (mosaic, mixup, copy_paste, degrees, translate, scale, shear,
            perspective, hsv_h, hsv_s, hsv_v, flipud, fliplr); what is absent is 0. None: no augmentation, the
            images are only scaled and padded.
        rect: batches of rectangles, sorted by aspect ratio, instead of squares; turns mosaic off.
        stride: sides of rectangles are multiples of this.
        pad: extra padding of rectangles, in strides (0 for training, 0.5 for validation).
        frame: (height, width) that every image is letterboxed into, for networks of a fixed size; None: the
            square of `imgsz`, or the rectangles of `rect`.
        cache: None, 'ram' or 'disk' (see `utils.dataset.image_cache`).
        seed: seed of all augmentation, and of the order.
        native: images keep their own size, one in a batch, for `utils.tiles`; `imgsz` has no effect.

    Raises:
        ValueError: both `rect` and `frame`, or `native` with what scales images or needs one shape.
    """

    imgsz: int
    batch_size: int
    hyp: Mapping[str, float] | None = None
    rect: bool = False
    stride: int = 32
    pad: float = 0.0
    frame: tuple[int, int] | None = None
    cache: str | None = None
    seed: int = 0
    native: bool = False

    def __post_init__(self) -> None:
        if self.rect and self.frame:
            raise ValueError(f"rect and frame {self.frame} exclude each other")
        if self.native and (
            self.rect or self.frame or self.hyp is not None or self.cache or self.batch_size > 1
        ):
            raise ValueError("native images are one in a batch, without rect, frame, hyp and cache")


class DetectionDataset(Dataset[Item]):
    """Load and augment the images of a set, by keys (epoch, index[, repeat]).

    Args:
        images: the verified images of a split.
        options: how they become batches.
        processes: how many share each batch of rectangles.

    Attributes:
        rect: the rectangles of the batches; None without `options.rect`.
        frame: (height, width) of all images otherwise.
        population: (n,) int64, the images that mosaic and mixup draw from. It is shared memory, so that
            drawing images by weight also reaches workers that are already running.
    """

    def __init__(self, images: ImageSet, options: BatchOptions, processes: int = 1) -> None:
        self.images, self.options = images, options
        self.augment = options.hyp is not None
        # A hyp YAML may also hold what is no number; augmentation reads none of that.
        self.hyp = {k: float(v) for k, v in (options.hyp or {}).items() if isinstance(v, int | float)}
        self.rect = None
        if options.rect:
            together = options.batch_size * processes
            shape = options.imgsz, together, options.stride, options.pad
            self.rect = rect_batches(images.sizes, *shape, alone=processes if self.augment else 0)
        self.frame = options.frame or (options.imgsz, options.imgsz)
        self.mosaic = self.augment and not options.rect
        self.population = torch.arange(len(images))
        if self.mosaic:
            self.population.share_memory_()
        self._reader = (
            NativeReader(images, options.imgsz, augment=False)
            if options.native
            else open_reader(images, options.imgsz, augment=self.augment, cache=options.cache)
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Item:
        """Return the image of `key` = (epoch, index[, repeat]).

        Its pixels and labels depend on the key and the seed only.

        Raises:
            UserError: the file cannot be read any more.
        """
        index = key[1]
        rng = np.random.default_rng((self.options.seed, *key))
        if self.mosaic and rng.random() < self.hyp.get("mosaic", 0.0):
            drawn = self._mosaic(index, rng)
            if rng.random() < self.hyp.get("mixup", 0.0):
                drawn = mixup(drawn, self._mosaic(self._draw(1, rng)[0], rng), rng)
            placement = None
        else:
            drawn, placement = self._letterboxed(index)
            if self.augment:
                drawn, placement = random_perspective(drawn, self.hyp, rng), None
        image, labels = drawn.image, drawn.labels.copy()
        height, width = image.shape[:2]
        labels[:, 1:] = xyxy2xywhn(labels[:, 1:], width, height, clip=True, eps=CLIP_EPS)
        if self.augment:
            image, labels = colour_and_flip(image, labels, self.hyp, rng)
        # Augmented pixels cannot be mapped back to the file, so the image counts as its own source.
        placement = placement or ((height, width), ((1.0, 1.0), (0.0, 0.0)))
        return Item(image, labels, self.images.path(index), placement)

    def _draw(self, count: int, rng: np.random.Generator) -> list[int]:
        """Return the indices of `count` random images of the population."""
        chosen = rng.integers(len(self.images), size=count)
        drawn: list[int] = self.population[torch.from_numpy(chosen)].tolist()
        return drawn

    def _mosaic(self, index: int, rng: np.random.Generator) -> LabelledImage:
        """Return a training image from image `index` and three random ones."""
        tiles = rng.permutation([index, *self._draw(3, rng)]).tolist()
        canvas = mosaic4([self._load(i) for i in tiles], self.options.imgsz, rng)
        if self.hyp.get("copy_paste", 0.0):
            canvas = copy_paste(canvas, self.hyp["copy_paste"], rng)
        return random_perspective(canvas, self.hyp, rng, border=-self.options.imgsz // 2)

    def _load(self, index: int) -> LabelledImage:
        """Return image `index` at training scale, with its objects in pixels."""
        image, _ = self._reader.read(index)
        height, width = image.shape[:2]
        return self._labelled(index, image, width, height)

    def _letterboxed(self, index: int) -> tuple[LabelledImage, Placement]:
        """Return image `index` letterboxed to its batch's shape, with its objects in pixels."""
        image, native = self._reader.read(index)
        scaled = image.shape[:2]
        target = self.rect.shape(index) if self.rect else native if self.options.native else self.frame
        image, ratio, pad = letterbox(image, target, auto=False, scaleup=self.augment)
        height, width = scaled[0] * ratio[0], scaled[1] * ratio[1]
        ratios = height / native[0], width / native[1]
        return self._labelled(index, image, width, height, pad), (native, (ratios, pad))

    def _labelled(
        self, index: int, image: np.ndarray, width: float, height: float, pad: tuple[float, float] = (0, 0)
    ) -> LabelledImage:
        """Return an image with the objects of image `index` in its pixels.

        Args:
            width: of the part of `image` that shows image `index`, in pixels; `height` likewise.
            pad: left and upper padding of that part.
        """
        labels = self.images.labels(index).copy()
        labels[:, 1:] = xywhn2xyxy(labels[:, 1:], width, height, pad[0], pad[1])
        size, offset = np.array((width, height), np.float32), np.array(pad, np.float32)
        return LabelledImage(image, labels, [p * size + offset for p in self._polygons(index)])

    def _polygons(self, index: int) -> list[np.ndarray]:
        """Return one polygon per label, empty where there is none.

        Only augmentation needs them.
        """
        if not self.augment:
            return []
        labels = len(self.images.labels(index))
        return self.images.segments(index) or [np.zeros((0, 2), np.float32)] * labels


def collate(items: Sequence[Item]) -> Batch:
    """Make a batch of items of one shape."""
    height, width = items[0].image.shape[:2]
    images = torch.empty((len(items), 3, height, width), dtype=torch.uint8)
    targets = np.zeros((sum(len(item.labels) for item in items), 6), np.float32)
    row = 0
    for number, (planes, item) in enumerate(zip(images.numpy(), items)):
        rgb_planes(item.image, out=planes)
        rows = targets[row : row + len(item.labels)]
        rows[:, 0], rows[:, 1:] = number, item.labels
        row += len(item.labels)
    return (
        images,
        torch.from_numpy(targets),
        [item.path for item in items],
        [item.placement for item in items],
    )
