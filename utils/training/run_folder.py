"""Name the files of a training run, save its checkpoints, and resume from one."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from utils.cli import from_keywords, specs, typed
from utils.dataset.config import DatasetConfig, class_difference
from utils.device import is_main, world_size
from utils.errors import UserError, first_line, shown
from utils.files import RUNS_DIR, YamlMapping, increment_dir, load_yaml, save_yaml
from utils.package import command
from utils.training.compute_mode import ComputeMode
from utils.training.distillation import teacher_hash
from utils.training.early_stopping import EarlyStopping
from utils.training.ema import ModelEMA
from utils.training.options import FROM, TrainOptions
from utils.training.trainer import Trainer

LOGGER = logging.getLogger("yolo.train")

RUNS = RUNS_DIR / "train"
"""train.py's default --project, where the newest file of a run is looked for."""

CHOICE = "amp_choice"
"""How the network computes, in opt.yaml beside the options."""

# These options change how long and on which hardware a run learns, not what it learns.
CHANGEABLE_ON_RESUME = frozenset(
    {"resume", "epochs", "device", "workers", "cache", "patience", "save_period"}
    | {"nosave", "noval", "noplots", "data", "local_rank", "plugins", "logger", "teacher"}
)


@dataclass(frozen=True)
class RunFolder:
    """Name the files of one training run.

    >>> folder = RunFolder.of("runs/train/exp/weights/best.pt")
    >>> folder.path.name, folder.last.name, folder.epoch(7).name
    ('exp', 'last.pt', 'epoch7.pt')
    """

    path: Path
    is_new: bool = field(default=False, compare=False)

    @classmethod
    def create(cls, project: str | Path, name: str, exist_ok: bool = False) -> RunFolder:
        """Create the folder of a new run; a number follows `name` if it is taken."""
        return cls(increment_dir(project, name, exist_ok), is_new=not exist_ok)

    @classmethod
    def of(cls, checkpoint: str | Path) -> RunFolder:
        """Find the folder of the run that a checkpoint belongs to."""
        folder = Path(checkpoint).resolve().parent
        return cls(folder.parent if folder.name == "weights" else folder)

    @contextlib.contextmanager
    def unless_nothing_is_trained(self) -> Iterator[None]:
        """Remove a new folder when the block raises before anything is saved."""
        try:
            yield
        except BaseException:
            if self.is_new and is_main() and not (self.last.parent.exists() or self.results.exists()):
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    @property
    def last(self) -> Path:
        """Return the checkpoint of the last epoch."""
        return self.path / "weights" / "last.pt"

    @property
    def best(self) -> Path:
        """Return the checkpoint of the best epoch."""
        return self.path / "weights" / "best.pt"

    def epoch(self, number: int) -> Path:
        """Return the checkpoint of one epoch, counted from 0."""
        return self.path / "weights" / f"epoch{number}.pt"

    @property
    def results(self) -> Path:
        """Return the table with one row per epoch."""
        return self.path / "results.csv"

    @property
    def metrics(self) -> Path:
        """Return the report of the final validation."""
        return self.path / "metrics.json"

    @property
    def hyp(self) -> Path:
        """Return the hyperparameters as they were loaded."""
        return self.path / "hyp.yaml"

    @property
    def options(self) -> Path:
        """Return the options as they were run, with the hyperparameters fitted to the data set."""
        return self.path / "opt.yaml"

    def read_options(self) -> YamlMapping:
        """Return the options of the run; empty if opt.yaml is missing."""
        return load_yaml(self.options) if self.options.is_file() else {}

    def write_options(self, options: Mapping[str, object]) -> None:
        """Write opt.yaml."""
        save_yaml(self.options, dict(options))


@dataclass
class RunState:
    """Hold what a run has learnt so far.

    Args:
        trainer: the network and its optimizer.
        average: the running average of the network, which is validated and saved.
        stopper: the best fitness so far, and its epoch.
        maps: mAP50-95 of each class (nc,) at the last validation; None before the first.
    """

    trainer: Trainer
    average: ModelEMA
    stopper: EarlyStopping
    maps: np.ndarray | None = None

    @classmethod
    def resumed(
        cls,
        trainer: Trainer,
        average: ModelEMA,
        *,
        patience: int,
        first_epoch: int,
        meta: Mapping[str, Any],  # Any: values of a checkpoint
        training: Mapping[str, Any] | None,
    ) -> RunState:
        """Continue from a checkpoint's `meta` and `training`, which the trainer has loaded already."""
        stopper = EarlyStopping(patience)
        if training is None:
            best = {"best_fitness": meta.get("best_fitness", 0.0), "best_epoch": first_epoch - 1}
            stopper.load_state_dict(best)
            return cls(trainer, average, stopper)
        stopper.load_state_dict(training["stopper"])
        maps = training["maps"]
        return cls(trainer, average, stopper, None if maps is None else maps.numpy())

    def state_dict(self, epochs: int) -> dict[str, object]:
        """Return what a resumed run needs after `epochs` complete epochs."""
        maps = None if self.maps is None else torch.from_numpy(self.maps)
        return self.trainer.state_dict(epochs) | {"stopper": self.stopper.state_dict(), "maps": maps}


