"""Record a training run: results.csv, TensorBoard and the progress bar."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from utils.files import atomic_text, atomic_write
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


class TensorBoard:
    """Write the figures of each epoch as TensorBoard events, if tensorboard is installed."""

    def __init__(self, folder: Path, from_epoch: int = 0) -> None:
        self.writer: Any = None  # Any: torch.utils.tensorboard is imported only when it is used
        if importlib.util.find_spec("tensorboard") is not None:
            # Imported here, because the import takes a second.
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder), purge_step=from_epoch or None)

    def scalars(self, values: Sequence[float]) -> None:
        """Write one row of results.csv, each value under its column's name."""
        if self.writer is None:
            return
        epoch = int(values[0])
        for name, value in zip(EPOCH_COLUMNS[1:], values[1:]):
            if value == value:  # nan: not validated this epoch
                self.writer.add_scalar(name, value, epoch)

    def close(self) -> None:
        """Write out what is pending."""
        if self.writer is not None:
            self.writer.close()


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
