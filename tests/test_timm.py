"""A network of timm, by its name alone, through every script: train, resume, val, detect, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import detect
import export
import train
import val
from models.backends import load_backend
from models.weights.checkpoint import load_checkpoint
from models.yolo import DetectionModel
from tests.tiny_set import write_set
from utils.training.trainer import Trainer

pytest.importorskip("timm", reason="timm, which is optional, is not installed")


def test_a_network_of_timm_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_set(tmp_path, train=8, val=4)
    common = {"data": str(data), "imgsz": 64, "batch_size": 4, "workers": 0, "device": "cpu"}
    common |= {"project": str(tmp_path / "runs")}
    started = {"cfg": "timm:test_efficientnet", "name": "cfg", "epochs": 2, "noplots": True}

    whole = train.run(**started, **(common | {"project": str(tmp_path / "whole")}))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _press_in_second_epoch(patch)
        train.run(**started, **common)
    folder = tmp_path / "runs" / "timm-test_efficientnet"
    last = train.run(resume=str(folder / "weights" / "last.pt")).last
    model = load_checkpoint(last).model
    again, other = model.state_dict(), load_checkpoint(whole.last).model.state_dict()
    assert all(torch.equal(again[key], other[key]) for key in other)  # as if it had not been interrupted
    assert (
        DetectionModel(folder / "timm-test_efficientnet.yaml").yaml["pretrained"] == "timm/test_efficientnet"
    )

    assert val.run(weights=str(last), **common).seen == 4
    found = detect.run(
        weights=str(last),
        source=str(tmp_path / "images" / "val"),
        imgsz=[64, 96],
        conf_thres=0.0,
        device="cpu",
        project=str(tmp_path / "runs"),
    )
    assert len(list(found.save_dir.glob("*.png"))) == 4 and all(len(d.boxes) for d in found.detections)

    pytest.importorskip("onnx", reason="onnx writes the file")
    pytest.importorskip("onnxruntime", reason="onnxruntime runs it")
    (file,) = export.run(weights=str(last), imgsz=[64], include=["onnx"], device="cpu", dynamic=True)
    x = torch.rand(1, 3, 96, 64)  # a size it was not exported at
    with torch.no_grad():
        expected = model.eval()(x)[0]
    boxes = load_backend(str(file.path), torch.device("cpu")).predict(x)
    np.testing.assert_allclose(boxes[..., :4], expected[..., :4], atol=0.05)
    np.testing.assert_allclose(boxes[..., 4:], expected[..., 4:], atol=1e-4)


def _press_in_second_epoch(patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after the first epoch."""
    original = Trainer.train_epoch

    def interrupted(self, loader, number, on_batch=None):
        if number == 1:
            raise KeyboardInterrupt
        return original(self, loader, number, on_batch)

    patch.setattr(Trainer, "train_epoch", interrupted)
