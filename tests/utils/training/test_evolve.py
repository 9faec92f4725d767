"""A search trains real runs, keeps the user's zeros, prunes, continues after a kill, and is shared."""

from __future__ import annotations

import csv
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState, create_trial

import train
from tests.test_train import options as train_options
from tests.tiny_set import write_model, write_set
from utils.errors import UserError
from utils.files import ROOT, save_yaml
from utils.training.evolve import SEARCHED, Search, search_space
from utils.training.hyp import HYPERPARAMETERS, load_hyp
from utils.training.loggers import read_results
from utils.training.options import TrainOptions, parse_opt

HYP = load_hyp("hyp.no-augmentation.yaml") | {"fliplr": 0.5, "nominal_batch": 8, "warmup_epochs": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    write_set(folder, train=8, val=4, size=64)
    write_model(folder)
    save_yaml(folder / "hyp.yaml", HYP)
    return folder


def options(folder: Path, project: Path, **changes: object) -> dict[str, object]:
    own: dict[str, object] = {"hyp": str(folder / "hyp.yaml"), "imgsz": 64, "batch_size": 4, "amp": "off"}
    return train_options(folder, project, **own | changes)


def words(**given: object) -> list[str]:
    flags = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
    return [
        word for flag, value in flags.items() for word in ([flag] if value is True else [flag, str(value)])
    ]


def searching(folder: Path, project: Path, trials: int = 1, **changes: object) -> Search:
    opt = TrainOptions(**options(folder, project, evolve=trials, **changes))  # type: ignore[arg-type]
    return Search(opt, load_hyp(opt.hyp), project / "exp", ROOT / "train.py")


def table(study: Path) -> list[dict[str, str]]:
    with (study / "evolve.csv").open() as file:
        return list(csv.DictReader(file))


def states(search: Search) -> list[TrialState]:
    return [trial.state for trial in search.study.get_trials()]


def test_ranges_lie_in_the_bounds_and_zero_stays_zero() -> None:
    for name, at in SEARCHED.items():
        assert HYPERPARAMETERS[name].low <= at.low < at.high <= HYPERPARAMETERS[name].high
        assert at.low > 0 or not at.log
    space = search_space(HYP | {"lr0": 0.5})
    assert space["lr0"].high == 0.5 and "fliplr" in space
    assert not {"mosaic", "warmup_epochs", "iou_t", "nominal_batch"} & set(space)
    assert set(search_space(load_hyp("hyp.scratch-low.yaml"))) > {"lrf", "cls", "mosaic", "scale"}


def test_a_search_starts_from_the_users_recipe_and_continues(folder: Path, tmp_path: Path) -> None:
    result = train.run(**options(folder, tmp_path, evolve=2, noplots=False))
    study = tmp_path / "exp"
    rows = table(study)
    assert [row["state"] for row in rows] == ["complete"] * 2
    assert all(float(rows[0][name]) == value for name, value in HYP.items())
    assert rows[1]["lr0"] != rows[0]["lr0"] and rows[1]["mosaic"] == "0.0"
    assert load_hyp(study / "trial1" / "hyp.yaml")["lr0"] == float(rows[1]["lr0"])
    best = max(rows, key=lambda row: float(row["fitness"]))
    assert result.save_dir == study / f"trial{best['trial']}" and result.best.is_file()
    assert load_hyp(study / "hyp_evolve.yaml") == load_hyp(result.save_dir / "hyp.yaml")
    assert [path.parent.name for path in study.glob("trial*/weights")] == [result.save_dir.name]
    page = (study / "evolve.html").read_text()
    assert page.count("<tr>") == 3 and "data:image/png" in page and "<th" in page
    with pytest.raises(UserError, match="begun with another --epochs"):
        train.run(**options(folder, tmp_path, evolve=3, epochs=3))
    # A trial that fails by itself counts; its error is told, and the search goes on.
    search = searching(folder, tmp_path, 3)
    search.study.enqueue_trial({name: HYP[name] for name in search.space} | {"momentum": 5.0})
    assert train.run(**options(folder, tmp_path, evolve=3)).save_dir == result.save_dir
    rows = table(study)
    assert [row["state"] for row in rows] == ["complete", "complete", "failed"]
    assert "momentum is 5.0" in (study / "evolve.html").read_text()
    assert not search.run_next()


def test_what_is_sampled_depends_on_the_seed_and_the_trials_before(folder: Path, tmp_path: Path) -> None:
    found = []
    for name, stopped in (("a", False), ("b", True)):
        search = searching(folder, tmp_path / name)
        for number in range(3):
            if stopped:
                search = searching(folder, tmp_path / name)
            search.study.tell(search._ask(), number * 0.1)
        found.append([trial.params for trial in search.study.get_trials()])
    assert found[0] == found[1] and found[0][1] != found[0][2]


def test_a_bad_trial_is_pruned_and_really_stopped(folder: Path, tmp_path: Path) -> None:
    search = searching(folder, tmp_path, 5, epochs=60)
    params = {name: HYP[name] for name in search.space}
    for _ in range(4):
        search.study.add_trial(
            create_trial(
                value=0.9,
                params=params,
                distributions=search.space,
                intermediate_values=dict.fromkeys(range(1, 61), 0.9),
                user_attrs={"metrics": dict.fromkeys(("precision", "recall", "map50", "map"), 0.9)},
            )
        )
    assert search.run_next() and not search.run_next()
    assert states(search).count(TrialState.PRUNED) == 1
    place = tmp_path / "exp" / "trial0"
    assert 12 <= len(read_results(place / "results.csv")) < 60
    assert not (place / "metrics.json").exists() and not (place / "weights").exists()
    assert [row["epochs"] for row in table(tmp_path / "exp")][0] == "12"


def test_a_killed_search_trains_its_trial_again(folder: Path, tmp_path: Path, log) -> None:
    log.set_level(logging.INFO, logger="yolo")
    line = [sys.executable, str(ROOT / "train.py"), *words(**options(folder, tmp_path, evolve=2))]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 300
    while not (tmp_path / "exp" / "trial0" / "hyp.yaml").is_file() and time.time() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    search = searching(folder, tmp_path, 2)
    assert states(search) == [TrialState.RUNNING] and search._counted() == 1
    assert search.run_next()
    trials = search.study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert trials[0].params == trials[1].params and trials[1].user_attrs["first"]
    assert search._counted() == 1 and [row["trial"] for row in table(tmp_path / "exp")] == ["1"]
    assert "trial 0 was stopped before its end" in log.text


def test_sigterm_ends_the_trial_too(folder: Path, tmp_path: Path) -> None:
    given = words(**options(folder, tmp_path, evolve=1, epochs=5000))
    line = [sys.executable, str(ROOT / "train.py"), *given]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    results, deadline = tmp_path / "exp" / "trial0" / "results.csv", time.time() + 300
    while not results.is_file() and time.time() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert "stopped by SIGTERM" in process.communicate()[1] and process.returncode == 143
    rows = len(read_results(results))
    time.sleep(1)
    assert len(read_results(results)) == rows < 5000


def test_two_processes_share_a_search(folder: Path, tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "train.py"), *words(**options(folder, tmp_path, evolve=3))]
    both = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert states(searching(folder, tmp_path, 3)) == [TrialState.COMPLETE] * 3
    assert all("complete" in row["state"] for row in table(tmp_path / "exp"))
    assert sum(text.count("fitness 0.") for text in said) >= 3
    assert not list((tmp_path / "exp").glob("*.lock"))


