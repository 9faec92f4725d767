"""Load batches, in this process or in workers.

The augmentation of an image comes from a generator seeded with (seed, epoch, index). Batches are therefore
the same with 0, 1 or 4 workers, after a resume, and whatever was decoded before. The sampler hands out
(epoch, index), so workers need not be told which epoch it is.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from utils.dataset.batch_sampler import BatchSampler, Key
from utils.dataset.detection_dataset import Batch, BatchOptions, DetectionDataset, collate
from utils.dataset.image_set import ImageSet
from utils.device import available_cpus, cores_are_scarce, tune_allocator
from utils.errors import UserError
from utils.processes import start_worker

LOGGER = logging.getLogger("yolo.dataloaders")

WORKERS = 8
"""Most loader processes when `--workers` is not given."""

TINY, MANY = 2, 0.1
"""Pixels that a side of a box needs, and the share of smaller boxes from which on they are reported."""


@dataclass
class _Made:
    """Hold what a worker made: a batch, or the message of a UserError.

    A UserError raised in a worker would reach the main process inside a traceback, and torch turns tuples
    into lists when it pins their memory, so neither can be sent as it is.
    """

    batch: Batch | None = None
    refusal: str = ""

    def pin_memory(self) -> _Made:
        """Pin the tensors for the copy to a GPU; torch calls this."""
        if self.batch is not None:
            images, targets, paths, placements = self.batch
            self.batch = (images.pin_memory(), targets.pin_memory(), paths, placements)
        return self


class _Batches(Dataset[_Made]):
    """Give torch's DataLoader a whole batch for a list of keys."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> _Made:
        try:
            return _Made(collate([self.dataset[key] for key in keys]))
        except UserError as error:
            return _Made(refusal=str(error))


def _as_is(made: object) -> object:
    return made


def _start_worker(_: int) -> None:
    """Prepare a worker process that also computes with torch."""
    start_worker()
    torch.set_num_threads(1)
    tune_allocator()


class Loader:
    """Yield the batches of a dataset, one epoch per iteration.

    `build_loader` makes it.

    Args:
        dataset: what to load.
        sampler: which images make up the batches.
        workers: processes, 0 for none.
    """

    def __init__(self, dataset: DetectionDataset, sampler: BatchSampler, *, workers: int = 0) -> None:
        self.dataset, self.sampler, self.workers = dataset, sampler, workers
        self._torch: DataLoader[_Made] | None = None

    def __len__(self) -> int:
        """Return the batches per epoch (of this rank)."""
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Key the order and all augmentation of the next iteration."""
        self.sampler.epoch = epoch

    def set_image_weights(self, weights: np.ndarray | None) -> None:
        """Draw images by weights (n,), with replacement, from the next iteration on.

        None ends that: each image comes once.

        Raises:
            UserError: weights with rectangular batches, or not n finite weights >= 0 with some above 0.
        """
        if weights is not None and self.dataset.rect is not None:
            raise UserError(
                "--image-weights with --rect: a rectangular batch has fixed images; use one of the two"
            )
        self.sampler.set_weights(weights)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the epoch's batches.

        Raises:
            UserError: an image that cannot be read any more, or a worker that the system has killed.
        """
        if self._torch is None:
            self._torch = self._start()
        self.dataset.population.copy_(torch.from_numpy(self.sampler.drawn()))
        try:
            for made in self._torch:
                if made.batch is None:
                    raise UserError(made.refusal)
                yield made.batch
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            self.close()
            raise UserError(
                f"a loader worker was ended by the system ({str(error).splitlines()[0]}), which happens when "
                "memory or /dev/shm is full; run with fewer --workers, smaller --batch-size or no --cache ram"
            ) from None

    def _start(self) -> DataLoader[_Made]:
        """Make torch's loader, which starts the workers."""
        options: dict[str, Any] = {}  # Any: torch gives each of these keywords a type of its own
        if self.workers:
            options = {
                "worker_init_fn": _start_worker,
                "persistent_workers": True,
                "prefetch_factor": prefetch(self.workers),
            }
        return DataLoader(
            _Batches(self.dataset),
            batch_sampler=self.sampler,
            num_workers=self.workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: torch would otherwise take a number from the global state at every epoch.
            generator=torch.Generator().manual_seed(self.dataset.options.seed),
            **options,
        )

    def close(self) -> None:
        """End the workers. The next iteration would start new ones."""
        # The iterator ends its processes when the last reference to it goes.
        self._torch = None

    def __del__(self) -> None:
        self._torch = None


