"""Verification of a split: what its processes and its cache do when the system fails."""

import os
import signal

import cv2
import numpy as np
import pytest

from utils.dataset import labels
from utils.dataset import verification as scan
from utils.errors import UserError


def _images(folder, count):
    """`count` names of one picture."""
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "0.png"), np.zeros((20, 20, 3), np.uint8))
    for i in range(1, count):
        os.link(folder / "0.png", folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(count)]


def test_a_process_that_dies_ends_the_scan_in_a_sentence(tmp_path, monkeypatch):
    def dies(image, label, verify=labels.verify):
        if image.endswith("70.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return verify(image, label)

    def late(*_):
        raise TimeoutError("still waiting after 60 s")

    monkeypatch.setattr(labels, "verify", dies)  # the forked processes inherit it
    monkeypatch.setattr(scan, "available_cpus", lambda: 2)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        with pytest.raises(UserError, match=r"while verifying .*64\.png to .*95\.png.* fewer --workers"):
            scan.scan(_images(tmp_path / "images", 100), None, workers=2, title="scan")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def verified(monkeypatch):
    """Names of the images that were really looked at, in order."""
    seen = []

    def noted(image, label, verify=labels.verify):
        seen.append(os.path.basename(image))
        return verify(image, label)

    monkeypatch.setattr(scan, "verify", noted)
    return seen


def test_a_fault_of_the_system_is_not_remembered(tmp_path, verified):
    images = _images(tmp_path / "images", 2)
    (tmp_path / "labels" / "1.txt").mkdir(parents=True)
    (tmp_path / "labels" / "0.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    cache = tmp_path / "labels.cache.npz"
    for _ in range(2):
        packed, report = scan.scan(images, cache, workers=1, title="scan")
        assert (report.found, report.corrupt) == (1, 1)
    assert verified == ["0.png", "1.png", "1.png"]
    (tmp_path / "labels" / "1.txt").rmdir()
    assert scan.scan(images, cache, workers=1, title="scan")[1].missing == 1
    scan.scan(images, cache, workers=1, title="scan")
    assert verified == ["0.png", "1.png", "1.png", "1.png"]


def test_other_decoders_judge_anew(tmp_path, verified, monkeypatch):
    images = _images(tmp_path / "images", 1)
    (tmp_path / "images" / "0.png").write_bytes(b"no image")
    for decoders, times in ((scan.DECODERS, 1), (scan.DECODERS, 1), ("Pillow 99", 2), ("Pillow 99", 2)):
        monkeypatch.setattr(scan, "DECODERS", decoders)
        assert scan.scan(images, tmp_path / "c.npz", workers=1, title="scan")[1].corrupt == 1
        assert len(verified) == times
