"""The epochs of a run: one that is stopped in its first continues, and saving may wait for the last."""

from __future__ import annotations

from pathlib import Path

import pytest

import train
from models.weights.checkpoint import load_checkpoint
from tests.test_train import interrupt_in, options
from utils.errors import UserError
from utils.training import run_folder
from utils.training.loggers import read_results


def test_ctrl_c_in_the_first_epoch_can_be_resumed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_folder, "RUNS", tmp_path)
    caplog.set_level("INFO", "yolo")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, epoch=0, after_batches=2)
        train.run(**options(folder, tmp_path, nosave=True))
    assert "epoch 1/2 is not complete; it starts again from the weights of this moment" in caplog.text
    result = train.run(resume=True, epochs=3)  # the newest last.pt of all runs, and longer
    assert result.save_dir == tmp_path / "exp" and len(read_results(result.save_dir / "results.csv")) == 3
    assert load_checkpoint(result.last).meta["updates"] == 2 + 9  # 3 batches an epoch, each a step
    with pytest.raises(UserError, match="has finished its 3 epochs"):
        train.run(resume=str(result.last))
    with pytest.raises(UserError, match="with imgsz = 96; only"):
        train.run(resume=str(result.last), imgsz=128)
    longer = train.run(resume=str(result.last), epochs=4, noval=True)
    assert "keeps no optimizer state" in caplog.text
    assert len(read_results(longer.save_dir / "results.csv")) == 4


def test_noval_and_nosave_wait_for_the_last_epoch(folder: Path, tmp_path: Path) -> None:
    result = train.run(**options(folder, tmp_path, noval=True, nosave=True, label_smoothing=0.1))
    rows = read_results(result.save_dir / "results.csv")
    assert rows[0][4] != rows[0][4] and rows[1][4] == rows[1][4]  # nan, then a figure
    assert {p.name for p in (result.save_dir / "weights").iterdir()} == {"last.pt", "best.pt"}
