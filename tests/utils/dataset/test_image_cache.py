"""A cache changes how long reading takes and nothing else."""

import os
import pickle
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest

import utils.dataset.image_cache as image_cache
from tests.utils.image_sets import write_images
from tests.utils.test_files import dead_part
from utils.dataset.image_cache import DiskReader, ImageReader, RamReader, free_memory, open_reader
from utils.dataset.image_set import FOUND, ImageSet, Packed, Record, ScanReport
from utils.errors import UserError

SIZES = [(120, 80), (64, 96), (200, 200), (33, 50), (90, 31)]


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_cached_pixels_are_those_of_the_file(tmp_path, cache, augment):
    images = write_images(tmp_path, SIZES)
    plain = open_reader(images, 64, augment=augment)
    cached = open_reader(images, 64, augment=augment, cache=cache)
    assert type(plain) is ImageReader
    assert type(cached) is {"ram": RamReader, "disk": DiskReader}[cache]
    decoded = []
    cached_read = cv2.imdecode
    for i in range(len(images)):
        expected, native = plain.read(i)
        cv2.imdecode = lambda *_: decoded.append(1)
        try:
            found, found_native = cached.read(i)
        finally:
            cv2.imdecode = cached_read
        np.testing.assert_array_equal(found, expected)
        assert found_native == native == SIZES[i][::-1]
        assert max(found.shape) == 64
    assert decoded == []


def test_ram_is_read_only(tmp_path):
    image, _ = open_reader(write_images(tmp_path, SIZES), 64, augment=True, cache="ram").read(1)
    with pytest.raises(ValueError, match="read-only"):
        image[:] = 0
    assert cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_CONSTANT).shape[0] == image.shape[0] + 2


def test_an_image_that_changed_its_size_is_read_anew(tmp_path):
    images = write_images(tmp_path, SIZES)
    cv2.imwrite(images.path(0), np.zeros((100, 50, 3), np.uint8))
    for cache in ("ram", "disk"):
        image, native = open_reader(images, 64, augment=True, cache=cache).read(0)
        assert native == (100, 50)
        assert image.shape == (64, 32, 3)


def test_disk_entries_go_by_size_and_time_of_the_file(tmp_path):
    images = write_images(tmp_path, SIZES)
    reader = open_reader(images, 64, augment=True, cache="disk")
    first = reader.file(0)
    assert first.is_file()
    assert first.parent == tmp_path / ".decoded"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [f"{i:03d}.jpg" for i in range(5)]
    before = reader.read(0)[0].copy()
    cv2.imwrite(images.path(0), np.full((80, 120, 3), 200, np.uint8))
    os.utime(images.path(0), ns=(1, 1))
    assert not np.array_equal(reader.read(0)[0], before)  # while it is in use, too
    other = open_reader(images, 32, augment=True, cache="disk").file(0)
    again = open_reader(images, 64, augment=True, cache="disk")
    assert not first.exists()
    assert again.file(0).is_file()
    assert other.is_file()
    assert abs(int(again.read(0)[0].mean()) - 200) <= 1


def test_the_parts_of_a_killed_run_are_removed(tmp_path):
    images = write_images(tmp_path, SIZES)
    folder = open_reader(images, 64, augment=True, cache="disk").file(0).parent
    dead = dead_part(folder, "x.npy")
    open_reader(images, 64, augment=True, cache="disk")
    assert not dead.exists()


def test_a_damaged_entry_is_not_believed(tmp_path):
    images = write_images(tmp_path, SIZES)
    reader = open_reader(images, 64, augment=True, cache="disk")
    expected = reader.read(2)[0].copy()
    for damage in (b"", reader.file(2).read_bytes()[:500], b"rubbish"):
        reader.file(2).write_bytes(damage)
        np.testing.assert_array_equal(reader.read(2)[0], expected)


