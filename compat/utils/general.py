"""Offer YOLOv5's `utils.general`: boxes, NMS, sizes, paths, times and the log.

Importing it sends the project's messages to standard output, as in YOLOv5.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np
import torch
from torch import Tensor

from utils import boxes as ours
from utils import letterbox, nms
from utils.boxes import Array, box_iou, clip_boxes, xywh2xyxy, xyxy2xywh
from utils.cli import LOGGER, setup_logging
from utils.device import synchronize
from utils.downloads import fetch, file_name, is_url
from utils.errors import UserError
from utils.files import ROOT, find_file
from utils.image_size import fit_size
from utils.letterbox import RatioPad
from utils.results.display import can_open_windows
from utils.results.result_files import crop_box, write_image
from utils.sources.open_source import MAX_VIDEO_BYTES

__all__ = [
    "LOGGER",
    "Profile",
    "ROOT",
    "apply_classifier",
    "box_iou",
    "check_file",
    "check_img_size",
    "check_imshow",
    "check_requirements",
    "check_suffix",
    "clip_boxes",
    "clip_coords",
    "colorstr",
    "cv2",
    "increment_path",
    "is_ascii",
    "make_divisible",
    "non_max_suppression",
    "print_args",
    "save_one_box",
    "scale_boxes",
    "scale_coords",
    "set_logging",
    "strip_optimizer",
    "xywh2xyxy",
    "xywhn2xyxy",
    "xyxy2xywh",
    "xyxy2xywhn",
]

_COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
_STYLES = {"end": 0, "bold": 1, "underline": 4} | {
    prefix + name: first + number
    for prefix, first in (("", 30), ("bright_", 90))
    for number, name in enumerate(_COLOURS)
}

clip_coords = clip_boxes  # its name until YOLOv5 6.2


def set_logging(name: str | None = None, verbose: bool = True) -> None:
    """Send the project's messages to standard output; without `verbose`, errors only.

    There is one log, so `name` chooses nothing.
    """
    setup_logging(verbose)


set_logging()


def non_max_suppression(
    prediction: Tensor | Sequence[Tensor],
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    labels: Sequence[Tensor] = (),
    max_det: int = 300,
    nm: int = 0,
) -> list[Tensor]:
    """Return per image (n, 6): xyxy, confidence, class; `utils.nms` says what the arguments mean.

    Args:
        prediction: (N, boxes, 5 + nc), or a network's output that begins with it.
        nm: number of mask columns; only 0.
    """
    if nm:
        raise UserError(f"nm={nm}: masks belong to segmentation, and only detection is offered; leave nm out")
    return nms.non_max_suppression(
        prediction if isinstance(prediction, Tensor) else prediction[0],
        conf_thres,
        iou_thres,
        classes=classes,
        agnostic=agnostic,
        multi_label=multi_label,
        max_det=max_det,
        labels=labels,
    )


def scale_boxes(
    img1_shape: tuple[int, int], boxes: Array, img0_shape: tuple[int, ...], ratio_pad: RatioPad | None = None
) -> Array:
    """Bring xyxy boxes (n, 4+) from a letterboxed image to the original, in place."""
    to_shape = (img0_shape[0], img0_shape[1])
    boxes[..., :4] = letterbox.scale_boxes(img1_shape, boxes[..., :4], to_shape, ratio_pad)
    return boxes


scale_coords = scale_boxes  # its name until YOLOv5 6.2


def xywhn2xyxy(x: Array, w: float = 640, h: float = 640, padw: float = 0, padh: float = 0) -> Array:
    """Return normalised centres and sizes as corners in pixels."""
    return ours.xywhn2xyxy(x, w, h, padw, padh)


def xyxy2xywhn(x: Array, w: float = 640, h: float = 640, clip: bool = False, eps: float = 0.0) -> Array:
    """Return corners in pixels as normalised centres and sizes."""
    return ours.xyxy2xywhn(x, w, h, clip, eps)


def make_divisible(x: float, divisor: int | Tensor) -> int:
    """Return the smallest multiple of `divisor` (of its largest entry) that is not below `x`."""
    step = int(torch.as_tensor(divisor).max())
    return math.ceil(x / step) * step


def check_img_size(imgsz: int | Sequence[int], s: int | Tensor = 32, floor: int = 0) -> int | list[int]:
    """Return an image size rounded up to the stride `s`, at least `floor`.

    One side gives one side, [h, w] gives [h, w].
    """
    sides = [max(side, floor) for side in fit_size(imgsz, int(torch.as_tensor(s).max()))]
    return sides[0] if isinstance(imgsz, int) else sides[: len(imgsz)]


def check_file(file: str | Path, suffix: str | Sequence[str] = "") -> str:
    """Return the path of a file; an http(s) address is downloaded into the working folder.

    A bare name is also looked for in the project's `data`, `models` and `utils`.
    """
    text = str(file)
    check_suffix(text, suffix)
    if is_url(text):
        return str(fetch(text, Path(file_name(text)), limit=MAX_VIDEO_BYTES))
    return str(find_file(text, "data", "models", "utils")) if text else text


def check_suffix(
    file: str | Path | Sequence[str | Path] = "yolov5s.pt",
    suffix: str | Sequence[str] = (".pt",),
    msg: str = "",
) -> None:
    """Refuse files whose names have none of these suffixes; the message begins with `msg`."""
    allowed = (suffix,) if isinstance(suffix, str) else tuple(suffix)
    for name in map(str, [file] if isinstance(file, str | Path) else file):
        if any(allowed) and name and not name.lower().endswith(allowed):
            raise UserError(f"{msg}{name}: must end in {' or '.join(allowed)}; check the name")


def is_ascii(s: object = "") -> bool:
    """Return whether a text has ASCII characters only."""
    return str(s).isascii()


def apply_classifier(x: object, model: object, img: object, im0: object) -> NoReturn:
    """Refuse to filter boxes by a second network, which YOLOv5's own scripts leave off."""
    raise UserError("apply_classifier: boxes are not classified by a second network here; leave it out")


