"""The command line of the data set's check: text, JSON, page, exit codes, and nothing changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data import check
from models.weights.checkpoint import save_checkpoint
from models.yolo import DetectionModel
from tests.tiny_set import NAMES, TINY_MODEL, write_set
from utils.errors import UserError
from utils.files import ROOT, save_yaml


@pytest.fixture
def data(tmp_path):
    path = write_set(tmp_path / "set", train=4, val=2)
    file = tmp_path / "set/labels/train/0.txt"
    file.write_text(file.read_text() + "0 0.5 0.5 1.5 0.1\n7 0.5 0.5 0.1 0.1\n")
    (tmp_path / "set/images/val/9.png").write_bytes((tmp_path / "set/images/train/1.png").read_bytes())
    return path


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    model = DetectionModel(TINY_MODEL)
    model.names = dict(enumerate(NAMES))
    folder = tmp_path / "run/weights"
    folder.mkdir(parents=True)
    save_checkpoint(folder / "best.pt", model, meta={})
    save_yaml(tmp_path / "run/opt.yaml", {"imgsz": 96})
    return folder / "best.pt"


def test_the_script_tells_everything_and_ends_with_0(data, tmp_path):
    before = sorted((p, os.stat(p).st_mtime_ns) for p in data.parent.rglob("*"))
    done = subprocess.run(
        [sys.executable, ROOT / "data/check.py", "--data", data, "--project", tmp_path / "runs"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert sorted((p, os.stat(p).st_mtime_ns) for p in data.parent.rglob("*")) == before
    for text in ("coordinate 1.5 is outside 0..1", "class 7, but the YAML names 2", "leak: 1", "rare-class"):
        assert text in done.stdout
    report = json.loads((tmp_path / "runs/exp/findings.json").read_text())
    assert report["counts"]["bad-line"] == report["counts"]["unknown-class"] == report["counts"]["leak"] == 1
    (bad,) = [f for f in report["findings"] if f["kind"] == "bad-line"]
    assert Path(bad["file"]).name == "0.txt" and bad["line"] >= 2
    page = (tmp_path / "runs/exp/index.html").read_text()
    assert "data:image/jpeg;base64," in page and "unknown-class: 1" in page


def test_a_mistake_is_a_sentence_and_leaves_no_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "data/check.py", "--data", "none.yaml", "--project", tmp_path / "runs"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (
        done.returncode == 1 and "Traceback" not in done.stderr and "none.yaml: no such file" in done.stderr
    )
    assert not (tmp_path / "runs").exists()


def test_with_weights_labels_are_searched_at_their_training_size(data, weights, tmp_path):
    file = tmp_path / "set/labels/train/0.txt"
    file.write_text(file.read_text().replace("7 0.5 0.5 0.1 0.1\n", ""))
    result = check.run(data=str(data), weights=str(weights), project=str(tmp_path / "runs"))
    assert "mAP50 on train" in result.sections[-1].facts and "mAP50 on val" in result.sections[-1].facts
    report = json.loads((result.save_dir / "findings.json").read_text())
    assert report["imgsz"] == 96
    assert report["facts"]["Anchors at 96 px"]["best possible recall"] == 1.0  # the network's, not yolov5n's


def test_the_image_size_is_the_one_asked_for(data, tmp_path):
    result = check.run(data=str(data), imgsz=320, project=str(tmp_path / "runs"))
    assert any(section.title == "Boxes at 320 px" for section in result.sections)
    assert check.trained_imgsz("") == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"imgsz": 0}, "--imgsz 0: must be at least 1"),
        ({"weights": "none.pt"}, "none.pt"),
        ({"wieghts": "a.pt"}, "did you mean 'weights'"),
    ],
)
def test_wrong_options(data, tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        check.run(data=str(data), project=str(tmp_path / "runs"), **options)


def test_a_network_of_other_classes_is_refused(data, weights, tmp_path):
    text = data.read_text().replace("- disc\n", "- disc\n- ring\n")
    data.write_text(text)
    with pytest.raises(UserError, match="2 classes"):
        check.run(data=str(data), weights=str(weights), project=str(tmp_path / "runs"))
