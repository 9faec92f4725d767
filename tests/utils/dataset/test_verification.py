"""Verification of a split: its processes, its cache, its log."""

import os
import signal

import cv2
import numpy as np
import pytest

from tests.utils.image_sets import make_dataset, write_yaml
from tests.utils.test_files import dead_part
from utils.dataset import labels, verification
from utils.dataset.config import load_dataset
from utils.dataset.images import load_images
from utils.dataset.verification import scan
from utils.errors import UserError


def _images(folder, count):
    """`count` names of one picture."""
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "0.png"), np.zeros((20, 20, 3), np.uint8))
    for i in range(1, count):
        os.link(folder / "0.png", folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(count)]


def test_a_process_that_dies_ends_the_scan_in_a_sentence(tmp_path, monkeypatch):
    def dies(image, label, keypoints, verify=labels.verify):
        if image.endswith("70.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return verify(image, label, keypoints)

    def late(*_):
        raise TimeoutError("still waiting after 60 s")

    monkeypatch.setattr(verification, "verify", dies)  # the forked processes inherit it
    monkeypatch.setattr("utils.processes.available_cpus", lambda: 2)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        with pytest.raises(UserError, match=r"while verifying .*64\.png to .*95\.png.* fewer --workers"):
            verification.scan(_images(tmp_path / "images", 100), None, workers=2, title="scan")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def verified(monkeypatch):
    """Names of the images that were really looked at, in order."""
    seen = []

    def noted(image, label, keypoints, verify=labels.verify):
        seen.append(os.path.basename(image))
        return verify(image, label, keypoints)

    monkeypatch.setattr(verification, "verify", noted)
    return seen


def test_a_fault_of_the_system_is_not_remembered(tmp_path, verified):
    images = _images(tmp_path / "images", 2)
    (tmp_path / "labels" / "1.txt").mkdir(parents=True)
    (tmp_path / "labels" / "0.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    cache = tmp_path / "labels.cache.npz"
    for _ in range(2):
        packed, report = verification.scan(images, cache, workers=1, title="scan")
        assert (report.found, report.corrupt) == (1, 1)
    assert verified == ["0.png", "1.png", "1.png"]
    (tmp_path / "labels" / "1.txt").rmdir()
    assert verification.scan(images, cache, workers=1, title="scan")[1].missing == 1
    verification.scan(images, cache, workers=1, title="scan")
    assert verified == ["0.png", "1.png", "1.png", "1.png"]


def test_the_part_of_a_killed_run_goes_when_a_cache_is_written(tmp_path):
    images = _images(tmp_path / "images", 1)
    dead = dead_part(tmp_path, "c.npz")
    verification.scan(images, tmp_path / "c.npz", workers=1, title="scan")
    assert (tmp_path / "c.npz").is_file() and not dead.exists()


def test_other_decoders_judge_anew(tmp_path, verified, monkeypatch):
    images = _images(tmp_path / "images", 1)
    (tmp_path / "images" / "0.png").write_bytes(b"no image")
    for decoders, times in (
        (verification.DECODERS, 1),
        (verification.DECODERS, 1),
        ("Pillow 99", 2),
        ("Pillow 99", 2),
    ):
        monkeypatch.setattr(verification, "DECODERS", decoders)
        assert verification.scan(images, tmp_path / "c.npz", workers=1, title="scan")[1].corrupt == 1
        assert len(verified) == times


def test_only_what_changed_is_verified_again(tmp_path, own_folders, verified):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n", "1 .5 .5 .2 .2\n", None])
    config = load_dataset(write_yaml(root))
    first = load_images(config, "train", workers=1)
    assert (root / "labels" / "train.cache.npz").is_file()
    assert len(verified) == 3
    second = load_images(config, "train", workers=1)
    assert len(verified) == 3
    assert second.all_labels.tolist() == first.all_labels.tolist()
    (root / "labels/train/1.txt").write_text("2 .5 .5 .2 .2\n")  # same size, other content
    os.utime(root / "labels/train/1.txt", ns=(1, 1))
    (root / "labels/train/2.txt").write_text("0 .5 .5 .2 .2\n")
    third = load_images(config, "train", workers=1)
    assert verified[3:] == ["1.png", "2.png"]
    assert third.all_labels[:, 0].tolist() == [0, 2, 0]
    (root / "images/train/0.png").unlink()
    assert len(load_images(config, "train", workers=1)) == 2
    assert len(verified) == 5
    load_images(config, "train", workers=1, use_cache=False)
    assert len(verified) == 7


def test_broken_or_foreign_cache_is_made_anew(tmp_path, own_folders, verified):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    config = load_dataset(write_yaml(root))
    load_images(config, "train", workers=1)
    cache = root / "labels" / "train.cache.npz"
    good = cache.read_bytes()
    cache.write_bytes(good[: len(good) // 2])
    assert len(load_images(config, "train", workers=1)) == 1
    with np.load(cache) as file:
        arrays = dict(file)
    for change in ({"offsets": np.array([0, 99])}, {"version": np.int64(0)}):
        np.savez(cache, **(arrays | change))
        assert load_images(config, "train", workers=1).all_labels.shape == (1, 5)
    assert len(verified) == 4
    np.savez(cache, **{k: np.array([{"a": 1}], object) if k == "labels" else v for k, v in arrays.items()})
    assert len(load_images(config, "train", workers=1)) == 1  # pickled objects are not even looked at


def test_read_only_data_is_cached_elsewhere_and_left_alone(tmp_path, own_folders, verified, logged):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    config = load_dataset(write_yaml(root))
    before = sorted(p.name for p in (root / "labels").iterdir())
    (root / "labels").chmod(0o555)
    try:
        for _ in range(2):
            load_images(config, "train", workers=1)
    finally:
        (root / "labels").chmod(0o755)
    assert sorted(p.name for p in (root / "labels").iterdir()) == before
    assert len(verified) == 1
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1
    assert any("read-only folder" in line for line in logged)


def test_no_place_for_a_cache_is_a_warning(tmp_path, own_folders, monkeypatch, logged):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n"])

    def refuse(path, write):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(verification, "atomic_write", refuse)
    assert len(load_images(load_dataset(write_yaml(root)), "train", workers=1)) == 1
    assert "could not be written" in logged[0]


def test_processes_find_what_one_process_finds(tmp_path, own_folders):
    root = make_dataset(tmp_path / "d", [f"{i % 3} .5 .5 .2 .{1 + i % 8}\nx\n" for i in range(70)])
    config = load_dataset(write_yaml(root))
    one = load_images(config, "train", workers=1, use_cache=False)
    two = load_images(config, "train", workers=2, use_cache=False)
    assert one.all_labels.tolist() == two.all_labels.tolist()
    assert one.report == two.report
    assert len(one.report.messages) == 70


def test_the_log_shows_the_first_findings_and_counts_the_rest(tmp_path, own_folders, logged):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n" + "x\n" * 25])
    images = load_images(load_dataset(write_yaml(root)), "train", workers=1)
    assert sum("is not a number" in line for line in logged) == 20
    assert "and 5 more" in logged[-1]
    assert len(images.report.messages) == 25


def test_a_forged_cache_is_made_anew(tmp_path, log):
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "a.txt").write_text("0 .5 .5 .2 .2\n")
    cache = tmp_path / "a.cache.npz"
    true, _ = scan([str(image)], cache, workers=0, title="")
    with np.load(cache) as file:
        arrays = dict(file)
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (1 << 12, 5), (0, 0))
    for name, forged in {
        "labels": np.float32([[0, 7, np.nan, 1, 1]]),
        "sizes": np.int32([[65000, 65000]]),
        "status": np.array([0], object),
        "offsets": np.array([0, 1.0]),
        "points": huge,
    }.items():
        np.savez_compressed(cache, **(arrays | {name: forged}))
        log.clear()
        packed, _ = scan([str(image)], cache, workers=0, title="")
        assert "labels are verified again" in log.text, name
        assert np.array_equal(packed.labels, true.labels) and np.array_equal(packed.sizes, true.sizes), name
