"""benchmarks/accuracy.py: a tiny grid, whose table says what its runs say, and which is finished once."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

import pytest

import val
from benchmarks import accuracy
from tests.tiny_set import write_model, write_set
from utils.errors import UserError
from utils.files import ROOT, load_yaml, save_yaml
from utils.training.loggers import read_results


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A row on a set of shapes, and one on half of its images with a changed rate."""
    folder = tmp_path_factory.mktemp("grid")
    data = write_set(folder / "set", train=8, val=4)
    save_yaml(data, load_yaml(data) | {"test": "images/train"})
    train = {"cfg": str(write_model(folder)), "batch_size": 4, "workers": 0, "noplots": True}
    common = {"sets": ["shapes"], "sizes": [64], "seeds": [0, 1], "epochs": 1, "train": train}
    rows = {"plain": {}, "faster": {"sets": ["half"], "hyp": {"lr0": 0.02}, "seeds": [0]}}
    sets = {"shapes": {"data": str(data)}, "half": {"data": str(data), "train_images": 4}}
    save_yaml(folder / "grid.yaml", {"sets": sets, "all_rows": common, "rows": rows})
    return folder / "grid.yaml"


@pytest.fixture(scope="module")
def done(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the whole grid."""
    results = tmp_path_factory.mktemp("results")
    accuracy.run(grid=str(grid), results=str(results), device="cpu", latency_runs=2)
    return results


def table(results: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (results / "accuracy.csv").open(newline="", encoding="utf-8") as file:
        return {(line["set"], line["row"]): line for line in csv.DictReader(file)}


def test_the_table_says_what_the_runs_say(done: Path) -> None:
    lines = table(done)
    assert set(lines) == {("shapes", "plain"), ("half", "faster")}
    runs = [done / "shapes/plain-64px-1ep" / f"seed{seed}" for seed in (0, 1)]
    best = [json.loads((run / "metrics.json").read_text())["map"] for run in runs]
    line = lines["shapes", "plain"]
    assert float(line["map"]) == statistics.fmean(best) and line["seeds"] == "0 1"
    assert float(line["map_sd"]) == statistics.stdev(best)
    assert [float(value) for value in line["map_of_each_seed"].split()] == best
    data = str(load_yaml(runs[0] / "opt.yaml")["data"])
    for task, weights, column in (("test", "best.pt", "map_test"), ("val", "last.pt", "map_last")):
        again = [
            val.run(
                weights=str(run / "weights" / weights),
                data=data,
                imgsz=64,
                task=task,
                project=str(done / "again"),
            )
            for run in runs
        ]
        assert float(line[column]) == statistics.fmean(float(found.metrics.map) for found in again)
    seconds = [json.loads((run / "training.json").read_text())["seconds"] for run in runs]
    inside = [json.loads((run / "metrics.json").read_text())["seconds"] for run in runs]
    assert all(0 < a < b for a, b in zip(inside, seconds))
    assert float(line["seconds"]) == pytest.approx(statistics.fmean(seconds))
    assert float(line["images_per_second"]) == pytest.approx(statistics.fmean(8 / s for s in seconds))
    assert all(float(line["onnx_ms"]) > 0 for line in lines.values())
    assert lines["half", "faster"]["map_sd"] == ""  # one seed has no spread
    text = (done / "accuracy.md").read_text()
    assert f"| shapes | plain | 64 | 1 | 0 1 | {statistics.fmean(best):.3f} ± " in text


def test_rows_differ_by_what_the_grid_says(done: Path) -> None:
    runs = ("shapes/plain-64px-1ep/seed0", "half/faster-64px-1ep/seed0")
    plain, faster = (load_yaml(done / run / "opt.yaml") for run in runs)
    assert (plain["hyp"]["lr0"], faster["hyp"]["lr0"]) == (0.01, 0.02)
    assert faster["data"] == str(done / "data/half.yaml") != plain["data"]
    assert len((done / "data/half.txt").read_text().splitlines()) == 4


def test_finished_cells_are_read_and_changed_ones_refused(
    done: Path, grid: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "wait_for", lambda *_: pytest.fail("nothing is left to train"))
    log.set_level("INFO", "yolo")
    same = {"results": str(done), "device": "cpu", "latency_runs": 2}
    before = table(done)
    accuracy.run(grid=str(grid), rows=["plain"], seeds=[1], **same)
    assert "cell 1 of 1: shapes/plain-64px-1ep/seed1" in log.text and "finished before" in log.text
    assert table(done) == before  # all that is finished, and the kept latencies
    content = load_yaml(grid)
    content["rows"]["faster"]["hyp"]["lr0"] = 0.03
    save_yaml(grid.with_name("changed.yaml"), content)
    with pytest.raises(UserError, match="1 of 3 cells failed: half/faster"):
        accuracy.run(grid=str(grid.with_name("changed.yaml")), **same)
    assert "seed0: was trained with other options; delete it, or rename the row" in log.text


STOPS = """
import sys
sys.path.insert(0, {root!r})
import train
from utils.cli import guard
from utils.training.trainer import Trainer
epoch_of = Trainer.train_epoch
def stop(self, loader, epoch, on_batch=None):
    if epoch == 1:
        raise KeyboardInterrupt
    return epoch_of(self, loader, epoch, on_batch)
Trainer.train_epoch = stop
guard(train.main)
"""


def test_an_interrupted_cell_continues(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """Stopped in its second epoch: the second call names --resume, and the seconds of both count."""
    log.set_level("INFO", "yolo")
    (tmp_path / "stops.py").write_text(STOPS.format(root=str(ROOT)))
    commands: list[list[str]] = []
    whole = accuracy.wait_for

    def stopped(command, output):
        commands.append(command)
        return whole([command[0], str(tmp_path / "stops.py"), *command[2:]], output)

    asked = {"grid": str(grid), "results": str(tmp_path), "rows": ["plain"], "seeds": [0], "epochs": 2}
    asked |= {"device": "cpu", "latency_runs": 0}
    with monkeypatch.context() as patch, pytest.raises(UserError, match="1 of 1 cells failed: shapes/plain"):
        patch.setattr(accuracy, "wait_for", stopped)
        accuracy.run(**asked)
    assert "train.py failed: error: stopped from the keyboard; see " in log.text
    cell = tmp_path / "shapes/plain-64px-2ep/seed0"
    first = json.loads((cell / "training.json").read_text())
    assert first["started"] is not None and len(read_results(cell / "results.csv")) == 1
    accuracy.run(**asked)
    assert "--cfg" in commands[0] and "continues" in log.text
    assert len(read_results(cell / "results.csv")) == 2
    inside = json.loads((cell / "metrics.json").read_text())["seconds"]
    assert json.loads((cell / "training.json").read_text())["seconds"] > inside
    assert table(tmp_path)["shapes", "plain"]["onnx_ms"] == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": ["nobody"]}, "--rows nobody: not in .*; it has plain, faster"),
        ({"seeds": [7]}, "no cell has these"),
        ({"grid": {"rows": {"plain": {"train": {"epochs": 3}}}}}, "plain: epochs is no option of a row"),
        ({"grid": {"rows": {"plain": {"train": {"epoch": 3}}}}}, "plain: the unknown option 'epoch'"),
        ({"grid": {"rows": {"plain": {"sets": ["moon"]}}}}, "plain: 'moon' is none of the sets shapes"),
        ({"grid": {"rows": {"plain": {"size": [64]}}}}, "plain: unknown key 'size'"),
        (
            {
                "rows": ["plain"],
                "grid": {"sets": {n: {"voc": "x", "names": ["a"]} for n in ("shapes", "half")}},
            },
            "2 of 2 cells failed: shapes/plain-64px-1ep/seed0, ",
        ),
    ],
)
def test_mistakes_are_one_sentence(grid: Path, tmp_path: Path, change: dict, sentence: str) -> None:
    options = {"grid": str(grid), "results": str(tmp_path / "results"), "latency_runs": 0} | change
    if isinstance(options["grid"], dict):
        save_yaml(tmp_path / "wrong.yaml", load_yaml(grid) | options["grid"])
        options["grid"] = str(tmp_path / "wrong.yaml")
    with pytest.raises(UserError, match=sentence):
        accuracy.run(**options)


def test_the_grid_of_the_project_is_right() -> None:
    grid = accuracy.read_grid(Path(accuracy.__file__).with_name("accuracy.yaml"))
    assert {"yolov5n-coco", "lite0-imagenet"} <= set(grid.rows)
    assert grid.rows["yolov5n-coco"].sizes == [320, 256, 224]
    assert grid.rows["yolov5n-coco"].train["recipe"] == "adamw"
