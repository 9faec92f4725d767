"""A tiny detector behind torch.hub.load, and two pictures, for the tests of what it returns."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import detect
from models.weights.checkpoint import save_checkpoint
from models.yolo import DetectionModel

ROOT = Path(detect.__file__).parent
TINY = {
    "nc": 3,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30], [33, 23, 30, 61]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]]] * 4,
    "head": [[[2, 3], 1, "Detect", ["nc", "anchors"]]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint whose detections differ from place to place, and two pictures of different shapes."""
    folder = tmp_path_factory.mktemp("hub")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = DetectionModel(TINY)
        for layer in network.detect.m:
            torch.nn.init.normal_(layer.weight, std=60.0)
            layer.bias.data.view(network.detect.na, -1)[:, 4:] = 0
    save_checkpoint(folder / "tiny.pt", network, meta={})
    rng = np.random.default_rng(0)
    for name, size in (("wide", (75, 130)), ("tall", (90, 60))):
        picture = cv2.resize(rng.integers(0, 255, (8, 8, 3), np.uint8), size[::-1])
        cv2.imwrite(str(folder / f"{name}.png"), picture)
    return folder


def load(name, *args, **options):
    options = {"_verbose": False, "device": "cpu"} | options
    return torch.hub.load(str(ROOT), name, *args, source="local", trust_repo=True, **options)


@pytest.fixture
def model(folder):
    model = load("custom", path=str(folder / "tiny.pt"))
    model.conf, model.max_det = 0.3, 20
    return model


def rgb(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
