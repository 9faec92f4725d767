"""train.py's command line: its options, which of them were given, and which cannot work."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from utils.cli import WORKERS_HELP, Parser
from utils.device import AMP_MODES, world_size
from utils.errors import UserError
from utils.files import ROOT
from utils.optim import BACKBONE, OPTIMIZERS

MAX_SEED = 2**64 - 1  # what torch's generators take


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description="Train a detector.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--weights", help="checkpoint to start from, '' for none (default: none with --cfg, else yolov5s.pt)")
    add("--cfg", default="", help="model YAML, timm:NAME or torchvision:NAME")
    add("--resume", nargs="?", const=True, default=False, help="go on with the newest or the given last.pt")
    add("--project", default=str(ROOT / "runs" / "train"), help="folder of runs")
    add("--name", default="exp", help="folder in it; 'cfg' is the stem of --cfg")
    add("--exist-ok", action="store_true", help="write into project/name even if it exists")
    add("--nosave", action="store_true", help="save only after the last epoch")
    add("--noval", action="store_true", help="validate only after the last epoch")
    add("--sync-bn", action="store_true", help="SyncBatchNorm, with several GPUs")
    add("--local_rank", "--local-rank", type=int, default=-1, help="set by launchers older than torchrun")
    add_recipe(parser)
    elsewhere = "hyperparameters are not searched here; give the file you found with --hyp"
    parser.refuse(elsewhere, "--evolve", "--evolve_population", "--resume_evolve", "--bucket")
    parser.refuse("batches of four images in one are not made here; leave it out", "--quad")
    trackers = "runs are recorded in their folder and for TensorBoard, no service is told; leave it out"
    parser.refuse(trackers, "--entity", "--upload_dataset", "--bbox_interval", "--artifact_alias")
    return parser


def add_recipe(parser: Parser) -> None:
    """The options that say how a network is trained, whatever the network: those compare.py passes on."""
    add = parser.add_argument
    add("--data", default="data/coco128.yaml", help="dataset YAML")
    add("--hyp", default="data/hyps/hyp.scratch-low.yaml", help="hyperparameter YAML")
    add("--epochs", type=int, default=100)
    add("--batch-size", type=int, default=16, help="total over all GPUs; -1 finds what fits the GPU")
    add("--imgsz", "--img", "--img-size", type=int, default=640, help="train and val size in pixels")
    add("--rect", action="store_true", help="rectangular training (no shuffle, no mosaic)")
    add("--noautoanchor", action="store_true", help="keep the model's anchors, whatever the data")
    add("--noplots", action="store_true", help="draw nothing")
    add("--cache", nargs="?", const="ram", choices=("ram", "disk", "val"), help="keep decoded images")
    add("--image-weights", action="store_true", help="show rare and badly learnt classes more often")
    add("--device", default="", help="0, 0,1, cpu or mps")
    add("--multi-scale", action="store_true", help="vary the size by +-50 %%")
    add("--single-cls", action="store_true", help="treat all classes as one")
    add("--optimizer", choices=OPTIMIZERS, default="SGD")
    add("--workers", type=int, help=WORKERS_HELP)
    add("--cos-lr", action="store_true", help="cosine schedule instead of a linear one")
    add("--label-smoothing", type=float, default=0.0, help="epsilon of the class targets")
    add("--patience", type=int, default=100, help="epochs without improvement before stopping; 0 never stops")
    add(
        "--freeze",
        nargs="+",
        type=_row,
        default=[0],
        metavar="N",
        help="n: the first n rows; several: those rows; backbone: all of its rows",
    )
    add("--backbone-weights", default="", help="imagenet, a file, source/model or source/model=FILE")
    add("--backbone-lr", type=float, help="initial learning rate of the backbone's rows (default: lr0)")
    add("--save-period", type=int, default=-1, help="also save epochN.pt every so many epochs")
    add("--seed", type=int, default=0)
    add("--amp", choices=AMP_MODES, default="auto", help="mixed precision")
    add("--plugins", nargs="+", default=[], metavar="FILE", help="Python files with blocks of your own")


def _row(text: str) -> int | str:
    """A row's number, or the word for all rows of the backbone."""
    if text != BACKBONE and not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no row; give row numbers, or {BACKBONE} for all of its"
        )
    return text if text == BACKBONE else int(text)


def parse_opt(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line with all defaults."""
    return build_parser().parse_args(argv)


def given_options(argv: list[str] | None = None, parser: Parser | None = None) -> dict[str, Any]:
    """Only what the command line says: a resumed run takes the rest from where it was interrupted.

    Args:
        argv: the arguments; None for the process's own.
        parser: the script's own, which is used up; None for train.py's.
    """
    parser = parser or build_parser()
    full = parser.parse_args(argv)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return {name: getattr(full, name) for name in vars(parser.parse_args(argv))}


def check_options(opt: argparse.Namespace) -> None:
    """Refuse values and combinations that cannot work; single values of list options become lists.

    Raises:
        UserError: which option, its value, and what it may be.
    """
    if opt.local_rank >= 0:
        os.environ.setdefault("LOCAL_RANK", str(opt.local_rank))  # torchrun says it this way
    opt.freeze = [opt.freeze] if isinstance(opt.freeze, int | str) else list(opt.freeze)
    opt.plugins = [opt.plugins] if isinstance(opt.plugins, str | Path) else list(opt.plugins)
    least = {"epochs": 1, "imgsz": 1, "workers": 0, "patience": 0, "seed": 0}
    for name, value in least.items():
        if getattr(opt, name) is not None and getattr(opt, name) < value:
            raise UserError(f"--{name} {getattr(opt, name)}: must be at least {value}")
    if opt.seed > MAX_SEED:
        raise UserError(f"--seed {opt.seed}: must be at most {MAX_SEED}")
    if not 0.0 <= opt.label_smoothing < 1.0:
        raise UserError(f"--label-smoothing {opt.label_smoothing}: must lie in 0 to 1")
    if opt.batch_size < 1 and opt.batch_size != -1:
        raise UserError(f"--batch-size {opt.batch_size}: must be at least 1, or -1 to find what fits the GPU")
    if opt.backbone_lr is not None and not 0.0 < opt.backbone_lr < float("inf"):
        raise UserError(
            f"--backbone-lr {opt.backbone_lr:g}: must be above 0; --freeze backbone keeps it as it is"
        )
    if opt.backbone_lr is not None and BACKBONE in opt.freeze:
        raise UserError("--freeze backbone leaves --backbone-lr nothing to do; use one")
    if opt.backbone_weights and opt.weights:
        raise UserError("--weights and --backbone-weights both fill the backbone; use one")
    if opt.save_period < 1 and opt.save_period != -1:
        raise UserError(f"--save-period {opt.save_period}: must be at least 1, or -1 for none")
    if opt.rect and opt.image_weights:
        raise UserError(
            "--rect keeps images in the order of their shapes, --image-weights draws them; use one"
        )
    if opt.sync_bn and (world_size() == 1 or opt.device == "cpu" or not torch.cuda.is_available()):
        raise UserError("--sync-bn needs several GPUs; start with 'torchrun --nproc_per_node N train.py ...'")
    if world_size() > 1 and (opt.batch_size < 1 or opt.batch_size % world_size()):
        raise UserError(
            f"--batch-size {opt.batch_size}: is shared by {world_size()} processes; give a multiple of that"
        )