def test_a_recipe_that_cannot_be_trained_stops_the_search(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="first trial, the recipe of --hyp, has failed: .*absent.yaml"):
        train.run(**options(folder, tmp_path, evolve=3, data="absent.yaml"))
    assert (tmp_path / "exp" / "first.log").is_file() and not (tmp_path / "exp" / "hyp_evolve.yaml").exists()


def test_what_cannot_be_searched_is_refused(folder: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(UserError, match="no --resume"):
        train.run(**options(folder, tmp_path, evolve=3, resume=True))
    with pytest.raises(UserError, match="--evolve 0: must be at least 1"):
        train.run(**options(folder, tmp_path, evolve=0))
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="holds no search"):
        train.run(**options(folder, tmp_path, evolve=3))
    (tmp_path / "exp" / "evolve.journal").write_text("[]\n{}\n")
    with pytest.raises(UserError, match="no readable journal"):
        train.run(**options(folder, tmp_path, evolve=3))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="instead of torchrun"):
        parse_opt(["--evolve", "3", "--batch-size", "4"])


def test_the_journal_is_no_pickle() -> None:
    assert not issubclass(
        optuna.storages.journal.JournalFileBackend, optuna.storages.journal._base.BaseJournalSnapshot
    )


def test_yaml_of_the_best_says_where_it_is_from(folder: Path, tmp_path: Path) -> None:
    search = searching(folder, tmp_path)
    search.study.tell(search._ask(), 0.5)
    search._tidy()
    text = (tmp_path / "exp" / "hyp_evolve.yaml").read_text()
    assert text.startswith("# Found by train.py --evolve: trial 0 of 1, fitness 0.50000\n")
    assert yaml.safe_load(text) == HYP
