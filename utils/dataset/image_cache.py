"""Decoded images, kept nowhere, in one block of shared memory or on disk: the same pixels each way."""

from __future__ import annotations

import logging
import mmap
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from hashlib import sha256
from multiprocessing.pool import ThreadPool
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.dataset.image_set import ImageSet
from utils.device import available_cpus, is_main
from utils.errors import UserError
from utils.files import atomic_write
from utils.images import load_image, resize_long_side, single_threaded_opencv, training_size

LOGGER = logging.getLogger("yolo.image_cache")

CACHES = ("ram", "disk")
MARGIN = 1.1
"""How much more room than the estimate has to be free."""

Read = tuple[np.ndarray, tuple[int, int]]
"""An image at training scale, BGR uint8 (h, w, 3), not to be written to, and its native height and width."""


class ImageReader:
    """Reads images at training scale, long side `imgsz` (see `resize_long_side`); keeps nothing."""

    def __init__(self, images: ImageSet, imgsz: int, *, augment: bool) -> None:
        self.images, self.imgsz, self.augment = images, imgsz, augment

    def read(self, index: int) -> Read:
        """Image `index` and its native (height, width).

        Raises:
            UserError: the file cannot be read any more.
        """
        image = load_image(self.images.path(index))
        return resize_long_side(image, self.imgsz, augment=self.augment), image.shape[:2]

    def _expected(self, index: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """Shape at training scale and native (height, width), as the scan of the set found them."""
        width, height = (int(v) for v in self.images.sizes[index])
        scaled = training_size(width, height, self.imgsz)
        return (scaled[1], scaled[0], 3), (height, width)

    def _bytes(self) -> np.ndarray:
        """Size of each image at training scale, in bytes (n,) int64."""
        width, height = self.images.sizes.astype(np.int64).T
        long_side = np.maximum(width, height)
        return -(-width * self.imgsz // long_side) * -(-height * self.imgsz // long_side) * 3


class RamReader(ImageReader):
    """Decodes every image once, when it is filled, into one block of memory that all workers share."""

    def __init__(self, images: ImageSet, imgsz: int, *, augment: bool) -> None:
        super().__init__(images, imgsz, augment=augment)
        self._offsets = np.zeros(len(images) + 1, np.int64)
        np.cumsum(self._bytes(), out=self._offsets[1:])
        self._cached = np.zeros(len(images), bool)

    def room(self) -> list[tuple[int, int | None]]:
        """Bytes that filling takes, and those that are free."""
        return [(int(self._offsets[-1]), free_memory())]

    def fill(self) -> None:
        """Decode all images."""
        size = int(self._offsets[-1])
        self._block = SharedBlock(size)
        _in_parallel(self._store, len(self.images), f"Caching images ({size / 2**30:.2f} GiB RAM)")

    def _store(self, index: int) -> None:
        image, native = super().read(index)
        # A file that was changed since the scan does not fit its place: it is read anew each time instead.
        if (image.shape, native) == self._expected(index):
            self._view(index, image.shape)[...] = image
            self._cached[index] = True

    def _view(self, index: int, shape: tuple[int, int, int]) -> np.ndarray:
        return self._block.array[self._offsets[index] : self._offsets[index + 1]].reshape(shape)

    def read(self, index: int) -> Read:
        if not self._cached[index]:
            return super().read(index)
        shape, native = self._expected(index)
        image = self._view(index, shape)
        image.flags.writeable = False  # every worker reads this memory
        return image, native


class DiskReader(ImageReader):
    """Keeps every image at training scale as a .npy file, named by the size and time of the image file.

    Filling it writes those that are not there yet. They lie in a folder `.decoded` beside the images, or in
    the user's cache folder where that is read-only.
    """

    def __init__(self, images: ImageSet, imgsz: int, *, augment: bool) -> None:
        super().__init__(images, imgsz, augment=augment)
        self._folders: dict[str, Path] = {}
        self._remove_stale()

    def room(self) -> list[tuple[int, int]]:
        """For each disk that the files lie on: bytes that filling adds to it, and those that are free.

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
        """Write the files that are not there yet."""
        title = f"Caching images ({self._bytes().sum() / 2**30:.2f} GiB disk)"
        _in_parallel(self._store, len(self.images), title)

    def file(self, index: int) -> Path:
        """The cache file of image `index` as it is now.

        Raises:
            UserError: the image is gone.
        """
        folder, stem, key = self._name(index)
        return folder / f"{stem}.{key}.npy"

    def _name(self, index: int) -> tuple[Path, str, str]:
        """Folder, the lasting part of the cache file's name, and the part that says what it was made from."""
        path = self.images.path(index)
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}); put the image back or take it off the list"
            ) from None
        parent, name = os.path.split(os.path.abspath(path))
        folder = self._folders.get(parent)
        if folder is None:
            folder = self._folders[parent] = _cache_folder(parent)
        stem = f"{name}.{self.imgsz}{'linear' if self.augment else 'area'}"
        return folder, stem, f"{status.st_size:x}-{status.st_mtime_ns:x}"

    def _remove_stale(self) -> None:
        """Delete what was made from files that have changed since; entries of other images and sizes stay."""
        keys: dict[Path, dict[str, str]] = {}
        for index in range(len(self.images)):
            folder, stem, key = self._name(index)
            keys.setdefault(folder, {})[stem] = key
        for folder, wanted in keys.items():
            for file in folder.glob("*.npy"):
                stem, _, key = file.name.removesuffix(".npy").rpartition(".")
                if wanted.get(stem, key) != key:
                    file.unlink(missing_ok=True)

    def _store(self, index: int) -> None:
        file = self.file(index)
        if not file.is_file():
            image, _ = super().read(index)
            atomic_write(file, lambda stream: np.save(stream, image, allow_pickle=False))

    def read(self, index: int) -> Read:
        shape, native = self._expected(index)
        try:
            image = np.load(self.file(index), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return super().read(index)
        if image.shape != shape or image.dtype != np.uint8:
            return super().read(index)
        return image, native


def open_reader(images: ImageSet, imgsz: int, *, augment: bool, cache: str | None = None) -> ImageReader:
    """A reader of `images` at training scale, filled at once when `cache` is 'ram' or 'disk'.

    When 1.1 times the estimate of what is not cached yet is not free, it says so and caches nothing.

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
                "--cache %s needs %.1f GiB and %.1f GiB are free: images are not cached, the run goes on "
                "without",
                cache,
                MARGIN * need / 2**30,
                free / 2**30,
            )
            return plain
    reader.fill()
    return reader


def _in_parallel(task: Callable[[int], None], count: int, title: str) -> None:
    """Run `task` on 0..count-1 in threads (decoding releases the interpreter), with a progress bar."""
    with single_threaded_opencv(), ThreadPool(available_cpus()) as pool:
        done: Iterable[Any] = pool.imap_unordered(task, range(count), chunksize=8)
        for _ in tqdm(done, title, total=count, unit="img", disable=not is_main(), leave=False):
            pass


def _cache_folder(parent: str) -> Path:
    """Where cache files for the images in `parent` go."""
    if os.access(parent, os.W_OK):
        return Path(parent) / ".decoded"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "yolo-decoded" / sha256(os.fsencode(parent)).hexdigest()[:16]


def _existing(folder: Path) -> Path:
    """The nearest folder above that is there."""
    while not folder.is_dir():
        folder = folder.parent
    return folder


class SharedBlock:
    """Memory of `size` bytes, shared with forked workers as it is and with spawned ones by handing it over.

    On Linux an anonymous file in memory, which is not held to the often tiny /dev/shm of a container;
    elsewhere a temporary file, which the system keeps in memory as long as there is room.

    Attributes:
        array: (size,) uint8.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._temporary = None
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("images")
        else:
            self._temporary = tempfile.NamedTemporaryFile(prefix="images-")  # noqa: SIM115 kept open
            self._descriptor = self._temporary.fileno()
        os.ftruncate(self._descriptor, max(size, 1))
        self._map()

    def _map(self) -> None:
        self.array = np.frombuffer(mmap.mmap(self._descriptor, max(self.size, 1)), np.uint8)[: self.size]

    def __getstate__(self) -> dict[str, Any]:
        if self._temporary is not None:
            return {"size": self.size, "file": self._temporary.name}
        return {"size": self.size, "descriptor": DupFd(self._descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.size, self._temporary = state["size"], None
        if "file" in state:
            self._descriptor = os.open(state["file"], os.O_RDWR)
        else:
            self._descriptor = state["descriptor"].detach()
        self._map()

    def __del__(self) -> None:
        if self._temporary is None and hasattr(self, "_descriptor"):
            os.close(self._descriptor)


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
    """Bytes that can be taken without swapping, in the machine and its container; None where nobody says."""
    found = []
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    for limit, used, statistics in _CGROUP_MEMORY:
        values = [_lines(limit)[:1], _lines(used)[:1]]
        if all(v and v[0].isdigit() for v in values):
            # Pages of files that were read count as used, and are given up when memory is asked for.
            pages = [int(s.split()[1]) for s in _lines(statistics) if s.startswith("inactive_file ")]
            found.append(int(values[0][0]) - int(values[1][0]) + sum(pages))
    return max(min(found), 0) if found else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
