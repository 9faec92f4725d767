"""Choose the images of each batch: order, weights, rectangles, share of each process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from utils.errors import UserError

Key = tuple[int, int] | tuple[int, int, int]
"""(epoch, index), and a third number that tells the repeats of an image within an epoch apart."""

_ORDER_STREAM = 1
"""Keeps the generator of an epoch's order apart from those of its images, which share (seed, epoch)."""


class RectBatches(NamedTuple):
    """Hold images sorted by aspect ratio, in batches of one shape each.

    Attributes:
        order: (n,) image indices, batch after batch.
        shapes: (batches, 2) int64, height and width in pixels.
        batch_of: (n,) the batch of each image.
    """

    order: np.ndarray
    shapes: np.ndarray
    batch_of: np.ndarray

    @property
    def batches(self) -> list[np.ndarray]:
        """Return the image indices of each batch."""
        return np.split(self.order, np.flatnonzero(np.diff(self.batch_of[self.order])) + 1)

    def shape(self, index: int) -> tuple[int, int]:
        """Return height and width of the batch that image `index` is in."""
        height, width = self.shapes[self.batch_of[index]]
        return int(height), int(width)


def batch_starts(count: int, batch_size: int, *, alone: int) -> np.ndarray:
    """Return where each batch of `count` images begins.

    Args:
        alone: so many last images, or fewer, belong to the batch before them: one for each process. BatchNorm
            cannot train on a single value per channel, which one image gives after global pooling.

    >>> batch_starts(5, 2, alone=1).tolist(), batch_starts(5, 2, alone=0).tolist()
    ([0, 2], [0, 2, 4])
    """
    starts = np.arange(0, count, batch_size)
    return starts[:-1] if count > batch_size > alone >= count - starts[-1] else starts


def rect_batches(
    sizes: np.ndarray, imgsz: int, batch_size: int, stride: int, pad: float, *, alone: int = 0
) -> RectBatches:
    """Sort images into batches of rectangles with little padding.

    A batch of landscapes is as high as its squarest image needs, a batch of portraits as wide, and a mixed
    batch is square. Sides are rounded up to `stride` after `pad` strides are added.

    Args:
        sizes: (n, 2) width and height of the images.
        imgsz: pixels of the longer side.
        alone: see `batch_starts`.

    >>> rect_batches(np.array([[640, 320], [320, 640]]), 640, 1, 32, pad=0.0).shapes.tolist()
    [[320, 640], [640, 320]]
    """
    aspect = sizes[:, 1] / sizes[:, 0]
    # Which images of equal aspect share a batch moves recall by some thousandths. Heapsort orders them the
    # same on every machine; the order of numpy's default sort depends on the CPU's vectors.
    order = np.argsort(aspect, kind="heapsort")
    starts = batch_starts(len(order), batch_size, alone=alone)
    low = np.minimum.reduceat(aspect[order], starts)
    high = np.maximum.reduceat(aspect[order], starts)
    relative = np.ones((len(starts), 2))
    relative[:, 0] = np.where(high < 1, high, 1.0)
    relative[:, 1] = np.where(low > 1, 1 / low, 1.0)
    shapes = np.ceil(relative * imgsz / stride + pad).astype(np.int64) * stride
    batch_of = np.empty(len(order), np.int64)
    batch_of[order] = np.searchsorted(starts, np.arange(len(order)), side="right") - 1
    return RectBatches(order, shapes, batch_of)


