"""Record a training run: results.csv, TensorBoard, MLflow, Weights & Biases, and the progress bar."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from tqdm import tqdm

from utils.errors import UserError, first_line
from utils.files import atomic_text, atomic_write, load_yaml, save_yaml
from utils.images import load_image
from utils.training.options import is_installed
from utils.training.trainer import BatchReport

LOGGER = logging.getLogger("yolo.train")

EPOCH_COLUMNS = (
    "epoch",
    "train/box_loss",
    "train/obj_loss",
    "train/cls_loss",
    "metrics/precision",
    "metrics/recall",
    "metrics/mAP_0.5",
    "metrics/mAP_0.5:0.95",
    "val/box_loss",
    "val/obj_loss",
    "val/cls_loss",
    "x/lr0",
    "x/lr1",
    "x/lr2",
)
WIDTH = 20
RUN_IDS = "loggers.yaml"  # in a run's folder: what the services call the run, for resuming
_REMEDIES = {
    "tensorboard": "reinstall it, or leave it out",
    "mlflow": "check MLFLOW_TRACKING_URI (a folder needs MLFLOW_ALLOW_FILE_STORE=true), or leave it out",
    "wandb": "run 'wandb login', set WANDB_MODE=offline, or leave it out",
}


class ResultsCsv:
    """Write results.csv: one row per epoch, columns right-aligned to 20 characters, 5 digits.

    Each row rewrites the whole file, so that a full disk cannot leave half a row. Metrics of an epoch without
    validation are nan.

    Args:
        path: the file.
        keep_below: first epoch of a resumed run, which keeps the rows before it; 0 starts an empty file.
            Damaged rows are left out with a warning, and a copy of the damaged file is kept.
    """

    def __init__(self, path: Path, keep_below: int = 0) -> None:
        self.path = path
        self.rows = []
        if keep_below:
            rows, damaged = _parse(path)
            if damaged:
                _keep_copy(path, damaged)
            self.rows = [row for row in rows if row[0] < keep_below]

    def append(self, values: Sequence[float]) -> None:
        """Add a row of values in the order of EPOCH_COLUMNS."""
        if len(values) != len(EPOCH_COLUMNS):
            raise ValueError(f"{len(values)} values for {len(EPOCH_COLUMNS)} columns")
        self.rows.append([float(value) for value in values])
        lines = [",".join(f"{name:>{WIDTH}}" for name in EPOCH_COLUMNS)]
        lines += [",".join(f"{value:>{WIDTH}.5g}" for value in row) for row in self.rows]
        atomic_text(self.path, "\n".join(lines) + "\n")


def read_results(path: Path) -> list[list[float]]:
    """Return the undamaged rows of a results.csv; no rows if the file is missing."""
    rows, damaged = _parse(path)
    if damaged:
        LOGGER.warning("%s: %s; left out", path, _named(damaged))
    return rows


def _parse(path: Path) -> tuple[list[list[float]], list[int]]:
    """Return the rows of numbers, and the line numbers of damaged rows."""
    rows: list[list[float]] = []
    damaged: list[int] = []
    if not path.is_file():
        return rows, damaged
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            row = [float(cell) for cell in line.split(",")]
        except ValueError:
            row = []
        if len(row) == len(EPOCH_COLUMNS):
            rows.append(row)
        else:
            damaged.append(number)
    return rows, damaged


def _keep_copy(path: Path, damaged: Sequence[int]) -> None:
    """Copy a results.csv before its damaged lines are overwritten."""
    number = 1
    while (copy := path.with_name(f"{path.stem}.damaged{number if number > 1 else ''}.csv")).exists():
        number += 1
    text = path.read_bytes()
    atomic_write(copy, lambda file: file.write(text))
    LOGGER.warning("%s: %s; left out, and a copy of the file kept as %s", path, _named(damaged), copy.name)


def _named(damaged: Sequence[int]) -> str:
    """Return the words for damaged lines in a message."""
    more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    return f"line {damaged[0]}{more} is no row of {len(EPOCH_COLUMNS)} numbers"


class RunLogger(Protocol):
    """Record a run in one more place than results.csv; it may raise anything."""

    run_id: str | None
    """What the place calls this run; None where it is found by the run's folder."""

    def log_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """Record the finite figures of an epoch, by their columns in results.csv."""

    def log_pictures(self, epoch: int, paths: Sequence[Path]) -> None:
        """Record pictures that the run has drawn."""

    def close(self, complete: bool) -> None:
        """Write out what is pending, and say whether the run came to its end."""


