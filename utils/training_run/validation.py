"""Validate a run's network, after each epoch and at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from utils.dataset.loader import Loader
from utils.device import describe, is_main
from utils.evaluation.evaluate import EvalOptions, Evaluated, ValResult, evaluate, log_table
from utils.evaluation.metrics import Metrics, save_metrics
from utils.evaluation.plots import plot_results
from utils.evaluation.run_page import measurement, write_run_page
from utils.profiling import count_parameters, gflops
from utils.results.model_card import PICTURE, ModelCard, write_card_picture
from utils.training.distributed import broadcast_state, from_main, in_order, mean_over_ranks, shared_file
from utils.training.loss import LossFunction
from utils.training.options import TrainOptions
from utils.training.run_folder import RunFolder
from utils.training_run.data import TrainingData
from utils.training_run.recorder import Recorder
from utils.training_run.settings import RunSettings

LOGGER = logging.getLogger("yolo.train")


@dataclass
class TrainResult:
    """Hold a run's files, the metrics of its best checkpoint, and its seconds."""

    save_dir: Path
    best: Path | None
    last: Path
    metrics: Metrics
    seconds: float


class MapsKept(Evaluated, Protocol):
    """State what a `Validator` needs of the average: its raw maps too."""

    def raw_maps(self) -> list[Tensor]:
        """Return the raw maps of the latest batch."""


