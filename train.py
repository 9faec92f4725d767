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
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from models.backends import ModelBackend, load_backend, optimised
from models.layers.timm_torchvision_rows import is_named
from models.plugins import load_plugins
from models.weights.align import align_adapters
from models.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.weights.imitation import imitate_maps
from models.weights.initial_model import check_config, start_model, starting_weights
from models.weights.releases import fetch_missing
from models.yolo import DetectionModel
from utils.cli import from_keywords, guard, setup_logging
from utils.dataset.config import load_dataset
from utils.dataset.detection_dataset import BatchOptions
from utils.dataset.images import list_images, load_unlabelled
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
from utils.files import find_file, remove_dead_parts, save_yaml
from utils.image_size import fit_side
from utils.profiling import gflops
from utils.training.aligned_loss import AlignedLoss
from utils.training.anchors import check_anchors
from utils.training.autobatch import no_memory
from utils.training.compute_mode import ComputeMode
from utils.training.distillation import Distillation, check_same_teacher, check_teacher
from utils.training.distributed import (
    from_main,
    has_lost_another,
    main_first,
    mean_counts,
    parallelise,
    process_group,
    synchronise_norms,
)
from utils.training.early_stopping import EarlyStopping
from utils.training.ema import ModelEMA
from utils.training.freeze import FrozenLayers
from utils.training.hyp import load_hyp, scale_gains
from utils.training.loggers import RunLoggers
from utils.training.loss import DetectionLoss, MeanCounts
from utils.training.optim import LRSchedule, build_optimizer
from utils.training.options import FIRST_RECIPE, TrainOptions, given_options, parse_opt, with_recipe
from utils.training.run_folder import (
    CheckpointSaver,
    RunFolder,
    RunState,
    check_learnt_classes,
    find_checkpoint,
    mode_of_run,
    recorded_mode,
    resumed_epoch,
    resumed_options,
    stored_state,
    tell_changed_data,
)
from utils.training.trainer import Trainer
from utils.training_run.data import TrainingData, build_loaders, prepare_data
from utils.training_run.epochs import EpochLoop
from utils.training_run.recorder import Recorder
from utils.training_run.settings import RunSettings, saved_options, settle
from utils.training_run.validation import TrainResult, Validator, validate_best

LOGGER = logging.getLogger("yolo.train")

__all__ = ["TrainResult", "parse_opt", "run"]

ALIGNED_BATCH = 16  # images of a step of --align-epochs


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
            raise no_memory(start.opt.batch_size, start.opt.imgsz, device) from None
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
    check_head(opt, network, hyp)
    teacher = load_teacher(start, network, hyp)
    data = prepare_data(opt)
    if opt.align and is_main() and start.checkpoint is None:
        align_network(opt, network, data, hyp, device)
    model = place_network(network, opt, device)
    frozen = FrozenLayers(model, opt.freeze)
    settings = settle(
        *(opt, model, hyp, len(data.train), device),
        stride=max(int(model.stride.max()), 32),
        resumed=start.checkpoint is not None,
        mode=start.mode,
    )
    folder = from_main(lambda: make_folder(start, model, hyp, settings, device))
    with folder.unless_nothing_is_trained(), closing(build_loaders(opt, settings, data, device)) as loaders:
        if is_main() and start.checkpoint is None:
            fit_anchors(opt, model, data, settings)
        trainer = build_trainer(start, model, frozen, settings, len(loaders.train), device)
        if teacher is not None:
            trainer.distillation = build_distillation(opt, teacher, trainer, settings)
        recorder = build_recorder(start, trainer, data, folder, settings)
        validator = build_validator(opt, trainer, loaders.val, data, settings)
        first = epochs = start.first_epoch
        with recorder.loggers if recorder else nullcontext():
            if not start.trained:
                epochs = EpochLoop(opt, trainer, loaders.train, data, validator, recorder).run(first)
            return validate_best(
                *(opt, recorder, validator, data, settings), first_epoch=first, epochs=epochs, started=started
            )


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