def check_requirements(
    requirements: str | Path | Sequence[str] = ROOT / "requirements.txt",
    exclude: Sequence[str] = (),
    install: bool = True,
    cmds: str = "",
) -> bool:
    """Log which packages are missing or too old, and return whether there are none.

    Nothing is ever installed, so `install` and `cmds` change nothing.

    Args:
        requirements: a requirements file, one requirement, or several.
        exclude: names of packages to leave out.
    """
    from packaging.requirements import Requirement

    if isinstance(requirements, Path) or str(requirements).endswith(".txt"):
        requirements = Path(str(requirements)).read_text(encoding="utf-8").splitlines()
    lines = [requirements] if isinstance(requirements, str) else requirements
    lacking = []
    for text in filter(None, (line.partition("#")[0].strip() for line in lines)):
        wanted = Requirement(text)
        if wanted.name in exclude or (wanted.marker and not wanted.marker.evaluate()):
            continue
        try:
            fits = wanted.specifier.contains(version(wanted.name), prereleases=True)
        except PackageNotFoundError:
            fits = False
        if not fits:
            lacking.append(f"'{wanted.name}{wanted.specifier}'")
    if lacking:
        LOGGER.warning("packages are missing or too old; pip install %s", " ".join(lacking))
    return not lacking


def check_imshow(warn: bool = False) -> bool:
    """Return whether windows can be opened here, and `warn` if not."""
    able = can_open_windows()
    if warn and not able:
        LOGGER.warning("no window can be opened: there is no display, or OpenCV was built without windows")
    return able


def increment_path(path: str | Path, exist_ok: bool = False, sep: str = "", mkdir: bool = False) -> Path:
    """Return a path, with 2, 3 and so on after it where it exists.

    With `exist_ok` it stays as it is.

    `mkdir` makes the folder. A file's number stands before its suffix.
    """
    path = Path(path)
    base, suffix = (path.with_suffix(""), path.suffix) if path.is_file() else (path, "")
    free, number = path, 2
    while free.exists() and not exist_ok:
        free = Path(f"{base}{sep}{number}{suffix}")
        number += 1
    if mkdir:
        free.mkdir(parents=True, exist_ok=True)
    return free


def colorstr(*input: object) -> str:
    """Return the last argument in the terminal styles named before it; alone, in bold blue."""
    styles = input[:-1] if len(input) > 1 else ("blue", "bold")
    return "".join(f"\033[{_STYLES[str(style)]}m" for style in styles) + f"{input[-1]}\033[0m"


def print_args(
    args: Mapping[str, object] | None = None, show_file: bool = True, show_func: bool = False
) -> None:
    """Log arguments in one line; without `args`, those of the function that calls this."""
    frame = inspect.currentframe()
    caller = frame.f_back if frame is not None else None
    if caller is None:
        return
    values = {name: caller.f_locals[name] for name in inspect.getargvalues(caller).args}
    places = [Path(caller.f_code.co_filename).stem] * show_file + [caller.f_code.co_name] * show_func
    text = ", ".join(f"{name}={value}" for name, value in (values if args is None else args).items())
    LOGGER.info("%s", ": ".join([*places, text]))


class Profile(contextlib.ContextDecorator):
    """Measure the seconds of a block: `dt` of the last time, `t` of all together."""

    def __init__(self, t: float = 0.0, device: torch.device | None = None) -> None:
        self.t = t
        self.dt = self.start = 0.0
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def __enter__(self) -> Profile:
        self.start = self.time()
        return self

    def __exit__(self, *_: object) -> None:
        self.dt = self.time() - self.start
        self.t += self.dt

    def time(self) -> float:
        """Return the time in seconds, after the device has finished."""
        synchronize(self.device)
        return time.time()


def strip_optimizer(f: str | Path = "best.pt", s: str | Path = "") -> None:
    """Rewrite a checkpoint in float16 without its training state, as `s` if given."""
    from models.weights.checkpoint import load_checkpoint, save_checkpoint

    checkpoint = load_checkpoint(f)
    if checkpoint.official:
        raise UserError(f"{f}: is an official file, which has no training state here; leave it as it is")
    save_checkpoint(s or f, checkpoint.model, meta=checkpoint.meta, half=True)


def save_one_box(
    xyxy: Sequence[float] | np.ndarray | Tensor,
    im: np.ndarray,
    file: str | Path = "im.jpg",
    gain: float = 1.02,
    pad: float = 10,
    square: bool = False,
    BGR: bool = False,  # noqa: N803 YOLOv5's name
    save: bool = True,
) -> np.ndarray:
    """Cut a box out of an image, and save it under a free name.

    The file is a JPEG.

    Args:
        xyxy: the box in pixels.
        im: (h, w, 3), RGB unless `BGR`.
        gain, pad: the sides are gain * side + pad pixels.
        square: make it a square.

    Returns:
        The part, BGR.
    """
    box = np.array([[float(side) for side in xyxy]])
    if square:
        box = xyxy2xywh(box)
        box[:, 2:] = box[:, 2:].max()
        box = xywh2xyxy(box)
    part = crop_box(im, box[0], gain, pad)
    part = np.ascontiguousarray(part if BGR else part[..., ::-1])
    if save:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        write_image(increment_path(Path(file).with_suffix(".jpg")), part)
    return part
