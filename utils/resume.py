"""Going on with an interrupted run: finding its checkpoint and its options."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.cli import overlay
from utils.datasets import DatasetConfig
from utils.errors import UserError
from utils.files import ROOT, load_yaml

LOGGER = logging.getLogger("yolo.train")

# What may be given beside --resume: it does not change what is learnt, only how long and on what.
CHANGEABLE = frozenset(
    {"resume", "epochs", "device", "workers", "cache", "patience", "save_period"}
    | {"nosave", "noval", "noplots", "data", "local_rank", "plugins"}
)


def find_checkpoint(resume: bool | str) -> Path:
    """The checkpoint to go on from: the file given, or the newest `last*.pt` below here or runs/.

    Raises:
        UserError: there is none.
    """
    if resume is not True:
        path = Path(str(resume))
        if not path.is_file():
            raise UserError(f"--resume {path}: no such file; give a run's weights/last.pt")
        return path
    folders = (Path.cwd(), ROOT / "runs")
    found = [path for folder in folders for path in folder.rglob("last*.pt")]
    if not found:
        looked = " or ".join(map(str, folders))
        raise UserError(f"--resume: no last.pt under {looked}; give the path of a run's weights/last.pt")
    return max(found, key=lambda path: path.stat().st_ctime)


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "weights" else folder


def saved_options(checkpoint: Path) -> dict[str, Any]:
    """The options of the run that a checkpoint belongs to, from its opt.yaml; empty if that is gone."""
    file = run_folder(checkpoint) / "opt.yaml"
    return load_yaml(file) if file.is_file() else {}


def resumed_options(
    parser: argparse.ArgumentParser, saved: dict[str, Any], given: dict[str, Any]
) -> argparse.Namespace:
    """The options of the interrupted run with those now given laid over.

    Raises:
        UserError: an option is given that would make it another run.
    """
    known = {action.dest for action in parser._actions} - {"hyp"}  # the checkpoint holds the hyperparameters
    options = {name: value for name, value in saved.items() if name in known}
    for name, value in given.items():
        if name not in CHANGEABLE and value != options.get(name):
            changeable = ", ".join(sorted(CHANGEABLE - {"resume", "local_rank"}))
            raise UserError(
                f"--resume goes on with the run's own options, {name} = {options.get(name)!r} among them; "
                f"only {changeable} may be changed (start a new run instead)"
            )
    return overlay(parser, options | given)


def check_classes(path: Path, names: Mapping[int, str], data: DatasetConfig) -> None:
    """See to it that the data set has the classes that the run in `path` learns, `names`, in their order.

    Raises:
        UserError: it has others, or as many by other names.
    """
    if dict(names) == data.names:
        return
    if len(names) != data.nc:
        differ = f"{data.path} has {data.nc}"
    else:
        number = next(i for i, name in data.names.items() if name != names.get(i))
        differ = f"class {number} of {data.path} is {data.names[number]!r}, not {names.get(number)!r}"
    raise UserError(
        f"--resume {path}: its run learns {len(names)} classes, and {differ}; give --data with the run's own "
        f"classes, or start a new run with --weights {path} --data {data.path}"
    )


def first_epoch(
    path: Path, meta: dict[str, Any], training: dict[str, Any] | None, epochs: int, told: bool
) -> int:
    """The epoch (from 0) that a checkpoint's run goes on with.

    A run that has finished keeps no optimizer state; it goes on only if it is told how long.

    Args:
        meta, training: of the checkpoint.
        epochs: how long the run is to be in all.
        told: whether `epochs` was given along with --resume.

    Raises:
        UserError: nothing is left to do.
    """
    done = training["epochs"] if training else int(meta.get("epoch", -1)) + 1
    last = path.with_name("last.pt")
    if training is None and not told and path.name != last.name:
        where = last if last.is_file() else "the run's last.pt"
        raise UserError(
            f"--resume {path}: keeps the weights after epoch {done} but no state to go on from; "
            f"resume {where}, or train on from these weights with --epochs of more than {done}"
        )
    if done >= epochs or (training is None and not told):
        raise UserError(
            f"--resume {path}: the run has finished its {done} epochs, nothing to resume; "
            f"--epochs with more than {done} trains on"
        )
    if training is None:
        LOGGER.warning(
            "%s: a finished run keeps no optimizer state; going on with epoch %d/%d without warm-up",
            path,
            done + 1,
            epochs,
        )
    else:
        LOGGER.info("%s: going on with epoch %d/%d", path, done + 1, epochs)
    return done
