"""Comparing end to end on drawn shapes: rows, pages, failures that stay alone, and going on after a stop."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import pytest

import compare
import train
from models.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.test_train import interrupt_in
from tests.tiny_set import TINY_MODEL, write_model, write_set
from utils.errors import UserError
from utils.files import ROOT, load_yaml, save_yaml
from utils.training.loggers import read_results

FILES = {"compare.csv", "compare.md", "pareto.png", "index.html", "compare.yaml", "latency.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of shapes, the net tiny.yaml and a wider one."""
    folder = tmp_path_factory.mktemp("shapes")
    write_set(folder, train=8, val=4)
    write_model(folder)
    head = [[-1, 1, "Conv", [40, 3, 1]], [[2, 4], 1, "Detect", ["nc", "anchors"]]]
    save_yaml(folder / "wider.yaml", TINY_MODEL | {"head": head})
    return folder


def options(folder: Path, project: Path, *cfgs: str, **changes) -> dict:
    base = {
        "cfg": [str(folder / f"{cfg}.yaml") for cfg in cfgs],
        "data": str(folder / "shapes.yaml"),
        "imgsz": 64,
        "epochs": 1,
        "batch_size": 4,
        "workers": 0,
        "project": str(project),
        "device": "cpu",
        "noplots": True,
        "samples": 2,
        "latency_runs": 3,
    }
    return base | changes


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> compare.CompareResult:
    """Two nets compared, and one that is not there."""
    project = tmp_path_factory.mktemp("runs")
    return compare.run(**options(folder, project, "tiny", "nowhere", "wider"))


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "compare.csv").open(newline="", encoding="utf-8") as file:
        return {row["net"]: row for row in csv.DictReader(file)}


def copied(done: compare.CompareResult, tmp_path: Path) -> Path:
    """The finished run's folder, for a test to continue."""
    return Path(shutil.copytree(done.save_dir, tmp_path / "run"))


def test_two_nets_side_by_side(done: compare.CompareResult) -> None:
    assert {path.name for path in done.save_dir.iterdir()} == FILES | {"tiny", "wider"}
    (group,) = done.groups
    assert group.title.startswith("shapes.yaml, 2 classes, 64 px, 1 epoch, batch 4, SGD, seed 0")
    rows = {row.key: row for row in group.rows}
    assert set(rows) == {"tiny", "wider"}
    for key, row in rows.items():
        best = load_checkpoint(done.save_dir / row.weights)
        report = json.loads((done.save_dir / key / "val" / "metrics.json").read_text())
        trained = json.loads((done.save_dir / key / "metrics.json").read_text())
        assert row.values["map"] == report["map"] and row.values["gflops"] == report["gflops"] > 0
        assert row.values["parameters"] == sum(p.numel() for p in best.model.parameters())
        assert row.values["parameters_fused"] < row.values["parameters"]
        assert row.values["size_mb"] == best.path.stat().st_size / 1e6
        assert row.values["train_seconds"] == trained["seconds"] and row.values["epochs"] == 1
        for engine in ("torch", "onnx"):
            assert (
                0 < row.values[f"{engine}_ms"] <= row.values[f"{engine}_p90"] <= row.values[f"{engine}_p95"]
            )
        assert row.start == "scratch"
    assert rows["wider"].values["parameters"] > rows["tiny"].values["parameters"]
    found = table(done.save_dir)
    assert float(found["tiny"]["map"]) == rows["tiny"].values["map"]
    assert float(found["wider"]["onnx_p95"]) == rows["wider"].values["onnx_p95"]
    assert (done.save_dir / "compare.md").read_text().count("\n| ") >= 4
    assert cv2.imread(str(done.save_dir / "pareto.png")).shape == (900, 2100, 3)


def test_a_net_that_fails_stands_alone(done: compare.CompareResult, folder: Path) -> None:
    assert [row.key for row in done.failed] == ["nowhere"]
    found = table(done.save_dir)
    assert found["nowhere"]["status"].startswith("failed: ") and "nowhere.yaml" in found["nowhere"]["status"]
    assert found["nowhere"]["map"] == "" and found["tiny"]["status"] == "ok"
    assert "| nowhere | scratch | failed: " in (done.save_dir / "compare.md").read_text()