def check_head(opt: TrainOptions, model: DetectionModel, hyp: dict[str, float]) -> None:
    """Refuse what means nothing to a head without anchors.

    Raises:
        UserError: the sentence names the option.
    """
    if hasattr(model.detect, "anchors"):
        return
    head = f"{model.source}: its head, {type(model.detect).__name__},"
    if "anchors" in hyp:
        raise UserError(f"{head} has no anchors; leave anchors in the hyperparameters out")
    if opt.label_smoothing:
        raise UserError(f"{head} learns the quality of its boxes; leave --label-smoothing out")


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


def align_network(
    opt: TrainOptions,
    network: DetectionModel,
    data: TrainingData,
    hyp: dict[str, float],
    device: torch.device,
) -> None:
    """Teach the new network the maps of --neck-weights.

    Other processes take its weights over from the main one.
    """
    if isinstance(opt.align, str):
        paths, _ = list_images([find_file(opt.align, folder=True)], Path())
    else:
        paths = [data.train.path(index) for index in range(len(data.train))]
    imgsz = fit_side(opt.imgsz, int(network.stride.max()), least=2)
    weights = find_file(opt.neck_weights)
    LOGGER.info("%s", align_adapters(network, weights, paths, imgsz, device=device, seed=opt.seed))
    if not opt.align_epochs:
        return
    images = load_unlabelled(paths, workers=opt.workers) if isinstance(opt.align, str) else data.train
    options = BatchOptions(imgsz, ALIGNED_BATCH, hyp=hyp, seed=opt.seed)
    with closing(
        build_loader(images, options, workers=workers_beside(device, opt.workers), shuffle=True)
    ) as loader:
        amp = amp_dtype(opt.own_amp, device)
        LOGGER.info(
            "%s",
            imitate_maps(network, weights, loader, opt.align_epochs, device=device, dtype=amp, seed=opt.seed),
        )


def place_network(model: DetectionModel, opt: TrainOptions, device: torch.device) -> DetectionModel:
    """Move the network to its device, channels_last, with SyncBatchNorm for --sync-bn."""
    model = model.to(device).to(memory_format=torch.channels_last)
    if opt.sync_bn:
        synchronise_norms(model, device)
    return model


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


def fit_anchors(opt: TrainOptions, model: DetectionModel, data: TrainingData, settings: RunSettings) -> None:
    """Replace the anchors if others fit the boxes better, unless --noautoanchor is given."""
    counted = "anchors" in settings.hyp
    if opt.teacher or (opt.noautoanchor and not counted) or not hasattr(model.detect, "anchors"):
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
        loss=build_loss(model, hyp, settings.imgsz, opt.label_smoothing, counts_of_batch()),
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
    model: DetectionModel,
    hyp: dict[str, float],
    imgsz: int,
    label_smoothing: float = 0.0,
    counts: MeanCounts | None = None,
) -> DetectionLoss | AlignedLoss:
    """Build the loss of the network's head; with `counts`, for a share of each batch."""
    detect = model.detect
    if not hasattr(detect, "anchors"):
        return AlignedLoss(detect, hyp, mean_counts=counts)
    gains = scale_gains(hyp, nl=detect.nl, nc=detect.nc, imgsz=imgsz)
    return DetectionLoss(detect, gains, label_smoothing=label_smoothing, mean_counts=counts)


def counts_of_batch() -> MeanCounts | None:
    """Return what averages counts over the processes that share a batch; None with one process."""
    return mean_counts if world_size() > 1 else None


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
    loss = build_loss(model, settings.hyp, settings.imgsz, opt.label_smoothing, counts_of_batch())
    loss = cast("DetectionLoss", loss)  # of the only head that has a teacher
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
        loss=build_loss(model, settings.hyp, settings.imgsz, opt.label_smoothing),
        device=trainer.device,
        amp=trainer.mode.dtype,
        open_network=ModelBackend,
        open_file=load_backend,
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
