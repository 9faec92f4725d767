"""Read and check hyperparameters, and scale the loss gains to model and images."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError, shown
from utils.files import find_file, load_yaml

LOGGER = logging.getLogger("yolo.hyp")


@dataclass(frozen=True)
class Bounds:
    """Hold the range and the default of a hyperparameter.

    The default is the value of hyp.scratch-low.yaml, or None for an optional hyperparameter.
    """

    default: float | None
    low: float
    high: float


PROBABILITY = (0.0, 1.0)
HYPERPARAMETERS: dict[str, Bounds] = {
    "lr0": Bounds(0.01, 1e-8, 10.0),
    "lrf": Bounds(0.01, 0.0, 1.0),
    "momentum": Bounds(0.937, 0.0, 0.9999),
    "weight_decay": Bounds(0.0005, 0.0, 1.0),
    "warmup_epochs": Bounds(3.0, 0.0, 1000.0),
    "warmup_momentum": Bounds(0.8, 0.0, 0.9999),
    "warmup_bias_lr": Bounds(0.1, 0.0, 10.0),
    "box": Bounds(0.05, 0.0, 100.0),
    "cls": Bounds(0.5, 0.0, 100.0),
    "cls_pw": Bounds(1.0, 0.001, 1000.0),
    "obj": Bounds(1.0, 0.0, 100.0),
    "obj_pw": Bounds(1.0, 0.001, 1000.0),
    "iou_t": Bounds(0.2, *PROBABILITY),
    "anchor_t": Bounds(4.0, 1.001, 100.0),
    "anchors": Bounds(None, 1.0, 30.0),
    "fl_gamma": Bounds(0.0, 0.0, 10.0),
    "hsv_h": Bounds(0.015, *PROBABILITY),
    "hsv_s": Bounds(0.7, *PROBABILITY),
    "hsv_v": Bounds(0.4, *PROBABILITY),
    "degrees": Bounds(0.0, 0.0, 180.0),
    "translate": Bounds(0.1, *PROBABILITY),
    "scale": Bounds(0.5, 0.0, 0.999),
    "shear": Bounds(0.0, 0.0, 89.0),
    "perspective": Bounds(0.0, 0.0, 0.01),
    "flipud": Bounds(0.0, *PROBABILITY),
    "fliplr": Bounds(0.5, *PROBABILITY),
    "mosaic": Bounds(1.0, *PROBABILITY),
    "mixup": Bounds(0.0, *PROBABILITY),
    "copy_paste": Bounds(0.0, *PROBABILITY),
    "nominal_batch": Bounds(None, 1.0, 65536.0),
    "distill_head": Bounds(None, 0.0, 1000.0),
    "distill_neck": Bounds(None, 0.0, 1000.0),
}
NOMINAL_BATCH = 64


def load_hyp(source: str | Path | Mapping[str, object]) -> dict[str, float]:
    """Read and check a hyperparameter file, or a mapping from Python.

    A missing key takes the value of hyp.scratch-low.yaml, and one warning names all such keys. Four keys are
    optional: `anchors` (anchors per layer; forces the anchor search), `nominal_batch` (images per optimizer
    step; by default 64, or fewer for a small data set), `distill_head` and `distill_neck` (gains of a
    teacher's two parts, see `utils.training.distillation`).

    Args:
        source: a path, the name of a file in data/hyps, or the mapping.

    Raises:
        UserError: an unknown key, or a value that is no number, not finite or out of its range.
    """
    given: Mapping[str, object]
    if isinstance(source, Mapping):
        where, given = "hyp", source
    else:
        path = find_file(source, "data/hyps", "data")
        where, given = str(path), load_yaml(path)
    checked = {key: _check(where, key, value) for key, value in given.items()}
    hyp = {key: bounds.default for key, bounds in HYPERPARAMETERS.items() if bounds.default is not None}
    if missing := [key for key in hyp if key not in checked]:
        LOGGER.warning(
            "%s: %s not given; using the values of hyp.scratch-low.yaml", where, ", ".join(missing)
        )
    hyp |= checked
    return {key: hyp[key] for key in HYPERPARAMETERS if key in hyp}


def _check(where: str, key: str, value: object) -> float:
    """Check one entry against its bounds, and return its value."""
    bounds = HYPERPARAMETERS.get(key)
    if bounds is None:
        close = difflib.get_close_matches(str(key), HYPERPARAMETERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(HYPERPARAMETERS)}"
        raise UserError(f"{where}: unknown hyperparameter {shown(key)}; {hint}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = "; YAML reads 1e-3 as text, write 0.001 or 1.0e-3" if isinstance(value, str) else ""
        raise UserError(f"{where}: {key} is {shown(value)}, a number is needed{hint}")
    if not bounds.low <= value <= bounds.high:
        raise UserError(f"{where}: {key} is {shown(value)}; it must lie in {bounds.low:g} to {bounds.high:g}")
    if key == "nominal_batch" and value != int(value):
        raise UserError(f"{where}: {key} is {value}; it must be a whole number of images")
    return value


def scale_gains(hyp: dict[str, float], *, nl: int, nc: int, imgsz: int) -> dict[str, float]:
    """Scale the loss gains to layers, classes and image size, in a copy of `hyp`.

    The recipe's gains are those of 3 layers, 80 classes and 640 pixels.

    Args:
        nl: output layers of the detector.
        nc: classes.
        imgsz: pixels.

    >>> scale_gains({"box": 0.05, "cls": 0.5, "obj": 1.0}, nl=3, nc=8, imgsz=320)
    {'box': 0.05, 'cls': 0.05, 'obj': 0.25}
    """
    layers = 3.0 / nl
    return hyp | {
        "box": hyp["box"] * layers,
        "cls": hyp["cls"] * nc / 80 * layers,
        "obj": hyp["obj"] * (imgsz / 640) ** 2 * layers,
    }
