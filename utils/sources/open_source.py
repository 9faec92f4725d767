"""What detect.py reads: files, folders, globs, lists, addresses, streams, cameras, screens, standard input.

`open_source` finds the kind of a source and returns its batches of `Frame`. A new kind is one class with
`batches()` and one line in `_KINDS`.
"""

from __future__ import annotations

import glob
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from utils.downloads import fetch, file_name, is_url, split_url
from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES, ROOT, VIDEO_SUFFIXES, expand_user, path_remedy, read_path_list
from utils.images import load_image
from utils.sources.frame import Frame, Letterboxer, Source, as_it_is
from utils.sources.screen import Screen
from utils.sources.stdin import ImagePipe
from utils.sources.streams import Streams, is_stream, read_streams
from utils.sources.video_file import VideoFile
from utils.threads import read_ahead

LOGGER = logging.getLogger("yolo.sources")

_AHEAD = 4  # frames decoded ahead: enough to hide decoding, few enough to keep 4K video in memory
MAX_IMAGE_BYTES = 1 << 28  # of a download
MAX_VIDEO_BYTES = 1 << 33


@dataclass(frozen=True)
class SourceOptions:
    """What a source may need to know; named as detect.py's options."""

    vid_stride: int = 1
    stream_timeout: float | None = None


def read_image(path: Path, shown: str = "") -> Iterator[Frame]:
    """Yield a still image, or nothing after a warning that names it.

    `shown` is the path in the frame, where it is not that of the file.
    """
    try:
        image = load_image(path)
    except (UserError, OSError) as error:
        LOGGER.warning("skipped: %s", error)
        return
    yield Frame(shown or str(path), image, name=path.name)


class Files:
    """Image and video files, one after the other; what cannot be read is skipped.

    An item is a path, or the http(s) address of a file. Such a file is downloaded into a temporary folder
    when its turn comes, and removed afterwards.
    """

    live: ClassVar[bool] = False

    def __init__(self, items: list[Path | str], vid_stride: int = 1, origin: str = "") -> None:
        self.items = items
        self.vid_stride = vid_stride
        self.origin = origin

    def __len__(self) -> int:
        return len(self.items)

    def batches(self) -> Iterator[list[Frame]]:
        """Yield the frames of every file, one at a time.

        Raises:
            UserError: at the end, when not one file could be read.
        """
        nothing = True
        for position, item in enumerate(self.items, start=1):
            frames = self._open(item) if isinstance(item, Path) else self._download(item)
            for frame in frames:
                frame.position, frame.count = position, len(self.items)
                nothing = False
                yield [frame]
        if nothing:
            raise UserError(
                f"{self.origin}: not one of {len(self.items)} files could be read; see the warnings"
            )

    def _open(self, path: Path, shown: str = "") -> Iterator[Frame]:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return read_image(path, shown)
        return VideoFile(path, self.vid_stride, shown).frames()

    def _download(self, url: str) -> Iterator[Frame]:
        limit = MAX_IMAGE_BYTES if url_suffix(url) in IMAGE_SUFFIXES else MAX_VIDEO_BYTES
        with tempfile.TemporaryDirectory(prefix="detect-") as folder:
            try:
                path = fetch(url, Path(folder) / file_name(url), limit=limit, passing=True)
            except UserError as error:
                LOGGER.warning("skipped: %s", error)
                return
            yield from self._open(path, url)


class Opened:
    """A source with its letterbox; files are decoded ahead in a thread."""

    def __init__(self, source: Source, prepare: Callable[[list[Frame]], list[Frame]]) -> None:
        self.source = source
        self.prepare = prepare

    @property
    def live(self) -> bool:
        """Return whether it ends only when it is told to."""
        return self.source.live

    def batches(self) -> Iterator[list[Frame]]:
        """Yield batches ready for the model. Close the iterator to release cameras, files and threads."""
        prepared = (self.prepare(batch) for batch in self.source.batches())
        return prepared if self.live else read_ahead(prepared, _AHEAD)

    def __iter__(self) -> Iterator[Frame]:
        for batch in self.batches():
            yield from batch


