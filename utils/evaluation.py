"""The loop over a labelled set that val.py and training share: predict, suppress, match, count, draw."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.boxes import xywh2xyxy
from utils.coco import CocoResult
from utils.curves import plot_confusion, plot_curves
from utils.datasets import DatasetConfig
from utils.device import autocast, synchronize
from utils.letterbox import scale_boxes
from utils.metrics import ConfusionMatrix, DetectionStats, Metrics
from utils.nms import NmsOptions
from utils.plots import plot_images

LOGGER = logging.getLogger("yolo.val")

PLOTTED_BATCHES = 3
STAGES = ("preprocess", "inference", "nms")

Loss = Callable[[list[Tensor], Tensor], tuple[Tensor, Tensor]]


@dataclass
class ImageResult:
    """One image of a validation, everything on the CPU and in pixels of the file."""

    path: str
    shape: tuple[int, int]  # (h, w)
    detections: Tensor  # (n, 6) xyxy, confidence, class; best first
    labels: Tensor  # (m, 5) class, xyxy


@dataclass
class ValResult:
    """What a validation found.

    `loss` holds the means (box, obj, cls) over the batches, or None when no loss was asked for; `speed` the
    ms per image of `preprocess`, `inference` and `nms`; `maps` (nc,) the mAP50-95 of every class, the mean
    where a class has no label; `seen` the images counted, all of them.
    """

    metrics: Metrics
    confusion: ConfusionMatrix
    seen: int
    instances: int
    maps: np.ndarray
    speed: dict[str, float]
    loss: tuple[float, ...] | None = None
    coco: CocoResult | None = None
    save_dir: Path | None = None


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


@dataclass
class _Clock:
    """Sums the seconds of each stage, waiting for the device at both ends."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        synchronize(self.device)
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[stage] += time.perf_counter() - start

    def per_image(self, images: int) -> dict[str, float]:
        """Milliseconds per image of each stage."""
        return {stage: 1000 * s / max(images, 1) for stage, s in self.seconds.items()}


def _plot_figures(
    metrics: Metrics, confusion: ConfusionMatrix, names: Mapping[int, str], folder: Path | None
) -> None:
    """The confusion matrix and, where there was anything to count, the curves; nothing without a folder."""
    if folder is None:
        return
    plot_confusion(confusion, names, folder)
    if metrics.curves is not None:
        plot_curves(metrics.curves, names, folder)


def evaluate(
    model: nn.Module | Any,
    loader: Iterable[tuple[Tensor, Tensor, list[str], list[Any]]],
    *,
    names: Mapping[int, str],
    device: torch.device,
    conf_thres: float = 0.001,
    iou_thres: float = 0.6,
    max_det: int = 300,
    single_cls: bool = False,
    augment: bool = False,
    hybrid: bool = False,
    loss: Loss | None = None,
    plots_dir: Path | None = None,
    amp: torch.dtype | None = None,
    on_image: Callable[[ImageResult], None] | None = None,
    progress: bool = True,
) -> ValResult:
    """Run a model over a loader and measure it.

    Args:
        model: a DetectionModel, whose eval-mode forward returns (decoded, raw maps), or a Backend. A model in
            training mode is put back into it.
        loader: yields the batches of `utils.dataloaders`.
        single_cls: every detection counts as class 0, and NMS is blind to classes.
        augment: test-time augmentation.
        hybrid: add the labels to the predictions before NMS (for labelling, not for measuring).
        loss: called with (raw maps in float32, targets) -> (loss, items); DetectionModel only.
        plots_dir: where curves, confusion matrix and the first batches are drawn; None draws nothing.
        amp: reduced precision of the forward pass of a DetectionModel.
        on_image: called for every image, in order.
    """
    wanted = NmsOptions(conf_thres, iou_thres, agnostic=single_cls, multi_label=True, max_det=max_det)
    if not isinstance(model, nn.Module):  # a file with NMS inside may not be able to do all of that
        wanted = model.nearest(wanted)
    detect = _Detector(model, device, wanted, single_cls, augment, hybrid, amp, loss)
    stats, confusion = DetectionStats(), ConfusionMatrix(len(names))
    with _eval_mode(model), torch.no_grad():
        bar = tqdm(loader, desc="validating", disable=not progress, leave=False)
        for number, (images, targets, paths, shapes) in enumerate(bar):
            found = detect(images, targets)
            for image in _native_results(found, targets, paths, shapes, images.shape[-2:]):
                stats.add(image.detections, image.labels)
                confusion.add(image.detections, image.labels)
                if on_image is not None:
                    on_image(image)
            if plots_dir is not None and number < PLOTTED_BATCHES:
                for kind, drawn in (("labels", targets), ("pred", found)):
                    plot_images(images, drawn, paths, plots_dir / f"val_batch{number}_{kind}.jpg", names)
    metrics = stats.compute(dict(names))
    _plot_figures(metrics, confusion, names, plots_dir)
    return ValResult(
        metrics=metrics,
        confusion=confusion,
        seen=stats.seen,
        instances=stats.instances,
        maps=metrics.maps(len(names)),
        speed=detect.clock.per_image(stats.seen),
        loss=detect.mean_loss(),
    )