class Page(HTMLParser):
    """What a page refers to, and what its rows and captions say."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links, self.tags, self.captions, self.open = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "data", "action")]

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open[-2:] == ["figcaption", "b"]:
            self.captions.append(data)


def test_the_page_needs_nothing_but_itself(done: compare.CompareResult) -> None:
    html = (done.save_dir / "index.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.links and all(link.startswith("data:image/") for link in page.links)
    assert "http://" not in html and "https://" not in html and "url(" not in html and "@import" not in html
    assert not {"link", "iframe", "object", "embed"} & set(page.tags) and page.tags.count("script") == 1
    order = [row.label for row in done.groups[0].rows]
    assert len(page.captions) == 2 * 3 and page.captions.count("ground truth") == 2
    assert all(page.captions.count(label) == 2 for label in order)
    assert page.tags.count("img") == 1 + 6 and page.tags.count("tr") == 1 + 2 + 1 + 1
    assert "failed: " in html and "3 detectors on shapes.yaml" in html


def test_names_of_files_are_no_markup(folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<script>alert(1)<b>.yaml"
    shutil.copy(folder / "tiny.yaml", odd)
    result = compare.run(**options(folder, tmp_path, "a<i>b") | {"cfg": [str(odd), "a<i>b.yaml"]})
    html = (result.save_dir / "index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;b&gt;" in html and "<script>alert" not in html and "a&lt;i&gt;b" in html
    assert Page(html).tags.count("script") == 1 and "i" not in Page(html).tags


def test_finished_nets_are_not_trained_again(
    done: compare.CompareResult, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(done, tmp_path)
    trained = []
    original = train.run
    monkeypatch.setattr(train, "run", lambda **given: trained.append(given["cfg"]) or original(**given))
    before = (run / "latency.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(compare.val, "run", None)
        again = compare.run(resume=str(run))
    assert [row.key for row in again.failed] == ["nowhere"] and trained == []
    assert table(run)["tiny"] == table(done.save_dir)["tiny"]
    assert (run / "latency.json").read_text() == before  # nothing new: not timed again
    shutil.copy(folder / "tiny.yaml", folder / "third.yaml")
    compare.run(resume=str(run), cfg=[str(folder / "third.yaml")])
    assert trained == [str(folder / "third.yaml")]
    assert set(json.loads((run / "latency.json").read_text())["nets"]) == {"tiny", "wider", "third"}
    assert table(run)["tiny"]["map"] == table(done.save_dir)["tiny"]["map"]
    third = table(run)["third"]
    assert (
        third["map"] == table(run)["tiny"]["map"] and third["parameters"] == table(run)["tiny"]["parameters"]
    )
    with pytest.raises(UserError, match="epochs 1, now 2"):
        compare.run(resume=str(run), epochs=2)


def test_a_run_is_gone_on_with_from_another_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
    shutil.copy(folder / "tiny.yaml", tmp_path / "here" / "mine.yaml")
    monkeypatch.chdir(tmp_path / "here")
    given = options(folder, tmp_path) | {
        "cfg": ["mine.yaml"],
        "data": os.path.relpath(folder / "shapes.yaml"),
    }
    first = compare.run(**given)
    assert "python compare.py --cfg mine.yaml" in (first.save_dir / "index.html").read_text(encoding="utf-8")
    figures = table(first.save_dir)

    monkeypatch.chdir(tmp_path / "there")
    with monkeypatch.context() as patch:
        patch.setattr(train, "run", None)
        again = compare.run(resume=str(first.save_dir))
        assert not again.failed and table(again.save_dir) == figures
        (tmp_path / "here" / "mine.yaml").unlink()  # what is finished needs it no more
        gone = compare.run(resume=str(first.save_dir))
        assert not gone.failed and table(gone.save_dir) == figures
        saved = load_yaml(first.save_dir / "compare.yaml")  # as it was written before
        saved = {k: v for k, v in saved.items() if k != "keys"} | {"cfg": ["mine.yaml"]}
        save_yaml(first.save_dir / "compare.yaml", saved)
        older = compare.run(resume=str(first.save_dir))
        assert not older.failed and table(older.save_dir) == figures
    (first.save_dir / "mine" / "result.json").unlink()
    (unfinished,) = compare.run(resume=str(first.save_dir)).failed
    assert "mine.yaml: no such file" in unfinished.failed


def test_ctrl_c_leaves_all_to_go_on_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = options(folder, tmp_path, "tiny", "wider", epochs=2, save_period=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, epoch=1)
        compare.run(**same)
    run = tmp_path / "exp"
    assert not (run / "tiny" / "result.json").exists() and not (run / "wider").exists()
    state = json.loads((run / "tiny" / "training.json").read_text())
    assert (
        state["started"] > 0 and load_checkpoint(run / "tiny" / "weights" / "last.pt").training["epochs"] == 1
    )
    first = (run / "tiny" / "weights" / "epoch0.pt").stat().st_mtime_ns
    result = compare.run(**same, exist_ok=True)
    assert result.save_dir == run and not result.failed
    assert (
        run / "tiny" / "weights" / "epoch0.pt"
    ).stat().st_mtime_ns == first  # gone on with, not begun again
    assert len(read_results(run / "tiny" / "results.csv")) == 2
    rows = {row.key: row for row in result.groups[0].rows}
    session = json.loads((run / "tiny" / "metrics.json").read_text())["seconds"]
    assert rows["tiny"].values["train_seconds"] > session  # both sessions
    assert rows["tiny"].values["epochs"] == 2 and (run / "wider" / "result.json").is_file()


def test_a_stop_after_the_training_costs_no_epoch(
    done: compare.CompareResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(done, tmp_path)
    (run / "tiny" / "result.json").unlink()
    (run / "tiny" / "weights" / "best.pt").unlink()  # stopped between last.pt and best.pt
    monkeypatch.setattr(train, "run", None)
    compare.run(resume=str(run))
    before, after = table(done.save_dir)["tiny"], table(run)["tiny"]
    assert (before["map"], before["train_seconds"]) == (after["map"], after["train_seconds"])


def test_a_changed_yaml_is_not_mixed_with_its_old_figures(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tiny.yaml", tmp_path / "mine.yaml")
    given = options(folder, tmp_path) | {"cfg": [str(tmp_path / "mine.yaml")]}
    run = compare.run(**given).save_dir
    shutil.copy(folder / "wider.yaml", tmp_path / "mine.yaml")
    (failed,) = compare.run(resume=str(run)).failed
    assert "mine.yaml has changed since it was trained" in failed.failed
    shutil.rmtree(run / "mine")
    assert not compare.run(resume=str(run)).failed


def test_trained_checkpoints_are_grouped_by_their_conditions(
    done: compare.CompareResult, folder: Path, tmp_path: Path
) -> None:
    best = done.save_dir / "tiny" / "weights" / "best.pt"
    seed = train.run(
        **{k: v for k, v in options(folder, tmp_path).items() if k not in ("samples", "latency_runs")}
        | {"cfg": str(folder / "tiny.yaml"), "seed": 3, "name": "other"}
    )
    unknown = tmp_path / "unknown.pt"
    save_checkpoint(unknown, load_checkpoint(best).model, meta={})
    weights = [str(best), str(seed.best), str(unknown), "absent.pt"]
    result = compare.run(**options(folder, tmp_path) | {"cfg": [], "weights": weights})
    assert [[row.label for row in group.rows] for group in result.groups] == [
        ["tiny"],
        ["tiny (other)"],
        ["unknown"],
    ]
    assert result.groups[1].difference == "seed 3 instead of 0" and not result.groups[2].ranked
    assert [row.start for group in result.groups for row in group.rows] == [
        "scratch",
        "scratch",
        "checkpoint",
    ]
    assert [row.label for row in result.failed] == ["absent"]
    text = (result.save_dir / "compare.md").read_text()
    assert "Not comparable with conditions 1: seed 3 instead of 0" in text and "not ranked" in text
    assert table(result.save_dir)["unknown"]["conditions"] == "unknown"
    assert table(result.save_dir)["tiny"]["train_seconds"] == ""  # not trained here
    assert not unknown.with_suffix(".onnx").exists()  # nothing is written beside the user's own files


def test_other_numbers_of_classes_are_kept_apart_and_measured_on_their_own_data(
    done: compare.CompareResult, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "three")
    three = {"path": str(tmp_path / "three"), "train": "images/train", "val": "images/val"}
    save_yaml(tmp_path / "three.yaml", three | {"names": ["a", "b", "c"]})
    best, unknown = done.save_dir / "tiny" / "weights" / "best.pt", tmp_path / "unknown.pt"
    save_checkpoint(unknown, load_checkpoint(best).model, meta={})
    given = {"weights": [str(best), str(unknown)], "data": str(tmp_path / "three.yaml")}
    result = compare.run(**options(folder, tmp_path, "wider") | given)
    ours, theirs = result.groups
    assert [row.label for row in ours.rows] == ["wider"] and ours.conditions["nc"] == 3
    assert [row.label for row in theirs.rows] == ["tiny"]
    assert "three.yaml; nc 2 instead of 3" in theirs.difference
    assert theirs.rows[0].values["map"] == float(table(done.save_dir)["tiny"]["map"])
    assert "tiny: accuracy measured on its own shapes.yaml (2 classes)" in (
        result.save_dir / "compare.md"
    ).read_text(encoding="utf-8")
    html = (result.save_dir / "index.html").read_text(encoding="utf-8")
    assert set(Page(html).captions) == {"ground truth", "wider"}  # its classes are not those of the images
    assert "2 classes" in result.failed[0].failed and result.failed[0].label == "unknown"


def test_a_table_is_headed_by_what_was_measured(
    done: compare.CompareResult, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "few")
    for image in sorted((tmp_path / "few" / "images" / "val").iterdir())[2:]:
        image.unlink()
    few = {"path": str(tmp_path / "few"), "train": "images/train", "val": "images/val"}
    save_yaml(tmp_path / "few.yaml", few | {"names": ["x", "y"]})
    best = str(done.save_dir / "tiny" / "weights" / "best.pt")
    given = {"weights": [best], "data": str(tmp_path / "few.yaml"), "project": str(tmp_path)}
    given |= {"workers": 0, "device": "cpu", "latency_runs": 1, "samples": 1}

    at_128 = compare.run(**given, imgsz=128)
    (row,) = at_128.groups[0].rows
    text = (at_128.save_dir / "compare.md").read_text(encoding="utf-8")
    assert "few.yaml, 2 classes, 128 px, trained on shapes.yaml at 64 px, 1 epoch, batch 4" in text
    assert "val images of few.yaml (2 classes), 128 px" in text
    report = json.loads((at_128.save_dir / row.key / "val" / "metrics.json").read_text())
    assert (report["imgsz"], report["images"]) == (128, 2) and row.values["map"] == report["map"]

    as_trained = compare.run(**given)
    (own,) = as_trained.groups[0].rows
    assert "few.yaml, 2 classes, 64 px, trained on shapes.yaml at 64 px" in as_trained.groups[0].title
    assert own.values["gflops"] == pytest.approx(row.values["gflops"] / 4, rel=1e-6)  # not at 640
    assert "one image of 64 px" in (as_trained.save_dir / "compare.md").read_text(encoding="utf-8")
    html = (as_trained.save_dir / "index.html").read_text(encoding="utf-8")
    assert "trained on shapes.yaml at 64 px" in html and "<dt>measured at</dt><dd>64 px</dd>" in html
    again = compare.run(resume=str(as_trained.save_dir), device="cpu", workers=0)
    assert again.groups[0].title == as_trained.groups[0].title
    with pytest.raises(UserError, match="image sizes of their trainings; leave --imgsz out"):
        compare.run(resume=str(as_trained.save_dir), imgsz=640)

    state = as_trained.save_dir / own.key / "result.json"
    older = json.loads(state.read_text())
    del older["data"], older["imgsz"]  # as rows were written before
    state.write_text(json.dumps(older))
    assert compare.run(resume=str(as_trained.save_dir)).groups[0].title == as_trained.groups[0].title


def test_without_onnx_the_column_is_empty(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = importlib.util.find_spec
    absent = ("onnx", "onnxruntime")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name in absent else original(name, *a)
    )
    caplog.set_level("WARNING", "yolo.compare")
    result = compare.run(**options(folder, tmp_path, "tiny"))
    said = [r.getMessage() for r in caplog.records if "ONNX" in r.getMessage()]
    assert len(said) == 1 and "pip install onnx onnxruntime" in said[0]
    row = table(result.save_dir)["tiny"]
    assert row["onnx_ms"] == "" and float(row["torch_ms"]) > 0 and row["status"] == "ok"
    assert "ONNX Runtime ms" not in (result.save_dir / "compare.md").read_text()


def test_command_line_names_the_failed_and_ends_with_1(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "compare.py", "--cfg", "absent.yaml", "--data", str(folder / "shapes.yaml")]
    command += ["--project", str(tmp_path), "--device", "cpu", "--workers", "0"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "1 of 1 nets failed: absent (absent.yaml: no such file" in done.stderr
    assert (tmp_path / "exp" / "index.html").is_file()
