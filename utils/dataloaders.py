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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.augmentations import Sample, copy_paste, finish, mixup, mosaic4, random_perspective
from utils.boxes import xywhn2xyxy, xyxy2xywhn
from utils.device import available_cpus, cores_are_scarce, tune_allocator
from utils.errors import UserError
from utils.image_cache import open_reader
from utils.imageset import ImageSet
from utils.letterbox import Placement, letterbox, rgb_planes
from utils.processes import start_worker
from utils.sampling import BatchSampler, Key, rect_batches

LOGGER = logging.getLogger("yolo.dataloaders")

WORKERS = 8
"""Loader processes at most, where nothing else is asked for."""
CLIP_EPS = 1e-3
"""How far inside the image the clipped boxes of a batch end, in pixels."""

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
        cache: None, 'ram' or 'disk' (see `utils.image_cache`).
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