def test_a_read_only_folder_is_left_alone(tmp_path, monkeypatch):
    images = write_images(tmp_path / "images", SIZES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(image_cache.os, "access", lambda *_: False)
    reader = open_reader(images, 64, augment=True, cache="disk")
    assert reader.file(0).is_relative_to(tmp_path / "home")
    assert reader.file(0).is_file()
    assert all(p.suffix == ".jpg" for p in (tmp_path / "images").iterdir())


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_what_does_not_fit_is_not_cached(tmp_path, monkeypatch, caplog, cache):
    images = write_images(tmp_path, SIZES)
    need = int(1.1 * open_reader(images, 64, augment=True)._bytes().sum())
    usage = namedtuple("usage", "free")
    for free, expected in ((need - 5, ImageReader), (need + 5, RamReader if cache == "ram" else DiskReader)):
        monkeypatch.setattr(image_cache, "free_memory", lambda free=free: free)
        monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _, free=free: usage(free))
        assert type(open_reader(images, 64, augment=True, cache=cache)) is expected
    assert caplog.text.count("images are not cached") == 1


def test_files_that_are_there_need_no_room(tmp_path, monkeypatch):
    images = write_images(tmp_path, SIZES)
    first = open_reader(images, 64, augment=True, cache="disk")
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: usage(64 * 64 * 3 * 1.1 + 1))
    assert type(open_reader(images, 64, augment=True, cache="disk")) is DiskReader
    first.file(2).unlink()  # 64 x 64: what is missing fits
    assert type(open_reader(images, 64, augment=True, cache="disk")) is DiskReader
    assert first.file(2).is_file()
    for index in (2, 3):
        first.file(index).unlink()
    assert type(open_reader(images, 64, augment=True, cache="disk")) is ImageReader
    assert not first.file(2).is_file()


def test_each_disk_is_asked_for_its_own_share(tmp_path, monkeypatch):
    memory = Path("/dev/shm")
    if not memory.is_dir() or os.stat(memory).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("no second disk")
    images = write_images(tmp_path, SIZES)
    places = (tmp_path, memory / f"absent-{os.getpid()}-{tmp_path.parent.name}")
    monkeypatch.setattr(DiskReader, "file", lambda _, index: places[index % 2] / f"{index}.npy")
    usage = namedtuple("usage", "free")
    free = {tmp_path: 2**30, memory: 0}
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: usage(free[path]))
    reader = DiskReader(images, 64, augment=True)
    sizes = reader._bytes()
    assert reader.room() == [(sizes[::2].sum(), 2**30), (sizes[1::2].sum(), 0)]
    assert type(open_reader(images, 64, augment=True, cache="disk")) is ImageReader


def test_unknown_caches_and_missing_images_are_refused(tmp_path):
    images = write_images(tmp_path, SIZES)
    with pytest.raises(UserError, match="--cache tape"):
        open_reader(images, 64, augment=True, cache="tape")
    os.unlink(images.path(3))
    for cache in ("ram", "disk"):
        with pytest.raises(UserError, match=r"003\.jpg"):
            open_reader(images, 64, augment=True, cache=cache)


def test_free_memory_is_a_plausible_figure():
    free = free_memory()
    assert free is None or 2**20 < free < 2**50


def test_the_memory_block_is_shared_and_not_copied():
    block = image_cache.SharedBlock(1000)
    child = os.fork()
    if not child:
        block.array[7] = 42
        os._exit(0)
    os.waitpid(child, 0)
    assert block.array[7] == 42
    assert block.array.shape == (1000,)
    sent = pickle.dumps(block)
    assert len(sent) < 200
    pickle.loads(sent).array[8] = 43
    assert block.array[8] == 43


def test_names_of_255_bytes_have_cache_files(tmp_path):
    images = write_images(tmp_path, SIZES[:3])
    paths = [tmp_path / f"{name}.jpg" for name in ("长" * 83 + "aa", "长" * 83 + "bb", "short")]
    for i, path in enumerate(paths):
        os.rename(images.path(i), path)
    assert len(os.fsencode(paths[0].name)) == 255
    records = [Record(FOUND, *SIZES[i], np.zeros((0, 5), np.float32), [], []) for i in range(3)]
    images = ImageSet(Packed.from_records([str(path) for path in paths], records), ScanReport(total=3))
    reader = open_reader(images, 64, augment=True, cache="disk")
    assert len({reader.file(i) for i in range(3)}) == 3
    assert all(reader.file(i).is_file() for i in range(3))
    plain = open_reader(images, 64, augment=True)
    for i in range(3):
        np.testing.assert_array_equal(reader.read(i)[0], plain.read(i)[0])
