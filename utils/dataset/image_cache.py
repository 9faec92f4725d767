"""Read decoded images, with or without a cache in memory or on disk.

The pixels are the same each way.
"""

from __future__ import annotations

import logging
import mmap
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from utils.dataset.image_set import ImageSet
from utils.device import available_cpus, is_main
from utils.errors import UserError
from utils.files import atomic_write, own_or_user_folder, remove_dead_parts
from utils.images import load_image, resize_long_side, single_threaded_opencv, training_size

LOGGER = logging.getLogger("yolo.image_cache")

CACHES = ("ram", "disk")
MARGIN = 1.1
"""Factor on the estimated size; so much has to be free."""

_LONGEST_NAME = 180  # bytes of a file name, which may have 255 with all that is added to it

Read = tuple[np.ndarray, tuple[int, int]]
"""An image at training scale, BGR uint8 (h, w, 3), read-only, and its native (height, width)."""


Room = list[tuple[int, int | None]]
"""For each place: the bytes that filling a cache adds to it, and those that are free (None: unknown)."""


class ImageReader:
    """Read images at training scale, and cache nothing.

    The long side becomes `imgsz` (see `resize_long_side`).
    """

    def __init__(self, images: ImageSet, imgsz: int, *, augment: bool) -> None:
        self.images, self.imgsz, self.augment = images, imgsz, augment

    def read(self, index: int) -> Read:
        """Return image `index` and its native (height, width).

        Raises:
            UserError: the file cannot be read any more.
        """
        image = load_image(self.images.path(index))
        height, width = image.shape[:2]
        return resize_long_side(image, self.imgsz, augment=self.augment), (height, width)

    def _expected(self, index: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """Return the shape at training scale and the native (height, width), from the scan."""
        width, height = (int(v) for v in self.images.sizes[index])
        scaled = training_size(width, height, self.imgsz)
        return (scaled[1], scaled[0], 3), (height, width)

    def _bytes(self) -> np.ndarray:
        """Return the size of each image at training scale, in bytes (n,) int64."""
        width, height = self.images.sizes.astype(np.int64).T
        long_side = np.maximum(width, height)
        return -(-width * self.imgsz // long_side) * -(-height * self.imgsz // long_side) * 3


class NativeReader(ImageReader):
    """Read images at their own scale."""

    def read(self, index: int) -> Read:
        """Return image `index` and its (height, width).

        Raises:
            UserError: the file cannot be read any more.
        """
        image = load_image(self.images.path(index))
        return image, (image.shape[0], image.shape[1])


class RamReader(ImageReader):
    """Keep every image in one block of memory that all workers share.

    `fill` decodes the images; what is not filled is read from its file.
    """

    def __init__(self, images: ImageSet, imgsz: int, *, augment: bool) -> None:
        super().__init__(images, imgsz, augment=augment)
        self._offsets = np.zeros(len(images) + 1, np.int64)
        np.cumsum(self._bytes(), out=self._offsets[1:])
        self._cached = np.zeros(len(images), bool)
        self._block = SharedBlock(0)

    def room(self) -> Room:
        """Return the bytes that filling needs, and those that are free."""
        return [(int(self._offsets[-1]), free_memory())]

    def fill(self) -> None:
        """Decode all images into memory."""
        size = int(self._offsets[-1])
        self._block = SharedBlock(size)
        _in_parallel(self._store, len(self.images), f"Caching images ({size / 2**30:.2f} GiB RAM)")

    def _store(self, index: int) -> None:
        """Decode image `index` into its place in the block."""
        image, native = super().read(index)
        # A file that changed after the scan does not fit into its place: it is read again each time.
        if (image.shape, native) == self._expected(index):
            self._view(index, image.shape)[...] = image
            self._cached[index] = True

    def _view(self, index: int, shape: tuple[int, int, int]) -> np.ndarray:
        """Return the place of image `index` in the block, as an array of `shape`."""
        return self._block.array[self._offsets[index] : self._offsets[index + 1]].reshape(shape)

    def read(self, index: int) -> Read:
        """Return image `index`, from memory if it is there."""
        if not self._cached[index]:
            return super().read(index)
        shape, native = self._expected(index)
        image = self._view(index, shape)
        image.flags.writeable = False  # every worker reads this memory
        return image, native


class DiskReader(ImageReader):
    """Keep every image at training scale as a .npy file.

    Its name has the size and time of the image file. The files are in a folder `.decoded` beside the images,
    or in the user's cache folder where that is read-only.
    """

    def __init__(self, images: ImageSet, imgsz: int, *, augment: bool) -> None:
        super().__init__(images, imgsz, augment=augment)
        self._folders: dict[str, Path] = {}
        self._remove_stale()

    def room(self) -> Room:
        """Return for each disk the bytes that filling adds, and those free.

        Raises:
            UserError: an image is gone.
        """
        added: Counter[int] = Counter()
        places: dict[int, Path] = {}
        for index, size in enumerate(self._bytes()):
            file = self.file(index)
            if not file.is_file():
                place = _existing(file.parent)
                disk = place.stat().st_dev
                places.setdefault(disk, place)
                added[disk] += int(size)
        return [(added[disk], shutil.disk_usage(place).free) for disk, place in places.items()]

    def fill(self) -> None:
        """Write the files that are missing."""
        title = f"Caching images ({self._bytes().sum() / 2**30:.2f} GiB disk)"
        _in_parallel(self._store, len(self.images), title)

    def file(self, index: int) -> Path:
        """Return the cache file of image `index` as the image is now.

        Raises:
            UserError: the image is gone.
        """
        folder, stem, key = self._name(index)
        return folder / f"{stem}.{key}.npy"

    def _name(self, index: int) -> tuple[Path, str, str]:
        """Return folder, stem and key of a cache file.

        The key changes with the image file.
        """
        path = self.images.path(index)
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}); put the image back or remove it from the list"
            ) from None
        parent, name = os.path.split(os.path.abspath(path))
        folder = self._folders.get(parent)
        if folder is None:
            folder = self._folders[parent] = own_or_user_folder(Path(parent), "yolo-decoded") / ".decoded"
        if len(os.fsencode(name)) > _LONGEST_NAME:
            name = sha256(os.fsencode(name)).hexdigest()
        stem = f"{name}.{self.imgsz}{'linear' if self.augment else 'area'}"
        return folder, stem, f"{status.st_size:x}-{status.st_mtime_ns:x}"

    def _remove_stale(self) -> None:
        """Delete the cache files of images that have changed.

        Those of other images and sizes stay.
        """
        keys: dict[Path, dict[str, str]] = {}
        for index in range(len(self.images)):
            folder, stem, key = self._name(index)
            keys.setdefault(folder, {})[stem] = key
        for folder, wanted in keys.items():
            remove_dead_parts(folder)
            for file in folder.glob("*.npy"):
                stem, _, key = file.name.removesuffix(".npy").rpartition(".")
                if wanted.get(stem, key) != key:
                    file.unlink(missing_ok=True)

    def _store(self, index: int) -> None:
        """Write the cache file of image `index` if it is missing."""
        file = self.file(index)
        if not file.is_file():
            image, _ = super().read(index)
            atomic_write(file, lambda stream: np.save(stream, image, allow_pickle=False))

    def read(self, index: int) -> Read:
        """Return image `index`, from its cache file if that is there and whole."""
        shape, native = self._expected(index)
        try:
            image: np.ndarray = np.load(self.file(index), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return super().read(index)
        if image.shape != shape or image.dtype != np.uint8:
            return super().read(index)
        return image, native


def open_reader(images: ImageSet, imgsz: int, *, augment: bool, cache: str | None = None) -> ImageReader:
    """Return a reader of `images` at training scale, filled when `cache` is 'ram' or 'disk'.

    When less than 1.1 times the estimated size is free, it warns and caches nothing.

    Raises:
        UserError: an unknown cache, or an image that cannot be read.
    """
    plain = ImageReader(images, imgsz, augment=augment)
    if not cache:
        return plain
    if cache not in CACHES:
        raise UserError(f"--cache {cache}: not a cache; use one of {', '.join(CACHES)}")
    if not len(images):
        return plain
    reader = (RamReader if cache == "ram" else DiskReader)(images, imgsz, augment=augment)
    for need, free in reader.room():
        if free is not None and MARGIN * need > free:
            LOGGER.warning(
                "--cache %s needs %.1f GiB and %.1f GiB are free: images are not cached",
                cache,
                MARGIN * need / 2**30,
                free / 2**30,
            )
            return plain
    reader.fill()
    return reader


def _in_parallel(task: Callable[[int], None], count: int, title: str) -> None:
    """Run `task` on 0..count-1 in threads, with a progress bar.

    Decoding releases Python's lock.
    """
    with single_threaded_opencv(), ThreadPool(available_cpus()) as pool:
        done = pool.imap_unordered(task, range(count), chunksize=8)
        for _ in tqdm(done, title, total=count, unit="img", disable=not is_main(), leave=False):
            pass


def _existing(folder: Path) -> Path:
    """Return the nearest folder above that exists."""
    while not folder.is_dir():
        folder = folder.parent
    return folder


class SharedBlock:
    """Hold `size` bytes of memory that forked and spawned workers share.

    On Linux it is an anonymous file in memory, because /dev/shm is often tiny in a container. Elsewhere it is
    a temporary file, which the system keeps in memory as long as there is room.

    Attributes:
        array: (size,) uint8.
    """

    def __init__(self, size: int) -> None:
        self.size = max(size, 1)
        if hasattr(os, "memfd_create"):
            self._file: IO[bytes] = os.fdopen(os.memfd_create("images"), "r+b")
            self._path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        else:
            self._file = tempfile.NamedTemporaryFile(prefix="images-")  # noqa: SIM115 kept open
            self._path = self._file.name
        self._file.truncate(self.size)
        self.array = self._map()

    def _map(self) -> np.ndarray:
        """Return the memory as an array."""
        return np.frombuffer(mmap.mmap(self._file.fileno(), self.size), np.uint8)

    def __getstate__(self) -> tuple[str, int]:
        return self._path, self.size

    def __setstate__(self, state: tuple[str, int]) -> None:
        self._path, self.size = state
        self._file = open(self._path, "r+b")  # noqa: SIM115 kept open
        self.array = self._map()


_CGROUP_MEMORY = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Limit, use and statistics of a container's memory, version 2 and version 1."""


def free_memory() -> int | None:
    """Return the bytes of memory that are free in the machine and its container.

    None: the system does not say.
    """
    found = []
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    for limit, used, statistics in _CGROUP_MEMORY:
        values = [_lines(limit)[:1], _lines(used)[:1]]
        if all(v and v[0].isdigit() for v in values):
            # Pages of files that were read count as used, but the system frees them on demand.
            pages = [int(s.split()[1]) for s in _lines(statistics) if s.startswith("inactive_file ")]
            found.append(int(values[0][0]) - int(values[1][0]) + sum(pages))
    return max(min(found), 0) if found else None


def _lines(path: str) -> list[str]:
    """Return the lines of a file of the system; none without it."""
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
