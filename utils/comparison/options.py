"""Declare compare.py's options, list the nets they name, and continue an earlier run."""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from utils.cli import from_keywords, option, specs, typed
from utils.comparison.table import checkpoint_name, data_path
from utils.device import world_size
from utils.errors import UserError
from utils.files import ROOT, RUNS_DIR, load_yaml, save_yaml
from utils.package import command
from utils.training.hyp import load_hyp
from utils.training.options import TrainingOptions, with_recipe

LOGGER = logging.getLogger("yolo.compare")

RUN_FILE = "compare.yaml"  # the options of a run, in its folder
# Options of training that may change in a continued run, because the result does not depend on them.
MAY_CHANGE = frozenset({"device", "workers", "cache", "noplots", "save_period", "plugins", "data"})
Saved = Mapping[str, Any]  # Any: YAML values of a saved run
_CFG = re.compile(r"(?P<cfg>.+?\.ya?ml|(?:timm|torchvision):[^+]+)\+(?P<start>.+)", re.IGNORECASE | re.DOTALL)
_NAMED = ("timm:", "torchvision:")
SCRATCH = "scratch"


@dataclass(frozen=True)
class Net:
    """Name one net to compare.

    Attributes:
        key: name of its folder in the run's folder.
        label: its name in tables.
        cfg: value of train.py's --cfg; '' for a trained checkpoint.
        weights: the trained checkpoint; '' for a net to train.
        backbone_weights: train.py's --backbone-weights of a net to train.
    """

    key: str
    label: str
    cfg: str = ""
    weights: str = ""
    backbone_weights: str = ""


@dataclass(frozen=True)
class CompareOptions(TrainingOptions):
    """Train several detectors under the same conditions and compare them."""

    cfg: list[str] = option(
        [],
        metavar="CFG[+START]",
        help="model YAMLs or timm:NAME to train; +imagenet, or + and a value of --backbone-weights, starts "
        "that net from pretrained weights, +scratch from none",
    )
    weights: list[str] = option([], metavar="PT", help="trained checkpoints to compare with them")
    resume: bool | str = option(
        False, nargs="?", const=True, help="continue the newest or the given run folder"
    )
    project: str = option(str(RUNS_DIR / "compare"), help="folder of runs")
    name: str = option("exp", type=str, help="folder in it")
    exist_ok: bool = option(False, help="continue project/name if it exists")
    samples: int = option(4, help="val images that the page shows with each net's detections")
    latency_runs: int = option(50, help="timed runs of each net and engine")

    def check(self) -> None:
        """Refuse values that cannot work."""
        super().check()
        self.at_least(samples=0, latency_runs=1)
        if world_size() > 1:
            raise UserError("compare.py measures in one process; start it without torchrun")


@dataclass(frozen=True)
class ComparePlan:
    """Hold the options of a run, and what follows from them.

    Attributes:
        opt: the options. `cfg` and `weights` name the nets of all sessions, `hyp` holds the hyperparameters,
            and paths are absolute.
        hyp_file: the file of `hyp`; '' for a mapping from Python.
        own_imgsz: whether each checkpoint is measured at the image size of its training.
        keys: the folder of each net by its text in `cfg` or `weights`.
        folder: the folder of an earlier session that is continued; None for a new run.
    """

    opt: CompareOptions
    hyp_file: str
    own_imgsz: bool
    keys: Mapping[str, str]
    folder: Path | None = None

    def nets(self) -> list[Net]:
        """Return the nets, each once."""
        return list_nets(self.opt, self.keys)

    def save(self, folder: Path) -> None:
        """Write the run's options and hyperparameters into its folder."""
        state = {"hyp_file": self.hyp_file, "own_imgsz": self.own_imgsz, "keys": dict(self.keys)}
        save_yaml(folder / RUN_FILE, vars(self.opt) | state | {"resume": False})

    def command_line(self) -> str:
        """Return the command line of these options, with paths relative to this folder."""
        words = command("compare.py").split()
        for name, spec in specs(CompareOptions).items():
            value = getattr(self.opt, name)
            value = (self.hyp_file or "HYP.yaml") if name == "hyp" else value
            # The recipe's options are listed themselves, because its file may change.
            if value == spec.default or name in ("resume", "exist_ok", "recipe"):
                continue
            words += map(_shortened, spec.words(value))
        return shlex.join(words)


