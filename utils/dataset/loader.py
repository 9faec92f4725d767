"""Samples to batches: what is drawn, how it is augmented, and the workers that do it.

Every image's augmentation comes from a generator seeded with (seed, epoch, index), so the batches are the
same with 0, 1 or 4 workers, after a resume, and whatever was decoded before. The sampler hands out (epoch,
index), which is why workers persist over epochs without being told anything.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from utils.dataset.batch_sampler import BatchSampler, Key
from utils.dataset.detection_dataset import Batch, DetectionDataset, collate
from utils.dataset.image_set import ImageSet
from utils.device import available_cpus, cores_are_scarce, tune_allocator
from utils.errors import UserError
from utils.processes import start_worker

LOGGER = logging.getLogger("yolo.dataloaders")

WORKERS = 8
"""Loader processes at most, where nothing else is asked for."""


@dataclass
class _Made:
    """What comes out of a worker: a batch, or the sentence the user has to read.

    A UserError raised in a worker would reach the main process wrapped in a traceback, and torch turns tuples
    into lists when it pins their memory: hence a class of our own.
    """

    batch: Batch | None = None
    refusal: str = ""

    def pin_memory(self) -> _Made:
        """Put the tensors where a GPU can fetch them; torch calls this."""
        if self.batch is not None:
            images, targets, *rest = self.batch
            self.batch = (images.pin_memory(), targets.pin_memory(), *rest)
        return self


class _Batches(Dataset):
    """What torch's DataLoader reads: a whole batch for a list of keys."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> _Made:
        try:
            return _Made(collate([self.dataset[key] for key in keys]))
        except UserError as error:
            return _Made(refusal=str(error))


def _as_is(made: _Made) -> _Made:
    return made


def _start_worker(_: int) -> None:
    """The same for a worker that also computes with torch."""
    start_worker()
    torch.set_num_threads(1)
    tune_allocator()


class Loader:
    """Batches of a dataset, one epoch per iteration; see `build_loader`.

    Args:
        dataset: what to load.
        sampler: which images make up the batches.
        workers: processes, 0 for none.
        start_method: of the processes, 'fork', 'spawn' or 'forkserver'; None is the system's own.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        sampler: BatchSampler,
        *,
        workers: int = 0,
        start_method: str | None = None,
    ) -> None:
        self.dataset, self.sampler, self.workers = dataset, sampler, workers
        self._start_method = start_method
        self._torch: DataLoader | None = None

    def __len__(self) -> int:
        """Batches per epoch (of this rank)."""
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Key the order and all augmentation of the next iteration."""
        self.sampler.epoch = epoch

    def set_image_weights(self, weights: np.ndarray | None) -> None:
        """Draw images with replacement by weights (n,) from the next iteration on; None: each image once.

        Raises:
            UserError: weights with rectangular batches, or not n finite weights >= 0 with some above 0.
        """
        if weights is not None and self.dataset.rect is not None:
            raise UserError(
                "--image-weights with --rect: a rectangular batch has its fixed images; leave one out"
            )
        self.sampler.set_weights(weights)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the epoch's batches.

        Raises:
            UserError: an image that cannot be read any more, or a worker that the system has killed.
        """
        if self._torch is None:
            self._torch = self._start()
        if self.dataset.population is not None:
            drawn = self.sampler.drawn()
            self.dataset.population.copy_(torch.from_numpy(drawn))
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

    def _start(self) -> DataLoader:
        options: dict[str, Any] = {}
        if self.workers:
            options = {
                "worker_init_fn": _start_worker,
                "persistent_workers": True,
                "prefetch_factor": prefetch(self.workers),
                "multiprocessing_context": self._start_method,
            }
        return DataLoader(
            _Batches(self.dataset),
            batch_sampler=self.sampler,
            num_workers=self.workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: torch would otherwise take a number from the global state at every epoch.
            generator=torch.Generator().manual_seed(self.dataset.seed),
            **options,
        )

    def close(self) -> None:
        """End the workers. The next iteration would start new ones."""
        # The iterator ends its processes when the last reference to it goes.
        self._torch = None

    def __del__(self) -> None:
        self._torch = None


def workers_beside(device: torch.device, asked: int | None) -> int:
    """Loader processes: those asked for, else 8, but none beside a network that needs every core itself.

    On a CPU of two cores a worker takes its time from one of the network's two threads, and the other waits:
    taking turns was 8 % faster, images cached or not (yolov5n at 320 px; `benchmarks/training.py --workers`).
    """
    if asked is not None:
        return asked
    return 0 if cores_are_scarce(device) else WORKERS


def prefetch(workers: int) -> int:
    """Batches that each of `workers` makes ahead: four at least in all, two at least by each."""
    return max(2, math.ceil(4 / workers))


def count_workers(asked: int, batch_size: int, batches: int, batch_bytes: int, world_size: int = 1) -> int:
    """Workers worth starting: no more than the CPUs, the batch size, the batches and /dev/shm allow.

    Args:
        asked: `--workers`.
        batch_bytes: size of one batch; batches reach the main process through /dev/shm, which is 64 MiB in an
            ordinary container and kills a worker that oversteps it.
    """
    workers = min(asked, max(available_cpus() // world_size, 1), batch_size, batches)
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


def build_loader(
    images: ImageSet,
    imgsz: int,
    batch_size: int,
    *,
    augment: bool = False,
    hyp: Mapping[str, float] | None = None,
    rect: bool = False,
    pad: float = 0.0,
    stride: int = 32,
    frame: tuple[int, int] | None = None,
    cache: str | None = None,
    single_cls: bool = False,
    workers: int = 8,
    seed: int = 0,
    shuffle: bool = False,
    rank: int = 0,
    world_size: int = 1,
    image_weights: np.ndarray | None = None,
) -> Loader:
    """A loader of `images`; see `DetectionDataset` for what is done to each.

    Args:
        batch_size: images per batch of this process; the last batch may be smaller and is kept.
        workers: processes at most (see `count_workers`).
        shuffle: a new order each epoch; with `rect` a new order of the batches.
        rank, world_size: this process's share. With `augment` or `shuffle`, which is training, all ranks get
            equally many batches, if need be by repeating some images; otherwise every image is loaded once,
            by one rank.
        image_weights: see `Loader.set_image_weights`.

    Raises:
        UserError: no images, a negative seed, or an image that cannot be read while a cache is filled.
    """
    if not len(images):
        raise UserError("there is no usable image to load; check the paths in the dataset's YAML")
    if seed < 0:
        raise UserError(f"--seed {seed}: a seed cannot be negative; use 0 or more")
    options = {"hyp": hyp, "augment": augment, "rect": rect, "stride": stride, "pad": pad, "frame": frame}
    dataset = DetectionDataset(
        images, imgsz, batch_size=batch_size, cache=cache, single_cls=single_cls, seed=seed, **options
    )
    sampler = BatchSampler(
        len(images),
        batch_size,
        seed=seed,
        shuffle=shuffle,
        rank=rank,
        world_size=world_size,
        even=augment or shuffle,
        order=dataset.rect.order if dataset.rect else None,
    )
    pixels = int(dataset.rect.shapes.prod(1).max()) if dataset.rect else dataset.frame[0] * dataset.frame[1]
    processes = count_workers(workers, batch_size, len(sampler), pixels * 3 * batch_size, world_size)
    loader = Loader(dataset, sampler, workers=processes)
    if image_weights is not None:
        loader.set_image_weights(image_weights)
    return loader
