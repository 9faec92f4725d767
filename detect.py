"""Detect objects in images, folders, globs, text lists and video files, and save what was found.

    python detect.py --weights runs/train/exp/weights/best.pt --source photo.jpg

Text lists are lists of image and video files; unlike YOLOv5, annotated images are saved for them as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from models.backends import Backend, load_backend
from models.checkpoint import load_checkpoint, save_checkpoint
from models.registry import load_plugins
from utils.boxes import NmsOptions, scale_boxes
from utils.cli import Parser, guard, overlay
from utils.device import select_device, synchronize
from utils.drawing import class_name
from utils.errors import UserError
from utils.feature_maps import FeatureRecorder
from utils.files import ROOT, find_file, increment_dir, load_yaml
from utils.outputs import ResultWriter, SaveOptions
from utils.sources import Frame, open_source

LOGGER = logging.getLogger("yolo.detect")
DEFAULT_DATA = "data/coco128.yaml"


@dataclass(frozen=True)
class Detection:
    """What was found in one image or video frame.

    `frame` counts a video's frames from 1 and is 0 for an image; `boxes` is (n,6) float32: x1, y1, x2, y2 in
    whole pixels of the file, confidence, class, most confident first.
    """

    path: str
    frame: int
    boxes: np.ndarray


@dataclass
class DetectResult:
    """What `run` did: where its files lie, all detections in order, and ms per image for each stage."""

    save_dir: Path
    detections: list[Detection] = field(default_factory=list)
    speed: dict[str, float] = field(default_factory=dict)


def build_parser() -> Parser:
    """The command line of detect.py."""
    parser = Parser(description="Detect objects in images and videos.")
    add = parser.add_argument
    add(
        "--weights",
        nargs="+",
        default=["yolov5s.pt"],
        help="a .pt or exported file; several .pt: an ensemble",
    )
    add("--source", default="data/images", help="image, folder, glob, .txt list of files, or video file")
    add(
        "--data", default=DEFAULT_DATA, help="dataset YAML; only its names are used, by files that carry none"
    )
    add("--imgsz", "--img", "--img-size", nargs="+", type=int, default=[640], help="inference size: h [w]")
    add("--conf-thres", type=float, default=0.25, help="least confidence")
    add("--iou-thres", type=float, default=0.45, help="IoU above which NMS drops the weaker box")
    add("--max-det", type=int, default=1000, help="most detections per image")
    add("--device", default="", help="cpu, 0, cuda:1; empty: CUDA if there is any")
    add("--view-img", action="store_true", help="show results in a window")
    add("--save-txt", action="store_true", help="save labels/<name>.txt: class xc yc w h, normalised")
    format_help = "label files as 0: class xc yc w h, 1: class x1 y1 x2 y2; both normalised, as in YOLOv5"
    add("--save-format", type=int, default=0, choices=(0, 1), help=format_help)
    add("--save-csv", action="store_true", help="save predictions.csv")
    add("--save-conf", action="store_true", help="add the confidence to --save-txt")
    add("--save-crop", action="store_true", help="save every box as crops/<class>/<name>.jpg")
    add("--nosave", action="store_true", help="save no annotated images or videos")
    add("--classes", nargs="+", type=int, help="keep only these class numbers")
    add("--agnostic-nms", action="store_true", help="let boxes of different classes suppress each other")
    add("--augment", action="store_true", help="test-time augmentation (.pt only)")
    add("--visualize", action="store_true", help="save every layer's feature maps as PNG and npy (.pt only)")
    add("--update", action="store_true", help="strip the optimizer state from the weights file afterwards")
    add("--project", default=str(ROOT / "runs" / "detect"), help="folder of the runs")
    add("--name", default="exp", help="folder of this run")
    add("--exist-ok", action="store_true", help="write into the folder although it exists")
    add("--line-thickness", type=int, default=3, help="box lines, in pixels; the text grows with it")
    add("--hide-labels", action="store_true", help="draw boxes only")
    add("--hide-conf", action="store_true", help="draw labels without confidence")
    add("--half", action="store_true", help="float16 inference (CUDA)")
    add("--dnn", action="store_true", help="run .onnx files with OpenCV")
    add("--vid-stride", type=int, default=1, help="use every n-th frame of a video")
    add("--plugins", nargs="+", default=[], metavar="FILE", help="Python files with blocks of your own")
    return parser


def parse_opt(argv: list[str] | None = None) -> Namespace:
    """Options from the command line."""
    return build_parser().parse_args(argv)


def run(**options: Any) -> DetectResult:
    """Detect; keywords are the command line's options with underscores.

    Raises:
        UserError: an option that makes no sense or cannot be honoured, or a source that cannot be read.
    """
    opt = overlay(build_parser(), options)
    opt.weights = [str(w) for w in ([opt.weights] if isinstance(opt.weights, str | Path) else opt.weights)]
    opt.imgsz = [opt.imgsz] if isinstance(opt.imgsz, int) else list(opt.imgsz)
    opt.classes = [opt.classes] if isinstance(opt.classes, int) else opt.classes
    _check_options(opt)
    load_plugins([str(p) for p in opt.plugins])
    device = select_device(opt.device)
    backend = load_backend(opt.weights, device, half=opt.half, dnn=opt.dnn, names=_fallback_names(opt.data))
    _check_backend(opt, backend)
    imgsz = _fit_size(opt.imgsz, backend)
    source = open_source(
        opt.source, imgsz=imgsz, stride=backend.stride, auto=backend.rect_ok, vid_stride=opt.vid_stride
    )
    save_dir = increment_dir(opt.project, opt.name, opt.exist_ok)
    result = DetectResult(save_dir)
    backend.warmup((1, 3, *imgsz))
    try:
        _detect_all(opt, backend, source, result)
    except BaseException:
        with contextlib.suppress(OSError):  # takes the folder only while it is empty
            save_dir.rmdir()
        raise
    _report(opt, result)
    if opt.update:
        for path in opt.weights:
            _strip(path)
    return result


def _detect_all(opt: Namespace, backend: Backend, source: Any, result: DetectResult) -> None:
    """The loop over frames; fills in `result`."""
    save = SaveOptions(
        images=not opt.nosave,
        txt=opt.save_txt,
        corners=opt.save_format == 1,
        conf=opt.save_conf,
        csv=opt.save_csv,
        crop=opt.save_crop,
        line_thickness=opt.line_thickness,
        hide_labels=opt.hide_labels,
        hide_conf=opt.hide_conf,
    )
    seconds = np.zeros(3)
    frames: Iterator[Frame]
    with (
        ResultWriter(result.save_dir, backend.names, save) as writer,
        contextlib.closing(iter(source)) as frames,
        _recorder(opt, backend) as recorder,
    ):
        for frame in frames:
            boxes, spent = _detect_one(opt, backend, frame)
            seconds += spent
            result.detections.append(Detection(frame.path, frame.index, boxes))
            drawn = _show(writer.draw(frame, boxes), frame.path) if opt.view_img else None
            writer.save(frame, boxes, drawn)
            if recorder is not None:
                stem = writer.stem(frame)
                folder = f"{stem}_{frame.index}" if frame.is_video else stem
                recorder.save(result.save_dir / "features" / folder)
            LOGGER.info("%s", _line(frame, boxes, backend.names, spent))
    if opt.view_img:
        cv2.destroyAllWindows()
    stages = ("preprocess", "inference", "nms")
    result.speed = dict(zip(stages, (seconds * 1e3 / max(len(result.detections), 1)).tolist()))


def _detect_one(opt: Namespace, backend: Backend, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Detections (n,6) in native pixels, and the seconds of pre-processing, inference and NMS."""
    start = time.perf_counter()
    images = torch.from_numpy(frame.input)[None].to(backend.device)
    synchronize(backend.device)
    ready = time.perf_counter()
    output = backend.infer(images, _nms_options(opt), augment=opt.augment)
    synchronize(backend.device)
    inferred = time.perf_counter()
    (det,) = backend.suppress(output, _nms_options(opt))
    boxes = det.float().cpu().numpy()
    shape, native = frame.input.shape[1:], frame.image.shape[:2]
    scaled = scale_boxes(shape, boxes[:, :4], native, ratio_pad=frame.ratio_pad)
    boxes = np.concatenate((scaled.round() + 0.0, boxes[:, 4:]), axis=1)  # + 0.0 turns -0 into 0
    done = time.perf_counter()
    return boxes, np.array([frame.seconds + ready - start, inferred - ready, done - inferred])