class ValidationLoss:
    """Average the loss over the batches of a validation, as `on_batch` of `evaluate`.

    Args:
        loss: called with (raw maps in float32, targets) -> (loss, items).
        raw_maps: returns the raw maps of the network's last batch.
        device: of the maps.
    """

    def __init__(
        self, loss: LossFunction, raw_maps: Callable[[], list[Tensor]], device: torch.device
    ) -> None:
        self._loss = loss
        self._raw_maps = raw_maps
        self._device = device
        self._items: list[Tensor] = []

    def __call__(self, targets: Tensor) -> None:
        """Count the batch with these targets (M, 6)."""
        maps = [raw.float() for raw in self._raw_maps()]
        self._items.append(self._loss(maps, targets.to(self._device))[1].float().cpu())

    @property
    def batches(self) -> int:
        """Return how many batches were counted."""
        return len(self._items)

    def mean(self) -> tuple[float, ...]:
        """Return the means (box, obj, cls) over the batches; zeros without any."""
        return tuple(torch.stack(self._items).mean(0).tolist()) if self._items else (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Validator:
    """Measure networks on the validation images; every process does its share.

    The results are whole on the main process only.

    Attributes:
        loader: this process's share.
        batch_size: images per batch of all processes together.
        model: the average; elsewhere than on the main process a place for its values.
        loss: of the average's raw maps.
        amp: reduced precision of the average, or None.
        open_network, open_file: make a backend of the average, or of a checkpoint. These are
            `models.backends.ModelBackend` and `load_backend`, which utils cannot import.
    """

    loader: Loader
    names: dict[int, str]
    single_cls: bool
    batch_size: int
    model: nn.Module
    loss: LossFunction
    device: torch.device
    amp: torch.dtype | None
    open_network: Callable[..., MapsKept]
    open_file: Callable[[Path, torch.device], Evaluated]

    def average(self) -> tuple[ValResult, tuple[float, ...]]:
        """Return the metrics of the average, and its losses (box, obj, cls)."""
        broadcast_state(self.model)
        backend = self.open_network(self.model, self.device, amp=self.amp, keep_maps=True)
        loss = ValidationLoss(self.loss, backend.raw_maps, self.device)
        found = self._evaluate(backend, loss=loss)
        return found, mean_over_ranks(loss.mean(), loss.batches)

    def checkpoint(self, path: Path, plots: Path | None) -> ValResult:
        """Return the metrics of a checkpoint of the main process, and draw into `plots`."""
        with shared_file(path) as file:
            backend = self.open_file(file, self.device)
        return self._evaluate(backend, plots=plots if is_main() else None)

    def _evaluate(
        self, backend: Evaluated, loss: ValidationLoss | None = None, plots: Path | None = None
    ) -> ValResult:
        options = EvalOptions(single_cls=self.single_cls, plots_dir=plots, progress=is_main())
        together = partial(in_order, batch=self.batch_size)
        return evaluate(backend, self.loader, self.names, options, on_batch=loss, gather=together)


def validate_best(
    opt: TrainOptions,
    recorder: Recorder | None,
    validator: Validator,
    data: TrainingData,
    settings: RunSettings,
    *,
    first_epoch: int,
    epochs: int,
    started: float,
) -> TrainResult:
    """Validate the best checkpoint in float32 with plots, and write metrics.json.

    Args:
        first_epoch: of a resumed run; else 0.
        epochs: of the whole run.
        started: time of the run's start, in seconds.
    """
    seconds = time.time() - started
    trained = f"{epochs} epochs, {len(data.train)} images, {seconds / 3600:.3f} hours"

    def files() -> tuple[RunFolder, Path | None]:
        assert recorder is not None  # the main process has one
        return recorder.folder, recorder.saver.own_best()

    folder, best = from_main(files)
    hours, weights = seconds / 3600, best or folder.last
    LOGGER.info("%d epochs in %.3f hours; validating %s", epochs - first_epoch, hours, weights)
    found = validator.checkpoint(weights, None if opt.noplots else folder.path)
    if recorder is None:
        return TrainResult(folder.path, best, folder.last, Metrics(), seconds)
    log_table(found, data.config, verbose=True)
    if not opt.noplots:
        plot_results(folder.results)
        measured = measurement(found, settings.imgsz, validator.device)
        _write_page(folder, weights, found, data, measured | {"training": trained})
    model = validator.model
    metrics = save_metrics(  # last: a resumed run takes a folder that has it as finished
        folder.metrics,
        found.metrics,
        parameters=count_parameters(model),
        gflops=gflops(model, settings.imgsz),
        speed=found.speed,
        imgsz=settings.imgsz,
        nc=data.config.nc,
        seed=opt.seed,
        images=found.seen,
        instances=found.instances,
        seconds=seconds,
        epochs=epochs,
        hardware=describe(validator.device),
        sizes=found.mistakes.recall() if found.mistakes else None,
    )
    if not opt.noplots and not opt.nosave:
        _write_card(recorder, weights, data, metrics)
    recorder.loggers.log_pictures(epochs - 1)
    LOGGER.info("results saved to %s", folder.path)
    return TrainResult(folder.path, best, folder.last, found.metrics, seconds)


def _write_page(
    folder: RunFolder, weights: Path, found: ValResult, data: TrainingData, facts: Mapping[str, object]
) -> None:
    """Write report.html of the final validation."""
    known = {"weights": weights, "data": f"val images of {data.config.path}", **facts}
    title = f"{folder.path.name}: {weights.name} on {data.config.path.name}"
    write_run_page(folder.path, title, found, data.config, known)


# Any: values of metrics.json.
def _write_card(recorder: Recorder, weights: Path, data: TrainingData, metrics: Mapping[str, Any]) -> None:
    """Write MODEL.md and card.png beside the weights."""
    folder, facts = recorder.folder, recorder.saver.facts
    options = cast("Mapping[str, object]", facts["opt"])
    figures = f"mAP50-95 {metrics['map']:.3f}, mAP50 {metrics['map50']:.3f}, {metrics['imgsz']} px"
    drawn = folder.path / "val_batch0_pred.jpg"
    write_card_picture(drawn, weights.with_name(PICTURE), f"{data.config.path.stem}: {figures}")
    licence = str(getattr(recorder.state.average.model, "licence", ""))
    ModelCard(weights, data.config.names, licence, options, metrics).write()
