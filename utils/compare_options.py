"""compare.py's command line, the nets it names, and going on with an earlier run's folder."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli import Parser, overlay
from utils.comparison import data_path
from utils.device import world_size
from utils.errors import UserError
from utils.files import ROOT, load_yaml, save_yaml
from utils.hyp import load_hyp
from utils.resume import RunFolder
from utils.train_options import add_recipe, check_options
from utils.train_options import build_parser as train_parser

LOGGER = logging.getLogger("yolo.compare")

RUN_FILE = "compare.yaml"  # the options of a run, in its folder: what makes a folder one of ours
# What may change when a run is gone on with: not what is learnt, only where and what is shown.
CHANGEABLE = frozenset({"device", "workers", "cache", "noplots", "save_period", "plugins", "data"})
_OWN = frozenset({"cfg", "weights", "resume", "project", "name", "exist_ok", "samples", "latency_runs"})
_STATE = frozenset({"hyp_file", "own_imgsz", "keys"})  # what a run knows besides its options
_CFG = re.compile(r"(?P<cfg>.+?\.ya?ml|(?:timm|torchvision):[^+]+)\+(?P<start>.+)", re.IGNORECASE | re.DOTALL)
_NAMED = ("timm:", "torchvision:")
SCRATCH = "scratch"


@dataclass(frozen=True)
class Net:
    """One net to compare.

    Attributes:
        key: its folder in the run's folder. label: what it is called.
        cfg: what train.py's --cfg takes; '' for a trained checkpoint.
        weights: the trained checkpoint; '' for a net to train.
        backbone_weights: train.py's --backbone-weights of a net to train.
    """

    key: str
    label: str
    cfg: str = ""
    weights: str = ""
    backbone_weights: str = ""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        description="Train several detectors under the same conditions and put them side by side.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--cfg",
        nargs="+",
        default=[],
        metavar="CFG[+START]",
        help="model YAMLs or timm:NAME to train; +imagenet, or + and what --backbone-weights takes, starts "
        "that one from pretrained weights, +scratch from none",
    )
    add("--weights", nargs="+", default=[], metavar="PT", help="trained checkpoints to put beside them")
    add(
        "--resume", nargs="?", const=True, default=False, help="go on with the newest or the given run folder"
    )
    add("--project", default=str(ROOT / "runs" / "compare"), help="folder of runs")
    add("--name", default="exp", help="folder in it")
    add("--exist-ok", action="store_true", help="go on with project/name if it exists")
    add("--samples", type=int, default=4, help="val images that the page shows with each net's detections")
    add("--latency-runs", type=int, default=50, help="timed runs of each net and engine")
    add_recipe(parser)
    return parser


def open_run(options: dict[str, Any]) -> tuple[argparse.Namespace, Path | None]:
    """The options of a run, those of the earlier run in its folder taken in, and that folder.

    Args:
        options: what the caller gave, by name.

    Returns:
        The options, with `cfg` and `weights` those of both runs and `hyp` read, and `own_imgsz`: whether each
        checkpoint is measured at the image size of its training, and `keys`: the folder of each net by its
        text in `cfg` or `weights`. Files are named by absolute paths. Then the folder that is gone on
        with, or None for a new one.

    Raises:
        UserError: nothing to compare, an option that cannot be honoured, or one that changes the conditions
            of a run that is gone on with.
    """
    parser = build_parser()
    if options.get("resume"):
        placed = [name for name in ("project", "name", "exist_ok") if options.get(name)]
        if placed:
            raise UserError(f"--resume names the folder itself; leave --{placed[0].replace('_', '-')} out")
        folder = find_run(options["resume"])
        saved = load_yaml(folder / RUN_FILE)
        known = {action.dest for action in parser._actions}
        opt = overlay(parser, {k: v for k, v in saved.items() if k in known} | options)
    else:
        opt = overlay(parser, options)
        folder = Path(opt.project) / opt.name
        folder = folder if opt.exist_ok and (folder / RUN_FILE).is_file() else None
        saved = load_yaml(folder / RUN_FILE) if folder else {}
    _check(opt)
    opt.hyp_file = saved.get("hyp_file") or ("" if isinstance(opt.hyp, dict) else str(opt.hyp))
    opt.hyp = load_hyp(opt.hyp)
    opt.own_imgsz = bool(saved.get("own_imgsz")) if saved else "imgsz" not in options and not opt.cfg
    if folder is not None:
        _check_same(opt, saved, folder)
        if opt.own_imgsz and "imgsz" in options:
            raise UserError(
                f"{folder}: its nets are measured at the image sizes of their trainings; leave --imgsz out, "
                "or give another --name"
            )
    _name_nets(opt, saved)
    _name_files(opt)
    if not opt.cfg and not opt.weights:
        raise UserError(
            "nothing to compare; give --cfg with model YAMLs, --weights with checkpoints, or both"
        )
    return opt, folder


def _name_nets(opt: argparse.Namespace, saved: dict[str, Any]) -> None:
    """Add the nets of the earlier run and fix each one's folder, then name files by absolute paths.

    A run may be gone on with from another folder, where what was typed names nothing or something else. A
    net's folder is called after what was typed, in earlier versions too, whose runs know no `keys`.
    """
    typed = {}
    for name, absolute in (("cfg", _absolute_cfg), ("weights", _absolute)):
        typed[name] = {}
        for text in [*map(str, saved.get(name, ())), *getattr(opt, name)]:
            typed[name].setdefault(absolute(text), text)
    opt.keys = saved.get("keys", {})
    opt.cfg, opt.weights = (list(texts.values()) for texts in typed.values())
    nets = list_nets(opt)
    opt.cfg, opt.weights = (list(texts) for texts in typed.values())
    opt.keys = {text: net.key for text, net in zip([*opt.cfg, *opt.weights], nets)}


def _name_files(opt: argparse.Namespace) -> None:
    """Name the files of the other options by absolute paths."""
    opt.data, opt.hyp_file = _absolute(opt.data), _absolute(opt.hyp_file)
    opt.backbone_weights = _absolute_start(opt.backbone_weights)
    opt.plugins = [_absolute(plugin) for plugin in opt.plugins]


def _absolute(path: str | Path) -> str:
    """A file by a path that leads to it from everywhere; names of the project's files do that as they are."""
    own = Path(path).is_file() and not ((ROOT / path).is_file() and os.path.samefile(path, ROOT / path))
    return os.path.abspath(path) if own else str(path)