class BatchSampler(Sampler[list[Key]]):
    """Yield the keys of each batch of this rank.

    The order depends on (seed, epoch) only.

    Args:
        count: images in all.
        batch_size: images per batch of this rank.
        shuffle: a new order each epoch; of whole batches when they are fixed.
        even: for training. Every rank gets equally many images, by repeating the first ones (of the batch,
            when it is fixed), and lone last images join the batch before. Otherwise each image comes once,
            in one of the ranks.
        fixed: the images of each batch, from `rect_batches`. The ranks share each, so that a batch has one
            shape on all of them. None: `batch_size` of the order.

    Attributes:
        epoch: set it before iterating.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
        even: bool = True,
        fixed: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.rank, self.world_size, self.even, self.fixed = rank, world_size, even, fixed
        self.epoch = 0
        self._weights: np.ndarray | None = None

    def set_weights(self, weights: np.ndarray | None) -> None:
        """Draw images by weights (count,), with replacement; None ends that.

        Raises:
            UserError: wrong length, negative or not finite, or all zero.
        """
        if weights is not None:
            weights = np.asarray(weights, np.float64)
            total = weights.sum() if weights.shape == (self.count,) and (weights >= 0).all() else 0.0
            if not (np.isfinite(total) and total > 0):
                raise UserError(
                    f"image weights: {self.count} finite numbers >= 0, not all 0, are needed; check labels"
                )
            weights = weights / total
        self._weights = weights

    def __len__(self) -> int:
        if self.fixed is not None:
            return sum(self._share(len(images)) > 0 for images in self.fixed)
        return len(batch_starts(self._share(self.count), self.batch_size, alone=int(self.even)))

    def _share(self, total: int) -> int:
        """Return how many of `total` things this rank gets."""
        if self.even:
            return -(-total // self.world_size)
        return len(range(self.rank, total, self.world_size))

    def drawn(self) -> np.ndarray:
        """Return the images of this epoch (count,) over all ranks.

        They are all images in their own order, unless they are drawn by weight. A mosaic draws its other
        tiles from them.
        """
        if self._weights is None:
            return np.arange(self.count)
        return self._generator().choice(self.count, self.count, p=self._weights)

    def _generator(self) -> np.random.Generator:
        """Return the generator of this epoch's order."""
        return np.random.default_rng(
            np.random.SeedSequence((self.seed, self.epoch), spawn_key=(_ORDER_STREAM,))
        )

    def _mine(self, things: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return this rank's share of things, and how often each came before in the epoch."""
        if self.even:
            things = np.resize(things, -(-len(things) // self.world_size) * self.world_size)
        mine = slice(self.rank, None, self.world_size)
        return things[mine], _occurrence(things)[mine]

    def __iter__(self) -> Iterator[list[Key]]:
        if self.fixed is not None:
            yield from self._fixed_batches(self.fixed)
            return
        indices = self.drawn()
        if self.shuffle and self._weights is None:
            indices = self._generator().permutation(indices)
        indices, repeats = self._mine(indices)
        starts = batch_starts(len(indices), self.batch_size, alone=int(self.even)).tolist()
        for start, stop in zip(starts, [*starts[1:], len(indices)]):
            yield self._keys(indices[start:stop], repeats[start:stop])

    def _fixed_batches(self, fixed: Sequence[np.ndarray]) -> Iterator[list[Key]]:
        """Yield this rank's share of the batches of rectangles, whose images are fixed."""
        order = self._generator().permutation(len(fixed)) if self.shuffle else range(len(fixed))
        for batch in order:
            images, repeats = self._mine(fixed[batch])
            if len(images):
                yield self._keys(images, repeats)

    def _keys(self, indices: np.ndarray, repeats: np.ndarray) -> list[Key]:
        """Return the keys of images that came `repeats` times before in this epoch."""
        epoch = self.epoch
        return [(epoch, i, r) if r else (epoch, i) for i, r in zip(indices.tolist(), repeats.tolist())]


def _occurrence(values: np.ndarray) -> np.ndarray:
    """Count how often each value (n,) comes before its place.

    >>> _occurrence(np.array([4, 7, 4, 4])).tolist()
    [0, 0, 1, 2]
    """
    by_value = np.argsort(values, kind="stable")
    ordered = values[by_value]
    first = np.searchsorted(ordered, ordered)
    result = np.empty(len(values), np.int64)
    result[by_value] = np.arange(len(values)) - first
    return result


def class_weights(classes: np.ndarray, nc: int) -> np.ndarray:
    """Return the inverse frequency of each class (nc,), normalised to a mean of 1.

    A class that never occurs counts as one that occurs once.

    >>> class_weights(np.array([0, 0, 0, 1]), nc=2).tolist()
    [0.5, 1.5]
    """
    counts = np.bincount(classes.astype(np.int64), minlength=nc).astype(np.float64)
    weights = 1.0 / np.maximum(counts, 1.0)
    return weights / weights.sum() * nc


def image_weights(labels: np.ndarray, offsets: np.ndarray, nc: int, maps: np.ndarray | None) -> np.ndarray:
    """Return the weight of each image (n,): rare and badly learnt classes weigh more.

    It is the sum over the image's boxes of the class's weight times (1 - mAP)^2.

    Args:
        labels: (L, 5), class first.
        offsets: (n + 1,) where each image's labels begin.
        nc: classes.
        maps: mAP50-95 of each class (nc,) at the last validation; None before the first.

    >>> labels = np.array([[0, 0.5, 0.5, 1, 1], [1, 0.5, 0.5, 1, 1]])
    >>> image_weights(labels, np.array([0, 1, 2]), 2, np.array([0.5, 0.0])).tolist()
    [0.125, 0.5]
    """
    classes = labels[:, 0].astype(np.int64)
    missed = 1.0 if maps is None else (1.0 - maps) ** 2
    per_class = class_weights(classes, nc) * missed / nc
    running = np.concatenate(([0.0], np.cumsum(per_class[classes])))
    weights = np.maximum(running[offsets[1:]] - running[offsets[:-1]], 0.0)
    return weights if weights.sum() > 0 else np.ones(len(weights))
