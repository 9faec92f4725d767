"""Train a detector.

    python train.py --cfg models/yolov5-mobilenetv2.yaml --data data/digits.yaml --imgsz 320

Without --cfg the network is that of --weights. With both, the network of --cfg takes every weight whose name
and shape fit. With --cfg alone, training starts from scratch. Official weights, such as yolov5n.pt, are
downloaded when they are missing.
"""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from models.backends import ModelBackend, load_backend, optimised
from models.formats.base import Backend
from models.layers.timm_torchvision_rows import is_named
from models.plugins import load_plugins
from models.weights.align import align_adapters
from models.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.weights.initial_model import check_config, start_model, starting_weights
from models.weights.releases import fetch_missing
from models.yolo import DetectionModel
from utils.cli import from_keywords, guard, setup_logging
from utils.dataset.batch_sampler import image_weights
from utils.dataset.config import DatasetConfig, load_dataset
from utils.dataset.detection_dataset import Batch, BatchOptions
from utils.dataset.image_set import ImageSet
from utils.dataset.images import list_images, load_images
from utils.dataset.loader import Loader, build_loader, workers_beside
from utils.device import (
    amp_dtype,
    describe,
    is_main,
    limit_threads,
    rank,
    repeatable,
    select_device,
    tune_allocator,
    versions,
    world_size,
)
from utils.errors import UserError
from utils.evaluation.evaluate import EvalOptions, ValResult, evaluate, log_table
from utils.evaluation.metrics import Metrics, fitness, save_metrics
from utils.evaluation.plots import plot_images, plot_labels, plot_results
from utils.files import find_file, remove_dead_parts, save_yaml
from utils.image_size import fit_side
from utils.profiling import count_parameters, gflops
from utils.training.anchors import check_anchors
from utils.training.autobatch import choose_batch_size
from utils.training.compute_mode import ComputeMode, this_machine, unmeasured_mode
from utils.training.distillation import Distillation, check_same_teacher, check_teacher, fitted_gains
from utils.training.distributed import (
    broadcast_state,
    from_main,
    has_lost_another,
    in_order,
    main_first,
    mean_counts,
    mean_over_ranks,
    parallelise,
    process_group,
    shared_file,
    synchronise_norms,
)
from utils.training.early_stopping import EarlyStopping
from utils.training.ema import ModelEMA
from utils.training.freeze import FrozenLayers
from utils.training.hyp import load_hyp, scale_gains
from utils.training.loggers import EpochBar, RunLoggers
from utils.training.loss import DetectionLoss, LossFunction, MeanCounts
from utils.training.measured_mode import Workload, choose_mode
from utils.training.optim import LRSchedule, add_nominal_batch, build_optimizer
from utils.training.options import FIRST_RECIPE, FROM, TrainOptions, given_options, parse_opt, with_recipe
from utils.training.run_folder import (
    CheckpointSaver,
    RunFolder,
    RunState,
    check_learnt_classes,
    find_checkpoint,
    mode_of_run,
    options_to_save,
    recorded_mode,
    resumed_epoch,
    resumed_options,
    stored_state,
    tell_changed_data,
)
from utils.training.trainer import Trainer, ValidationLoss

LOGGER = logging.getLogger("yolo.train")

__all__ = ["TrainResult", "parse_opt", "run"]

DRAWN_BATCHES = 3


@dataclass
class TrainResult:
    """Hold a run's files, the metrics of its best checkpoint, and its seconds."""

    save_dir: Path
    best: Path | None
    last: Path
    metrics: Metrics
    seconds: float


@dataclass(frozen=True)
class Start:
    """Hold a run's options; for a resumed run, its checkpoint and first epoch too.

    Attributes:
        mode: how the network computes, as this run or that of `--amp from:RUN` recorded it; None: not yet
            known.
        trained: whether every epoch is done, and only the final validation is missing.
    """

    opt: TrainOptions
    mode: ComputeMode | None = None
    checkpoint: Checkpoint | None = None
    first_epoch: int = 0
    trained: bool = False

    @property
    def warm_up(self) -> bool:
        """Return whether the learning rate warms up; not in a continued finished run."""
        return self.checkpoint is None or self.checkpoint.training is not None


