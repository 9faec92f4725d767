"""Find a run's images, and load its batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from utils.dataset.config import DatasetConfig, load_dataset
from utils.dataset.detection_dataset import BatchOptions
from utils.dataset.image_set import ImageSet
from utils.dataset.images import load_images
from utils.dataset.loader import Loader, build_loader, workers_beside
from utils.device import rank, world_size
from utils.training.distributed import main_first
from utils.training.options import TrainOptions
from utils.training_run.settings import RunSettings


@dataclass(frozen=True)
class TrainingData:
    """Hold the images of a run."""

    config: DatasetConfig
    train: ImageSet
    val: ImageSet


@dataclass(frozen=True)
class Loaders:
    """Hold this process's share of the batches."""

    train: Loader
    val: Loader

    def close(self) -> None:
        """End the workers of both."""
        self.train.close()
        self.val.close()


def prepare_data(opt: TrainOptions) -> TrainingData:
    """Fetch the data set if it is missing, and check its images and labels."""
    with main_first():  # only one process fetches and verifies
        config = load_dataset(opt.data, single_cls=opt.single_cls)
        images = load_images(config, "train", workers=opt.workers, require_labels=True)
        val = load_images(config, "val", workers=opt.workers)
    return TrainingData(config, images, val)


def build_loaders(
    opt: TrainOptions, settings: RunSettings, data: TrainingData, device: torch.device
) -> Loaders:
    """Build the loaders of this process's share of the training and validation images."""
    workers = workers_beside(device, opt.workers)
    share = settings.batch_size // world_size()
    train_options = BatchOptions(
        settings.imgsz,
        share,
        hyp=settings.hyp,
        rect=opt.rect,
        stride=settings.stride,
        cache=opt.cache if opt.cache != "val" else None,
        seed=opt.seed,
    )
    train = build_loader(
        data.train,
        train_options,
        workers=workers,
        shuffle=not opt.rect,
        rank=rank(),
        world_size=world_size(),
    )
    val_options = BatchOptions(
        settings.imgsz,
        share * 2,
        rect=True,
        stride=settings.stride,
        pad=0.5,
        cache=None if opt.noval else "ram" if opt.cache == "val" else opt.cache,
        seed=opt.seed,
    )
    val = build_loader(data.val, val_options, workers=workers * 2, rank=rank(), world_size=world_size())
    return Loaders(train, val)
