"""What detect reads: images, folders, globs, text lists and video files, decoded ahead in the background.

`open_source` finds the kind of a source and returns an iterable of `Frame`. A new kind (stream, webcam,
screen) is one class with `frames()` and one line in `_KINDS`.
"""

from __future__ import annotations

import glob
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from typing import Protocol, TypeVar

import cv2
import numpy as np

from utils.boxes import letterbox
from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES, ROOT, VIDEO_SUFFIXES
from utils.images import load_image

LOGGER = logging.getLogger("yolo.sources")

FALLBACK_FPS = 30.0  # for a container that states none, or an absurd one
_PREFETCH = 4  # frames decoded ahead: enough to hide decoding, few enough to keep 4K video in memory

T = TypeVar("T")


@dataclass
class Frame:
    """One picture on its way to the model.

    `image` is BGR uint8 (H,W,3) in native size; `input` the same letterboxed, RGB uint8 (3,h,w), and
    `ratio_pad` the way back for `scale_boxes`. `index` counts a video's frames from 1 as they are yielded
    (0 for an image) and `total` is how many its container claims (0: unknown). `position` of `count` files,
    from 1. `seconds` went into the letterbox. `fps` is that of the yielded frames.
    """

    path: str
    image: np.ndarray
    index: int = 0
    total: int = 0
    fps: float = 0.0
    is_video: bool = False
    position: int = 1
    count: int = 1
    input: np.ndarray | None = None
    ratio_pad: tuple[tuple[float, float], tuple[float, float]] | None = None
    seconds: float = 0.0


class Source(Protocol):
    """Anything that yields frames in order; it ends, logs what it cannot read and closes what it opened."""

    def frames(self) -> Iterator[Frame]:
        """Yield frames with `path`, `image` and the counters filled in; the letterbox is put on later."""


