"""val.py: the command line on a small set of images, its files and its messages."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

import export
import val
from models.weights.checkpoint import save_checkpoint
from models.yolo import DetectionModel
from tests.utils.evaluation.test_evaluate import NAMES, labelled_images
from utils.device import seeded
from utils.errors import UserError
from utils.files import ROOT, save_yaml


def finished_run(runs: Path, weights: Path, **saved: object) -> Path:
    """A run of train.py below `runs` that ended with these weights; returns its best.pt."""
    best = runs / "exp" / "weights" / "best.pt"
    best.parent.mkdir(parents=True)
    shutil.copy(weights, best)
    save_yaml(runs / "exp" / "opt.yaml", saved)
    return best


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with a data set of five images, its YAML, and a tiny untrained checkpoint of two classes."""
    folder = tmp_path_factory.mktemp("val")
    for kind in ("images", "labels"):
        (folder / "set" / kind / "val").mkdir(parents=True)
    for number, (image, labels) in enumerate(labelled_images(np.random.default_rng(0))):
        cv2.imwrite(str(folder / "set" / "images" / "val" / f"{number:03d}.png"), image)
        text = "\n".join(" ".join(f"{v:g}" for v in row) for row in labels.tolist())
        (folder / "set" / "labels" / "val" / f"{number:03d}.txt").write_text(text)
    data = {"path": str(folder / "set"), "train": "images/val", "val": "images/val", "names": NAMES}
    (folder / "set.yaml").write_text(yaml.safe_dump(data))
    data["names"] = {0: "dark", 1: "light", 2: "grey"}
    (folder / "three.yaml").write_text(yaml.safe_dump(data))
    cfg = yaml.safe_load((ROOT / "models" / "yolov5n.yaml").read_text())
    cfg |= {"nc": 2, "depth_multiple": 0.1, "width_multiple": 0.125}
    with seeded(0):
        model = DetectionModel(cfg)
    save_checkpoint(folder / "tiny.pt", model, meta={"seed": 7})
    save_checkpoint(folder / "four.pt", DetectionModel(cfg, ch=4), meta={})
    return folder


def options(project: Path, tmp_path: Path, **extra):
    common = {"weights": project / "tiny.pt", "data": project / "set.yaml", "imgsz": 96, "batch_size": 2}
    return {**common, "device": "cpu", "workers": 0, "project": tmp_path / "runs", **extra}


def test_run_writes_what_was_asked_for(project, tmp_path):
    result = val.run(
        **options(project, tmp_path, save_txt=True, save_conf=True, save_json=True, coco_eval=True)
    )
    assert (result.seen, result.instances) == (5, 8)
    folder = result.save_dir
    assert folder == tmp_path / "runs" / "exp"
    report = json.loads((folder / "metrics.json").read_text())
    assert report["map50"] == result.metrics.map50 and report["imgsz"] == 96 and report["nc"] == 2
    assert report["seed"] == 7 and report["images"] == 5 and "torch" in report["versions"]
    assert report["parameters"] > 1000 and report["gflops"] > 0
    assert report["ms_per_image"] == pytest.approx(sum(result.speed.values()))
    assert report["coco"]["map50"] == result.coco.map50
    rows = json.loads((folder / "tiny_predictions.json").read_text())
    assert {row["image_id"] for row in rows} <= set(range(5)) and len(rows) > 0
    assert {row["category_id"] for row in rows} <= {0, 1}
    text = sorted((folder / "labels").glob("*.txt"))
    assert sum(len(p.read_text().splitlines()) for p in text) == len(rows)
    assert all(len(line.split()) == 6 for p in text for line in p.read_text().splitlines())
    assert val.run(**options(project, tmp_path)).save_dir.name == "exp2"


def test_the_page_is_written_unless_nothing_is_drawn(project, tmp_path):
    folder = val.run(**options(project, tmp_path)).save_dir
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "tiny.pt on set.yaml" in html and "8 objects" in html and "data:image/png" in html
    for silent in ({"noplots": True}, {"task": "speed"}):
        folder = val.run(**options(project, tmp_path, **silent)).save_dir
        assert [path.name for path in folder.iterdir()] == ["metrics.json"]