@dataclass
class CheckpointSaver:
    """Save the checkpoints of one run, and know which of them this run has saved.

    Args:
        folder: where the files are.
        write: `models.weights.checkpoint.save_checkpoint`, which utils cannot import.
        facts: metadata of every checkpoint: options, hyperparameters, seed, versions.
        save_period: also keep epochN.pt every so many epochs; -1 for none.
        only_last: save nothing before the last epoch (--nosave).
        saved_epochs: complete epochs in last.pt; -1 if this run has not saved it.
        best_saved: whether best.pt is this run's. With --exist-ok it may be another run's.
    """

    folder: RunFolder
    write: Callable[..., None]
    facts: Mapping[str, object]
    _: KW_ONLY
    save_period: int = -1
    only_last: bool = False
    saved_epochs: int = -1
    best_saved: bool = False

    def save_epoch(self, state: RunState, epoch: int, score: float | None, *, is_last: bool) -> None:
        """Save last.pt; also best.pt or epochN.pt when `epoch` is the best or has its turn.

        Args:
            score: fitness of the epoch; None if it was not validated.
            is_last: whether the run ends with this epoch.
        """
        if self.only_last and not is_last:
            return
        # Before last.pt: a resumed run takes its epochs as done, and would never save this best.pt.
        if score is not None and state.stopper.best_epoch == epoch:
            self._save(self.folder.best, state, epoch, resumable=False)
            self.best_saved = True
        # So is epochN.pt.
        if self.save_period > 0 and epoch % self.save_period == 0:
            self._save(self.folder.epoch(epoch), state, epoch, resumable=True)
        # The final last.pt needs no state to resume from, and is as small as best.pt.
        self._save(self.folder.last, state, epoch, resumable=not is_last)
        self.saved_epochs = epoch + 1

    def save_start(self, state: RunState) -> None:
        """Save last.pt before the first epoch, which a killed run then starts again."""
        if not self.only_last:
            self._save(self.folder.last, state, -1, resumable=True)
            self.saved_epochs = 0

    def save_interrupted(self, state: RunState, epoch: int, before: Mapping[str, float]) -> None:
        """Make sure that last.pt can be resumed after a stop in `epoch`.

        Args:
            before: state of the stopper before `epoch`.
        """
        if self.saved_epochs == epoch + 1:
            how = "is complete and saved"
        elif self.saved_epochs == epoch:
            how = "is not complete; it starts again from the state before it"
        else:
            state.stopper.load_state_dict(before)
            self._save(self.folder.last, state, epoch - 1, resumable=True)
            how = "is not complete; it starts again from the weights of this moment"
        LOGGER.info(
            "stopped: epoch %d/%d %s with '%s --resume %s'",
            epoch + 1,
            state.trainer.schedule.epochs,
            how,
            command("train.py"),
            self.folder.last,
        )

    def own_best(self) -> Path | None:
        """Return best.pt if this run has saved it; warn if it is another run's."""
        best = self.folder.best
        if best.is_file() and not self.best_saved:
            LOGGER.warning("%s: is another run's and is kept; this run has saved no best epoch", best)
        return best if self.best_saved and best.is_file() else None

    def _save(self, path: Path, state: RunState, epoch: int, *, resumable: bool) -> None:
        """Write the average after `epoch`: whole and resumable, or in half precision without state."""
        meta = {
            "epoch": epoch,
            "best_fitness": state.stopper.best_fitness,
            "best_saved": self.best_saved or path == self.folder.best,
            "updates": state.average.updates,
            "date": datetime.now().isoformat(timespec="seconds"),
            **self.facts,
        }
        training = state.state_dict(epoch + 1) if resumable else None
        self.write(path, state.average.model, meta=meta, training=training, half=not resumable)


def find_checkpoint(resume: bool | str) -> Path:
    """Find the checkpoint to resume.

    It is the file given, or the newest `last*.pt` below runs/train.

    Raises:
        UserError: there is none.
    """
    if resume is not True:
        path = Path(str(resume))
        if not path.is_file():
            raise UserError(f"--resume {path}: no such file; give a run's weights/last.pt")
        return path
    newest = _newest("last*.pt")
    if newest is None:
        raise UserError(f"--resume: no last.pt below {RUNS}; give the path of a run's weights/last.pt")
    return newest