def _absolute_start(start: str) -> str:
    """The same for what --backbone-weights takes: a file, or source/model=FILE."""
    if Path(start).is_file():
        return _absolute(start)
    source, mark, file = start.rpartition("=")
    return f"{source}{mark}{_absolute(file)}"


def _absolute_cfg(text: str) -> str:
    """The same for a --cfg value with its start."""
    cfg, start = split_cfg(text)
    return _absolute(cfg) + ("" if start is None else f"+{_absolute_start(start) or SCRATCH}")


def find_run(resume: bool | str | Path) -> Path:
    """The folder of the run to go on with: the one given, or the newest below here or runs/.

    Raises:
        UserError: there is none.
    """
    if resume is not True:
        folder = Path(resume)
        if not (folder / RUN_FILE).is_file():
            raise UserError(f"--resume {folder}: holds no {RUN_FILE}; give the folder of a compare.py run")
        return folder
    places = (Path.cwd(), ROOT / "runs")
    found = [path for place in places for path in place.rglob(RUN_FILE)]
    if not found:
        looked = " or ".join(map(str, places))
        raise UserError(f"--resume: no {RUN_FILE} under {looked}; give the folder of a compare.py run")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def save_options(opt: argparse.Namespace, folder: Path) -> None:
    """Write a run's options, as plain values, the hyperparameters inside."""
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in vars(opt).items()}
    save_yaml(folder / RUN_FILE, plain | {"resume": False, "plugins": [str(p) for p in opt.plugins]})


def train_options(opt: argparse.Namespace, net: Net) -> dict[str, Any]:
    """The keywords of train.run for one net."""
    recipe = {name: value for name, value in vars(opt).items() if name not in _OWN | _STATE}
    return recipe | {"cfg": net.cfg, "weights": "", "backbone_weights": net.backbone_weights}


