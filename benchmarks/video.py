"""detect.py's end-to-end frames/s on a video, against the model's own, from one run.

    python benchmarks/video.py VIDEO WEIGHTS [--imgsz 640] [--rounds 3] [--frames N]

The model's own: predict and NMS on the same letterboxed frames, decoded beforehand; nothing else runs.
End to end: detect.run on the file, with decoding, letterbox, drawing and writing the annotated mp4. Both are
measured in turn, and the medians over the rounds are compared: a machine whose speed drifts hits both alike.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import detect
from models.backends import load_backend
from models.formats.base import Backend
from utils.cli import guard
from utils.device import describe, select_device, synchronize, tune_allocator
from utils.errors import UserError
from utils.nms import non_max_suppression
from utils.sources.open_source import open_source


def read_frames(path: str, imgsz: int, backend: Backend, limit: int) -> list[torch.Tensor]:
    """The first `limit` frames (0: all), letterboxed as detect.py does: RGB uint8 (1,3,h,w)."""
    inputs = []
    opened = open_source(path, imgsz=imgsz, stride=backend.stride, auto=backend.rect_ok)
    frames = iter(opened)
    for frame in frames:
        inputs.append(torch.from_numpy(frame.input)[None])
        if len(inputs) == limit:
            break
    frames.close()
    return inputs


def model_rate(backend: Backend, inputs: list[torch.Tensor]) -> float:
    """Frames/s of predict and NMS with detect.py's thresholds."""
    start = time.perf_counter()
    for images in inputs:
        non_max_suppression(backend.predict(images.to(backend.device)), 0.25, 0.45, max_det=1000)
    synchronize(backend.device)
    return len(inputs) / (time.perf_counter() - start)


class Stopwatch(logging.Handler):
    """Takes the time from the first frame that detect.py reports: the model is loaded and warm by then."""

    def __init__(self) -> None:
        super().__init__()
        self.first = 0.0
        self.frames = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count detect.py's line per frame."""
        if record.args and "frame" in str(record.args[0]):
            self.frames += 1
            self.first = self.first or time.perf_counter()


def end_to_end_rate(video: str, weights: str, imgsz: int, device: str, folder: Path) -> tuple[float, Path]:
    """Frames/s of detect.run after its first frame, until every file is closed; and the video it wrote."""
    watch = Stopwatch()
    logger = logging.getLogger("yolo.detect")
    logger.setLevel(logging.INFO)
    logger.addHandler(watch)
    try:
        result = detect.run(weights=weights, source=video, imgsz=[imgsz], device=device, project=str(folder))
    finally:
        logger.removeHandler(watch)
    seconds = time.perf_counter() - watch.first
    (written,) = result.save_dir.glob("*.mp4")
    return (result.images - 1) / seconds, written


def count_frames(path: str | Path) -> int:
    """Frames that can be decoded."""
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.grab():
        count += 1
    return count


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("video")
    parser.add_argument("weights")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=300, help="frames of the model's own run; 0: all")
    parser.add_argument("--device", default="cpu")
    opt = parser.parse_args()
    logging.getLogger("yolo").propagate = False
    logging.getLogger("yolo").handlers.clear()
    device = select_device(opt.device)
    tune_allocator()  # as detect.run does: both sides of the ratio with the same memory
    backend = load_backend(opt.weights, device)
    inputs = read_frames(opt.video, opt.imgsz, backend, opt.frames)
    if not inputs:
        raise UserError(f"{opt.video}: holds no frame that can be read; check the path")
    print(f"{describe(device)}; input {inputs[0].shape[3]}x{inputs[0].shape[2]}")
    model_rate(backend, inputs[:10])
    own, whole = [], []
    frames = count_frames(opt.video)
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(opt.rounds):
            own.append(model_rate(backend, inputs))
            rate, written = end_to_end_rate(opt.video, opt.weights, opt.imgsz, opt.device, Path(folder))
            whole.append(rate)
            print(
                f"round {round_ + 1}: model {own[-1]:.1f}, end to end {rate:.1f} frames/s; "
                f"{frames} frames in, {count_frames(written)} out"
            )
    a, b = statistics.median(own), statistics.median(whole)
    print(f"median: model {a:.1f}, end to end {b:.1f} frames/s, ratio {b / a:.3f}")


if __name__ == "__main__":
    guard(main)
