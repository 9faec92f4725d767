"""What is settled before a run: how the network computes, recorded, resumed and taken over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import train
from models.weights.checkpoint import load_checkpoint
from models.yolo import DetectionModel
from tests.test_train import LEARN_HYP, interrupt_in, options
from tests.tiny_set import TINY_MODEL
from utils.errors import UserError
from utils.training.compute_mode import ComputeMode, this_machine
from utils.training.measured_mode import Workload
from utils.training.options import TrainOptions
from utils.training_run import settings


def test_what_amp_auto_chose_is_recorded_resumed_and_taken_by_another_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    names = frozenset(["model.1.conv", "model.3.conv"])
    chosen = ComputeMode(torch.bfloat16, False, names, machine=this_machine())
    asked = []

    def choose(model: torch.nn.Module, work: Workload) -> ComputeMode:
        asked.append(work)
        return chosen

    monkeypatch.setattr(settings, "choose_mode", choose)
    whole = train.run(**options(folder, tmp_path, name="whole", noval=True))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, epoch=1)
        train.run(**options(folder, tmp_path, name="broken", noval=True))
    assert asked == 2 * [Workload(imgsz=96, batch_size=8, images=48)]
    saved = yaml.safe_load((tmp_path / "broken" / "opt.yaml").read_text())
    assert saved["amp"] == "auto" and ComputeMode.from_plain(saved["amp_choice"], "") == chosen
    resumed = train.run(resume=str(tmp_path / "broken" / "weights" / "last.pt"))
    taken = train.run(**options(folder, tmp_path, name="taken", noval=True, amp=f"from:{whole.save_dir}"))
    assert len(asked) == 2, "neither measures"
    states = [load_checkpoint(r.last).model.state_dict() for r in (whole, resumed, taken)]
    for other in states[1:]:
        assert all(torch.equal(value, other[name]) for name, value in states[0].items())
    assert load_checkpoint(taken.last).meta["opt"]["amp_choice"] == saved["amp_choice"]
    plain = train.run(**options(folder, tmp_path, name="plain", noval=True, amp="bf16"))
    other = load_checkpoint(plain.last).model.state_dict()
    assert not all(torch.equal(value, other[name]) for name, value in states[0].items())
    monkeypatch.setattr(settings, "this_machine", lambda: "a newer CPU")
    train.run(**options(folder, tmp_path, epochs=1, noval=True, amp=f"from:{plain.save_dir}"))
    assert not any("the fastest" in text for text in log.messages), "nothing was measured there"
    train.run(**options(folder, tmp_path, epochs=1, noval=True, amp=f"from:{whole.last}"))
    assert any(f"was the fastest on {this_machine()}; this is a newer CPU" in text for text in log.messages)


def test_a_choice_for_a_cpu_is_refused_elsewhere() -> None:
    with pytest.raises(UserError, match="--amp from:run: is a choice for a CPU, and this runs on mps"):
        settings.settle(
            *(TrainOptions(amp="from:run"), DetectionModel(TINY_MODEL), LEARN_HYP, 24, torch.device("mps")),
            stride=32,
            resumed=False,
            mode=ComputeMode(),
        )
