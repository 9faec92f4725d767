"""Recording and saving each epoch: the best is kept, patience ends a run."""

from __future__ import annotations

from pathlib import Path

import pytest

import train
from models.weights.checkpoint import load_checkpoint
from tests.test_train import interrupt_in, options
from utils.training.loggers import read_results
from utils.training_run import recorder


@pytest.mark.parametrize(
    ("written", "scores", "best_epoch"),
    [
        (0, [0.3, 0.4, 0.1], 1),  # while last.pt is written before the first epoch
        (1, [0.5, 0.3, 0.4, 0.1], 1),  # while best.pt of the first is, which starts again and is worse
        (4, [0.1, 0.5, 0.5, 0.2], 1),  # between best.pt and last.pt of the second, which starts again
        (3, [0.9, 0.5, 0.5, 0.2], 0),  # the best epoch was saved before
    ],
)
def test_the_best_epoch_is_kept_wherever_ctrl_c_falls(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int, scores: list, best_epoch: int
) -> None:
    original, files, rest = train.save_checkpoint, [], iter(scores)
    monkeypatch.setattr(recorder, "fitness", lambda metrics: next(rest))

    def pressed(path: Path, *args, **kwargs) -> None:
        files.append(path)
        if len(files) == written + 1:
            raise KeyboardInterrupt
        original(path, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "save_checkpoint", pressed)
        train.run(**options(folder, tmp_path, epochs=3))
    result = train.run(resume=str(tmp_path / "exp" / "weights" / "last.pt"))
    assert result.best == tmp_path / "exp" / "weights" / "best.pt"
    assert load_checkpoint(result.best).meta["epoch"] == best_epoch


def test_another_runs_best_is_neither_reported_nor_lost(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    scores = iter([0.9, 0.5, 0.1, 0.3, 0.2])
    monkeypatch.setattr(recorder, "fitness", lambda metrics: next(scores))
    theirs = train.run(**options(folder, tmp_path, epochs=1)).best
    before = theirs.read_bytes()
    again = {"exist_ok": True, "nosave": True}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, epoch=1)
        train.run(**options(folder, tmp_path, epochs=3, **again))
    result = train.run(resume=str(theirs.with_name("last.pt")))
    assert result.best is None and theirs.read_bytes() == before
    assert "best.pt: is another run's and is kept" in log.text
    assert not load_checkpoint(result.last).meta["best_saved"]


def test_patience_stops_early(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.5, 0.4, 0.3, 0.2, 0.1])
    monkeypatch.setattr(recorder, "fitness", lambda metrics: next(scores))
    result = train.run(**options(folder, tmp_path, epochs=5, patience=2))
    assert len(read_results(result.save_dir / "results.csv")) == 3
    assert load_checkpoint(result.best).meta["epoch"] == 0
