"""Declare train.py's options, and read recipes."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from utils.cli import WORKERS_HELP, Options, from_keywords, given, option, typed
from utils.device import AMP_MODES, world_size
from utils.errors import UserError, shown
from utils.files import ROOT, RUNS_DIR, find_file, load_yaml
from utils.package import INSTALLED, PACKAGE
from utils.training.optim import BACKBONE, OPTIMIZERS

MAX_SEED = 2**64 - 1  # what torch's generators take
RECIPES = "data/recipes"
FIRST_RECIPE = "digits"  # what train.py uses without any option
_EVOLVE = "--evolve N searches from --hyp, and given again continues its study below --project and --name"
_TRACKERS = "use --logger wandb, and set WANDB_ENTITY and WANDB_PROJECT; data and weights are not uploaded"
FROM = "from:"  # --amp from:RUN
LOGGERS = ("tensorboard", "mlflow", "wandb")  # also the names of their packages
# Not part of a recipe: files whose code runs, and what belongs to one run on one machine.
_NOT_IN_RECIPES = frozenset({"plugins", "recipe", "resume", "local_rank", "evolve"})


def _row(value: str | int) -> int | str:
    """Return a row's number, or the word for all rows of the backbone."""
    if isinstance(value, str) and value != BACKBONE and not value.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{shown(value)} is no row; give row numbers, or {BACKBONE} for all of its rows"
        )
    return BACKBONE if value == BACKBONE else int(value)


def _amp(value: object) -> object:
    """Return a value of --amp; whether the run of from:RUN exists is seen later."""
    if value in AMP_MODES or (isinstance(value, str) and value.startswith(FROM) and value != FROM):
        return value
    known = f"{', '.join(AMP_MODES)} or {FROM}RUN"
    raise argparse.ArgumentTypeError(f"{shown(value)} is no mode; it takes one of {known}")


