"""What detect leaves on disk: annotated images and videos, label files, crops, a CSV; written in a thread."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Thread
from types import TracebackType

import cv2
import numpy as np

from utils.boxes import clip_boxes, xywh2xyxy, xyxy2xywh
from utils.drawing import class_name, draw_detections
from utils.errors import UserError
from utils.files import atomic_write
from utils.frames import Frame
from utils.video_writer import VideoFileWriter

_WRITABLE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_FRAME = re.compile(r"(.*)_\d+", re.DOTALL)
"""How the labels of a video's frame are called."""
_CSV_HEADER = ("Image Name", "Prediction", "Confidence")


class Background:
    """Runs jobs in order in a thread. A failed job drops the rest and is raised by the next call."""

    def __init__(self, depth: int = 8) -> None:
        self._jobs: Queue[Callable[[], None] | None] = Queue(depth)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._work, name="write", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job, waiting while `depth` are queued already."""
        self._raise()
        self._jobs.put(job)

    def close(self) -> None:
        """Finish the queued jobs and stop the thread; raises what a job raised."""
        self._jobs.put(None)
        self._thread.join()
        self._raise()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is None:  # after a failure the queue is emptied, so that nobody waits on it
                try:
                    job()
                except BaseException as error:  # noqa: BLE001 raised again by submit() or close()
                    self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error


class StemBook:
    """Hands out one output stem per input file, numbered (`x`, `x-2`, `x-3`) so that none overwrites another.

    A video `clip` writes labels `clip_1.txt`, `clip_2.txt`, ...: an image `clip_1` counts as a clash, too.
    Letter case is ignored because some file systems do.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._videos: set[str] = set()
        self._framed: set[str] = set()  # x of each x_7 taken
        # Where counting goes on: what is taken stays taken, so no number below is ever free again.
        self._next: dict[tuple[str, bool], int] = {}

    def claim(self, stem: str, is_video: bool) -> str:
        """A stem that nothing handed out before can clash with."""
        key = stem.lower(), is_video
        number = self._next.get(key, 1)
        while self._clashes((candidate := _numbered(stem, number)).lower(), is_video):
            number += 1
        self._next[key] = number + 1
        taken = candidate.lower()
        self._taken.add(taken)
        if is_video:
            self._videos.add(taken)
        frame_of = _FRAME.fullmatch(taken)
        if frame_of:
            self._framed.add(frame_of[1])
        return candidate

    def _clashes(self, stem: str, is_video: bool) -> bool:
        if stem in self._taken or (is_video and stem in self._framed):
            return True
        frame_of = _FRAME.fullmatch(stem)
        return frame_of is not None and frame_of[1] in self._videos


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem}-{number}"


def folder_names(names: Mapping[int, str]) -> dict[int, str]:
    """Class names made safe as folder names: no separators, no leading or trailing dots, no two alike.

    A name such as `../x` cannot lead out of the folder it is put in.
    """
    folders: dict[int, str] = {}
    for index, name in names.items():
        safe = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", str(name)).strip(". ")[:60] or f"class{index}"
        if safe.lower() in {f.lower() for f in folders.values()}:
            safe = f"{safe}_{index}"
        folders[index] = safe
    return folders


def crop_box(image: np.ndarray, xyxy: np.ndarray, gain: float = 1.02, pad: float = 10) -> np.ndarray:
    """The part of an image (H,W,3) in a pixel box (4,) grown to gain * size + pad, cut at the edges."""
    box = xyxy2xywh(np.asarray(xyxy, dtype=np.float64).reshape(1, 4))
    box[:, 2:] = box[:, 2:] * gain + pad
    x1, y1, x2, y2 = clip_boxes(xywh2xyxy(box), image.shape[:2])[0].round().astype(int)
    return image[y1:y2, x1:x2]


def label_lines(det: np.ndarray, shape: tuple[int, int], *, corners: bool = False, conf: bool = False) -> str:
    """Detections (n,6) in pixels of an image (h, w) as label text, normalised, numbers as `%g`.

    A row is `class xc yc w h [conf]`, or with `corners` `class x1 y1 x2 y2 [conf]`, normalised all the same.
    """
    height, width = shape[:2]
    boxes = det[:, :4] if corners else xyxy2xywh(det[:, :4])
    boxes = boxes / np.array([width, height, width, height])
    lines = []
    for row, box in zip(det, boxes):
        values = [int(row[5]), *box, *([row[4]] if conf else [])]
        lines.append(" ".join(f"{value:g}" for value in values) + "\n")
    return "".join(lines)


class JsonRows:
    """A JSON array of objects, one a line, written as they come and named when whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.part")
        # A file name that is not UTF-8 comes out as JSON escapes, which give the name back.
        self._file = open(self._temporary, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self._before = "[\n"

    def add(self, row: Mapping[str, object]) -> None:
        """Append one object."""
        self._file.write(self._before + json.dumps(row, ensure_ascii=False))
        self._before = ",\n"

    def close(self) -> None:
        """Close the array and give the file its name."""
        with self._file as file:
            file.write("[]\n" if self._before == "[\n" else "\n]\n")
        os.replace(self._temporary, self.path)


@dataclass(frozen=True)
class SaveOptions:
    """Which files are written, and how boxes are drawn; named as detect.py's options."""

    images: bool = True
    txt: bool = False
    corners: bool = False
    conf: bool = False
    csv: bool = False
    crop: bool = False
    json: bool = False
    line_thickness: int = 3
    hide_labels: bool = False
    hide_conf: bool = False