def _nms_options(opt: Namespace) -> NmsOptions:
    return NmsOptions(
        opt.conf_thres, opt.iou_thres, classes=opt.classes, agnostic=opt.agnostic_nms, max_det=opt.max_det
    )


def _check_options(opt: Namespace) -> None:
    """Refuse values that make no sense, each in one sentence."""
    if len(opt.imgsz) > 2 or not opt.imgsz or min(opt.imgsz) < 1:
        raise UserError(f"--imgsz {opt.imgsz}: give one or two positive numbers, height and width")
    for name in ("conf_thres", "iou_thres"):
        value = getattr(opt, name)
        if not 0 <= value <= 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must lie between 0 and 1")
    for name in ("max_det", "vid_stride", "line_thickness"):
        value = getattr(opt, name)
        if value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if opt.view_img and not _has_display():
        raise UserError(
            "--view-img: there is no display here, or OpenCV was built without windows; leave it out"
        )
    for option in ("save_conf", "save_format"):
        if getattr(opt, option) and not opt.save_txt:
            raise UserError(f"--{option.replace('_', '-')}: says how label files look; add --save-txt")


def _check_backend(opt: Namespace, backend: Backend) -> None:
    """Refuse options that the loaded weights cannot honour, before anything is written."""
    if opt.augment and not backend.pytorch:
        raise UserError(f"{opt.weights[0]}: --augment needs a .pt checkpoint, an exported file cannot do it")
    if opt.visualize and backend.model is None:
        raise UserError(f"{opt.weights[0]}: --visualize needs a single .pt checkpoint, its layers are hooked")
    if backend.model is not None and backend.model.ch not in (1, 3):
        raise UserError(
            f"{opt.weights[0]}: takes {backend.model.ch} channels; images have 3 (RGB) or 1 (grey)"
        )
    bad = sorted(c for c in opt.classes or () if not 0 <= c < backend.nc)
    if bad:
        raise UserError(
            f"--classes {bad[0]}: the model has {backend.nc} classes, numbered 0 to {backend.nc - 1}"
        )
    backend.check_nms(_nms_options(opt))
    if opt.update:
        for path in opt.weights:
            if Path(path).suffix.lower() != ".pt" or load_checkpoint(path).official:
                raise UserError(f"{path}: --update strips checkpoints of this project only; leave it out")


