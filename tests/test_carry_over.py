"""Training with another network's neck and head: aligned once, resumed to the bit, licence kept, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import export
import train
from models.weights.checkpoint import load_checkpoint
from tests.test_train import interrupt_in, options
from tests.tiny_necks import CARRY, JOINTS, write_carry, write_source
from tests.tiny_set import write_set
from utils.errors import UserError
from utils.files import ROOT, save_yaml

TOLD = "adapters aligned on 24 images"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("carry")
    write_set(folder)
    write_carry(folder)
    write_source(folder, licence="AGPL-3.0")
    return folder


def given(folder: Path, project: Path, **changes) -> dict:
    start = {"cfg": str(folder / "carry.yaml"), "neck_weights": str(folder / "source.pt"), "align": True}
    return options(folder, project, **(start | changes))


def test_aligned_once_resumed_to_the_bit_and_the_licence_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    log.set_level("INFO", "yolo")
    whole = train.run(**given(folder, tmp_path, save_period=1))
    assert "75 of 75 tensors of the neck and head fitted; classes that start anew: 'square'" in log.text
    assert "have the licence AGPL-3.0" in log.text and TOLD in log.text
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, epoch=1)
        train.run(**given(folder, tmp_path, save_period=1, name="broken"))
    log.clear()
    resumed = train.run(resume=str(tmp_path / "broken" / "weights" / "last.pt"))
    assert TOLD not in log.text and "tensors of the neck" not in log.text
    states = [load_checkpoint(r.save_dir / "weights/epoch1.pt").model.state_dict() for r in (whole, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    for path in (whole.best, resumed.last):
        assert load_checkpoint(path).meta["licence"] == "AGPL-3.0"
    export.run(weights=str(resumed.last), include=["torchscript"], imgsz=[64], device="cpu")
    extra = {"config.txt": ""}
    torch.jit.load(str(resumed.last.with_suffix(".torchscript")), _extra_files=extra)
    assert json.loads(extra["config.txt"])["license"] == "AGPL-3.0"


def test_the_sources_anchors_stay_where_they_fit(folder: Path, tmp_path: Path) -> None:
    """Also with a YAML that gives only a number of anchors, which are placeholders without --neck-weights."""
    source = load_checkpoint(folder / "source.pt").model.detect.anchors
    save_yaml(tmp_path / "count.yaml", CARRY | {"anchors": 2})
    for cfg in (folder / "carry.yaml", tmp_path / "count.yaml"):
        result = train.run(**given(folder, tmp_path, cfg=str(cfg), align=False, epochs=1))
        assert torch.equal(load_checkpoint(result.last).model.detect.anchors, source)


def test_a_folder_of_photographs_takes_the_place_of_the_training_images(
    folder: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    log.set_level("INFO", "yolo")
    photographs = folder / "images" / "val"
    train.run(**given(folder, tmp_path, align=str(photographs), align_epochs=2, epochs=1))
    assert "adapters aligned on 8 images" in log.text
    assert "backbone and adapters taught the maps in 2 epochs of augmented images" in log.text


def test_two_processes_start_from_the_same_adapters(folder: Path, tmp_path: Path) -> None:
    """At a rate of next to nothing the adapters are, after an epoch, those that one process aligns."""
    hyp = {"lr0": 1e-8, "lrf": 1.0, "warmup_epochs": 0.0, "warmup_bias_lr": 0.0, "nominal_batch": 8}
    save_yaml(tmp_path / "hyp.yaml", hyp)
    one = train.run(**given(folder, tmp_path, hyp=str(tmp_path / "hyp.yaml"), epochs=1, name="one"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += [str(ROOT / "train.py"), "--noplots", "--device", "cpu", "--workers", "0", "--imgsz", "96"]
    command += ["--cfg", str(folder / "carry.yaml"), "--data", str(folder / "shapes.yaml"), "--epochs", "1"]
    command += ["--neck-weights", str(folder / "source.pt"), "--align", "--sync-bn", "--batch-size", "8"]
    command += ["--hyp", str(tmp_path / "hyp.yaml"), "--project", str(tmp_path), "--name", "two"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count(TOLD) + done.stdout.count(TOLD) == 1
    a, b = (load_checkpoint(path).model for path in (one.last, tmp_path / "two/weights/last.pt"))
    for joint in JOINTS:
        torch.testing.assert_close(a.model[joint].conv.weight, b.model[joint].conv.weight, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"neck_weights": ""}, "--align needs the network to align with"),
        ({"weights": "a.pt"}, "--neck-weights fills the neck of --cfg; give --cfg, and no --weights"),
        ({"cfg": ""}, "--neck-weights fills the neck of --cfg"),
        ({"neck_weights": "nowhere.pt"}, "nowhere.pt: no such file"),
        ({"align": "nowhere"}, "nowhere: no such file"),
        ({"align": False, "align_epochs": 3}, "--align-epochs goes on after --align"),
        ({"align_epochs": -1}, "--align-epochs"),
        ({"cfg": "yolov5-mobilenetv2.yaml"}, "tensors of the neck and head fit, and head row"),
    ],
)
def test_what_cannot_work_is_one_sentence(folder: Path, tmp_path: Path, changes: dict, says: str) -> None:
    with pytest.raises(UserError) as caught:
        train.run(**given(folder, tmp_path / "runs", **changes))
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()