def open_run(options: Mapping[str, object]) -> ComparePlan:
    """Return a new run, or an earlier run with the options that are given now.

    Raises:
        UserError: nothing to compare, an option that cannot work, or one that changes the training conditions
            of the earlier run.
    """
    # A recipe's network and folder are left out, because the nets are named here.
    asked = with_recipe(options, TrainingOptions)
    folder, saved = _earlier_run(asked)
    kept: dict[str, object] = {}
    if folder is not None and asked.get("resume"):
        known = {name: value for name, value in saved.items() if name in specs(CompareOptions)}
        kept = typed(CompareOptions, known, f"{folder / RUN_FILE}: ")
    opt = from_keywords(CompareOptions, kept | asked)
    hyp_file = saved.get("hyp_file") or ("" if isinstance(opt.hyp, dict) else str(opt.hyp))
    opt = replace(opt, hyp=load_hyp(opt.hyp))
    own_imgsz = bool(saved.get("own_imgsz")) if saved else "imgsz" not in asked and not opt.cfg
    if folder is not None:
        _check_same(opt, saved, folder)
        if own_imgsz and "imgsz" in asked:
            raise UserError(
                f"{folder}: its nets are measured at the image sizes of their trainings; leave --imgsz out, "
                "or give another --name"
            )
    opt, keys = _name_nets(opt, saved)
    if not opt.cfg and not opt.weights:
        raise UserError(
            "nothing to compare; give --cfg with model YAMLs, --weights with checkpoints, or both"
        )
    return ComparePlan(_name_files(opt), _absolute(hyp_file), own_imgsz, keys, folder)


def _earlier_run(options: Mapping[str, object]) -> tuple[Path | None, Saved]:
    """Return folder and saved options of the run to continue, or None and {}."""
    opt = from_keywords(CompareOptions, options)
    if opt.resume:
        placed = [name for name in ("project", "name", "exist_ok") if options.get(name)]
        if placed:
            raise UserError(f"--resume names the folder itself; leave --{placed[0].replace('_', '-')} out")
        folder = find_run(opt.resume)
    else:
        folder = Path(opt.project) / opt.name
        if not opt.exist_ok or not (folder / RUN_FILE).is_file():
            return None, {}
    return folder, load_yaml(folder / RUN_FILE)


def _name_nets(opt: CompareOptions, saved: Saved) -> tuple[CompareOptions, dict[str, str]]:
    """Add the nets of the earlier run, and name all by absolute paths.

    A run may be continued from another folder, where relative paths would name other files. The folder of a
    net is named after the text that was typed; runs of earlier versions have no `keys`.

    Returns:
        The options, and the folder of each net by its text in them.
    """
    typed_by: dict[str, dict[str, str]] = {"cfg": {}, "weights": {}}
    for name, absolute in (("cfg", _absolute_cfg), ("weights", _absolute)):
        for text in [*map(str, saved.get(name, ())), *getattr(opt, name)]:
            typed_by[name].setdefault(absolute(text), text)
    cfg, weights = typed_by["cfg"], typed_by["weights"]
    as_typed = replace(opt, cfg=list(cfg.values()), weights=list(weights.values()))
    nets = list_nets(as_typed, saved.get("keys", {}))
    keys = {text: net.key for text, net in zip([*cfg, *weights], nets)}
    return replace(opt, cfg=list(cfg), weights=list(weights)), keys


def _name_files(opt: CompareOptions) -> CompareOptions:
    """Return the options with absolute paths of data, weights and plugins."""
    return replace(
        opt,
        data=_absolute(opt.data),
        backbone_weights=_absolute_start(opt.backbone_weights),
        teacher=_absolute(opt.teacher),
        plugins=[_absolute(plugin) for plugin in opt.plugins],
    )


def _absolute(path: str | Path) -> str:
    """Return an absolute path; names of the project's own files are kept."""
    own = Path(path).is_file() and not ((ROOT / path).is_file() and os.path.samefile(path, ROOT / path))
    return os.path.abspath(path) if own else str(path)


def _absolute_start(start: str) -> str:
    """Return a value of --backbone-weights, a file or source/model=FILE, with an absolute path."""
    if Path(start).is_file():
        return _absolute(start)
    source, mark, file = start.rpartition("=")
    return f"{source}{mark}{_absolute(file)}"


def _absolute_cfg(text: str) -> str:
    """Return a --cfg value and its start with absolute paths."""
    cfg, start = split_cfg(text)
    return _absolute(cfg) + ("" if start is None else f"+{_absolute_start(start) or SCRATCH}")