def _fallback_names(data: str | Path) -> dict[int, str] | None:
    """Class names of a dataset YAML, for exported files without; None when the default YAML is missing."""
    try:
        path = find_file(data, "data")
    except UserError:
        if str(data) == DEFAULT_DATA:
            return None
        raise
    names = load_yaml(path).get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(isinstance(k, int) for k in names):
        raise UserError(
            f"{path}: 'names' must be a list of class names or a mapping from 0, 1, 2, ... to names"
        )
    return {index: str(name) for index, name in names.items()}


def _fit_size(imgsz: list[int], backend: Backend) -> tuple[int, int]:
    """The inference size (h, w): multiples of the stride, or the one size that an exported file takes."""
    height, width = imgsz * 2 if len(imgsz) == 1 else imgsz
    if backend.fixed_size is not None:
        if backend.fixed_size != (height, width):
            LOGGER.warning(
                "--imgsz %d %d: the file takes %d x %d only, using that", height, width, *backend.fixed_size
            )
        return backend.fixed_size
    fitted = tuple(-(-side // backend.stride) * backend.stride for side in (height, width))
    if fitted != (height, width):
        LOGGER.warning(
            "--imgsz %d %d: rounded up to %d %d, multiples of %d", height, width, *fitted, backend.stride
        )
    return fitted


def _has_display() -> bool:
    """Whether a window can be opened; OpenCV itself would abort the process instead of raising."""
    framework = getattr(cv2, "currentUIFramework", lambda: "unknown")()
    if not framework:
        return False
    return sys.platform in ("win32", "darwin") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def _show(drawn: np.ndarray, title: str) -> np.ndarray:
    cv2.imshow(title, drawn)
    cv2.waitKey(1)
    return drawn


def _recorder(opt: Namespace, backend: Backend) -> contextlib.AbstractContextManager[FeatureRecorder | None]:
    return FeatureRecorder(backend.model.model) if opt.visualize else contextlib.nullcontext()


def _line(frame: Frame, boxes: np.ndarray, names: dict[int, str], seconds: np.ndarray) -> str:
    """One line per image: which one, its size at the model, what was found, ms of all three stages."""
    place = f"{frame.position}/{frame.count}"
    if frame.is_video:
        place += f" frame {frame.index}/{frame.total or '?'}"
    found = Counter(boxes[:, 5].astype(int).tolist())
    text = ", ".join(f"{n} {class_name(names, c)}" for c, n in sorted(found.items())) or "nothing found"
    height, width = frame.input.shape[1:]
    return f"{place} {frame.path}: {width}x{height}, {text}, {seconds.sum() * 1e3:.1f} ms"


def _report(opt: Namespace, result: DetectResult) -> None:
    speed = ", ".join(f"{ms:.1f} ms {stage}" for stage, ms in result.speed.items())
    found = sum(len(d.boxes) for d in result.detections)
    LOGGER.info("%d detections in %d images; per image: %s", found, len(result.detections), speed)
    if any(result.save_dir.iterdir()):
        LOGGER.info("results saved to %s", result.save_dir)
    if opt.save_txt:
        labels = sum(1 for _ in (result.save_dir / "labels").glob("*.txt"))
        LOGGER.info("%d label files in %s", labels, result.save_dir / "labels")


def _strip(path: str) -> None:
    """Rewrite a checkpoint without its training state; the stored precision stays what it was."""
    checkpoint = load_checkpoint(path)
    if checkpoint.training is None:
        LOGGER.info("%s: has no training state to strip", checkpoint.path)
        return
    matrices = [p for p in checkpoint.model.parameters() if p.ndim > 1]
    was_half = all(torch.equal(p.half().float(), p) for p in matrices)
    save_checkpoint(checkpoint.path, checkpoint.model, meta=checkpoint.meta, half=was_half)
    LOGGER.info("%s: training state stripped", checkpoint.path)


def main() -> None:
    """Run from the command line."""
    run(**vars(parse_opt()))


if __name__ == "__main__":
    guard(main)