def _newest(pattern: str) -> Path | None:
    """Return the newest file below runs/train whose name fits; None without one."""
    found = [path for path in RUNS.rglob(pattern) if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


class TrainedRun(NamedTuple):
    """Say what a run trained, and how.

    Attributes:
        best: its best.pt.
        data: the dataset YAML that it was trained on, '' if its opt.yaml does not say.
        imgsz: the image size of its training in pixels, 0 if its opt.yaml does not say.
    """

    best: Path
    data: str
    imgsz: int


def newest_best() -> TrainedRun:
    """Find the run of the newest `best.pt` below runs/train.

    val.py, detect.py and export.py take it when no --weights are given.

    Raises:
        UserError: there is none.
    """
    best = _newest("best.pt")
    if best is None:
        raise UserError(
            f"no --weights are given and there is no best.pt below {RUNS}; train first "
            f"({command('train.py')}) or give --weights FILE"
        )
    saved = RunFolder.of(best).read_options()
    data, imgsz = saved.get("data"), saved.get("imgsz")
    return TrainedRun(
        best, data if isinstance(data, str) else "", imgsz if isinstance(imgsz, int) and imgsz > 0 else 0
    )


def with_newest_run(options: Mapping[str, object], *, data: bool) -> dict[str, object]:
    """Add the newest run's weights and image size to options that name no weights.

    Args:
        options: the user's options by name; None, '' and [] count as not given.
        data: whether the run's dataset YAML is added too.

    Raises:
        UserError: there is no run, or its dataset YAML is asked for and its opt.yaml does not name it.
    """
    asked = dict(options)
    for name in ("weights", "data", "imgsz"):
        value = asked.get(name)
        if value is None or (isinstance(value, str | list) and not value):
            asked.pop(name, None)
    if "weights" in asked:
        return asked
    best, trained_on, imgsz = newest_best()
    found: dict[str, object] = {"weights": str(best)}
    told = []
    if data and "data" not in asked:
        if not trained_on:
            raise UserError(f"{best}: its run has no opt.yaml that names its data; give --data FILE")
        found["data"] = trained_on
        told.append(f"on {trained_on}")
    if imgsz:
        found["imgsz"] = imgsz
        told.append(f"at {imgsz} pixels")
    LOGGER.info("no --weights given: using %s%s", best, f", trained {' '.join(told)}" if told else "")
    return found | asked


def resumed_options(saved: Mapping[str, object], given: Mapping[str, object]) -> TrainOptions:
    """Return the options of the interrupted run with those that the user gives now.

    Args:
        saved: the content of its opt.yaml; options that an older version did not have take their defaults.
        given: the user's options beside --resume.

    Raises:
        UserError: an option is given that may not change in a resumed run.
    """
    known = {name: spec.default for name, spec in specs(TrainOptions).items()}
    del known["hyp"]  # the checkpoint holds the hyperparameters
    del known["plugins"]  # a folder may come from a stranger: only the user names code that runs
    options = known | {name: value for name, value in saved.items() if name in known}
    given = typed(TrainOptions, given, "run() got ")
    for name, value in given.items():
        if name not in CHANGEABLE_ON_RESUME and value != options.get(name):
            changeable = ", ".join(sorted(CHANGEABLE_ON_RESUME - {"resume", "local_rank"}))
            raise UserError(
                f"--resume continues with the run's own options, and with {name} = "
                f"{shown(options.get(name))}; only {changeable} may be changed (start a new run instead)"
            )
    if world_size() == 1:  # an ordinary norm sees the whole batch
        options["sync_bn"] = False
    return from_keywords(TrainOptions, options | given, "opt.yaml: ")


def options_to_save(
    opt: TrainOptions, hyp: Mapping[str, float], batch_size: int, mode: ComputeMode | None = None
) -> dict[str, object]:
    """Return a run's options as plain values for opt.yaml and the checkpoints.

    Args:
        opt: the options at the start of the run.
        hyp: the hyperparameters, fitted to the data set.
        batch_size: images per batch, a number where --batch-size is -1.
        mode: how the network computes.
    """
    plugins = [str(Path(plugin).resolve()) for plugin in opt.plugins]
    settled: dict[str, object] = {
        "hyp": dict(hyp),
        "batch_size": batch_size,
        "resume": False,
        "plugins": plugins,
    }
    if mode:
        settled[CHOICE] = mode.to_plain()
    if opt.teacher:
        settled["teacher_sha256"] = teacher_hash(opt.teacher)
    return asdict(opt) | settled


def recorded_mode(saved: Mapping[str, object], path: Path) -> ComputeMode | None:
    """Return how the network of a run computes; None if it did not record it.

    Args:
        saved: the run's options.
        path: a file of the run, for the message.

    Raises:
        UserError: what is recorded cannot be.
    """
    return ComputeMode.from_plain(saved[CHOICE], f"{path}: {CHOICE}") if CHOICE in saved else None


def mode_of_run(amp: str) -> ComputeMode | None:
    """Return how the network of the run in `--amp from:RUN` computes; None for other values.

    Raises:
        UserError: there is no such run, or it recorded nothing.
    """
    if not amp.startswith(FROM):
        return None
    path = Path(amp.removeprefix(FROM))
    folder = RunFolder(path) if path.is_dir() else RunFolder.of(path)
    if not folder.options.is_file():
        raise UserError(f"--amp {amp}: there is no {folder.options}; name the folder of a run")
    mode = recorded_mode(folder.read_options(), folder.options)
    if mode is None:
        raise UserError(
            f"--amp {amp}: {folder.options} has no {CHOICE}, because its run is of an older version; use "
            "--amp auto"
        )
    return mode


def check_learnt_classes(path: Path, names: Mapping[int, str], data: DatasetConfig) -> None:
    """Check that the data set has the classes of the resumed run, in their order.

    Args:
        path: the checkpoint, for the message.
        names: the classes of the run.

    Raises:
        UserError: the data set has other classes, or the same number with other names.
    """
    differ = class_difference(names, data, by_name=True)
    if not differ:
        return
    raise UserError(
        f"--resume {path}: its run learns {len(names)} classes, and {differ}; give --data with the run's own "
        f"classes, or start a new run with --weights {path} --data {data.path}"
    )


@contextlib.contextmanager
def stored_state(path: Path) -> Iterator[None]:
    """Turn what a damaged or forged training state raises inside the block into one sentence.

    Raises:
        UserError: the state lacks something, or holds values of another kind or size.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise UserError(
            f"{path}: its training state is damaged ({type(error).__name__}: {first_line(error)}); start a "
            f"new run with --weights {path}"
        ) from None


def tell_changed_data(path: Path, saved: object, now: Mapping[str, int | str]) -> None:
    """Warn when the training images are not those with which a run began.

    Args:
        path: the checkpoint, for the message.
        saved: the fingerprint in its metadata; older checkpoints have none.
        now: `ImageSet.fingerprint` of the images that it continues with.
    """
    if not isinstance(saved, dict) or saved == now:
        return
    had, has = saved.get("images"), now["images"]
    what = f"{had} then, {has} now" if had != has else f"still {has}, with other files or labels"
    LOGGER.warning(
        "%s: the training images have changed since the run began (%s), so the result differs from that of "
        "an uninterrupted run",
        path,
        what,
    )


def resumed_epoch(
    path: Path,
    meta: Mapping[str, Any],  # Any: values of a checkpoint
    training: Mapping[str, Any] | None,
    epochs: int,
    *,
    told: bool,
) -> tuple[int, bool]:
    """Return the epoch (from 0) with which a run continues, and whether all are trained.

    A run that was ended during its final validation has no metrics.json: only that validation is missing.
    A finished run keeps no optimizer state. It continues only if --epochs says for how long.

    Args:
        path, meta, training: of the checkpoint.
        epochs: length of the whole run.
        told: whether `epochs` was given together with --resume.

    Raises:
        UserError: nothing is left to do.
    """
    done = training["epochs"] if training else int(meta.get("epoch", -1)) + 1
    last = path.with_name("last.pt")
    if training is None and not told and path.name == last.name and not RunFolder.of(path).metrics.is_file():
        LOGGER.info("%s: all %d epochs are trained; validating the best", path, done)
        return done, True
    if training is None and not told and path.name != last.name:
        where = last if last.is_file() else "the run's last.pt"
        raise UserError(
            f"--resume {path}: keeps the weights after epoch {done} but no state to continue from; "
            f"resume {where}, or train on from these weights with --epochs of more than {done}"
        )
    if done >= epochs or (training is None and not told):
        raise UserError(
            f"--resume {path}: the run has finished its {done} epochs, nothing to resume; "
            f"--epochs with more than {done} trains on"
        )
    if training is None:
        LOGGER.warning(
            "%s: a finished run keeps no optimizer state; continuing with epoch %d/%d without warm-up",
            path,
            done + 1,
            epochs,
        )
    else:
        LOGGER.info("%s: continuing with epoch %d/%d", path, done + 1, epochs)
    return done, False