def test_coco_and_our_own_figures_agree(project, tmp_path):
    """Both measures rank the same boxes; with YOLOv5's interpolation they differ by about a point at most."""
    result = val.run(**options(project, tmp_path, coco_eval=True, save_hybrid=True))
    assert result.metrics.map50 > 0.9  # hybrid: the labels are among the predictions
    assert result.coco.map50 == pytest.approx(result.metrics.map50, abs=0.02)


def test_batch_size_does_not_change_the_figures(project, tmp_path):
    """Square images, so that only the batching differs."""
    two = val.run(**options(project, tmp_path, task="speed", batch_size=2))
    five = val.run(**options(project, tmp_path, task="speed", batch_size=5))
    assert two.metrics.map50 == pytest.approx(five.metrics.map50, abs=1e-6)


def test_study_writes_a_row_per_size(project, tmp_path, monkeypatch):
    monkeypatch.setattr(val, "STUDY_SIZES", (64, 96))
    result = val.run(**options(project, tmp_path, task="study"))
    table = np.loadtxt(result.save_dir / "study_set_tiny.txt")
    assert table.shape == (2, 10) and (table[:, 8] > 0).all()
    assert zipfile.ZipFile(result.save_dir / "study.zip").namelist() == ["study_set_tiny.txt"]
    assert (result.save_dir / "study.png").is_file()


@pytest.mark.parametrize(
    ("task", "name"),
    [("study", name) for name in ("save_txt", "save_hybrid", "save_conf", "save_json", "coco_eval")]
    + [("speed", "save_json")],
)
def test_what_a_task_does_not_write_is_refused(project, tmp_path, task, name):
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(UserError, match=f"--task {task} does not write what {flag} asks for") as caught:
        val.run(**options(project, tmp_path, task=task, **{name: True}))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_study_sizes_are_256_to_1536():
    assert val.STUDY_SIZES[0] == 256 and val.STUDY_SIZES[-1] == 1536 and len(val.STUDY_SIZES) == 11


def test_ensemble_of_two_checkpoints(project, tmp_path):
    weights = [project / "tiny.pt", project / "tiny.pt"]
    one = val.run(**options(project, tmp_path))
    two = val.run(**options(project, tmp_path, weights=weights))
    assert two.metrics.map50 == pytest.approx(one.metrics.map50, abs=1e-6)  # twins suppress each other


def test_a_file_of_one_rectangle_sees_every_image_in_it(project, tmp_path):
    shapes = []
    export.run(weights=str(project / "tiny.pt"), include=["onnx"], imgsz=[64, 96])
    original = val.evaluate

    def spy(backend, loader, *args, **kwargs):
        shapes.extend(tuple(batch[0].shape) for batch in loader)
        return original(backend, loader, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(val, "evaluate", spy)
        result = val.run(**options(project, tmp_path, weights=project / "tiny.onnx"))
    assert set(shapes) == {(1, 3, 64, 96)} and len(shapes) == result.seen == 5


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"data": "three.yaml"}, "2 classes .* has 3"),
        ({"weights": "four.pt"}, "four.pt: takes 4 channels; images have 3"),
        ({"task": "test"}, "no 'test' split"),
        ({"weights": "absent.pt"}, "absent.pt"),
        ({"conf_thres": 1.5}, "confidence threshold"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"half": True}, "--half"),
        ({"colour": "red"}, "unknown option 'colour'"),
    ],
)
def test_mistakes_are_one_sentence(project, tmp_path, change, sentence):
    change = {k: project / v if k in ("data", "weights") else v for k, v in change.items()}
    with pytest.raises(UserError, match=sentence) as caught:
        val.run(**options(project, tmp_path, **change))
    assert "\n" not in str(caught.value)
    runs = tmp_path / "runs"
    assert not runs.exists() or not list(runs.iterdir())  # no empty folder stays behind