@dataclass
class _Detector:
    """Batch in, detections per image out, in pixels of the batch; keeps the time and, if asked, the loss."""

    model: Any
    device: torch.device
    wanted: NmsOptions
    single_cls: bool
    augment: bool
    hybrid: bool
    amp: torch.dtype | None
    loss: Loss | None

    def __post_init__(self) -> None:
        self.clock = _Clock(self.device)
        self._losses: list[Tensor] = []

    def __call__(self, images: Tensor, targets: Tensor) -> list[Tensor]:
        """Images uint8 (N, 3, H, W), targets (M, 6) -> N detections (n, 6) on the CPU."""
        with self.clock("preprocess"):
            batch = images.to(self.device, non_blocking=True).float().div_(255)
            targets = targets.to(self.device)
        with self.clock("inference"):
            inferred, raws = self._infer(batch)
        if self.loss is not None:
            self._losses.append(self.loss([raw.float() for raw in raws], targets)[1].float().cpu())
        with self.clock("nms"):
            labels = _pixel_targets(targets, batch) if self.hybrid else ()
            if isinstance(self.model, nn.Module):
                found = self.wanted.suppress(inferred, labels)
            else:
                found = self.model.suppress(inferred, self.wanted, labels)
        found = [detections.cpu() for detections in found]
        if self.single_cls:
            for detections in found:
                detections[:, 5] = 0
        return found

    def _infer(self, batch: Tensor) -> tuple[Any, list[Tensor]]:
        """What NMS takes, decoded predictions (N, boxes, 5 + nc) or a Backend's own, and of a DetectionModel
        its raw maps."""
        if not isinstance(self.model, nn.Module):
            return self.model.infer(batch, self.wanted, augment=self.augment), []
        with autocast(self.device, self.amp):
            decoded, raws = self.model(batch, augment=self.augment)[:2]
        return decoded, raws

    def mean_loss(self) -> tuple[float, ...] | None:
        """Means (box, obj, cls) over the batches, or None when no loss was asked for."""
        return tuple(torch.stack(self._losses).mean(0).tolist()) if self._losses else None


@contextlib.contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    """Evaluation mode for a module, its former mode afterwards; a Backend has no modes."""
    training = getattr(model, "training", False)
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def _pixel_targets(targets: Tensor, batch: Tensor) -> list[Tensor]:
    """Targets (M, 6) of a batch (N, 3, H, W) -> per image (m, 5) class, xywh in its pixels."""
    height, width = batch.shape[-2:]
    scale = targets.new_tensor([1, width, height, width, height])
    return [targets[targets[:, 0] == i, 1:] * scale for i in range(len(batch))]


def _native_results(
    found: list[Tensor], targets: Tensor, paths: list[str], shapes: list[Any], size: tuple[int, int]
) -> Iterator[ImageResult]:
    """Detections and labels of each image, taken from the batch's `size` (h, w) back to the file's pixels."""
    height, width = size
    boxes = xywh2xyxy(targets[:, 2:6]) * targets.new_tensor([width, height, width, height])
    for i, (detections, path, (native, ratio_pad)) in enumerate(zip(found, paths, shapes)):
        mine = targets[:, 0] == i
        detections = scale_boxes(size, detections, native, ratio_pad)
        labels = torch.cat((targets[mine, 1:2], scale_boxes(size, boxes[mine], native, ratio_pad)), 1)
        yield ImageResult(path, (int(native[0]), int(native[1])), detections, labels)