def open_source(
    source: str | Path,
    *,
    imgsz: int | tuple[int, int],
    stride: int,
    auto: bool,
    vid_stride: int = 1,
    stream_timeout: float | None = None,
    native: bool = False,
) -> Opened:
    """Open any source that detect.py knows.

    Args:
        source: image, folder, glob, video, `.txt` list of those; address of an image, a video or a stream;
            `.streams` list of streams; webcam number; `screen [n] [left top width height]`; `-`.
        imgsz: size (h, w) to letterbox into; `auto` pads only to the next multiple of `stride`.
        vid_stride: every how many frames of a video or stream one is used.
        stream_timeout: seconds without a frame after which a stream is given up; None: never.
        native: give the images as they are instead, for `utils.tiles`.

    Raises:
        UserError: no such source, nothing in it, or what it needs is not here.
    """
    size = (imgsz, imgsz) if isinstance(imgsz, int) else (int(imgsz[0]), int(imgsz[1]))
    options = SourceOptions(vid_stride, stream_timeout)
    text = str(source).strip()
    for matches, make in _KINDS:
        if matches(text):
            return Opened(make(text, options), as_it_is if native else Letterboxer(size, stride, auto))
    raise UserError(
        f"{text or 'empty source'}: no such image, video, folder, glob or list; {path_remedy(text)}"
    )


def list_files(folder: Path) -> list[Path | str]:
    """Return the images, then the videos of a folder, each sorted.

    Hidden files and sub-folders are left out.
    """
    return _media(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def url_suffix(url: str) -> str:
    """Return the lower-case suffix of the file that an address names, without its query."""
    return PurePosixPath(split_url(url).path).suffix.lower()


def is_file_url(text: str) -> bool:
    """Return whether the text is the http(s) address of an image or video file."""
    return is_url(text) and url_suffix(text) in IMAGE_SUFFIXES | VIDEO_SUFFIXES


def read_media_list(path: Path) -> list[Path | str]:
    """Return the images and videos that a text list names, in its order.

    `utils.files.read_path_list` says where relative paths are looked for; http(s) addresses of files stay
    text. A line that names nothing usable costs a warning with its number.
    """
    found: list[Path | str] = []
    for number, name, file in read_path_list(path):
        try:
            is_address = is_file_url(name)
        except UserError as error:
            LOGGER.warning("%s, line %d skipped: %s", path, number, error)
            continue
        if is_address:
            found.append(name)
            continue
        if is_stream(name):
            reason = "is a stream; streams are listed in a file that ends in .streams"
        elif file.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            reason = "is neither an image nor a video file"
        elif not file.is_file():
            reason = "does not exist"
        else:
            found.append(file)
            continue
        LOGGER.warning("%s, line %d skipped: %s %s", path, number, name, reason)
    return found


def _media(paths: Iterable[Path]) -> list[Path | str]:
    """Return the images, then the videos among paths, each sorted."""
    ordered = sorted(paths)
    return [p for kind in (IMAGE_SUFFIXES, VIDEO_SUFFIXES) for p in ordered if p.suffix.lower() in kind]


def _local(text: str) -> Path | None:
    """Return the file or folder as given (`~` expanded), else below the project, else None."""
    given = expand_user(text)
    return next((p for p in (given, ROOT / given) if text and p.exists()), None)


def _open_local(text: str, options: SourceOptions) -> Source:
    path = _local(text)
    if path is None:
        raise UserError(f"{text}: was there a moment ago and is gone; check the path")
    if path.suffix.lower() == ".streams" and path.is_file():
        return Streams(read_streams(path), options.vid_stride, options.stream_timeout)
    if path.is_dir():
        files = list_files(path)
    elif path.suffix.lower() == ".txt":
        files = read_media_list(path)
    else:
        files = _media([path])
    if not files:
        known = " ".join(s[1:] for s in sorted(IMAGE_SUFFIXES) + sorted(VIDEO_SUFFIXES))
        raise UserError(f"{path}: holds no image or video file (known: {known}); check the path")
    return Files(files, options.vid_stride, str(path))


def _open_glob(text: str, options: SourceOptions) -> Files:
    matched = glob.glob(str(expand_user(text)), recursive=True)
    files = _media(Path(p) for p in matched if Path(p).is_file())
    if not files:
        raise UserError(f"{text}: the pattern matches no image or video file; quote it and check the path")
    return Files(files, options.vid_stride, text)


# In order: what exists on disk wins over what merely looks like a camera number or a pattern.
_KINDS: tuple[tuple[Callable[[str], object], Callable[[str, SourceOptions], Source]], ...] = (
    (lambda text: text == "-", lambda text, options: ImagePipe()),
    (_local, _open_local),
    (is_file_url, lambda text, options: Files([text], options.vid_stride, text)),
    (is_stream, lambda text, options: Streams([text], options.vid_stride, options.stream_timeout)),
    (lambda text: re.match(r"screen(\s|$)", text), lambda text, options: Screen(text, options.vid_stride)),
    (lambda text: any(c in text for c in "*?["), _open_glob),
)