def _check(opt: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is trained; single values of list options become lists."""
    for name in ("cfg", "weights"):
        given = getattr(opt, name)
        setattr(opt, name, [str(v) for v in ([given] if isinstance(given, str | Path) else given)])
    for name, least in (("samples", 0), ("latency_runs", 1)):
        if getattr(opt, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(opt, name)}: must be at least {least}")
    if world_size() > 1:
        raise UserError("compare.py measures in one process; start it without torchrun")
    recipe = overlay(train_parser(), train_options(opt, Net("", "", cfg="any")))
    recipe.backbone_weights = opt.backbone_weights
    check_options(recipe)
    opt.freeze, opt.plugins = recipe.freeze, recipe.plugins


def _check_same(opt: argparse.Namespace, saved: dict[str, Any], folder: Path) -> None:
    """Hold the conditions now asked for against those that the folder's nets were trained under."""
    fixed = [name for name in train_options(opt, Net("", "")) if name not in CHANGEABLE | {"cfg", "weights"}]
    changed = [name for name in fixed if name in saved and not _same(name, saved[name], getattr(opt, name))]
    if "data" in saved and data_path(saved["data"]) != data_path(opt.data):
        changed.append("data")
    if changed:
        told = ", ".join(f"{name} {saved[name]!r}, now {getattr(opt, name)!r}" for name in changed)
        raise UserError(
            f"{folder}: its nets were trained under other conditions ({told}); give another --name, or the "
            "options it was made with"
        )


def _same(name: str, saved: Any, now: Any) -> bool:
    """Whether an option has its saved value, by whatever path it was named."""
    if name == "backbone_weights":
        saved, now = _absolute_start(saved), _absolute_start(now)
    return saved == now


def list_nets(opt: argparse.Namespace) -> list[Net]:
    """The nets that the options name, each once; folders are those of `keys`, or new ones that are free."""
    nets: list[Net] = []
    keys = opt.keys
    for text in opt.cfg:
        cfg, start = split_cfg(text)
        start = opt.backbone_weights if start is None else start
        # A network's name may end in its weights' tag, as in timm:lcnet_050.ra2_in1k.
        name = cfg.replace(":", "-") if cfg.startswith(_NAMED) else Path(cfg).stem
        label, key = (f"{name} ({_start_label(start)})", f"{name}-{start}") if start else (name, name)
        key = keys.get(text) or _free(key, nets, keys)
        nets.append(Net(key, label, cfg=cfg, backbone_weights=start))
    for text in opt.weights:
        path = Path(text)
        # Every run has a best.pt; its folder tells them apart.
        name = RunFolder.of(path).path.name if path.stem in ("best", "last") else path.stem
        nets.append(Net(keys.get(text) or _free(f"weights-{name}", nets, keys), name, weights=text))
    return nets


def split_cfg(text: str) -> tuple[str, str | None]:
    """A --cfg value into train.py's --cfg and --backbone-weights; None when the value does not say.

    `models/x.yaml+imagenet` -> ('models/x.yaml', 'imagenet'); `+scratch` gives ''.
    """
    found = None if Path(text).is_file() else _CFG.fullmatch(text)
    if found is None:
        return text, None
    start = found["start"]
    return found["cfg"], "" if start == SCRATCH else start


def _start_label(start: str) -> str:
    """Pretrained weights as a label has room for: their name, or their file's."""
    if start == "imagenet":
        return "ImageNet"
    if Path(start).is_file() or Path(start).is_absolute():
        return Path(start).name
    source, mark, file = start.rpartition("=")
    return f"{source}{mark}{Path(file).name if Path(file).is_absolute() else file}"


def _free(key: str, nets: list[Net], keys: Mapping[str, str]) -> str:
    """A folder's name that none of the nets has, and none of `keys`."""
    key = re.sub(r"[^\w.-]+", "-", key).strip(".-")[:80] or "net"
    taken = {net.key for net in nets} | set(keys.values())
    return key if key not in taken else next(k for n in range(2, 10**6) if (k := f"{key}-{n}") not in taken)


def _shortened(value: Any) -> str:
    """A value as it would be typed: paths below this folder are relative to it."""
    return re.sub(rf"(^|[+=]){re.escape(f'{Path.cwd()}{os.sep}')}", r"\1", str(value))


def command_line(opt: argparse.Namespace) -> str:
    """The command line that gives these options, files named from this folder."""
    words = ["python", "compare.py"]
    for action in build_parser()._actions:
        value = getattr(opt, action.dest, action.default)
        value = (opt.hyp_file or "HYP.yaml") if action.dest == "hyp" else value
        if value == action.default or action.dest in ("resume", "exist_ok"):
            continue
        words.append(next(name for name in action.option_strings if name.startswith("--")))
        if value is not True:
            words += map(_shortened, value if isinstance(value, list) else [value])
    return shlex.join(words)