@dataclass(frozen=True)
class TrainingData:
    """Hold the images of a run."""

    config: DatasetConfig
    train: ImageSet
    val: ImageSet


@dataclass(frozen=True)
class RunSettings:
    """Hold the settings that depend on options, network and data together.

    Attributes:
        imgsz: pixels, a multiple of `stride`.
        batch_size: images per batch over all processes.
        mode: how the network computes.
        hyp: the hyperparameters, `nominal_batch` fitted to the data set.
    """

    stride: int
    imgsz: int
    batch_size: int
    mode: ComputeMode
    hyp: dict[str, float]


@dataclass(frozen=True)
class Loaders:
    """Hold this process's share of the batches."""

    train: Loader
    val: Loader

    def close(self) -> None:
        """End the workers of both."""
        self.train.close()
        self.val.close()


def run(**options: object) -> TrainResult:
    """Train, with the command line's options as keywords.

    Raises:
        UserError: an option, a file or the data set is wrong, or the batch does not fit into memory.
    """
    if options.get("evolve"):
        return search(options)
    start = resume_run(options) if options.get("resume") else new_run(options)
    if start.opt.local_rank >= 0:
        os.environ.setdefault("LOCAL_RANK", str(start.opt.local_rank))  # as torchrun does
    device = select_device(start.opt.device)
    with repeatable(device), process_group(device):
        try:
            return train_from(start, device)
        except torch.OutOfMemoryError:
            raise _out_of_memory(start.opt, device) from None
        except (RuntimeError, OSError) as error:
            if not has_lost_another(error):
                raise
            raise UserError(
                f"process {rank()} of {world_size()} stops because another process of this run has ended; "
                "see that one's message, then continue with --resume, on fewer processes too"
            ) from None


def search(options: Mapping[str, object]) -> TrainResult:
    """Search for hyperparameters (--evolve), and return the best trial's run."""
    started = time.time()
    opt = from_keywords(TrainOptions, with_recipe(options))
    from utils.training.evolve import evolve  # Optuna is loaded only when it is used

    best = evolve(opt, folder_name(opt), Path(__file__))
    seconds = time.time() - started
    own_best = best.run.best if best.run.best.is_file() else None
    return TrainResult(best.run.path, own_best, best.run.last, best.metrics, seconds)


def new_run(options: Mapping[str, object]) -> Start:
    """Check the options of a new run, and that its starting weights exist."""
    opt = from_keywords(TrainOptions, with_recipe(options))
    starting_weights(opt.cfg, opt.weights)
    if isinstance(opt.align, str):
        find_file(opt.align, folder=True)
    if opt.teacher:
        fetch_missing(opt.teacher)
        opt = replace(opt, teacher=str(find_file(opt.teacher).resolve()))
    return Start(opt, mode_of_run(opt.amp))


def resume_run(options: Mapping[str, Any]) -> Start:  # Any: `resumed_options` checks the values
    """Load the checkpoint that --resume names, with its options and first epoch.

    A run folder may come from a stranger, so the plug-ins that its opt.yaml names are not run.
    """
    path = find_checkpoint(options["resume"])
    saved = RunFolder.of(path).read_options()
    load_plugins(options.get("plugins") or ())
    checkpoint = load_checkpoint(path)
    if checkpoint.official:
        raise UserError(f"--resume {path}: is an official YOLOv5 file; start a new run with --weights {path}")
    saved = saved or checkpoint.meta.get("opt", {})
    opt = resumed_options(saved, options)
    check_same_teacher(path, saved.get("teacher_sha256"), opt.teacher)
    with stored_state(path):
        first, trained = resumed_epoch(
            path, checkpoint.meta, checkpoint.training, opt.epochs, told="epochs" in options
        )
    return Start(opt, recorded_mode(saved, path), checkpoint, first, trained)