def workers_beside(device: torch.device, asked: int | None) -> int:
    """Return how many loader processes to start beside a network on this device.

    They are as many as asked for, else 8, but none where the network needs every core. On a CPU of two cores
    a worker takes its time from one of the network's two threads, and the other thread waits: loading between
    the steps was 8 % faster, images cached or not (yolov5n at 320 px; `benchmarks/training.py --workers`).
    """
    if asked is not None:
        return asked
    return 0 if cores_are_scarce(device) else WORKERS


def prefetch(workers: int) -> int:
    """Return how many batches each of `workers` prepares ahead.

    >>> prefetch(1), prefetch(2), prefetch(8)
    (4, 2, 2)
    """
    return max(2, math.ceil(4 / workers))


def count_workers(asked: int, batches: int, batch_bytes: int, world_size: int = 1) -> int:
    """Return how many workers are worth starting.

    More than the CPUs or the batches would only wait. Each makes whole batches, so a batch of one image can
    need several too.

    Args:
        asked: `--workers`.
        batch_bytes: size of one batch. Batches reach the main process through /dev/shm, which is 64 MiB in an
            ordinary container; a worker that needs more is killed.
    """
    workers = min(asked, max(available_cpus() // world_size, 1), batches)
    shared = Path("/dev/shm")  # noqa: S108 the system's own place for shared memory
    if workers <= 0 or not shared.is_dir():
        return max(workers, 0)
    room = shutil.disk_usage(shared).free // max(batch_bytes * world_size, 1)
    fitting = workers
    while fitting and fitting * prefetch(fitting) + 2 > room:
        fitting -= 1
    if fitting < workers:
        LOGGER.warning(
            "%s has room for %d batches: %d workers instead of %d (docker run --shm-size=8g gives it more)",
            shared,
            room,
            fitting,
            workers,
        )
    return fitting


def _warn_of_tiny_boxes(images: ImageSet, imgsz: int) -> None:
    """Warn when many boxes are too small at the training size to be learnt."""
    sides = images.box_sides(imgsz)
    tiny = int((sides.min(1, initial=np.inf) < TINY).sum())
    if tiny > MANY * len(sides):
        LOGGER.warning(
            "%d of %d boxes (%.0f %%) have a side under %d pixels at --imgsz %d, too little to be learnt; "
            "use a larger --imgsz, or cut the images into tiles",
            *(tiny, len(sides), 100 * tiny / len(sides), TINY, imgsz),
        )


def build_loader(
    images: ImageSet,
    options: BatchOptions,
    *,
    workers: int = WORKERS,
    shuffle: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Build a loader of `images`.

    Args:
        images: the verified images of a split.
        options: how they become batches.
        workers: processes at most (see `count_workers`).
        shuffle: a new order each epoch; with rectangles a new order of the batches.
        rank: number of this process, from 0.
        world_size: processes in all. With augmentation or `shuffle`, which is training, all ranks get equally
            many batches, if need be by repeating some images; otherwise every image is loaded once, by one
            rank.

    Raises:
        UserError: no images, a negative seed, or an image that cannot be read while a cache is filled.
    """
    if not len(images):
        raise UserError("there is no usable image to load; check the paths in the dataset's YAML")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: a seed cannot be negative; use 0 or more")
    dataset = DetectionDataset(images, options, world_size)
    sampler = BatchSampler(
        len(images),
        options.batch_size,
        seed=options.seed,
        shuffle=shuffle,
        rank=rank,
        world_size=world_size,
        even=dataset.augment or shuffle,
        fixed=dataset.rect.batches if dataset.rect else None,
    )
    if sampler.even:
        _warn_of_tiny_boxes(images, options.imgsz)
    pixels = dataset.frame[0] * dataset.frame[1]
    if dataset.rect or options.native:
        shapes = dataset.rect.shapes if dataset.rect else images.sizes.astype(np.int64)
        pixels = int(shapes.prod(1).max())
    batch_bytes = pixels * 3 * options.batch_size
    processes = count_workers(workers, len(sampler), batch_bytes, world_size)
    return Loader(dataset, sampler, workers=processes)
