"""Detect objects in images, videos, streams, cameras and on the screen.

    python detect.py --weights runs/train/exp/weights/best.pt --source photo.jpg

One thread decodes, another one draws and writes, so that both overlap with the model. For the sources see
`utils.sources.open_source.open_source`. A text list names image and video files; unlike in YOLOv5, annotated
images are saved for these, too. `-` reads images from standard input.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator, MutableSequence, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
import torch

from models.backends import check_channels, load_backend
from models.formats.base import Backend
from models.plugins import load_plugins
from models.weights.checkpoint import load_checkpoint, save_checkpoint
from models.weights.releases import fetch_missing
from utils.cli import from_keywords, given, guard, option, parse
from utils.dataset.config import dataset_yaml, read_names
from utils.detector import Detector
from utils.device import cores_are_scarce, limit_threads, select_device, tune_allocator
from utils.errors import UserError
from utils.files import ROOT, RUNS_DIR, increment_dir, load_yaml
from utils.image_size import fit_size
from utils.images import single_threaded_opencv
from utils.nms import NmsOptions
from utils.results.display import can_open_windows, show_image
from utils.results.drawing import class_name
from utils.results.feature_maps import FeatureRecorder
from utils.results.progress import Pace
from utils.results.tracks import Tracking, read_line
from utils.results.writer import ResultWriter, SaveOptions
from utils.sources.frame import Frame
from utils.sources.open_source import Opened, open_source
from utils.tiles import TILE_BATCH, TileOptions, Tiling, make_detector
from utils.training.run_folder import with_newest_run

LOGGER = logging.getLogger("yolo.detect")
_CLOSING = 20.0  # seconds after a signal to stop in which further ones are ignored
_LIVE_MEMORY = 1000  # frames of a live source whose detections `run` returns; a camera runs for ever


@dataclass(frozen=True)
class Detection:
    """Hold the boxes found in one image or video frame.

    Attributes:
        path: the file or stream.
        frame: number of the frame of a video or stream, from 1; 0 for an image.
        boxes: (n, 6) float32, each x1, y1, x2, y2 in whole pixels of the file, confidence and class. The most
            confident box is first.
        ids: (n,) the objects' numbers, -1 for none yet; None without `track`.
    """

    path: str
    frame: int
    boxes: np.ndarray
    ids: np.ndarray | None = None


@dataclass
class DetectResult:
    """Hold what a run found, and where its files are.

    Attributes:
        save_dir: folder of the files.
        detections: of each image or frame in order; of a live source, those of the last thousand frames.
        speed: milliseconds per image of each stage.
        images: number of images and frames that went through the model.
        found: number of boxes.
        drops: number of frames that came while the model was busy, by the stream's number from 1.
        stopped: whether Ctrl-C ended a live source.
        counts: for each video what crossed the line of `count_line` (`file`, `line`, `in`, `out`, `classes`).
    """

    save_dir: Path
    detections: MutableSequence[Detection] = field(default_factory=list)
    speed: dict[str, float] = field(default_factory=dict)
    images: int = 0
    found: int = 0
    drops: dict[int, int] = field(default_factory=dict)
    stopped: bool = False
    counts: list[dict[str, object]] = field(default_factory=list)

    @property
    def dropped(self) -> int:
        """Return how many frames of all streams came while the model was busy."""
        return sum(self.drops.values())


@dataclass(frozen=True)
class DetectOptions(TileOptions):
    """Detect objects in images and videos.

    With `track`, boxes of different classes suppress each other, as with `agnostic_nms`.
    """

    weights: list[str] = option(
        [],
        help="a .pt or exported file, or an official name such as yolov5s.pt; several .pt: an ensemble "
        "(default: the newest best.pt below runs/train)",
    )
    source: str = option(
        str(ROOT / "data" / "images"),
        type=str,
        help="image, video, folder, glob, .txt list of those, http(s) address of one; rtsp/rtmp/http stream, "
        ".streams list of streams, webcam number; screen [n] [left top width height]; -: images on stdin",
    )
    data: str | None = option(None, help="dataset YAML; only its names are used, by files that carry none")
    imgsz: list[int] = option(
        [640],
        flags=("--img", "--img-size"),
        help="inference size: h [w] (default: that of the run without --weights, else 640)",
    )
    conf_thres: float = option(0.25, help="least confidence")
    iou_thres: float = option(0.45, help="IoU above which NMS drops the weaker box")
    max_det: int = option(1000, help="most detections per image")
    device: str = option("", type=str, help="cpu, 0, cuda:1; empty: CUDA if there is any")
    view_img: bool = option(False, help="show results in a window")
    save_txt: bool = option(False, help="save labels/<name>.txt: class xc yc w h, normalised")
    save_format: int = option(
        0,
        choices=(0, 1),
        help="label files as 0: class xc yc w h, 1: class x1 y1 x2 y2; both normalised, as in YOLOv5",
    )
    save_csv: bool = option(False, help="save predictions.csv")
    save_json: bool = option(False, help="save predictions.json: COCO results with file and frame")
    save_conf: bool = option(False, help="add the confidence to --save-txt")
    save_crop: bool = option(False, help="save every box as crops/<class>/<name>.jpg")
    nosave: bool = option(False, help="save no annotated images or videos")
    classes: list[int] | None = option(None, help="keep only these class numbers")
    agnostic_nms: bool = option(False, help="let boxes of different classes suppress each other")
    augment: bool = option(False, help="test-time augmentation (.pt only)")
    visualize: bool = option(False, help="save every layer's feature maps as PNG and npy (.pt only)")
    update: bool = option(False, help="strip the optimizer state from the weights file afterwards")
    line_thickness: int = option(3, help="box lines, in pixels; the text grows with it")
    hide_labels: bool = option(False, help="draw boxes only")
    hide_conf: bool = option(False, help="draw labels without confidence")
    vid_stride: int = option(1, help="use every n-th frame of a video or stream")
    stream_timeout: float | None = option(
        None,
        metavar="SECONDS",
        help="give a stream up after so many seconds without a frame; default: try for ever",
    )
    track: bool = option(False, help="number the objects of videos and streams (pip install trackers)")
    count_line: str | None = option(
        None, metavar="x1,y1,x2,y2", help="with --track: count what crosses this line, in pixels of the video"
    )
    project: str = option(str(RUNS_DIR / "detect"), help="folder of the runs")

    def __post_init__(self) -> None:
        super().__post_init__()
        # Between two boxes of different classes on one object, its number would jump.
        self._follow(agnostic_nms=self.agnostic_nms or self.track)

    def check(self) -> None:
        """Refuse values and combinations that cannot work."""
        if len(self.imgsz) > 2 or not self.imgsz or min(self.imgsz) < 1:
            raise UserError(f"--imgsz {self.imgsz}: give one or two positive numbers, height and width")
        for name in ("conf_thres", "iou_thres"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: must lie between 0 and 1")
        self.at_least(max_det=1, vid_stride=1, line_thickness=1)
        self.check_tiles()
        if self.visualize and self.tile is not False:
            raise UserError(
                "--visualize with --tile: an image then has maps for each tile; use one of the two"
            )
        if self.stream_timeout is not None and self.stream_timeout <= 0:
            raise UserError(f"--stream-timeout {self.stream_timeout}: must be above 0 seconds")
        if self.count_line is not None:
            read_line(self.count_line)
            if not self.track:
                raise UserError("--count-line: counts objects that are followed; add --track")
        for name in ("save_conf", "save_format"):
            if getattr(self, name) and not self.save_txt:
                raise UserError(f"--{name.replace('_', '-')}: says how label files look; add --save-txt")


def parse_opt(argv: Sequence[str] | None = None) -> DetectOptions:
    """Return the options of a command line, with all defaults."""
    return parse(DetectOptions, argv)


def run(**options: Any) -> DetectResult:
    """Detect; keywords are the command line's options with underscores.

    Raises:
        UserError: an option that cannot work, or a source that cannot be read.
    """
    opt = from_keywords(DetectOptions, with_newest_run(options, data=False))
    if opt.view_img and not can_open_windows():
        raise UserError(
            "--view-img: there is no display here, or OpenCV was built without windows; leave it out"
        )
    fetch_missing(*opt.weights)
    load_plugins(opt.plugins)
    device = select_device(opt.device)
    if device.type == "cpu":
        tune_allocator()
        limit_threads()
    backend = load_backend(opt.weights, device, half=opt.half, dnn=opt.dnn, names=_fallback_names(opt.data))
    _check_backend(opt, backend)
    imgsz = fit_size(opt.imgsz, backend.stride, only=backend.fixed_size)
    tiling = opt.tiling(imgsz, backend.stride, backend.fixed_batch or TILE_BATCH, backend.rect_ok)
    source = open_source(
        opt.source,
        imgsz=imgsz,
        stride=backend.stride,
        auto=backend.rect_ok,
        vid_stride=opt.vid_stride,
        stream_timeout=opt.stream_timeout,
        native=tiling is not None,
    )
    backend.warmup((1, 3, *imgsz))  # before there is a folder: a network may fail at it
    save_dir = increment_dir(opt.project, opt.name, opt.exist_ok)
    result = DetectResult(save_dir)
    if source.live:
        result.detections = deque(maxlen=_LIVE_MEMORY)
    # Reading and drawing run beside the network; with --dnn OpenCV is the network.
    alone = cores_are_scarce(device) and not opt.dnn
    try:
        with single_threaded_opencv() if alone else contextlib.nullcontext():
            _detect_all(opt, backend, source, result, tiling)
    except BaseException:
        with contextlib.suppress(OSError):  # takes the folder only while it is empty
            save_dir.rmdir()
        raise
    _report(opt, result)
    if opt.update:
        for path in opt.weights:
            _strip(path)
    return result


def _detect_all(
    opt: DetectOptions, backend: Backend, source: Opened, result: DetectResult, tiling: Tiling | None
) -> None:
    """Detect in all batches, and fill in `result`.

    Ctrl-C ends a live source; with another source it is raised.
    """
    detector = make_detector(backend, _nms_options(opt), tiling, augment=opt.augment)
    pace = Pace()
    batches: Iterator[list[Frame]]
    line = None if opt.count_line is None else read_line(opt.count_line)
    with (
        Tracking(result.save_dir, backend.names, line) if opt.track else contextlib.nullcontext() as tracking,
        ResultWriter(result.save_dir, backend.names, _save_options(opt)) as writer,
        contextlib.closing(source.batches()) as batches,
        FeatureRecorder(backend.model.model) if opt.visualize else contextlib.nullcontext() as recorder,
        contextlib.suppress(KeyboardInterrupt) if source.live else contextlib.nullcontext(),
    ):
        result.stopped = source.live
        for batch in batches:
            found, ms = _detect_batch(detector, batch)
            pace.count(len(batch))
            for index, (frame, boxes) in enumerate(zip(batch, found)):
                tracks = None if tracking is None else tracking.update(frame, boxes)
                _keep(result, frame, boxes, None if tracks is None else tracks.ids)
                drawn = writer.draw(frame, boxes, tracks) if opt.view_img else None
                if drawn is not None:
                    show_image(frame.path, drawn)
                writer.save(frame, boxes, drawn, tracks)
                if recorder is not None:
                    stem = writer.stem(frame)
                    folder = f"{stem}_{frame.index}" if frame.is_video else stem
                    recorder.save(result.save_dir / "features" / folder, index)
                LOGGER.info("%s", _line(frame, boxes, backend.names, ms, pace))
            if recorder is not None:
                recorder.clear()
        result.stopped = False
    if opt.view_img:
        cv2.destroyAllWindows()
    result.speed = detector.speed
    result.counts = [] if tracking is None else tracking.counts()


def _save_options(opt: DetectOptions) -> SaveOptions:
    return SaveOptions(
        images=not opt.nosave,
        txt=opt.save_txt,
        corners=opt.save_format == 1,
        conf=opt.save_conf,
        csv=opt.save_csv,
        crop=opt.save_crop,
        json=opt.save_json,
        line_thickness=opt.line_thickness,
        hide_labels=opt.hide_labels,
        hide_conf=opt.hide_conf,
    )


def _keep(result: DetectResult, frame: Frame, boxes: np.ndarray, ids: np.ndarray | None) -> None:
    result.detections.append(Detection(frame.path, frame.index, boxes, ids))
    result.images += 1
    result.found += len(boxes)
    result.drops[frame.position] = frame.dropped


def _detect_batch(detector: Detector, batch: list[Frame]) -> tuple[list[np.ndarray], float]:
    """Return the detections of each frame, and the milliseconds per image of all stages.

    Detections are (n, 6), with boxes in whole pixels of the file.
    """
    placements = [(frame.image.shape[:2], frame.ratio_pad) for frame in batch]
    letterboxing = sum(frame.seconds for frame in batch)
    found = detector([frame.input for frame in batch], placements, spent=letterboxing)
    for boxes in found.boxes:
        boxes[:, :4] = boxes[:, :4].round() + 0.0  # + 0.0 turns -0 into 0
    return [boxes.numpy() for boxes in found.boxes], sum(found.speed.values())


def _nms_options(opt: DetectOptions) -> NmsOptions:
    return NmsOptions(
        opt.conf_thres, opt.iou_thres, classes=opt.classes, agnostic=opt.agnostic_nms, max_det=opt.max_det
    )


def _check_backend(opt: DetectOptions, backend: Backend) -> None:
    """Refuse options that the loaded weights do not support, before anything is written."""
    if opt.augment and not backend.pytorch:
        raise UserError(f"{opt.weights[0]}: --augment needs a .pt checkpoint, an exported file cannot do it")
    if opt.visualize and backend.model is None:
        raise UserError(f"{opt.weights[0]}: --visualize needs a single .pt checkpoint, its layers are hooked")
    check_channels(backend.path, backend.ch)
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


def _fallback_names(data: str | Path | None) -> dict[int, str] | None:
    """Return the class names of a dataset YAML, for files without names; None without `data`."""
    if not data:
        return None
    path = dataset_yaml(data)
    return read_names(path, load_yaml(path, names_as_text=True))


def _line(frame: Frame, boxes: np.ndarray, names: dict[int, str], ms: float, pace: Pace) -> str:
    """Return the log line of one image or frame.

    It says which one it is, its size for the model, the objects, the milliseconds of all stages and the pace.
    The time left is that of the frames of this video, or of the other images.
    """
    place = f"{frame.position}/{frame.count or '?'}"
    left = max(frame.count - frame.position, 0) if frame.count else None
    if frame.is_video:
        place += f" frame {frame.index}" + ("" if frame.is_live else f"/{frame.total or '?'}")
        left = max(frame.total - frame.index, 0) if frame.total else None
    found = Counter(boxes[:, 5].astype(int).tolist())
    text = ", ".join(f"{n} {class_name(names, c)}" for c, n in sorted(found.items())) or "nothing found"
    height, width = frame.input.shape[1:]
    dropped = f", {frame.dropped} dropped" if frame.dropped else ""
    times = f"{ms:.1f} ms, {pace.text(left)}{dropped}"
    return f"{place} {frame.path}: {width}x{height}, {text}, {times}"


def _report(opt: DetectOptions, result: DetectResult) -> None:
    if result.stopped:
        LOGGER.info("stopped from the keyboard; what was found until then is saved")
    speed = ", ".join(f"{ms:.1f} ms {stage}" for stage, ms in result.speed.items())
    dropped = f", {result.dropped} live frames dropped" if result.dropped else ""
    LOGGER.info("%d detections in %d images%s; per image: %s", result.found, result.images, dropped, speed)
    for count in result.counts:
        LOGGER.info("%s: %d in, %d out across %s", count["file"], count["in"], count["out"], opt.count_line)
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


def stop_politely() -> None:
    """Let a polite `kill` end a run as Ctrl-C does: with every file closed.

    What follows the first signal is ignored while that goes on: `timeout` and some supervisors send two.
    """
    first: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            raise KeyboardInterrupt
        if time.monotonic() - first[0] > _CLOSING:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in a shell's background
            signal.signal(number, stop)


def main() -> None:
    """Run from the command line."""
    stop_politely()
    run(**given(DetectOptions))


if __name__ == "__main__":
    guard(main)
