"""Offer the sources of detect.py as YOLOv5's `utils.dataloaders` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from utils.sources.frame import Frame, Letterboxer
from utils.sources.open_source import Files, Opened, open_source
from utils.sources.screen import Screen
from utils.sources.streams import Streams, output_name, read_streams

from .augmentations import letterbox as letterbox  # scripts import it from here too

IMG_FORMATS = tuple(suffix[1:] for suffix in sorted(IMAGE_SUFFIXES))
VID_FORMATS = tuple(suffix[1:] for suffix in sorted(VIDEO_SUFFIXES))

Size = int | Sequence[int]
Transforms = Callable[[np.ndarray], np.ndarray]


class VideoFacts:
    """Answer `get` for a video's rate, size and length, as `cv2.VideoCapture` does."""

    def __init__(self, frame: Frame, vid_stride: int) -> None:
        height, width = frame.image.shape[:2]
        self._facts = {
            cv2.CAP_PROP_FPS: frame.fps * vid_stride,
            cv2.CAP_PROP_FRAME_WIDTH: float(width),
            cv2.CAP_PROP_FRAME_HEIGHT: float(height),
            cv2.CAP_PROP_FRAME_COUNT: float(frame.total * vid_stride),
            cv2.CAP_PROP_POS_FRAMES: float(frame.index * vid_stride),
        }

    def get(self, prop: int) -> float:
        """Return a property, 0.0 for others."""
        return self._facts.get(prop, 0.0)


Item = tuple[str, np.ndarray, np.ndarray, VideoFacts | None, str]
Batch = tuple[list[str], np.ndarray, list[np.ndarray], None, str]


def _letterboxer(img_size: Size, stride: int, auto: bool) -> Letterboxer:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return Letterboxer((height, width), int(stride), auto)


def _input(frame: Frame, transforms: Transforms | None) -> np.ndarray:
    """Return the letterboxed RGB image (3, h, w), or what `transforms` makes."""
    if transforms is not None:
        return transforms(frame.image)
    assert frame.input is not None  # the letterbox has filled it in
    return frame.input


class LoadImages:
    """Yield the images and the frames of videos, one at a time.

    Args:
        path: one of these, a `.txt` list, or several in a list.
        img_size: to letterbox into, a side or (h, w); `auto` pads to the next multiple of `stride` only.
        transforms: makes the network's image of the BGR one; None: the letterbox.
        vid_stride: every how many frames of a video one is used.

    Attributes:
        files: what is read; `nf` is their number.
        mode: 'image' or 'video', of the item that was yielded last.
        count, frame, frames, cap: its number; of a video its frame, their number, and its facts.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        img_size: Size = 640,
        stride: int = 32,
        auto: bool = True,
        transforms: Transforms | None = None,
        vid_stride: int = 1,
    ) -> None:
        given = [path] if isinstance(path, str | Path) else sorted(path, key=str)
        items = [item for one in given for item in _files(one, vid_stride)]
        self._opened = Opened(Files(items, vid_stride, str(path)), _letterboxer(img_size, stride, auto))
        self._transforms, self._vid_stride = transforms, vid_stride
        self.files = [str(item) for item in items]
        self.nf = len(self.files)
        self.mode = "image"
        self.count = self.frame = self.frames = 0
        self.cap: VideoFacts | None = None

    def __len__(self) -> int:
        return self.nf

    def __iter__(self) -> Iterator[Item]:
        """Yield path, network's image, BGR image, a video's facts and a log line.

        The network's image is RGB uint8 (3, h, w); an image file has no facts (None).
        """
        batches: Iterator[list[Frame]]
        with closing(self._opened.batches()) as batches:  # type: ignore[type-var]  # a generator
            for (frame,) in batches:
                yield self._item(frame)

    def _item(self, frame: Frame) -> Item:
        self.mode = "video" if frame.is_video else "image"
        self.count, self.frame, self.frames = frame.position, frame.index, frame.total
        self.cap = VideoFacts(frame, self._vid_stride) if frame.is_video else None
        place = f" ({frame.index}/{frame.total})" if frame.is_video else ""
        line = f"{self.mode} {frame.position}/{self.nf}{place} {frame.path}: "
        return frame.path, _input(frame, self._transforms), frame.image, self.cap, line


def _files(path: str | Path, vid_stride: int) -> list[Path | str]:
    source = open_source(path, imgsz=32, stride=32, auto=False, vid_stride=vid_stride).source
    if not isinstance(source, Files):
        raise UserError(f"{path}: is not a file, folder or list of files; use LoadStreams or LoadScreenshots")
    return source.items


class LoadScreenshots:
    """Yield captures of the screen: `screen [n] [left top width height]`; see `LoadImages`."""

    mode = "stream"

    def __init__(
        self,
        source: str,
        img_size: Size = 640,
        stride: int = 32,
        auto: bool = True,
        transforms: Transforms | None = None,
    ) -> None:
        self._opened = Opened(Screen(source), _letterboxer(img_size, stride, auto))
        self._transforms = transforms
        self.frame = 0

    def __iter__(self) -> Iterator[Item]:
        """Yield the screen's name, the network's image, the BGR image, None, and a log line."""
        for frame in self._opened:
            self.frame = frame.index
            yield frame.path, _input(frame, self._transforms), frame.image, None, f"{frame.path}: "


class LoadStreams:
    """Yield the newest picture of every live stream, always all of them in their order.

    A stream without a new picture repeats its last; before its first it is black.

    Args:
        sources: an address or a webcam's number, or a file that lists one a line.
        img_size, stride, auto, transforms, vid_stride: as for `LoadImages`.

    Attributes:
        sources: a name for each stream.
        count: number of the batch yielded last, from 0.
    """

    mode = "stream"

    def __init__(
        self,
        sources: str | Path = "file.streams",
        img_size: Size = 640,
        stride: int = 32,
        auto: bool = True,
        transforms: Transforms | None = None,
        vid_stride: int = 1,
    ) -> None:
        listed = Path(sources)
        addresses = read_streams(listed) if listed.is_file() else [str(sources)]
        self._streams = Streams(addresses, vid_stride)
        self._prepare, self._transforms = _letterboxer(img_size, stride, auto), transforms
        self.sources = [output_name(address) for address in addresses]
        self.count = -1

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[Batch]:
        """Yield names, RGB uint8 (n, 3, h, w), BGR images, None and an empty line."""
        newest: dict[int, Frame] = {}
        batches: Iterator[list[Frame]]
        with closing(self._streams.batches()) as batches:  # type: ignore[type-var]  # a generator
            for fresh in batches:
                newest |= {frame.position: frame for frame in fresh}
                black = Frame("", np.zeros_like(fresh[0].image))
                frames = self._prepare([newest.get(n, black) for n in range(1, len(self) + 1)])
                self.count += 1
                inputs = np.stack([_input(frame, self._transforms) for frame in frames])
                yield self.sources, inputs, [frame.image for frame in frames], None, ""
