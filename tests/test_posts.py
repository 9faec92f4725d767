"""The posts' YAMLs, unchanged from what they print: through train.py, on rectangles too, and the refusal."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch

import train
from models.weights.checkpoint import load_checkpoint
from models.weights.initial_model import start_model
from tests.tiny_set import write_set
from utils.errors import UserError
from utils.files import ROOT, load_yaml
from utils.training.loggers import read_results

POSTS = ROOT / "tests/fixtures/posts"
RUNS = [
    ("yolov5-mobilenetv2", False),
    ("yolov5s-ghost-backbone", False),
    ("yolov5-mobilevit", False),
    ("yolov5-mobilevit", True),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide images: rectangles of 3 x 2 cells at stride 32, which no patch of 2, 3 or 4 divides."""
    folder = tmp_path_factory.mktemp("shapes")
    path = write_set(folder, train=8, val=4)
    for file in folder.glob("images/*/*.png"):
        cv2.imwrite(str(file), cv2.resize(cv2.imread(str(file)), (96, 60)))
    return path


def options(data: Path, name: str, tmp_path: Path, **changes) -> dict:
    base = {"cfg": str(POSTS / f"{name}.yaml"), "data": str(data), "imgsz": 96, "epochs": 1, "batch_size": 4}
    base |= {"workers": 0, "device": "cpu", "noplots": True, "noautoanchor": True, "project": str(tmp_path)}
    return base | changes


@pytest.mark.parametrize(("name", "rect"), RUNS)
def test_a_post_trains_as_printed(data: Path, tmp_path: Path, name: str, rect: bool) -> None:
    printed_file = POSTS / f"{name}.yaml"
    result = train.run(**options(data, name, tmp_path, rect=rect))
    (losses,) = read_results(result.save_dir / "results.csv")
    assert all(0 < value < 10 for value in losses[1:4])
    model = load_checkpoint(result.last).model
    printed = load_yaml(printed_file)
    assert {key: model.yaml[key] for key in printed if key != "nc"} == {
        key: value for key, value in printed.items() if key != "nc"
    }
    start = start_model(printed_file, "", names={0: "square", 1: "disc"}).half().state_dict()
    kernels = {key: p.half() for key, p in model.named_parameters() if p.ndim == 4}
    assert [key for key, p in kernels.items() if torch.equal(p, start[key])] == []  # every one has learned


def test_the_post_that_stops_in_the_middle_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"efficient\.yaml: head row 8 \(layer 19, C3\).*no row is Detect"):
        train.run(**options(data, "yolov5-efficient", tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
