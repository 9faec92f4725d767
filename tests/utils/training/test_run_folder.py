"""A run's folder: its files, which checkpoints an epoch leaves, and what a resumed run begins with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from utils.dataset.config import DatasetConfig
from utils.errors import UserError
from utils.files import save_yaml
from utils.training.early_stopping import EarlyStopping
from utils.training.ema import ModelEMA
from utils.training.hyp import load_hyp
from utils.training.optim import LRSchedule, build_optimizer
from utils.training.options import TrainOptions
from utils.training.run_folder import (
    CheckpointSaver,
    RunFolder,
    RunState,
    check_learnt_classes,
    find_checkpoint,
    newest_best,
    options_to_save,
    resumed_epoch,
    resumed_options,
    with_newest_run,
)
from utils.training.trainer import Trainer

HYP = load_hyp("hyp.scratch-low.yaml") | {"nominal_batch": 2}


def write(path: Path, model: nn.Module, **parts: Any) -> None:
    """Write what the saver hands over, as save_checkpoint does for a DetectionModel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state": model.state_dict(), **parts}, path)


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def mean_square(raws: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    return raws[0].square().mean(), torch.zeros(3)


def make_state(patience: int = 10, epochs: int = 3) -> RunState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    average = ModelEMA(model)
    schedule = LRSchedule(HYP, epochs=epochs, batches=2, batch_size=2)
    optimizer = build_optimizer(model, "SGD", HYP, 2)
    trainer = Trainer(model, mean_square, optimizer, schedule, torch.device("cpu"), ema=average)
    return RunState(trainer, average, EarlyStopping(patience))


def make_saver(folder: Path, **options: Any) -> CheckpointSaver:
    return CheckpointSaver(RunFolder(folder), write, {"opt": {"imgsz": 64}, "seed": 7}, **options)


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "weights").iterdir()}


def test_the_folder_is_found_from_a_checkpoint_wherever_that_lies(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "exp")
    assert run.path == tmp_path / "exp" and RunFolder.create(tmp_path, "exp").path == tmp_path / "exp2"
    assert RunFolder.create(tmp_path, "exp", exist_ok=True) == run
    assert RunFolder.of(run.best) == RunFolder.of(run.epoch(3)) == run
    assert RunFolder.of(tmp_path / "copied" / "last.pt").path == tmp_path / "copied"
    names = (run.last, run.best, run.epoch(3), run.results, run.metrics, run.hyp, run.options)
    assert [str(path.relative_to(run.path)) for path in names] == [
        "weights/last.pt",
        "weights/best.pt",
        "weights/epoch3.pt",
        "results.csv",
        "metrics.json",
        "hyp.yaml",
        "opt.yaml",
    ]


