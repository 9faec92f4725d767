"""Write what detect.py found: images, videos, labels, crops, CSV and JSON."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.results.drawing import class_name, draw_detections, draw_line
from utils.results.result_files import (
    FreePaths,
    JsonRows,
    StemBook,
    crop_box,
    folder_names,
    label_lines,
    write_image,
)
from utils.results.tracks import Tracks
from utils.results.video_writer import VideoFileWriter
from utils.sources.frame import Frame
from utils.threads import Background

_WRITABLE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_CSV_HEADER = ("Image Name", "Prediction", "Confidence")


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
    """Draws and writes results in a thread, while the model works on the next frame.

    Use it as a context manager: leaving it finishes the queue and the open videos, also after Ctrl-C.
    """

    def __init__(self, save_dir: Path, names: Mapping[int, str], options: SaveOptions) -> None:
        self.save_dir = save_dir
        self.names = names
        self.options = options
        self._folders = folder_names(names)
        self._stems = StemBook()
        self._open_stems: dict[tuple[int, str], str] = {}  # by position and path of what is being read
        self._videos: dict[str, VideoFileWriter] = {}  # by stem; several only for live streams
        self._rows: JsonRows | None = None
        self._crops = FreePaths()
        self._background = Background()

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # While another error is on its way out, that one is the one to show.
        with contextlib.nullcontext() if kind is None else contextlib.suppress(UserError, OSError):
            try:
                self._background.close()
            finally:
                self._close_videos()
                if self._rows is not None:
                    self._rows.close()

    def stem(self, frame: Frame) -> str:
        """Return the output stem of a frame's source; only live streams may come in turns."""
        key = (frame.position, frame.path)
        if key not in self._open_stems:
            if not frame.is_live:
                self._open_stems.clear()
                self._background.submit(self._close_videos)
            name = frame.name if frame.is_live else Path(frame.name).stem
            self._open_stems[key] = self._stems.claim(name, frame.is_video)
        return self._open_stems[key]

    def draw(self, frame: Frame, det: np.ndarray, tracks: Tracks | None = None) -> np.ndarray:
        """Return the frame's image with detections (n,6), numbers and line drawn on it."""
        drawn = draw_detections(
            frame.image,
            det,
            self.names,
            line_thickness=self.options.line_thickness,
            hide_labels=self.options.hide_labels,
            hide_conf=self.options.hide_conf,
            ids=None if tracks is None else tracks.ids,
        )
        if tracks is not None and tracks.line is not None:
            label = f"in {tracks.entered} out {tracks.left}"
            draw_line(drawn, tracks.line, label, self.options.line_thickness)
        return drawn

    def save(
        self, frame: Frame, det: np.ndarray, drawn: np.ndarray | None = None, tracks: Tracks | None = None
    ) -> None:
        """Queue what the options ask for.

        `drawn` is the image with its boxes, if there is one already; `tracks` their numbers.
        """
        stem = self.stem(frame)

        def job() -> None:
            try:
                self._write(frame, det, stem, drawn, tracks)
            except OSError as error:  # a full disk does not say which
                error.filename = error.filename or str(self.save_dir)
                raise

        self._background.submit(job)

    def _write(
        self, frame: Frame, det: np.ndarray, stem: str, drawn: np.ndarray | None, tracks: Tracks | None
    ) -> None:
        options = self.options
        ids = None if tracks is None else tracks.ids
        if options.txt and len(det):
            size = frame.image.shape[:2]
            text = label_lines(det, size, corners=options.corners, conf=options.conf, ids=ids)
            _append(self.save_dir / "labels" / f"{_frame_stem(frame, stem)}.txt", text)
        if options.csv and len(det):
            self._write_csv(stem if frame.is_live else stem + Path(frame.name).suffix, det, ids)
        if options.json:
            self._write_json(frame, det, stem, ids)
        if options.crop:
            self._write_crops(frame.image, det, stem)
        if options.images:
            drawn = self.draw(frame, det, tracks) if drawn is None else drawn
            if frame.is_video:
                self._write_frame(frame, drawn, stem)
            else:
                suffix = Path(frame.name).suffix
                suffix = suffix if suffix.lower() in _WRITABLE_SUFFIXES else ".jpg"
                write_image(self.save_dir / f"{stem}{suffix}", drawn)

    def _write_csv(self, name: str, det: np.ndarray, ids: np.ndarray | None) -> None:
        path = self.save_dir / "predictions.csv"
        new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(_CSV_HEADER if ids is None else (*_CSV_HEADER, "Track"))
            for number, row in enumerate(det):
                track = () if ids is None else (ids[number],)
                writer.writerow((name, class_name(self.names, int(row[5])), f"{row[4]:.4f}", *track))

    def _write_json(self, frame: Frame, det: np.ndarray, stem: str, ids: np.ndarray | None) -> None:
        if self._rows is None:
            self._rows = JsonRows(self.save_dir / "predictions.json")
        image = _frame_stem(frame, stem)
        for number, (x1, y1, x2, y2, confidence, index) in enumerate(det.astype(float).tolist()):
            row: dict[str, object] = {
                "image_id": int(image) if image.isdecimal() else image,
                "category_id": int(index),
                "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(confidence, 5),
                "file": frame.path,
                "frame": frame.index,
                "category": class_name(self.names, int(index)),
            }
            if ids is not None:
                row["track_id"] = int(ids[number])
            self._rows.add(row)

    def _write_crops(self, image: np.ndarray, det: np.ndarray, stem: str) -> None:
        for row in det:
            crop = crop_box(image, row[:4])
            if not crop.size:
                continue
            folder = self._folders.get(int(row[5]), f"class{int(row[5])}")
            write_image(self._crops.next(self.save_dir / "crops" / folder / stem), crop)

    def _write_frame(self, frame: Frame, drawn: np.ndarray, stem: str) -> None:
        if stem not in self._videos:
            size = (drawn.shape[1], drawn.shape[0])
            self._videos[stem] = VideoFileWriter(self.save_dir / f"{stem}.mp4", frame.fps, size)
        self._videos[stem].write(drawn, frame.time)

    def _close_videos(self) -> None:
        """Finish every open video, also when one of them fails, and raise the first failure."""
        videos, self._videos = list(self._videos.values()), {}
        with contextlib.ExitStack() as stack:
            for video in reversed(videos):
                stack.callback(video.close)


def _frame_stem(frame: Frame, stem: str) -> str:
    """Return a single frame's name: its file's, with a number in a video."""
    return f"{stem}_{frame.index}" if frame.is_video else stem


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