def train_from(start: Start, device: torch.device) -> TrainResult:
    """Train from the options to the final validation."""
    started, opt = time.time(), start.opt
    prepare_process(opt)
    hyp = load_hyp(start.checkpoint.meta["hyp"] if start.checkpoint else opt.hyp)
    network = build_network(start, hyp)  # before a data set is fetched, so that wrong weights fail early
    teacher = load_teacher(start, network, hyp)
    data = prepare_data(start)
    if opt.align and is_main() and start.checkpoint is None:
        align_network(opt, network, data, device)
    model = place_network(network, opt, device)
    frozen = FrozenLayers(model, opt.freeze)
    settings = settle(start, model, hyp, len(data.train), device)
    folder = from_main(lambda: make_folder(start, model, hyp, settings, device))
    with folder.unless_nothing_is_trained(), closing(build_loaders(opt, settings, data, device)) as loaders:
        if is_main() and start.checkpoint is None:
            fit_anchors(opt, model, data, settings)
        trainer = build_trainer(start, model, frozen, settings, len(loaders.train), device)
        if teacher is not None:
            trainer.distillation = build_distillation(opt, teacher, trainer, settings)
        recorder = build_recorder(start, trainer, data, folder, settings)
        validator = build_validator(opt, trainer, loaders.val, data, settings)
        epochs = start.first_epoch
        with recorder.loggers if recorder else nullcontext():
            if not start.trained:
                epochs = EpochLoop(opt, trainer, loaders.train, data, validator, recorder).run(epochs)
            return validate_best(start, recorder, validator, data, settings, epochs=epochs, started=started)


def prepare_process(opt: TrainOptions) -> None:
    """Silence every process but the main one, and load the user's blocks."""
    if not is_main():
        setup_logging(verbose=False)
    tune_allocator()
    limit_threads()
    load_plugins(opt.plugins)


def build_network(start: Start, hyp: dict[str, float]) -> DetectionModel:
    """Build the network with all its weights, and read the data set's YAML only.

    Raises:
        UserError: a YAML or weights that cannot be used, or classes that a resumed run has not learnt.
    """
    opt, checkpoint = start.opt, start.checkpoint
    if checkpoint is None:
        check_config(opt.cfg, opt.backbone_weights)
    with main_first():  # only one process downloads weights
        config = load_dataset(opt.data, single_cls=opt.single_cls, fetch=False)
        if checkpoint is not None:
            check_learnt_classes(checkpoint.path, checkpoint.model.names, config)
            return copy.deepcopy(checkpoint.model).requires_grad_(True)
        return start_model(
            opt.cfg,
            opt.weights,
            names=config.names,
            anchors_per_layer=round(hyp["anchors"]) if "anchors" in hyp else None,
            seed=opt.seed,
            backbone_weights=opt.backbone_weights,
            neck_weights=opt.neck_weights,
        )


def load_teacher(start: Start, model: DetectionModel, hyp: dict[str, float]) -> DetectionModel | None:
    """Load the teacher, None without one; a new run's network takes its anchors.

    Raises:
        UserError: the file cannot be read, the network cannot learn from it, or anchors are asked for.
    """
    opt = start.opt
    if not opt.teacher or start.trained:
        return None
    teacher = load_checkpoint(opt.teacher).model
    check_teacher(opt.teacher, teacher, model)
    if start.checkpoint is not None:
        return teacher
    own, theirs = model.detect.anchors, teacher.detect.anchors
    asked = "anchors in the hyperparameters" if "anchors" in hyp else "--noautoanchor" * opt.noautoanchor
    if asked and ("anchors" in hyp or not torch.equal(own, theirs)):
        raise UserError(f"--teacher {opt.teacher}: its anchors must be taken; leave {asked} out")
    own.copy_(theirs)
    return teacher


def prepare_data(start: Start) -> TrainingData:
    """Fetch the data set if it is missing, and check its images and labels."""
    opt = start.opt
    with main_first():  # only one process fetches and verifies
        config = load_dataset(opt.data, single_cls=opt.single_cls)
        images = load_images(config, "train", workers=opt.workers, require_labels=True)
        val = load_images(config, "val", workers=opt.workers)
    return TrainingData(config, images, val)