class ImageFile:
    """One still image."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def frames(self) -> Iterator[Frame]:
        """Yield the image, or nothing after a warning that names it."""
        try:
            image = load_image(self.path)
        except (UserError, OSError) as error:
            LOGGER.warning("skipped: %s", error)
            return
        yield Frame(str(self.path), image)


class VideoFile:
    """One video file: grabs `vid_stride` frames at a time and decodes the last of them."""

    def __init__(self, path: Path, vid_stride: int = 1) -> None:
        self.path = path
        self.vid_stride = vid_stride

    def frames(self) -> Iterator[Frame]:
        """Yield what can be decoded; a warning says when that is nothing, or less than the header claims."""
        capture = cv2.VideoCapture(str(self.path))
        try:
            if not capture.isOpened():
                LOGGER.warning("%s skipped: not a video that can be decoded, or cut off", self.path)
                return
            yield from self._decode(capture)
        finally:
            capture.release()

    def _decode(self, capture: cv2.VideoCapture) -> Iterator[Frame]:
        fps = capture.get(cv2.CAP_PROP_FPS)
        # MPEG-4 cannot be written above 65535 ticks a second; such figures are time bases, not frame rates.
        fps = fps if 0 < fps <= 1000 else FALLBACK_FPS
        claimed = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        grabbed = decoded = failed = 0
        while capture.grab():
            grabbed += 1
            if grabbed % self.vid_stride:
                continue
            ok, image = capture.retrieve()
            if not ok:
                failed += 1
                continue
            decoded += 1
            yield Frame(
                str(self.path),
                image,
                index=decoded,
                total=claimed // self.vid_stride,
                fps=fps / self.vid_stride,
                is_video=True,
            )
        if grabbed < claimed or failed:
            LOGGER.warning(
                "%s: %d of the %d frames its header claims could be read; it may be cut off or damaged",
                self.path,
                grabbed - failed,
                max(claimed, grabbed),
            )
        elif not decoded:
            LOGGER.warning("%s: %d frames are too few for vid-stride %d", self.path, grabbed, self.vid_stride)


class Files:
    """Image and video files, one after the other; what cannot be read is skipped."""

    def __init__(self, paths: list[Path], vid_stride: int = 1, origin: str = "") -> None:
        self.paths = paths
        self.vid_stride = vid_stride
        self.origin = origin

    def __len__(self) -> int:
        return len(self.paths)

    def frames(self) -> Iterator[Frame]:
        """Yield the frames of every file.

        Raises:
            UserError: at the end, when not one file could be read.
        """
        nothing = True
        for position, path in enumerate(self.paths, start=1):
            is_image = path.suffix.lower() in IMAGE_SUFFIXES
            file = ImageFile(path) if is_image else VideoFile(path, self.vid_stride)
            for frame in file.frames():
                frame.position, frame.count = position, len(self.paths)
                nothing = False
                yield frame
        if nothing:
            raise UserError(
                f"{self.origin}: not one of {len(self.paths)} files could be read; see the warnings"
            )


class Opened:
    """A source with its letterbox, decoding ahead of its reader in a thread."""

    def __init__(self, source: Source, prepare: Callable[[Frame], Frame]) -> None:
        self.source = source
        self.prepare = prepare

    def __iter__(self) -> Iterator[Frame]:
        return prefetch(map(self.prepare, self.source.frames()), _PREFETCH)


def open_source(
    source: str | Path,
    *,
    imgsz: int | tuple[int, int],
    stride: int,
    auto: bool,
    vid_stride: int = 1,
) -> Opened:
    """Open an image, a folder, a glob, a .txt list or a video.

    Args:
        imgsz: size (h, w) to letterbox into; `auto` pads only to the next multiple of `stride`.
        vid_stride: every how many frames of a video one is decoded.
    Raises:
        UserError: no such source, nothing in it, or a kind that is not supported.
    """
    size = (imgsz, imgsz) if isinstance(imgsz, int) else (int(imgsz[0]), int(imgsz[1]))

    def prepare(frame: Frame) -> Frame:
        start = time.perf_counter()
        boxed, ratio, pad = letterbox(frame.image, size, auto=auto, stride=stride)
        frame.input = np.ascontiguousarray(boxed[:, :, ::-1].transpose(2, 0, 1))
        frame.ratio_pad = (ratio, pad)
        frame.seconds = time.perf_counter() - start
        return frame

    text = str(source).strip()
    for matches, make in _KINDS:
        if matches(text):
            return Opened(make(text, vid_stride), prepare)
    raise UserError(f"{text or 'empty source'}: no such image, video, folder, glob or list; check the path")


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield `items` in order while a thread works up to `depth` of them ahead.

    An exception of the items is raised here, in its place. Closing the generator early stops the thread.
    """
    queue: Queue[tuple[str, object]] = Queue(depth)
    stop = Event()

    def put(kind: str, value: object) -> bool:
        while not stop.is_set():
            try:
                queue.put((kind, value), timeout=0.05)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # noqa: BLE001 raised again in the reader's thread
            put("error", error)

    thread = Thread(target=work, name="decode", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = queue.get()
            if kind == "end":
                return
            if kind == "error":
                raise value  # type: ignore[misc]
            yield value  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()


def list_files(folder: Path) -> list[Path]:
    """Images, then videos, that lie in a folder itself, each sorted by name; hidden files are left out."""
    return _media(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def read_list(path: Path) -> list[Path]:
    """Files named in a text list, one a line, in its order.

    A leading `./` means the list's own folder; other relative paths mean the working folder, else the list's.
    A line that names nothing usable costs a warning with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; expected one image or video path a line") from None
    found = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        file = path.parent / name if name.startswith("./") or not Path(name).exists() else Path(name)
        if file.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            LOGGER.warning("%s, line %d skipped: %s is neither an image nor a video file", path, number, name)
        elif not file.is_file():
            LOGGER.warning("%s, line %d skipped: %s does not exist", path, number, name)
        else:
            found.append(file)
    return found


def _media(paths: Iterable[Path]) -> list[Path]:
    paths = sorted(paths)
    images = [p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES]
    return images + [p for p in paths if p.suffix.lower() in VIDEO_SUFFIXES]


def _local(text: str) -> Path | None:
    """The file or folder a source names: as given (`~` expanded), else below the project; None if neither."""
    given = Path(text).expanduser()
    return next((p for p in (given, ROOT / given) if text and p.exists()), None)


def _open_local(text: str, vid_stride: int) -> Files:
    path = _local(text)
    if path is None:
        raise UserError(f"{text}: was there a moment ago and is gone; check the path")
    if path.is_dir():
        files = list_files(path)
    elif path.suffix.lower() == ".txt":
        files = read_list(path)
    else:
        files = _media([path])
    if not files:
        known = " ".join(s[1:] for s in sorted(IMAGE_SUFFIXES) + sorted(VIDEO_SUFFIXES))
        raise UserError(f"{path}: holds no image or video file (known: {known}); check the path")
    return Files(files, vid_stride, str(path))


def _open_glob(text: str, vid_stride: int) -> Files:
    matched = glob.glob(str(Path(text).expanduser()), recursive=True)
    files = _media(Path(p) for p in matched if Path(p).is_file())
    if not files:
        raise UserError(f"{text}: the pattern matches no image or video file; quote it and check the path")
    return Files(files, vid_stride, text)


def _refuse(what: str) -> Callable[[str, int], Source]:
    def make(text: str, vid_stride: int) -> Source:
        raise UserError(f"{text}: {what} cannot be read yet; give an image, video, folder, glob or .txt list")

    return make


# In order: what exists on disk wins over what merely looks like a camera number or a pattern.
_KINDS: tuple[tuple[Callable[[str], object], Callable[[str, int], Source]], ...] = (
    (lambda text: text.endswith(".streams"), _refuse("lists of streams")),
    (_local, _open_local),
    (lambda text: re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE), _refuse("network addresses")),
    (lambda text: text.isdecimal(), _refuse("webcams")),
    (lambda text: re.match(r"screen(\s+\d+)*$", text), _refuse("screens")),
    (lambda text: any(c in text for c in "*?["), _open_glob),
)
