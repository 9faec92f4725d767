"""Train a detector.

    python train.py --cfg models/yolov5-mobilenetv2.yaml --data data/digits.yaml --imgsz 320

Without --cfg the network is that of --weights; with both, the YAML's network takes over every weight whose
name and shape fit. Nothing is ever downloaded for --weights: with --cfg alone the start is from scratch.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.registry import load_plugins
from models.start import check_config, start_model, starting_weights
from models.wrappers import is_named
from models.yolo import DetectionModel
from utils.anchors import check_anchors
from utils.autobatch import choose_batch_size
from utils.cli import guard, overlay, setup_logging
from utils.dataloaders import build_loader, workers_beside
from utils.datasets import load_dataset, load_images
from utils.device import (
    amp_dtype,
    describe,
    is_main,
    rank,
    repeatable,
    select_device,
    tune_allocator,
    versions,
    world_size,
)
from utils.distributed import from_main, main_first, parallelise, process_group, synchronise_norms
from utils.errors import UserError
from utils.evaluation import evaluate
from utils.files import increment_dir, save_yaml
from utils.hyp import NOMINAL_BATCH, load_hyp, scale_gains
from utils.image_weights import image_weights
from utils.loggers import EpochBar, ResultsCsv, TensorBoard
from utils.loss import DetectionLoss
from utils.metrics import Metrics, fitness, save_metrics
from utils.optim import (
    EarlyStopping,
    FrozenLayers,
    LRSchedule,
    ModelEMA,
    build_optimizer,
    fitting_nominal_batch,
)
from utils.plots import plot_images, plot_labels, plot_results
from utils.profiling import count_parameters, gflops
from utils.resume import check_classes, find_checkpoint, resumed_options, run_folder, saved_options
from utils.resume import first_epoch as resumed_epoch
from utils.train_options import build_parser, check_options, given_options, parse_opt
from utils.training import EpochResult, Trainer
from val import log_table

LOGGER = logging.getLogger("yolo.train")

__all__ = ["TrainResult", "parse_opt", "run"]

DRAWN_BATCHES = 3
VAL_CONF, VAL_IOU = 0.001, 0.6


@dataclass
class TrainResult:
    """What a run left: its folder, its checkpoints, the final validation of the best one, the time taken."""

    save_dir: Path
    best: Path | None
    last: Path
    metrics: Metrics
    seconds: float


def run(**options: Any) -> TrainResult:
    """Train, with the command line's options as keywords; what is left out takes its default."""
    checkpoint, first_epoch = None, 0
    if options.get("resume"):
        opt, checkpoint, first_epoch = _resume(options)
    else:
        opt = overlay(build_parser(), options)
    check_options(opt)
    if checkpoint is None:
        starting_weights(opt.cfg, opt.weights)  # before a data set is fetched for nothing
    device = select_device(opt.device)
    with repeatable(device), process_group(device):
        try:
            return Run(opt, device, checkpoint, first_epoch).train()
        except torch.OutOfMemoryError:
            raise UserError(
                f"--batch-size {opt.batch_size} at {opt.imgsz} pixels does not fit into the memory of "
                f"{device}; give a smaller one, or -1 to find what fits"
            ) from None


def _resume(options: dict[str, Any]) -> tuple[argparse.Namespace, Checkpoint, int]:
    """Options, checkpoint and first epoch of the run that --resume names."""
    path = find_checkpoint(options["resume"])
    saved = saved_options(path)
    load_plugins(options.get("plugins") or saved.get("plugins", ()))
    checkpoint = load_checkpoint(path)
    if checkpoint.official:
        raise UserError(f"--resume {path}: is an official YOLOv5 file; start a new run with --weights {path}")
    opt = resumed_options(build_parser(), saved or checkpoint.meta.get("opt", {}), options)
    first = resumed_epoch(path, checkpoint.meta, checkpoint.training, opt.epochs, "epochs" in options)
    return opt, checkpoint, first