def align_network(
    opt: TrainOptions, network: DetectionModel, data: TrainingData, device: torch.device
) -> None:
    """Align the adapters of --neck-weights, which the other processes take over from the main one."""
    if isinstance(opt.align, str):
        paths, _ = list_images([find_file(opt.align, folder=True)], Path())
    else:
        paths = [data.train.path(index) for index in range(len(data.train))]
    imgsz = fit_side(opt.imgsz, int(network.stride.max()), least=2)
    weights = find_file(opt.neck_weights)
    LOGGER.info("%s", align_adapters(network, weights, paths, imgsz, device=device, seed=opt.seed))


def place_network(model: DetectionModel, opt: TrainOptions, device: torch.device) -> DetectionModel:
    """Move the network to its device, channels_last, with SyncBatchNorm for --sync-bn."""
    model = model.to(device).to(memory_format=torch.channels_last)
    if opt.sync_bn:
        synchronise_norms(model, device)
    return model


def settle(
    start: Start, model: DetectionModel, hyp: dict[str, float], images: int, device: torch.device
) -> RunSettings:
    """Settle image size, precision, batch size and the images per optimizer step.

    Args:
        images: of the training set.
    """
    opt = start.opt
    stride = max(int(model.stride.max()), 32)
    imgsz = fit_side(opt.imgsz, stride, least=2)
    amp = amp_dtype("auto" if opt.amp.startswith(FROM) else opt.amp, device)
    batch_size = opt.batch_size
    if batch_size == -1:
        batch_size = choose_batch_size(model, imgsz, device, amp)
    if opt.amp.startswith(FROM) and start.checkpoint is None and device.type != "cpu":
        raise UserError(f"--amp {opt.amp}: is a choice for a CPU, and this runs on {device}; use --amp auto")
    work = Workload(imgsz, batch_size // world_size(), images * opt.epochs // world_size())
    mode = settle_mode(start, model, work, device) if device.type == "cpu" else ComputeMode(amp)
    if start.checkpoint is None:
        hyp = fitted_gains(add_nominal_batch(hyp, images, batch_size), opt.teacher)
    return RunSettings(stride, imgsz, batch_size, mode, hyp)


def settle_mode(start: Start, model: DetectionModel, work: Workload, device: torch.device) -> ComputeMode:
    """Settle how the network computes on a CPU, and make it compute so.

    A new run with `--amp auto` measures it, on the main process; a resumed run never does.
    """
    opt, mode = start.opt, start.mode
    if mode is None and opt.amp == "auto" and start.checkpoint is None:
        mode = from_main(lambda: choose_mode(model, work))
    elif mode is None:
        mode = unmeasured_mode(device, "auto" if opt.amp.startswith(FROM) else opt.amp)
    elif mode.machine and mode.machine != this_machine():
        LOGGER.warning(
            "--amp: %s was the fastest on %s; this is %s, where results may differ a little",
            *(mode, mode.machine, this_machine()),
        )
    mode.prepare(model, f"--amp {opt.amp}: the recorded choice ")
    return mode


def saved_options(opt: TrainOptions, settings: RunSettings, device: torch.device) -> dict[str, object]:
    """Return the options as run, with what was settled.

    How the network computes is recorded of a CPU only.
    """
    mode = settings.mode if device.type == "cpu" else None
    return options_to_save(opt, settings.hyp, settings.batch_size, mode)


def make_folder(
    start: Start,
    model: DetectionModel,
    recipe: dict[str, float],
    settings: RunSettings,
    device: torch.device,
) -> RunFolder:
    """Make the run's folder, and write hyp.yaml (as loaded) and opt.yaml (as run).

    Only the main process may call it.

    Args:
        recipe: the hyperparameters as loaded; `settings` holds those fitted to the data set.
    """
    opt = start.opt
    if start.checkpoint is not None:
        folder = RunFolder.of(start.checkpoint.path)
    else:
        folder = RunFolder.create(opt.project, folder_name(opt), opt.exist_ok)
        save_yaml(folder.hyp, recipe)
        if is_named(opt.cfg):
            save_yaml(folder.path / f"{cfg_name(opt.cfg)}.yaml", model.yaml)
    for place in (folder.path, folder.last.parent):
        remove_dead_parts(place)
    if not start.trained:
        folder.metrics.unlink(missing_ok=True)  # of an earlier run in this folder; this one has not finished
    folder.write_options(saved_options(opt, settings, device))
    LOGGER.info("%s; saving to %s", describe(device), folder.path)
    return folder


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


def fit_anchors(opt: TrainOptions, model: DetectionModel, data: TrainingData, settings: RunSettings) -> None:
    """Replace the anchors if others fit the boxes better, unless --noautoanchor is given."""
    counted = "anchors" in settings.hyp
    if opt.teacher or (opt.noautoanchor and not counted):
        return
    # Anchors that are only counted are placeholders: they are replaced even if they fit.
    placeholders = isinstance(model.yaml["anchors"], int | float) and not opt.neck_weights
    force = counted or bool(opt.cfg and placeholders)
    limit = settings.hyp["anchor_t"]
    check_anchors(data.train, model.detect, settings.imgsz, limit, opt.seed, force=force)


def build_trainer(
    start: Start,
    model: DetectionModel,
    frozen: FrozenLayers,
    settings: RunSettings,
    batches: int,
    device: torch.device,
) -> Trainer:
    """Build the trainer of a model, and load its state for a resumed run.

    Args:
        batches: batches per epoch.
    """
    opt, hyp = start.opt, settings.hyp
    if frozen:
        LOGGER.info("%s", frozen)
    trainer = Trainer(
        model=model,
        loss=build_loss(model, opt, settings, counts=mean_counts if world_size() > 1 else None),
        optimizer=build_optimizer(model, opt.optimizer, hyp, settings.batch_size, opt.backbone_lr),
        schedule=LRSchedule(hyp, opt.epochs, batches, settings.batch_size, opt.cos_lr, warm_up=start.warm_up),
        device=device,
        mode=settings.mode,
        ema=ModelEMA(model) if is_main() else None,
        frozen=frozen,
        imgsz=settings.imgsz,
        stride=settings.stride,
        multi_scale=opt.multi_scale,
        seed=opt.seed,
        parallel=parallelise(model, device),
        rank=rank(),
        world_size=world_size(),
    )
    checkpoint = start.checkpoint
    if checkpoint is not None and checkpoint.training is not None:
        with stored_state(checkpoint.path):
            trainer.load_state_dict(checkpoint.training, checkpoint.model.state_dict())
    elif checkpoint is not None:
        trainer.count_as_trained(start.first_epoch, int(checkpoint.meta.get("updates", 0)))
    return trainer


def build_loss(
    model: DetectionModel, opt: TrainOptions, settings: RunSettings, counts: MeanCounts | None = None
) -> DetectionLoss:
    """Build the loss; with `counts`, for a share of each batch."""
    detect = model.detect
    gains = scale_gains(settings.hyp, nl=detect.nl, nc=detect.nc, imgsz=settings.imgsz)
    return DetectionLoss(detect, gains, label_smoothing=opt.label_smoothing, mean_counts=counts)


def build_distillation(
    opt: TrainOptions, teacher: DetectionModel, trainer: Trainer, settings: RunSettings
) -> Distillation:
    """Build what the trainer's network learns from a teacher, and say what that costs."""
    model = cast("DetectionModel", trainer.model)
    costs = [gflops(network, settings.imgsz) for network in (teacher, model)]
    alike = sum(a.in_channels == b.in_channels for a, b in zip(teacher.detect.m, model.detect.m))
    alike *= settings.hyp["distill_neck"] > 0
    LOGGER.info(
        "--teacher %s: teaches by its logits and by %d of %d maps, its anchors are taken; %s GFLOPs more for "
        "each image, beside about %s of the network's own forward and backward passes",
        *(opt.teacher, alike, model.detect.nl),
        *("an unknown number of" if cost is None else f"{n * cost:.2f}" for n, cost in zip((1, 3), costs)),
    )
    loss = build_loss(model, opt, settings, counts=mean_counts if world_size() > 1 else None)
    return Distillation(optimised(teacher, trainer.device), model, loss)


def build_validator(
    opt: TrainOptions, trainer: Trainer, loader: Loader, data: TrainingData, settings: RunSettings
) -> Validator:
    """Build what measures the average on this process's share of the validation images."""
    model = cast("DetectionModel", trainer.ema.model if trainer.ema else copy.deepcopy(trainer.model).eval())
    return Validator(
        loader,
        data.config.names,
        single_cls=opt.single_cls,
        batch_size=settings.batch_size * 2,
        model=model,
        loss=build_loss(model, opt, settings),
        device=trainer.device,
        amp=trainer.mode.dtype,
    )


def build_recorder(
    start: Start, trainer: Trainer, data: TrainingData, folder: RunFolder, settings: RunSettings
) -> Recorder | None:
    """Build the recorder of the main process; None on every other process."""
    opt, checkpoint = start.opt, start.checkpoint
    if trainer.ema is None:
        return None
    facts = {
        "opt": saved_options(opt, settings, trainer.device),
        "hyp": settings.hyp,
        "seed": opt.seed,
        "versions": versions(),
        "images": data.train.fingerprint(),
    }
    saved_epochs, best_saved = -1, False
    if checkpoint is None:
        state = RunState(trainer, trainer.ema, EarlyStopping(opt.patience))
    else:
        tell_changed_data(checkpoint.path, checkpoint.meta.get("images"), facts["images"])
        with stored_state(checkpoint.path):
            state = RunState.resumed(
                trainer,
                trainer.ema,
                patience=opt.patience,
                first_epoch=start.first_epoch,
                meta=checkpoint.meta,
                training=checkpoint.training,
            )
        best_saved = bool(checkpoint.meta.get("best_saved", True))  # older checkpoints do not say
        if checkpoint.training is not None and checkpoint.path.name == folder.last.name:
            saved_epochs = start.first_epoch
    saver = CheckpointSaver(
        folder,
        save_checkpoint,
        facts,
        save_period=opt.save_period,
        only_last=opt.nosave,
        saved_epochs=saved_epochs,
        best_saved=best_saved,
    )
    loggers = RunLoggers(folder.path, opt.logger, facts["opt"], start.first_epoch)
    return Recorder(opt, state, saver, loggers)


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
    """

    loader: Loader
    names: dict[int, str]
    single_cls: bool
    batch_size: int
    model: DetectionModel
    loss: LossFunction
    device: torch.device
    amp: torch.dtype | None

    def average(self) -> tuple[ValResult, tuple[float, ...]]:
        """Return the metrics of the average, and its losses (box, obj, cls)."""
        broadcast_state(self.model)
        backend = ModelBackend(self.model, self.device, amp=self.amp, keep_maps=True)
        loss = ValidationLoss(self.loss, backend.raw_maps, self.device)
        found = self._evaluate(backend, loss=loss)
        return found, mean_over_ranks(loss.mean(), loss.batches)

    def checkpoint(self, path: Path, plots: Path | None) -> ValResult:
        """Return the metrics of a checkpoint of the main process, and draw into `plots`."""
        with shared_file(path) as file:
            backend = load_backend(file, self.device)
        return self._evaluate(backend, plots=plots if is_main() else None)

    def _evaluate(
        self, backend: Backend, loss: ValidationLoss | None = None, plots: Path | None = None
    ) -> ValResult:
        options = EvalOptions(single_cls=self.single_cls, plots_dir=plots, progress=is_main())
        together = partial(in_order, batch=self.batch_size)
        return evaluate(backend, self.loader, self.names, options, on_batch=loss, gather=together)


class Recorder:
    """Validate, record and save each epoch; the main process has one.

    Args:
        opt: the run's options.
        state: network, average and best fitness.
        saver: saves the run's checkpoints.
        loggers: record the figures.
    """

    def __init__(
        self, opt: TrainOptions, state: RunState, saver: CheckpointSaver, loggers: RunLoggers
    ) -> None:
        self.opt, self.state, self.saver = opt, state, saver
        self.folder = saver.folder
        self.loggers = loggers

    def end_epoch(
        self, epoch: int, losses: tuple[float, ...], found: ValResult | None, val_losses: tuple[float, ...]
    ) -> bool:
        """Record and save a trained epoch; return whether it is the last.

        Args:
            losses, val_losses: box, obj, cls of training and validation.
            found: the average's metrics; None if it was not validated.
        """
        stopper, is_last = self.state.stopper, epoch + 1 == self.opt.epochs
        score = self._record(epoch, losses, found, val_losses)
        stop = (score is not None and stopper(epoch, score)) or is_last
        self.saver.save_epoch(self.state, epoch, score, is_last=stop)
        if stop and not is_last:
            LOGGER.info(
                "no improvement since epoch %d (--patience %d): stopping",
                stopper.best_epoch + 1,
                self.opt.patience,
            )
        return stop

    def _record(
        self, epoch: int, losses: tuple[float, ...], found: ValResult | None, val_losses: tuple[float, ...]
    ) -> float | None:
        """Write the epoch's row, and return its fitness; None without validation."""
        rates = [group["lr"] for group in self.state.trainer.optimizer.param_groups[:3]]
        values, score = [float("nan")] * 4, None
        if found is not None:
            m = found.metrics
            values = [m.precision, m.recall, m.map50, m.map]
            self.state.maps, score = found.maps, fitness(m)
            LOGGER.info(
                "epoch %d: precision %.3f, recall %.3f, mAP50 %.4f, mAP50-95 %.4f",
                epoch + 1,
                *values,
            )
        self.loggers.log_epoch([epoch, *losses, *values, *val_losses, *rates])
        self.loggers.log_pictures(epoch)
        return score


@dataclass(frozen=True)
class EpochLoop:
    """Train the epochs of a run; every process has one.

    Args:
        opt: the run's options.
        trainer: trains one epoch.
        loader: this process's batches.
        data: with --image-weights, its labels decide how often each image is shown.
        validator: measures the average after an epoch.
        recorder: the main process's; None on the others.
    """

    opt: TrainOptions
    trainer: Trainer
    loader: Loader
    data: TrainingData
    validator: Validator
    recorder: Recorder | None

    def run(self, first_epoch: int) -> int:
        """Train from `first_epoch` on, and return the number of epochs of the run.

        Ctrl-C, SIGTERM and the loss of another process leave a last.pt to resume from; they are raised again.
        """
        recorder, epoch = self.recorder, first_epoch
        before = recorder.state.stopper.state_dict() if recorder else {}
        if recorder and not self.opt.noplots and first_epoch == 0:
            plot_labels(self.data.train, self.data.config.names, recorder.folder.path)
        try:
            if recorder and first_epoch == 0:
                recorder.saver.save_start(recorder.state)
            for epoch in range(first_epoch, self.opt.epochs):
                before = recorder.state.stopper.state_dict() if recorder else {}
                if self._train(epoch):
                    break
        except (KeyboardInterrupt, RuntimeError, OSError) as error:
            if recorder and (isinstance(error, KeyboardInterrupt) or has_lost_another(error)):
                recorder.saver.save_interrupted(recorder.state, epoch, before)
            raise
        finally:
            self.loader.close()
        return epoch + 1

    def _train(self, epoch: int) -> bool:
        """Train one epoch and record it; return whether it is the last."""
        opt, recorder, images = self.opt, self.recorder, self.data.train
        self.loader.set_epoch(epoch)
        if opt.image_weights:
            maps = from_main(lambda: recorder.state.maps if recorder else None)
            weights = image_weights(images.all_labels, images.offsets, self.data.config.nc, maps)
            self.loader.set_image_weights(weights)
        bar = EpochBar(
            epoch,
            opt.epochs,
            len(self.loader),
            self.trainer.device,
            world_size=world_size(),
            quiet=recorder is None,
        )
        with closing(bar):
            result = self.trainer.train_epoch(self._batches(epoch), epoch, bar)
        if lesson := self.trainer.distillation:
            names = ("box", "obj", "cls", "neck")
            left = ", ".join(f"{name} {part:.3g}" for name, part in zip(names, lesson.parts.tolist()))
            LOGGER.info("epoch %d: still to learn from the teacher in the last batch: %s", epoch + 1, left)
        losses = mean_over_ranks(result.losses)
        found, val_losses = None, (float("nan"),) * 3
        if not opt.noval or epoch + 1 == opt.epochs:
            found, val_losses = self.validator.average()
        return from_main(
            lambda: recorder is not None and recorder.end_epoch(epoch, losses, found, val_losses)
        )

    def _batches(self, epoch: int) -> Iterable[Batch]:
        """Return the loader; the main process draws the first batches of a new run."""
        if epoch > 0 or self.recorder is None or self.opt.noplots:
            return self.loader
        return _drawn(self.loader, self.recorder.folder.path, self.data.config.names)


def _drawn(loader: Loader, folder: Path, names: dict[int, str]) -> Iterator[Batch]:
    """Yield the loader's batches, and draw the first of them into a folder."""
    for number, batch in enumerate(loader):
        if number < DRAWN_BATCHES:
            images, targets, paths, _ = batch
            plot_images(images, targets, paths, folder / f"train_batch{number}.jpg", names)
        yield batch


def validate_best(
    start: Start,
    recorder: Recorder | None,
    validator: Validator,
    data: TrainingData,
    settings: RunSettings,
    *,
    epochs: int,
    started: float,
) -> TrainResult:
    """Validate the best checkpoint in float32 with plots, and write metrics.json.

    Args:
        epochs: of the whole run.
        started: time of the run's start, in seconds.
    """
    opt, seconds = start.opt, time.time() - started
    folder, best = from_main(lambda: (recorder.folder, recorder.saver.own_best()) if recorder else None)
    LOGGER.info(
        "%d epochs in %.3f hours; validating %s",
        epochs - start.first_epoch,
        seconds / 3600,
        best or folder.last,
    )
    found = validator.checkpoint(best or folder.last, None if opt.noplots else folder.path)
    if recorder is None:
        return TrainResult(folder.path, best, folder.last, Metrics(), seconds)
    log_table(found, data.config, verbose=True)
    if not opt.noplots:
        plot_results(folder.results)
    model = validator.model
    save_metrics(  # last: a resumed run takes a folder that has it as finished
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
    )
    recorder.loggers.log_pictures(epochs - 1)
    LOGGER.info("results saved to %s", folder.path)
    return TrainResult(folder.path, best, folder.last, found.metrics, seconds)


def _out_of_memory(opt: TrainOptions, device: torch.device) -> UserError:
    """Return the error for a run that does not fit into memory."""
    if opt.batch_size == -1:
        batch, remedy = "the batch that --batch-size -1 found", "give a number"
    else:
        batch, remedy = f"--batch-size {opt.batch_size}", "give a smaller one, or -1 to find what fits"
    return UserError(f"{batch} at {opt.imgsz} pixels does not fit into the memory of {device}; {remedy}")


def cfg_name(cfg: str | Path) -> str:
    """Return a model's name for folders: the YAML's stem, or 'timm-NAME'."""
    return str(cfg).replace(":", "-") if is_named(cfg) else Path(cfg).stem


def folder_name(opt: TrainOptions) -> str:
    """Return the name of a run's folder, which --name cfg takes from --cfg."""
    return cfg_name(opt.cfg) if opt.name == "cfg" and opt.cfg else opt.name


def main() -> None:
    """Train with the command line's options; without any, by the recipe `digits`."""
    options = given_options()
    if not options:
        options = {"recipe": FIRST_RECIPE}
        LOGGER.info("no options given: --recipe %s trains on the bundled data set (see --help)", FIRST_RECIPE)
    run(**options)


if __name__ == "__main__":
    guard(main)