def test_command_line_ends_with_a_sentence_and_code_1(project):
    command = [
        sys.executable,
        "val.py",
        "--weights",
        str(project / "absent.pt"),
        "--data",
        str(project / "set.yaml"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "absent.pt" in done.stderr and "Traceback" not in done.stderr


def test_without_weights_the_newest_run_is_measured_on_its_data_at_its_size(
    project, tmp_path, monkeypatch, log
):
    best = finished_run(tmp_path / "train", project / "tiny.pt", data=str(project / "set.yaml"), imgsz=96)
    monkeypatch.setattr("utils.training.run_folder.RUNS", tmp_path / "train")
    log.set_level("INFO", "yolo")
    common = {"device": "cpu", "workers": 0, "project": tmp_path / "runs"}
    result = val.run(**common)
    assert result.seen == 5 and measured_size(result) == 96
    first = log.records[0].getMessage()
    assert all(word in first for word in (str(best), str(project / "set.yaml"), "96 pixels"))
    assert measured_size(val.run(**common, imgsz=64)) == 64
    with pytest.raises(UserError, match=r"tiny has 2|best\.pt.*2 classes"):
        val.run(**common, data=project / "three.yaml")


def measured_size(result) -> int:
    return json.loads((result.save_dir / "metrics.json").read_text())["imgsz"]


def test_with_weights_the_defaults_are_those_of_yolov5(project, tmp_path):
    given = options(project, tmp_path)
    del given["imgsz"]
    assert measured_size(val.run(**given)) == 640
    opt = val.parse_opt(["--weights", "a.pt"])
    assert (opt.data, opt.imgsz) == ("data/coco128.yaml", 640)


def test_a_run_that_does_not_say_its_data_is_one_sentence(project, tmp_path, monkeypatch):
    finished_run(tmp_path / "train", project / "tiny.pt", imgsz=96)
    monkeypatch.setattr("utils.training.run_folder.RUNS", tmp_path / "train")
    with pytest.raises(
        UserError, match=r"best\.pt: its run has no opt\.yaml that names its data; give --data"
    ):
        val.run(device="cpu")


def test_short_options_of_the_fact_sheet():
    opt = val.parse_opt(["--img", "320", "--batch", "4", "--conf", "0.01", "--iou", "0.7"])
    assert (opt.imgsz, opt.batch_size, opt.conf_thres, opt.iou_thres) == (320, 4, 0.01, 0.7)
    default = val.parse_opt([])
    assert (default.batch_size, default.conf_thres, default.iou_thres) == (32, 0.001, 0.6)
    assert not default.weights, "the newest run's, whose data and size are then taken too"
    assert (default.data, default.imgsz) == ("data/coco128.yaml", 640)
    assert (default.max_det, default.task, default.workers, default.name) == (300, "val", None, "exp")


def test_some_options_follow_from_others():
    assert val.ValOptions(save_hybrid=True).save_txt
    coco = val.ValOptions(data="elsewhere/coco.yaml")
    assert coco.save_json and not val.ValOptions().save_json
    speed = val.ValOptions(task="speed", data="coco.yaml", conf_thres=0.1)
    assert (speed.conf_thres, speed.iou_thres, speed.save_json) == (0.25, 0.45, False)
    assert dataclasses.replace(coco, task="speed", save_json=False).iou_thres == 0.45
    assert val.ValOptions(weights="a.pt").weights == ["a.pt"]


def test_tiles_are_measured_with_the_labels_of_the_whole_image(project, tmp_path):
    common = options(project, tmp_path, imgsz=32, conf_thres=0.001, save_txt=True)
    result = val.run(**common, tile=True)
    assert (result.seen, result.instances) == (5, 8) and (result.save_dir / "val_batch0_pred.jpg").is_file()
    hybrid = val.run(**common, tile=True, tiles_only=True, save_hybrid=True)
    assert hybrid.metrics.map50 == pytest.approx(0.995), "labels among the predictions are found"
    fits = options(project, tmp_path, imgsz=128, task="speed")
    assert val.run(**fits, tile=True).metrics.map == pytest.approx(val.run(**fits).metrics.map, abs=1e-3)


def test_a_study_of_tiles_is_refused():
    with pytest.raises(UserError, match="--task study with --tile: .*; use --task val"):
        val.run(weights="x.pt", task="study", tile=True)