@dataclass(frozen=True)
class TrainingOptions(Options):
    """Hold the options that say how any network is trained; compare.py has them too.

    `recipe` names the file whose options `with_recipe` has added.
    """

    recipe: str = option("", help=f"options from {RECIPES}/NAME.yaml or a file, below those given")
    data: str = option("data/coco128.yaml", help="dataset YAML")
    hyp: str | dict[str, float] = option("data/hyps/hyp.scratch-low.yaml", help="hyperparameter YAML")
    epochs: int = option(100)
    batch_size: int = option(16, help="total over all GPUs; -1 finds what fits the GPU")
    imgsz: int = option(640, flags=("--img", "--img-size"), help="train and val size in pixels")
    rect: bool = option(False, help="rectangular training (no shuffle, no mosaic)")
    noautoanchor: bool = option(False, help="keep the model's anchors, whatever the data")
    noplots: bool = option(False, help="draw nothing")
    cache: str | None = option(
        None, nargs="?", const="ram", choices=("ram", "disk", "val"), help="keep decoded images"
    )
    image_weights: bool = option(False, help="show rare and badly learnt classes more often")
    device: str = option("", type=str, help="0, 0,1, cpu or mps")
    multi_scale: bool = option(False, help="vary the size by +-50 %")
    single_cls: bool = option(False, help="treat all classes as one")
    optimizer: str = option("SGD", choices=OPTIMIZERS)
    workers: int | None = option(None, help=WORKERS_HELP)
    cos_lr: bool = option(False, help="cosine schedule instead of a linear one")
    label_smoothing: float = option(0.0, help="epsilon of the class targets")
    patience: int = option(100, help="epochs without improvement before stopping; 0 never stops")
    freeze: list[int | str] = option(
        [0],
        type=_row,
        metavar="N",
        help="n: the first n rows; several: those rows; backbone: all of its rows",
    )
    backbone_weights: str = option("", help="imagenet, a file, source/model or source/model=FILE")
    backbone_lr: float | None = option(
        None, help="initial learning rate of the backbone's rows (default: lr0)"
    )
    teacher: str = option("", help="trained checkpoint of the same classes to learn from, beside the labels")
    save_period: int = option(-1, help="also save epochN.pt every so many epochs")
    seed: int = option(0)
    amp: str = option(
        "auto",
        type=_amp,
        metavar="{auto,fp16,bf16,off,from:RUN}",
        help="precision; auto measures it on a CPU, from:RUN takes what another run's folder records",
    )
    plugins: list[str] = option([], metavar="FILE", help="Python files with blocks of your own")

    @property
    def own_amp(self) -> str:
        """Return `amp`, or auto where it names another run, whose choice is asked for."""
        return "auto" if self.amp.startswith(FROM) else self.amp

    def check(self) -> None:
        """Refuse values and combinations that cannot work."""
        self.at_least(epochs=1, imgsz=1, workers=0, patience=0, seed=0)
        if self.seed > MAX_SEED:
            raise UserError(f"--seed {self.seed}: must be at most {MAX_SEED}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"--label-smoothing {self.label_smoothing}: must lie in 0 to 1")
        if self.batch_size < 1 and self.batch_size != -1:
            raise UserError(
                f"--batch-size {self.batch_size}: must be at least 1, or -1 to find what fits the GPU"
            )
        if self.backbone_lr is not None and not 0.0 < self.backbone_lr < float("inf"):
            raise UserError(
                f"--backbone-lr {self.backbone_lr:g}: must be above 0; --freeze backbone keeps it as it is"
            )
        if self.backbone_lr is not None and BACKBONE in self.freeze:
            raise UserError("--freeze backbone and --backbone-lr contradict each other; use one")
        if self.save_period < 1 and self.save_period != -1:
            raise UserError(f"--save-period {self.save_period}: must be at least 1, or -1 for none")
        if self.rect and self.image_weights:
            raise UserError(
                "--rect keeps images in the order of their shapes, --image-weights draws them; use one"
            )


@dataclass(frozen=True)
class TrainOptions(TrainingOptions):
    """Train a detector."""

    REFUSED = {
        "--evolve_population": _EVOLVE,
        "--resume_evolve": _EVOLVE,
        "--bucket": _EVOLVE,
        "--quad": "batches of four images in one are not made here; leave it out",
        "--entity": _TRACKERS,
        "--upload_dataset": _TRACKERS,
        "--bbox_interval": _TRACKERS,
        "--artifact_alias": _TRACKERS,
    }

    weights: str | None = option(
        None, help="checkpoint to start from, '' for none (default: none with --cfg, else yolov5s.pt)"
    )
    cfg: str = option("", help="model YAML, timm:NAME or torchvision:NAME")
    neck_weights: str = option("", help="checkpoint whose neck and head are taken over, such as yolov5n.pt")
    align: bool | str = option(
        False,
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="first teach the adapters its maps, on the training images or a folder's",
    )
    align_epochs: int = option(
        0, help="after --align, epochs in which the backbone learns the maps too (12 is a good number)"
    )
    resume: bool | str = option(
        False, nargs="?", const=True, help="continue from the newest or the given last.pt"
    )
    evolve: int | None = option(
        None,
        nargs="?",
        const=300,
        metavar="N",
        help="search for hyperparameters from those of --hyp: N trials (300 without N); again to continue",
    )
    project: str = option(str(RUNS_DIR / "train"), help="folder of runs")
    name: str = option("exp", type=str, help="folder in it; 'cfg' is the stem of --cfg")
    exist_ok: bool = option(False, help="write into project/name even if it exists")
    nosave: bool = option(False, help="save only after the last epoch")
    noval: bool = option(False, help="validate only after the last epoch")
    sync_bn: bool = option(False, help="BatchNorm over the images of all processes")
    logger: list[str] = option(
        [], choices=LOGGERS, help="also record the run there (TensorBoard: always, if it is installed)"
    )
    local_rank: int = option(-1, flags=("--local_rank",), help="set by launchers older than torchrun")

    def check(self) -> None:
        """Refuse values and combinations that cannot work."""
        super().check()
        self._check_evolve()
        if missing := [name for name in self.logger if not is_installed(name)]:
            raise UserError(f"--logger {missing[0]}: this package is not installed; pip install {missing[0]}")
        if self.backbone_weights and self.weights:
            raise UserError("--weights and --backbone-weights both fill the backbone; use one")
        if self.neck_weights and (self.weights or not self.cfg):
            raise UserError("--neck-weights fills the neck of --cfg; give --cfg, and no --weights")
        if self.align and not self.neck_weights:
            raise UserError("--align needs the network to align with; give --neck-weights FILE too")
        self.at_least(align_epochs=0)
        if self.align_epochs and not self.align:
            raise UserError("--align-epochs goes on after --align; give --align too")
        if self.sync_bn and world_size() == 1:
            script = f"-m {PACKAGE} train" if INSTALLED else "train.py"
            raise UserError(
                f"--sync-bn needs several processes; start with 'torchrun --nproc_per_node N {script} ...'"
            )
        if world_size() > 1 and (self.batch_size < 1 or self.batch_size % world_size()):
            raise UserError(
                f"--batch-size {self.batch_size}: is shared by {world_size()} processes; give a multiple"
            )

    def _check_evolve(self) -> None:
        """Refuse what cannot work with --evolve."""
        if self.evolve is None:
            return
        self.at_least(evolve=1)
        if not is_installed("optuna"):
            raise UserError("--evolve: the package optuna is not installed; pip install optuna")
        if self.resume:
            raise UserError(
                "--evolve continues its own study; give the same --project and --name, and no --resume"
            )
        if world_size() > 1:
            raise UserError(
                "--evolve trains each trial in one process; instead of torchrun, start it several times with "
                "the same --project and --name"
            )


def is_installed(package: str) -> bool:
    """Return whether a package can be imported; a folder of its name here is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def parse_opt(argv: Sequence[str] | None = None) -> TrainOptions:
    """Return train.py's options as the command line gives them, with all defaults."""
    return from_keywords(TrainOptions, with_recipe(given_options(argv)))


def given_options(argv: Sequence[str] | None = None) -> dict[str, object]:
    """Return only the options on the command line; a resumed run has its own others."""
    return given(TrainOptions, argv)


def with_recipe(options: Mapping[str, object], kept: type[Options] = TrainOptions) -> dict[str, object]:
    """Add the options of the recipe that `options` names; those given win.

    Args:
        kept: the class whose options are taken from the recipe; train.py's others are left out.

    Raises:
        UserError: no such recipe, or it holds an option that train.py does not have, that has another type,
            or that is not allowed in a recipe.
    """
    name = options.get("recipe")
    if not name:
        return dict(options)
    path = _find_recipe(str(name))
    held = typed(TrainOptions, load_yaml(path), f"{path}: ")
    if out := sorted(_NOT_IN_RECIPES & set(held)):
        raise UserError(f"{path}: {out[0]} is no part of a recipe; give it on the command line instead")
    names = {field.name for field in fields(kept)}
    return {name: value for name, value in held.items() if name in names} | dict(options)


def _find_recipe(name: str) -> Path:
    """Find the file of a recipe by a bundled recipe's name, or by its path."""
    if Path(name).suffix.lower() in (".yaml", ".yml"):
        return find_file(name, RECIPES)
    bundled = {path.stem.removeprefix("recipe."): path for path in sorted((ROOT / RECIPES).glob("*.yaml"))}
    if name not in bundled:
        raise UserError(
            f"--recipe {name}: no such recipe; use {', '.join(bundled)}, or the path of a .yaml file"
        )
    return bundled[name]