class ResultWriter:
    """Draws and writes results in a thread, so that encoding overlaps with the next frame's model run.

    Use it as a context manager: leaving it finishes the queue and the open video, also after Ctrl-C.
    """

    def __init__(self, save_dir: Path, names: Mapping[int, str], options: SaveOptions) -> None:
        self.save_dir = save_dir
        self.names = names
        self.options = options
        self._folders = folder_names(names)
        self._stems = StemBook()
        self._open_stems: dict[
            tuple[int, str], str
        ] = {}  # (position, path) of what is being read -> its stem
        self._videos: dict[str, VideoFileWriter] = {}  # by stem; several only for live streams
        self._rows: JsonRows | None = None
        self._crop_numbers: dict[Path, int] = {}
        self._background = Background()

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # While another error is on its way out, that one is the one to show.
        with contextlib.nullcontext() if kind is None else contextlib.suppress(UserError, OSError):
            try:
                self._background.close()
            finally:
                self._close_videos()
                if self._rows is not None:
                    self._rows.close()

    def stem(self, frame: Frame) -> str:
        """The output stem of what a frame comes from; only live streams may come in turns."""
        key = (frame.position, frame.path)
        if key not in self._open_stems:
            if not frame.is_live:
                self._open_stems.clear()
                self._background.submit(self._close_videos)
            name = frame.name if frame.is_live else Path(frame.name).stem
            self._open_stems[key] = self._stems.claim(name, frame.is_video)
        return self._open_stems[key]

    def draw(self, frame: Frame, det: np.ndarray) -> np.ndarray:
        """The frame's image with its detections on it, as the options want them."""
        return draw_detections(
            frame.image,
            det,
            self.names,
            line_thickness=self.options.line_thickness,
            hide_labels=self.options.hide_labels,
            hide_conf=self.options.hide_conf,
        )

    def save(self, frame: Frame, det: np.ndarray, drawn: np.ndarray | None = None) -> None:
        """Queue what the options want for a frame with detections (n,6); `drawn` spares drawing again."""
        stem = self.stem(frame)

        def job() -> None:
            try:
                self._write(frame, det, stem, drawn)
            except OSError as error:  # a full disk does not say which
                error.filename = error.filename or str(self.save_dir)
                raise

        self._background.submit(job)

    def _write(self, frame: Frame, det: np.ndarray, stem: str, drawn: np.ndarray | None) -> None:
        options = self.options
        if options.txt and len(det):
            name = f"{stem}_{frame.index}" if frame.is_video else stem
            text = label_lines(det, frame.image.shape[:2], corners=options.corners, conf=options.conf)
            _append(self.save_dir / "labels" / f"{name}.txt", text)
        if options.csv and len(det):
            self._write_csv(stem if frame.is_live else stem + Path(frame.name).suffix, det)
        if options.json:
            self._write_json(frame, det, stem)
        if options.crop:
            self._write_crops(frame.image, det, stem)
        if options.images:
            drawn = self.draw(frame, det) if drawn is None else drawn
            if frame.is_video:
                self._write_frame(frame, drawn, stem)
            else:
                suffix = Path(frame.name).suffix
                suffix = suffix if suffix.lower() in _WRITABLE_SUFFIXES else ".jpg"
                write_image(self.save_dir / f"{stem}{suffix}", drawn)

    def _write_csv(self, name: str, det: np.ndarray) -> None:
        path = self.save_dir / "predictions.csv"
        new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(_CSV_HEADER)
            for row in det:
                writer.writerow((name, class_name(self.names, int(row[5])), f"{row[4]:.4f}"))

    def _write_json(self, frame: Frame, det: np.ndarray, stem: str) -> None:
        if self._rows is None:
            self._rows = JsonRows(self.save_dir / "predictions.json")
        image = f"{stem}_{frame.index}" if frame.is_video else stem
        for x1, y1, x2, y2, confidence, index in det.astype(float).tolist():
            row = {
                "image_id": int(image) if image.isdecimal() else image,
                "category_id": int(index),
                "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(confidence, 5),
                "file": frame.path,
                "frame": frame.index,
                "category": class_name(self.names, int(index)),
            }
            self._rows.add(row)

    def _write_crops(self, image: np.ndarray, det: np.ndarray, stem: str) -> None:
        for row in det:
            crop = crop_box(image, row[:4])
            if not crop.size:
                continue
            folder = self._folders.get(int(row[5]), f"class{int(row[5])}")
            write_image(self._free_crop_path(self.save_dir / "crops" / folder / stem), crop)

    def _free_crop_path(self, base: Path) -> Path:
        """`base.jpg`, `base2.jpg`, ...: the next number neither this run nor an earlier one has used."""
        while True:
            number = self._crop_numbers.get(base, 0) + 1
            self._crop_numbers[base] = number
            path = base.with_name(f"{base.name}{number if number > 1 else ''}.jpg")
            if not path.exists():
                return path

    def _write_frame(self, frame: Frame, drawn: np.ndarray, stem: str) -> None:
        if stem not in self._videos:
            size = (drawn.shape[1], drawn.shape[0])
            self._videos[stem] = VideoFileWriter(self.save_dir / f"{stem}.mp4", frame.fps, size)
        self._videos[stem].write(drawn, frame.time)

    def _close_videos(self) -> None:
        """Finish every open video, also when one of them fails; the first failure is raised."""
        videos, self._videos = list(self._videos.values()), {}
        with contextlib.ExitStack() as stack:
            for video in reversed(videos):
                stack.callback(video.close)


def write_image(path: Path, image: np.ndarray) -> None:
    """Encode a BGR image by its suffix and write it whole or not at all, below any name Python can write."""
    try:
        ok, data = cv2.imencode(path.suffix, image)
    except cv2.error:
        ok = False
    if not ok:
        height, width = image.shape[:2]
        raise UserError(f"{path}: {width}x{height} pixels do not fit the format {path.suffix}; pass --nosave")
    atomic_write(path, lambda file: file.write(data.tobytes()))


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