class TensorBoard:
    """Write figures and pictures as TensorBoard events into the run's folder."""

    run_id: str | None = None

    def __init__(self, folder: Path, from_epoch: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, because the import takes a second

        self.writer = SummaryWriter(str(folder), purge_step=from_epoch or None)

    def log_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write each value under its column's name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)

    def log_pictures(self, epoch: int, paths: Sequence[Path]) -> None:
        """Write each picture under its file's name."""
        for path in paths:
            self.writer.add_image(path.stem, load_image(path)[:, :, ::-1], epoch, dataformats="HWC")

    def close(self, complete: bool) -> None:
        """Write out what is pending."""
        self.writer.close()


class Mlflow:
    """Record a run with MLflow, where its own environment variables say.

    Without MLFLOW_EXPERIMENT_NAME the experiment is called as the folder of the runs.
    """

    def __init__(self, folder: Path, options: Mapping[str, object], run_id: str | None) -> None:
        import mlflow

        self._mlflow = mlflow
        with _few_retries():
            if not os.environ.get("MLFLOW_EXPERIMENT_NAME") and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
                mlflow.set_experiment(folder.parent.name)
            self.run_id: str | None = mlflow.start_run(run_id=run_id, run_name=folder.name).info.run_id
            if run_id is None:  # a value that is there already cannot change
                mlflow.log_params(_flat(options))

    def log_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """Record the figures; MLflow allows no colon in a name."""
        self._mlflow.log_metrics({name.replace(":", "-"): v for name, v in values.items()}, step=epoch)

    def log_pictures(self, epoch: int, paths: Sequence[Path]) -> None:
        """Record the files as artifacts."""
        for path in paths:
            self._mlflow.log_artifact(str(path))

    def close(self, complete: bool) -> None:
        """End MLflow's run."""
        self._mlflow.end_run("FINISHED" if complete else "KILLED")


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Let MLflow try an address for seconds inside the block, not for minutes."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    given = os.environ.get(name)
    os.environ[name] = given or "1"
    try:
        yield
    finally:
        if given is None:
            del os.environ[name]


class Wandb:
    """Record a run with Weights & Biases, where its own environment variables say.

    Without WANDB_PROJECT the project is called as the folder of the runs.
    """

    def __init__(self, folder: Path, options: Mapping[str, object], run_id: str | None) -> None:
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or folder.parent.name,
            name=os.environ.get("WANDB_NAME") or folder.name,
            dir=os.environ.get("WANDB_DIR") or str(folder),
            id=run_id,
            resume="allow" if run_id else None,
            config=dict(options),
        )
        self.run_id: str | None = self._run.id

    def log_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """Record the figures."""
        self._run.log(dict(values), step=epoch)

    def log_pictures(self, epoch: int, paths: Sequence[Path]) -> None:
        """Record each picture under its file's name."""
        self._run.log({path.stem: self._image(str(path)) for path in paths}, step=epoch)

    def close(self, complete: bool) -> None:
        """Send what is pending, and end the run."""
        self._run.finish(exit_code=0 if complete else 1)


def _flat(options: Mapping[str, object]) -> dict[str, object]:
    """Return options with those inside a mapping as `name.key`."""
    flat: dict[str, object] = {}
    for name, value in options.items():
        inner = {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, Mapping) else None
        flat |= {name: value} if inner is None else inner
    return flat


