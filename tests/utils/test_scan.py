"""Verification of a split: what its processes and its cache do when the system fails."""

import os
import signal

import cv2
import numpy as np
import pytest

from utils import labels, scan
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
