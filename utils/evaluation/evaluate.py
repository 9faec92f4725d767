"""Run a detector over a labelled set and measure it, for val.py and training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.boxes import xywh2xyxy
from utils.dataset.config import DatasetConfig
from utils.dataset.detection_dataset import Batch
from utils.detector import Detecting, Detector, Found
from utils.evaluation.coco import CocoResult
from utils.evaluation.curves import plot_confusion, plot_curves
from utils.evaluation.metrics import ConfusionMatrix, DetectionStats, Metrics
from utils.evaluation.mistakes import Mistakes
from utils.evaluation.plots import plot_images
from utils.letterbox import Placement, scale_boxes
from utils.nms import NmsOptions
from utils.tiles import Tiling, make_detector

LOGGER = logging.getLogger("yolo.val")

PLOTTED_BATCHES = 3
METRIC_NMS = NmsOptions(conf_thres=0.001, iou_thres=0.6, max_det=300)


@dataclass
class ImageResult:
    """Hold one image of a validation, on the CPU and in pixels of the file."""

    path: str
    shape: tuple[int, int]  # (h, w)
    detections: Tensor  # (n, 6) xyxy, confidence, class; best first
    labels: Tensor  # (m, 5) class, xyxy


@dataclass
class ValResult:
    """Hold what a validation found.

    `speed` holds the ms per image of `preprocess`, `inference` and `nms`. `maps` (nc,) is the mAP50-95 of the
    classes, the mean for a class without labels. `seen` counts all images. `mistakes` is None where nothing
    is drawn.
    """

    metrics: Metrics
    confusion: ConfusionMatrix
    seen: int
    instances: int
    maps: np.ndarray
    speed: dict[str, float]
    coco: CocoResult | None = None
    save_dir: Path | None = None
    mistakes: Mistakes | None = None


def log_table(result: ValResult, config: DatasetConfig, verbose: bool) -> None:
    """Log the metrics as a table: all classes together, then each class.

    Args:
        config: the data set, whose classes are listed one by one if they are fewer than 50.
        verbose: list them always.
    """
    row = "%22s%11s%11s%11.3f%11.3f%11.3f%11.3f"
    metrics = result.metrics
    LOGGER.info("%22s%11s%11s%11s%11s%11s%11s", "class", "images", "instances", "P", "R", "mAP50", "mAP50-95")
    means = (metrics.precision, metrics.recall, metrics.map50, metrics.map)
    LOGGER.info(row, "all", result.seen, result.instances, *means)
    if not result.instances:
        LOGGER.warning("%s: no labels in this split, so every metric is 0", config.path)
    if config.nc > 1 and (verbose or config.nc < 50):
        for r in metrics.per_class:
            values = (r["precision"], r["recall"], r["map50"], r["map"])
            LOGGER.info(row, r["name"][:22], r["images"], r["instances"], *values)


def _plot_figures(
    metrics: Metrics, confusion: ConfusionMatrix, names: Mapping[int, str], folder: Path | None
) -> None:
    """Draw the confusion matrix and the curves, if there is a folder for them."""
    if folder is None:
        return
    plot_confusion(confusion, names, folder)
    if metrics.curves is not None:
        plot_curves(metrics.curves, names, folder)


@dataclass(frozen=True)
class EvalOptions:
    """State how a validation is done.

    Attributes:
        nms: what is asked of NMS; `multi_label` and `agnostic` are set by the validation itself.
        single_cls: every detection counts as class 0, and NMS lets all classes suppress each other.
        augment: test-time augmentation; checkpoints only.
        hybrid: add the labels to the predictions before NMS (for labelling, not for measuring).
        plots_dir: where curves, confusion matrix and the first batches are drawn; None draws nothing, and
            keeps no mistakes.
        progress: show a progress bar.
        tiling: how images are cut into tiles; the loader gives them as they are (`BatchOptions.native`).
            None: they are letterboxed already.
    """

    nms: NmsOptions = METRIC_NMS
    single_cls: bool = False
    augment: bool = False
    hybrid: bool = False
    plots_dir: Path | None = None
    progress: bool = True
    tiling: Tiling | None = None


class Evaluated(Detecting, Protocol):
    """State what `evaluate` needs of a network, such as `models.formats.base.Backend`."""

    def nearest(self, wanted: NmsOptions) -> NmsOptions:
        """Return the NMS nearest to `wanted` that the file can do."""


def evaluate(
    backend: Evaluated,
    loader: Iterable[Batch],
    names: Mapping[int, str],
    options: EvalOptions = EvalOptions(),
    *,
    on_image: Callable[[ImageResult], None] | None = None,
    on_batch: Callable[[Tensor], None] | None = None,
    gather: Callable[[Iterable[ImageResult]], Iterable[ImageResult]] = iter,
) -> ValResult:
    """Run a network over a labelled set and measure it.

    Args:
        backend: the network; one in memory is a `models.backends.ModelBackend`.
        loader: yields the batches of `utils.dataset.loader`.
        names: of the dataset's classes.
        options: how it is done.
        on_image: called for every image, in order.
        on_batch: called with the targets (M, 6) of every batch that the network has just seen, such as a
            `utils.training_run.validation.ValidationLoss`.
        gather: given the images of this process, yields those to measure: where several processes share a
            validation, all on one of them.
    """
    wanted = replace(options.nms, agnostic=options.single_cls, multi_label=True)
    detector = make_detector(backend, backend.nearest(wanted), options.tiling, augment=options.augment)
    stats, confusion = DetectionStats(), ConfusionMatrix(len(names))
    mistakes = Mistakes() if options.plots_dir is not None else None
    with torch.no_grad():
        for image in gather(_detect_all(detector, loader, names, options, on_batch)):
            stats.add(image.detections, image.labels)
            pairing = confusion.add(image.detections, image.labels)
            if mistakes is not None:
                mistakes.add(image.path, pairing)
            if on_image is not None:
                on_image(image)
    metrics = stats.compute(dict(names))
    _plot_figures(metrics, confusion, names, options.plots_dir)
    return ValResult(
        metrics=metrics,
        confusion=confusion,
        seen=stats.seen,
        instances=stats.instances,
        maps=metrics.maps(len(names)),
        speed=detector.speed,
        mistakes=mistakes,
    )


def _detect_all(
    detector: Detector,
    loader: Iterable[Batch],
    names: Mapping[int, str],
    options: EvalOptions,
    on_batch: Callable[[Tensor], None] | None,
) -> Iterator[ImageResult]:
    """Yield each image with what was found in it, and draw the first batches."""
    bar = tqdm(loader, desc="validating", disable=not options.progress, leave=False)
    for number, (images, targets, paths, shapes) in enumerate(bar):
        labels = _pixel_targets(targets, images) if options.hybrid else ()
        found = detector(images, shapes, labels=labels)
        if on_batch is not None:
            on_batch(targets)
        if options.single_cls:
            _merge_classes(found)
        yield from _native_results(found, images, targets, paths, shapes)
        if options.plots_dir is not None and number < PLOTTED_BATCHES:
            for kind, drawn in (("labels", targets), ("pred", found.letterboxed)):
                file = options.plots_dir / f"val_batch{number}_{kind}.jpg"
                plot_images(images, drawn, paths, file, names)


def _merge_classes(found: Found) -> None:
    for detections in (*found.boxes, *found.letterboxed):
        detections[:, 5] = 0


def _pixel_targets(targets: Tensor, batch: Tensor) -> list[Tensor]:
    """Return a batch's targets (M, 6) per image: (m, 5) class, xywh in pixels."""
    height, width = batch.shape[-2:]
    scale = targets.new_tensor([1, width, height, width, height])
    return [targets[targets[:, 0] == i, 1:] * scale for i in range(len(batch))]


def _native_results(
    found: Found, images: Tensor, targets: Tensor, paths: list[str], shapes: list[Placement]
) -> Iterator[ImageResult]:
    """Yield each image with its detections and labels, in pixels of the file."""
    height, width = size = images.shape[-2], images.shape[-1]
    boxes = xywh2xyxy(targets[:, 2:6]) * targets.new_tensor([width, height, width, height])
    for i, (detections, path, (native, ratio_pad)) in enumerate(zip(found.boxes, paths, shapes)):
        mine = targets[:, 0] == i
        labels = torch.cat((targets[mine, 1:2], scale_boxes(size, boxes[mine], native, ratio_pad)), 1)
        yield ImageResult(path, (int(native[0]), int(native[1])), detections, labels)