class RunLoggers:
    """Record a run in results.csv, and in every place that was asked for.

    TensorBoard is always one of them where it is installed. A place that fails is told of once and left out
    from then on: only results.csv can end the training. Use it as a context manager.

    Args:
        folder: the run's; pictures that appear in it are recorded.
        names: what --logger names.
        options: the run's.
        first_epoch: of a resumed run, which is continued in each place; 0 for a new one.

    Raises:
        UserError: one that was asked for cannot be started.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], options: Mapping[str, object], first_epoch: int = 0
    ) -> None:
        self.folder = folder
        self.table = ResultsCsv(folder / "results.csv", first_epoch)
        self.loggers: dict[str, RunLogger] = {}
        self._seen = self._pictures()
        stored = folder / RUN_IDS
        ids: dict[str, str] = load_yaml(stored) if first_epoch and stored.is_file() else {}
        starts: dict[str, Callable[[], RunLogger]] = {
            "tensorboard": lambda: TensorBoard(folder, first_epoch),
            "mlflow": lambda: Mlflow(folder, options, ids.get("mlflow")),
            "wandb": lambda: Wandb(folder, options, ids.get("wandb")),
        }
        for name, start in starts.items():
            if name in names or (name == "tensorboard" and is_installed(name)):
                self._start(name, start, named=name in names)
        if ids := {name: logger.run_id for name, logger in self.loggers.items() if logger.run_id}:
            save_yaml(stored, ids)

    def _start(self, name: str, start: Callable[[], RunLogger], *, named: bool) -> None:
        try:
            self.loggers[name] = start()
        except Exception as error:  # noqa: BLE001 a service may raise anything
            sentence = f"--logger {name}: cannot be started ({first_line(error)}); {_REMEDIES[name]}"
            if named:
                self.close(complete=False)
                raise UserError(sentence) from None
            LOGGER.warning("%s", sentence)

    def log_epoch(self, row: Sequence[float]) -> None:
        """Record the row of an epoch, in the order of EPOCH_COLUMNS; nan is not validated."""
        self.table.append(row)
        values = {name: float(v) for name, v in zip(EPOCH_COLUMNS[1:], row[1:]) if v == v}
        self._each(lambda logger: logger.log_epoch(int(row[0]), values))

    def log_pictures(self, epoch: int) -> None:
        """Record the pictures that are new in the folder."""
        before, self._seen = self._seen, self._pictures()
        fresh = sorted(path for path, changed in self._seen.items() if before.get(path) != changed)
        if fresh:
            self._each(lambda logger: logger.log_pictures(epoch, fresh))

    def _pictures(self) -> dict[Path, int]:
        """Return the pictures in the folder, and when each was written."""
        return {p: p.stat().st_mtime_ns for p in self.folder.iterdir() if p.suffix in (".jpg", ".png")}

    def close(self, complete: bool) -> None:
        """End the record in every place."""
        self._each(lambda logger: logger.close(complete))
        self.loggers.clear()

    def __enter__(self) -> RunLoggers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(complete=kind is None)

    def _each(self, act: Callable[[RunLogger], None]) -> None:
        """Do the same in every place; one that fails is left out from then on."""
        for name, logger in list(self.loggers.items()):
            try:
                act(logger)
            except Exception as error:  # noqa: BLE001 a service may raise anything, and the training goes on
                LOGGER.warning("--logger %s: left out from here on (%s)", name, first_line(error))
                del self.loggers[name]


class EpochBar:
    """Show the progress of one epoch: GPU memory, losses, instances, size, images/s.

    Args:
        batches: length of the epoch.
        device: its memory is shown when it is a GPU.
        world_size: processes that train together; each shows the images of all.
        quiet: no bar (every process but the main one).
    """

    HEADER = ("epoch", "memory", "box", "obj", "cls", "instances", "size", "images/s")

    def __init__(
        self,
        epoch: int,
        epochs: int,
        batches: int,
        device: torch.device,
        *,
        world_size: int = 1,
        quiet: bool = False,
    ) -> None:
        self.title = f"{epoch + 1}/{epochs}"
        self.device = device
        self.world_size = world_size
        self.images = 0
        if not quiet:
            tqdm.write("".join(f"{name:>11}" for name in self.HEADER))
        self.bar = tqdm(total=batches, disable=quiet, bar_format="{desc} {bar:10} {n_fmt}/{total_fmt}")

    def __call__(self, report: BatchReport) -> None:
        """Show the figures after a batch."""
        self.images += report.images * self.world_size
        if self.bar.disable:
            return
        elapsed = max(self.bar.format_dict["elapsed"], 1e-9)
        memory = torch.cuda.memory_reserved(self.device) / 2**30 if self.device.type == "cuda" else 0.0
        texts = [self.title, f"{memory:.2f}G", *(f"{loss:.4g}" for loss in report.losses)]
        texts += [str(report.instances), str(report.size), f"{self.images / elapsed:.1f}"]
        self.bar.set_description_str("".join(f"{text:>11}" for text in texts), refresh=False)
        self.bar.update()

    def close(self) -> None:
        """End the bar, and leave it on the screen."""
        self.bar.close()