class Run:
    """One training run: what it is made of, its epochs, and what it leaves."""

    def __init__(
        self,
        opt: argparse.Namespace,
        device: torch.device,
        checkpoint: Checkpoint | None = None,
        first_epoch: int = 0,
    ) -> None:
        self.opt, self.device, self.checkpoint, self.first_epoch = opt, device, checkpoint, first_epoch
        self.started = time.time()
        self.main = is_main()
        if not self.main:
            setup_logging(verbose=False)
        tune_allocator()
        load_plugins(opt.plugins)
        self.hyp = load_hyp(checkpoint.meta["hyp"] if checkpoint else opt.hyp)
        self.loaded_hyp = dict(self.hyp)  # hyp.yaml: what is fitted to this data set is not the recipe's
        if checkpoint is None:
            check_config(opt.cfg, opt.backbone_weights)
        with main_first():
            self.data = load_dataset(opt.data, single_cls=opt.single_cls)
            if checkpoint:
                check_classes(checkpoint.path, checkpoint.model.names, self.data)
            self.images = load_images(self.data, "train", workers=opt.workers, require_labels=True)
            self.val_images = load_images(self.data, "val", workers=opt.workers) if self.main else None
        self.model = self._build_model().to(device, memory_format=torch.channels_last)
        self.stride = max(int(self.model.stride.max()), 32)
        self.imgsz = image_size(opt.imgsz, self.stride)
        self.amp = amp_dtype(opt.amp, device)
        self.frozen = FrozenLayers(self.model, opt.freeze)
        if self.frozen:
            LOGGER.info("%s", self.frozen)
        if opt.batch_size == -1:
            opt.batch_size = choose_batch_size(self.model, self.imgsz, device, self.amp)
        self._fit_nominal_batch()
        self.save_dir = self._make_folder()
        self.weights = self.save_dir / "weights"
        self._build_loaders()
        self._build_trainer()
        self.maps = None  # per class, of the last validation; what --image-weights goes by
        self.saved_epochs = -1  # epochs behind the state in last.pt; -1 as long as this run wrote none
        self.best_saved = False  # whether best.pt is this run's: --exist-ok may have found another's
        if checkpoint:
            self._restore(checkpoint)
        self.stopper_before = self.stopper.state_dict()  # before the epoch that runs

    def _build_model(self) -> DetectionModel:
        """The network: the interrupted run's, or the YAML's or checkpoint's with what weights there are."""
        if self.checkpoint is not None:
            return copy.deepcopy(self.checkpoint.model).requires_grad_(True)
        anchors = round(self.hyp["anchors"]) if "anchors" in self.hyp else None
        with main_first():  # one process downloads what the others then find
            return start_model(
                self.opt.cfg,
                self.opt.weights,
                names=self.data.names,
                anchors_per_layer=anchors,
                seed=self.opt.seed,
                backbone_weights=self.opt.backbone_weights,
            )

    def _fit_nominal_batch(self) -> None:
        """Small data sets get more optimizer steps than 64 images each would make, unless the hyp says so."""
        if self.checkpoint is not None or "nominal_batch" in self.hyp:
            return
        fitting = fitting_nominal_batch(len(self.images), self.opt.batch_size)
        self.hyp["nominal_batch"] = fitting
        if fitting < NOMINAL_BATCH and fitting < len(self.images):
            LOGGER.info(
                "%d images are few: an optimizer step after every %d instead of %d of them "
                "(nominal_batch: %d in the --hyp file keeps YOLOv5's)",
                *(len(self.images), fitting, NOMINAL_BATCH, NOMINAL_BATCH),
            )

    def _make_folder(self) -> Path:
        """The run's folder with its hyp.yaml (as loaded) and opt.yaml (as run), made by the main process."""
        opt, folder = self.opt, None
        if self.main:
            if self.checkpoint:
                folder = run_folder(self.checkpoint.path)
            else:
                name = cfg_name(opt.cfg) if opt.name == "cfg" and opt.cfg else opt.name
                folder = increment_dir(opt.project, name, opt.exist_ok)
            if not self.checkpoint:
                save_yaml(folder / "hyp.yaml", self.loaded_hyp)
            save_yaml(folder / "opt.yaml", self._options())
            if is_named(opt.cfg) and not self.checkpoint:
                save_yaml(folder / f"{cfg_name(opt.cfg)}.yaml", self.model.yaml)
            LOGGER.info("%s; saving to %s", describe(self.device), folder)
        return Path(from_main(folder))

    def _options(self) -> dict[str, Any]:
        """The options as plain values, the hyperparameters inside."""
        values = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self.opt).items()}
        plugins = [str(Path(path).resolve()) for path in self.opt.plugins]
        return values | {"hyp": self.hyp, "resume": False, "plugins": plugins}

    def _build_loaders(self) -> None:
        opt = self.opt
        workers = workers_beside(self.device, opt.workers)
        common = {"stride": self.stride, "single_cls": opt.single_cls, "seed": opt.seed}
        self.loader = build_loader(
            self.images,
            self.imgsz,
            opt.batch_size // world_size(),
            augment=True,
            hyp=self.hyp,
            rect=opt.rect,
            cache=opt.cache if opt.cache != "val" else None,
            workers=workers,
            shuffle=not opt.rect,
            rank=rank(),
            world_size=world_size(),
            **common,
        )
        self.val_loader = None
        if self.main:
            self.val_loader = build_loader(
                self.val_images,
                self.imgsz,
                opt.batch_size // world_size() * 2,
                rect=True,
                pad=0.5,
                cache={"val": "ram"}.get(opt.cache, opt.cache) if not opt.noval else None,
                workers=workers * 2,
                **common,
            )

    def _build_trainer(self) -> None:
        """Anchors that fit the data, then loss, optimizer, schedule and average around the model."""
        opt, detect = self.opt, self.model.detect
        counted = "anchors" in self.hyp
        if self.main and self.checkpoint is None and (counted or not opt.noautoanchor):
            # Anchors that were only counted, not stated, are placeholders whatever they seem to fit.
            force = counted or bool(opt.cfg and isinstance(self.model.yaml["anchors"], int | float))
            check_anchors(self.images, detect, self.imgsz, self.hyp["anchor_t"], opt.seed, force=force)
        if opt.sync_bn:
            self.model = synchronise_norms(self.model)
        gains = scale_gains(self.hyp, nl=detect.nl, nc=detect.nc, imgsz=self.imgsz)
        self.loss = DetectionLoss(detect, gains, label_smoothing=opt.label_smoothing)
        finished = self.checkpoint is not None and self.checkpoint.training is None
        self.trainer = Trainer(
            model=self.model,
            loss=self.loss,
            optimizer=build_optimizer(self.model, opt.optimizer, self.hyp, opt.batch_size, opt.backbone_lr),
            schedule=LRSchedule(
                self.hyp, opt.epochs, len(self.loader), opt.batch_size, opt.cos_lr, warm_up=not finished
            ),
            device=self.device,
            amp=self.amp,
            ema=ModelEMA(self.model) if self.main else None,
            frozen=self.frozen,
            imgsz=self.imgsz,
            stride=self.stride,
            multi_scale=opt.multi_scale,
            seed=opt.seed,
            parallel=parallelise(self.model, self.device),
            rank=rank(),
            world_size=world_size(),
        )
        self.stopper = EarlyStopping(opt.patience)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Take up the state of the interrupted run."""
        training = checkpoint.training
        self.best_saved = bool(checkpoint.meta.get("best_saved", True))  # older ones do not say
        if training is None:
            self.stopper.best_fitness = float(checkpoint.meta.get("best_fitness", 0.0))
            self.stopper.best_epoch = self.first_epoch - 1
            self.trainer.last_step = self.first_epoch * len(self.loader) - 1
            if self.trainer.ema:
                self.trainer.ema.updates = int(checkpoint.meta.get("updates", 0))
            return
        self.trainer.load_state_dict(training, checkpoint.model.state_dict())
        self.stopper.load_state_dict(training["stopper"])
        self.maps = training["maps"].numpy() if training["maps"] is not None else None
        if checkpoint.path.name == "last.pt":
            self.saved_epochs = self.first_epoch

    def train(self) -> TrainResult:
        """All epochs, then the final validation. Ctrl-C leaves a last.pt to resume from, and is raised on."""
        epoch = self.first_epoch
        if self.main:
            self.csv = ResultsCsv(self.save_dir / "results.csv", self.first_epoch)
            self.board = TensorBoard(self.save_dir, self.first_epoch)
            if not self.opt.noplots and self.first_epoch == 0:
                plot_labels(self.images, self.data.names, self.save_dir)
        try:
            for epoch in range(self.first_epoch, self.opt.epochs):
                if self._epoch(epoch):
                    break
        except KeyboardInterrupt:
            if self.main:
                self._interrupted(epoch)
            raise
        finally:
            self.loader.close()
            if self.main:
                self.board.close()
        return self._finish(epoch)

    def _epoch(self, epoch: int) -> bool:
        """Train, validate, write down and save one epoch; whether it was the last."""
        opt, is_last = self.opt, epoch + 1 == self.opt.epochs
        self.stopper_before = self.stopper.state_dict()
        self.loader.set_epoch(epoch)
        if opt.image_weights:
            maps = from_main(self.maps)
            weights = image_weights(self.images.all_labels, self.images.offsets, self.data.nc, maps)
            self.loader.set_image_weights(weights)
        bar = EpochBar(
            epoch, opt.epochs, len(self.loader), self.device, world_size=world_size(), quiet=not self.main
        )
        try:
            result = self.trainer.train_epoch(self._drawn(epoch), epoch, bar)
        finally:
            bar.close()
        stop = is_last
        if self.main:
            score = self._score(epoch, result, validate=is_last or not opt.noval)
            stop = (score is not None and self.stopper(epoch, score)) or is_last
            self._save(epoch, score, stop)
            if stop and not is_last:
                LOGGER.info(
                    "no improvement since epoch %d (--patience %d): stopping",
                    self.stopper.best_epoch + 1,
                    opt.patience,
                )
        return bool(from_main(stop))

    def _drawn(self, epoch: int) -> Iterable:
        """The loader, with the run's first batches drawn on the way."""
        if epoch > 0 or not self.main or self.opt.noplots:
            return self.loader
        return self._drawing()

    def _drawing(self) -> Iterator:
        for number, batch in enumerate(self.loader):
            if number < DRAWN_BATCHES:
                images, targets, paths, _ = batch
                plot_images(
                    images, targets, paths, self.save_dir / f"train_batch{number}.jpg", self.data.names
                )
            yield batch

    def _score(self, epoch: int, result: EpochResult, validate: bool) -> float | None:
        """Validate the average if asked to, write the epoch's row, and return its fitness."""
        rates = [group["lr"] for group in self.trainer.optimizer.param_groups[:3]]
        values, losses, score = [float("nan")] * 4, [float("nan")] * 3, None
        if validate:
            found = self._validate(self.trainer.ema.model, self.amp, self.loss)
            m = found.metrics
            values, losses = [m.precision, m.recall, m.map50, m.map], list(found.loss)
            self.maps, score = found.maps, fitness(m)
            LOGGER.info(
                "epoch %d: precision %.3f, recall %.3f, mAP50 %.4f, mAP50-95 %.4f",
                epoch + 1,
                *values,
            )
        row = [epoch, *result.losses, *values, *losses, *rates]
        self.csv.append(row)
        self.board.scalars(row)
        return score

    def _validate(
        self, model: DetectionModel, amp: torch.dtype | None, loss: Any, plots: Path | None = None
    ) -> Any:
        return evaluate(
            model,
            self.val_loader,
            names=self.data.names,
            device=self.device,
            conf_thres=VAL_CONF,
            iou_thres=VAL_IOU,
            single_cls=self.opt.single_cls,
            loss=loss,
            plots_dir=plots,
            amp=amp,
        )

    def _state(self, epochs: int) -> dict[str, Any]:
        """What a resumed run needs, with `epochs` of them complete."""
        maps = torch.from_numpy(self.maps) if self.maps is not None else None
        return self.trainer.state_dict(epochs) | {
            "stopper": self.stopper.state_dict(),
            "maps": maps,
        }

    def _checkpoint(self, path: Path, epoch: int, *, resumable: bool) -> None:
        """Write the average as a checkpoint after `epoch`: whole and resumable, or half and without state."""
        meta = {
            "epoch": epoch,
            "best_fitness": self.stopper.best_fitness,
            "best_saved": self.best_saved or path.name == "best.pt",
            "updates": self.trainer.ema.updates,
            "opt": self._options(),
            "hyp": self.hyp,
            "date": datetime.now().isoformat(timespec="seconds"),
            "seed": self.opt.seed,
            "versions": versions(),
        }
        training = self._state(epoch + 1) if resumable else None
        save_checkpoint(path, self.trainer.ema.model, meta=meta, training=training, half=not resumable)

    def _save(self, epoch: int, score: float | None, is_last: bool) -> None:
        """last.pt after every epoch (or the last), best.pt when it is the best, epochN.pt by the period."""
        if self.opt.nosave and not is_last:
            return
        # First, for a resumed run takes the epochs of last.pt as done: a best one would never be written.
        if score is not None and self.stopper.best_epoch == epoch:
            self._checkpoint(self.weights / "best.pt", epoch, resumable=False)
            self.best_saved = True
        # The last last.pt needs no state to resume from, and is as small as best.pt.
        self._checkpoint(self.weights / "last.pt", epoch, resumable=not is_last)
        self.saved_epochs = epoch + 1
        if self.opt.save_period > 0 and epoch % self.opt.save_period == 0:
            self._checkpoint(self.weights / f"epoch{epoch}.pt", epoch, resumable=True)

    def _interrupted(self, epoch: int) -> None:
        """See to it that last.pt can be resumed from, and say with which epoch that goes on."""
        last = self.weights / "last.pt"
        if self.saved_epochs == epoch + 1:
            how = "is complete and saved"
        elif self.saved_epochs == epoch:
            how = "is not complete; it starts again from the state before it"
        else:
            self.stopper.load_state_dict(self.stopper_before)  # the epoch gets its score when it is whole
            self._checkpoint(last, epoch - 1, resumable=True)
            how = "is not complete; it starts again from the weights of this moment"
        LOGGER.info(
            "stopped: epoch %d/%d %s with 'python train.py --resume %s'",
            epoch + 1,
            self.opt.epochs,
            how,
            last,
        )

    def _finish(self, epoch: int) -> TrainResult:
        """Validate the best checkpoint in float32 with plots, and write metrics.json."""
        best, last = self.weights / "best.pt", self.weights / "last.pt"
        seconds = time.time() - self.started
        if not self.main:
            return TrainResult(self.save_dir, best, last, Metrics(), seconds)
        if best.is_file() and not self.best_saved:
            LOGGER.warning("%s: is another run's and stays; this run has saved no best epoch", best)
        best = best if self.best_saved and best.is_file() else None
        LOGGER.info(
            "%d epochs in %.3f hours; validating %s",
            epoch + 1 - self.first_epoch,
            seconds / 3600,
            best or last,
        )
        plots = None if self.opt.noplots else self.save_dir
        model = load_checkpoint(best or last, self.device).model
        try:
            found = self._validate(model.fuse(), amp=None, loss=None, plots=plots)
        finally:
            self.val_loader.close()
        log_table(found, self.data, verbose=True)
        save_metrics(
            self.save_dir / "metrics.json",
            found.metrics,
            parameters=count_parameters(self.model),
            gflops=gflops(self.trainer.ema.model, self.imgsz),
            speed=found.speed,
            imgsz=self.imgsz,
            nc=self.data.nc,
            seed=self.opt.seed,
            versions=versions(),
            images=found.seen,
            instances=found.instances,
            seconds=seconds,
            epochs=epoch + 1,
        )
        if not self.opt.noplots:
            plot_results(self.save_dir / "results.csv")
        LOGGER.info("results saved to %s", self.save_dir)
        return TrainResult(self.save_dir, best, last, found.metrics, seconds)


def cfg_name(cfg: str | Path) -> str:
    """What a run is called after its model: the YAML's stem, or 'timm-NAME'."""
    return str(cfg).replace(":", "-") if is_named(cfg) else Path(cfg).stem


def image_size(imgsz: int, stride: int) -> int:
    """`imgsz` rounded up to a multiple of `stride`, at least two of them."""
    size = max(-(-imgsz // stride) * stride, 2 * stride)
    if size != imgsz:
        LOGGER.warning("--imgsz %d: using %d, a multiple of the stride %d", imgsz, size, stride)
    return size


def main() -> None:
    """Train as the command line says."""
    run(**given_options())


if __name__ == "__main__":
    guard(main)