def find_run(resume: bool | str | Path) -> Path:
    """Find the folder of the run to continue.

    It is the one given, or the newest below the working folder or runs/.

    Raises:
        UserError: there is none.
    """
    if resume is not True:
        folder = Path(str(resume))
        if not (folder / RUN_FILE).is_file():
            raise UserError(f"--resume {folder}: holds no {RUN_FILE}; give the folder of a compare.py run")
        return folder
    places = (Path.cwd(), RUNS_DIR)
    found = [path for place in places for path in place.rglob(RUN_FILE)]
    if not found:
        looked = " or ".join(map(str, places))
        raise UserError(f"--resume: no {RUN_FILE} under {looked}; give the folder of a compare.py run")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def train_options(opt: CompareOptions, net: Net) -> dict[str, object]:
    """Return the keywords of train.run for one net."""
    shared = {field.name: getattr(opt, field.name) for field in fields(TrainingOptions)}
    del shared["recipe"]  # its options are among the others
    return shared | {"cfg": net.cfg, "weights": "", "backbone_weights": net.backbone_weights}


def _check_same(opt: CompareOptions, saved: Saved, folder: Path) -> None:
    """Refuse training conditions that differ from those of the folder's nets."""
    fixed = [name for name in train_options(opt, Net("", "")) if name not in MAY_CHANGE | {"cfg", "weights"}]
    changed = [name for name in fixed if name in saved and not _same(name, saved[name], getattr(opt, name))]
    if "data" in saved and data_path(saved["data"]) != data_path(opt.data):
        changed.append("data")
    if changed:
        told = ", ".join(f"{name} {saved[name]!r}, now {getattr(opt, name)!r}" for name in changed)
        raise UserError(
            f"{folder}: its nets were trained under other conditions ({told}); give another --name, or the "
            "run's own options"
        )


def _same(name: str, saved: Any, now: Any) -> bool:  # Any: YAML values
    """Return whether an option has its saved value, whatever path names it."""
    if name in ("backbone_weights", "teacher"):
        saved, now = _absolute_start(saved), _absolute_start(now)
    return saved == now


def list_nets(opt: CompareOptions, keys: Mapping[str, str]) -> list[Net]:
    """Return the nets that the options name, each once.

    Their folders are those of `keys`, or new ones.
    """
    nets: list[Net] = []
    for text in opt.cfg:
        cfg, start = split_cfg(text)
        start = opt.backbone_weights if start is None else start
        # A network's name may end in its weights' tag, as in timm:lcnet_050.ra2_in1k.
        name = cfg.replace(":", "-") if cfg.startswith(_NAMED) else Path(cfg).stem
        label, key = (f"{name} ({_start_label(start)})", f"{name}-{start}") if start else (name, name)
        key = keys.get(text) or _free(key, nets, keys)
        nets.append(Net(key, label, cfg=cfg, backbone_weights=start))
    for text in opt.weights:
        name = checkpoint_name(text)
        nets.append(Net(keys.get(text) or _free(f"weights-{name}", nets, keys), name, weights=text))
    return nets


def split_cfg(text: str) -> tuple[str, str | None]:
    """Split a --cfg value into train.py's --cfg and --backbone-weights.

    The second is None if the value names no start.

    >>> split_cfg("models/x.yaml+imagenet"), split_cfg("x.yaml+scratch"), split_cfg("x.yaml")
    (('models/x.yaml', 'imagenet'), ('x.yaml', ''), ('x.yaml', None))
    """
    found = None if Path(text).is_file() else _CFG.fullmatch(text)
    if found is None:
        return text, None
    start = found["start"]
    return found["cfg"], "" if start == SCRATCH else start


def _start_label(start: str) -> str:
    """Return a short name of pretrained weights for a label."""
    if start == "imagenet":
        return "ImageNet"
    if Path(start).is_file() or Path(start).is_absolute():
        return Path(start).name
    source, mark, file = start.rpartition("=")
    return f"{source}{mark}{Path(file).name if Path(file).is_absolute() else file}"


def _free(key: str, nets: list[Net], keys: Mapping[str, str]) -> str:
    """Return a folder's name that is not used by the nets or in `keys`."""
    key = re.sub(r"[^\w.-]+", "-", key).strip(".-")[:80] or "net"
    taken = {net.key for net in nets} | set(keys.values())
    return key if key not in taken else next(k for n in range(2, 10**6) if (k := f"{key}-{n}") not in taken)


def _shortened(word: str) -> str:
    """Return a word as it is typed, with paths relative to this folder."""
    return re.sub(rf"(^|[+=]){re.escape(f'{Path.cwd()}{os.sep}')}", r"\1", word)