def test_options_come_back_as_they_were_saved(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_options() == {}
    opt = TrainOptions(cfg=tmp_path / "a.yaml", freeze=[0], plugins=["b.py"], resume=True, batch_size=-1)
    folder.write_options(options_to_save(opt, {"lr0": 0.1}, 24))
    assert folder.read_options() == vars(TrainOptions()) | {
        "cfg": str(tmp_path / "a.yaml"),
        "freeze": [0],
        "plugins": [str(Path("b.py").resolve())],
        "resume": False,
        "batch_size": 24,
        "hyp": {"lr0": 0.1},
    }


def test_an_epoch_leaves_last_and_best_and_its_own_by_the_period(tmp_path: Path) -> None:
    state, saver = make_state(), make_saver(tmp_path, save_period=2)
    for epoch, score in enumerate([0.5, 0.3, None]):
        if score is not None:
            state.stopper(epoch, score)
        saver.save_epoch(state, epoch, score, is_last=epoch == 2)
    assert files(tmp_path) == {"last.pt", "best.pt", "epoch0.pt", "epoch2.pt"}
    best, last = read(saver.folder.best), read(saver.folder.last)
    assert best["meta"]["epoch"] == 0 and best["half"] and best["training"] is None
    assert last["meta"]["epoch"] == 2 and last["half"] and last["training"] is None  # the run is finished
    kept = read(saver.folder.epoch(2))
    assert kept["training"]["epochs"] == 3 and not kept["half"]
    assert kept["meta"]["best_fitness"] == 0.5 and kept["meta"]["best_saved"]
    assert kept["meta"]["opt"] == {"imgsz": 64} and kept["meta"]["seed"] == 7 and kept["meta"]["date"]
    assert saver.saved_epochs == 3 and saver.own_best() == saver.folder.best


def test_only_last_saves_after_the_last_epoch_alone(tmp_path: Path) -> None:
    state, saver = make_state(), make_saver(tmp_path, only_last=True, save_period=1)
    state.stopper(0, 0.5)
    saver.save_epoch(state, 0, 0.5, is_last=False)
    assert not saver.folder.last.parent.exists() and saver.saved_epochs == -1
    state.stopper(1, 0.4)
    saver.save_epoch(state, 1, 0.4, is_last=True)
    assert files(tmp_path) == {"last.pt", "epoch1.pt"}  # the best epoch was the one before


@pytest.mark.parametrize(
    ("saved", "says", "written"),
    [
        (2, "epoch 2/3 is complete and saved", False),
        (1, "epoch 2/3 is not complete; it starts again from the state before it", False),
        (-1, "epoch 2/3 is not complete; it starts again from the weights of this moment", True),
    ],
)
def test_a_stop_in_the_second_epoch_leaves_a_last_to_resume(
    tmp_path: Path, log: pytest.LogCaptureFixture, saved: int, says: str, written: bool
) -> None:
    log.set_level("INFO", "yolo")
    state, saver = make_state(), make_saver(tmp_path, saved_epochs=saved)
    state.stopper(0, 0.2)
    before = state.stopper.state_dict()
    state.stopper(1, 0.9)  # judged, but stopped before it was saved
    saver.save_interrupted(state, 1, before)
    assert says in log.text and f"--resume {saver.folder.last}" in log.text
    assert saver.folder.last.is_file() is written
    if written:
        found = read(saver.folder.last)
        assert found["training"]["epochs"] == 1 and found["training"]["stopper"] == before
        assert found["meta"]["epoch"] == 0 and found["meta"]["best_fitness"] == 0.2


def test_another_runs_best_is_not_this_runs(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    saver = make_saver(tmp_path)
    assert saver.own_best() is None and log.text == ""
    saver.folder.best.parent.mkdir()
    saver.folder.best.write_bytes(b"theirs")
    assert saver.own_best() is None and "is another run's and is kept" in log.text
    assert make_saver(tmp_path, best_saved=True).own_best() == saver.folder.best


def test_a_resumed_state_counts_on(tmp_path: Path) -> None:
    state = make_state()
    state.maps = np.array([0.25, 0.5])
    state.stopper(1, 0.75)
    saved, fresh = state.state_dict(2), make_state()
    common = {"patience": 4, "first_epoch": 2, "meta": {"best_fitness": 0.6}}
    resumed = RunState.resumed(fresh.trainer, fresh.average, **common, training=saved)
    assert resumed.stopper.state_dict() == {"best_fitness": 0.75, "best_epoch": 1}
    assert resumed.stopper.patience == 4 and np.array_equal(resumed.maps, state.maps)
    finished = RunState.resumed(fresh.trainer, fresh.average, **common, training=None)
    assert finished.stopper.state_dict() == {"best_fitness": 0.6, "best_epoch": 1} and finished.maps is None


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runs, below a working folder that holds others."""
    monkeypatch.setattr("utils.training.run_folder.RUNS", tmp_path / "runs" / "train")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "train"


def put(path: Path, second: int) -> Path:
    """Write a file that is as old as that second says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    os.utime(path, (second, second))
    return path


def test_the_newest_file_of_the_runs_is_taken(runs: Path, tmp_path: Path) -> None:
    put(runs / "exp" / "weights" / "last.pt", 1)
    put(runs / "exp" / "weights" / "best.pt", 2)
    newer = runs / "deep" / "er" / "weights"
    put(newer / "last.pt", 3)
    put(newer / "best.pt", 4)
    for stranger in (tmp_path / "best.pt", tmp_path / "runs" / "compare" / "n" / "weights" / "best.pt"):
        put(stranger, 5)
        put(stranger.with_name("last.pt"), 5)
    assert find_checkpoint(True) == newer / "last.pt"
    assert find_checkpoint(str(tmp_path / "last.pt")) == tmp_path / "last.pt"
    with pytest.raises(UserError, match="absent.pt: no such file"):
        find_checkpoint("absent.pt")
    assert newest_best().best == newer / "best.pt"


@pytest.mark.parametrize(
    ("saved", "data", "imgsz"),
    [
        ({"data": "data/digits.yaml", "imgsz": 256}, "data/digits.yaml", 256),
        ({"data": ["a", "b"], "imgsz": "256"}, "", 0),
        ({"imgsz": -32}, "", 0),
        (None, "", 0),
    ],
)
def test_a_run_says_its_data_and_image_size(runs: Path, saved: dict | None, data: str, imgsz: int) -> None:
    best = put(runs / "exp" / "weights" / "best.pt", 1)
    if saved is not None:
        save_yaml(runs / "exp" / "opt.yaml", saved)
    assert newest_best() == (best, data, imgsz)


def test_the_newest_run_is_taken_where_no_weights_are_given(runs: Path) -> None:
    best = str(put(runs / "exp" / "weights" / "best.pt", 1))
    with pytest.raises(
        UserError, match=r"best\.pt: its run has no opt\.yaml that names its data; give --data"
    ):
        with_newest_run({}, data=True)
    assert with_newest_run({"conf_thres": 0.1}, data=False) == {"weights": best, "conf_thres": 0.1}
    save_yaml(runs / "exp" / "opt.yaml", {"data": "a.yaml", "imgsz": 256})
    found = {"weights": best, "data": "a.yaml", "imgsz": 256}
    assert with_newest_run({"weights": None, "data": "", "imgsz": None}, data=True) == found
    assert with_newest_run({"data": "b.yaml", "imgsz": 64}, data=True) == found | {
        "data": "b.yaml",
        "imgsz": 64,
    }
    assert with_newest_run({"weights": "x.pt", "data": None}, data=True) == {"weights": "x.pt"}


def test_without_a_run_the_sentence_says_what_to_do(runs: Path, tmp_path: Path) -> None:
    put(tmp_path / "weights" / "best.pt", 1)
    put(tmp_path / "weights" / "last.pt", 1)
    with pytest.raises(
        UserError, match=r"no best\.pt below .*train; train first \(python train\.py\) or give"
    ):
        newest_best()
    with pytest.raises(UserError, match=r"--resume: no last\.pt below .*train; give the path of a run's"):
        find_checkpoint(True)


def test_only_what_does_not_change_the_learning_may_change() -> None:
    saved = {"epochs": 3, "imgsz": 64, "gone": True, "hyp": {"lr0": 1.0}}  # an older version had fewer
    opt = resumed_options(saved, {"epochs": 5, "imgsz": 64, "freeze": 0})
    assert vars(opt) == vars(TrainOptions()) | {"epochs": 5, "imgsz": 64}
    with pytest.raises(UserError, match="with imgsz = 64; only"):
        resumed_options(saved, {"imgsz": 96})
    with pytest.raises(UserError, match="with recipe = ''; only"):
        resumed_options(saved, {"recipe": "adamw"})
    with pytest.raises(UserError, match="opt.yaml: epochs='3'; it takes a whole number"):
        resumed_options(saved | {"epochs": "3"}, {})


def make_config(names: list[str]) -> DatasetConfig:
    numbered = dict(enumerate(names))
    return DatasetConfig(Path("d.yaml"), Path(), {}, numbered)


def test_the_data_must_have_the_classes_that_were_learnt() -> None:
    check_learnt_classes(Path("last.pt"), {0: "cat", 1: "dog"}, make_config(["cat", "dog"]))
    with pytest.raises(UserError, match="learns 2 classes, and d.yaml has 1; give --data"):
        check_learnt_classes(Path("last.pt"), {0: "cat", 1: "dog"}, make_config(["cat"]))
    with pytest.raises(UserError, match="class 1 of d.yaml is 'fox', not 'dog'"):
        check_learnt_classes(Path("last.pt"), {0: "cat", 1: "dog"}, make_config(["cat", "fox"]))


def test_a_run_continues_with_the_epoch_after_its_last(tmp_path: Path) -> None:
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    assert resumed_epoch(last, {"epoch": 1}, {"epochs": 2}, 5, told=False) == (2, False)
    assert resumed_epoch(last, {"epoch": 1}, None, 5, told=True) == (2, False)
    assert resumed_epoch(last, {"epoch": 1}, None, 2, told=False) == (2, True)  # without its metrics.json
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="has finished its 2 epochs"):
        resumed_epoch(last, {"epoch": 1}, None, 2, told=False)
    with pytest.raises(UserError, match="has finished its 2 epochs"):
        resumed_epoch(last, {"epoch": 1}, {"epochs": 2}, 2, told=True)
    with pytest.raises(UserError, match="resume the run's last.pt"):
        resumed_epoch(best, {"epoch": 1}, None, 5, told=False)
