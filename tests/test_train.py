"""Training end to end on a few drawn shapes: it learns, resumes to the bit, and fails in one sentence."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import export
import hubconf
import train
import val
from models.weights.checkpoint import load_checkpoint, save_checkpoint
from models.yolo import DetectionModel
from tests.tiny_set import NAMES, TINY_FREE, TINY_MODEL, tensors, write_model, write_set
from utils.errors import UserError
from utils.files import ROOT, save_yaml
from utils.training import loggers
from utils.training import options as options_module
from utils.training.compute_mode import ComputeMode
from utils.training.hyp import load_hyp
from utils.training.loggers import read_results
from utils.training.options import is_installed
from utils.training.trainer import Trainer

TIMED = re.compile("ms|seconds|date|speed")
UNREACHABLE = "http://127.0.0.1:9/absent.zip"


class Strange:
    """Stand for any class of a stranger: in a file it would need code to be run."""


LEARN_HYP = load_hyp("hyp.no-augmentation.yaml") | {"nominal_batch": 8, "warmup_epochs": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    write_set(folder)
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def started(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was interrupted in its second epoch."""
    project = tmp_path_factory.mktemp("started")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, epoch=1)
        train.run(**options(folder, project))
    return project / "exp"


def options(folder: Path, project: Path, **changes) -> dict:
    base = {
        "cfg": str(folder / "tiny.yaml"),
        "data": str(folder / "shapes.yaml"),
        "imgsz": 96,
        "epochs": 2,
        "batch_size": 8,
        "workers": 0,
        "project": str(project),
        "device": "cpu",
        "noplots": True,
    }
    return base | changes


def interrupt_in(monkeypatch: pytest.MonkeyPatch, epoch: int, after_batches: int = 1) -> None:
    """Press Ctrl-C in an epoch, after some of its batches."""
    original = Trainer.train_epoch

    def interrupted(self, loader, number, on_batch=None):
        def press(report):
            if number == epoch and report.batch + 1 == after_batches:
                raise KeyboardInterrupt
            on_batch(report)

        return original(self, loader, number, press)

    monkeypatch.setattr(Trainer, "train_epoch", interrupted)


def test_learns_the_shapes_and_leaves_all_files(folder: Path, tmp_path: Path) -> None:
    hyp = LEARN_HYP | {"lr0": 0.01, "lrf": 0.1}
    result = train.run(
        **options(
            folder, tmp_path, epochs=40, optimizer="Adam", hyp=hyp, cache="ram", name="cfg", noplots=False
        )
    )
    rows = read_results(result.save_dir / "results.csv")
    assert len(rows) == 40 and sum(rows[-1][1:4]) < 0.5 * sum(rows[0][1:4])
    assert result.metrics.map50 > 0.45
    assert result.save_dir == tmp_path / "tiny"
    files = {path.name for path in result.save_dir.iterdir()}
    curves = {f"{c}_curve.png" for c in ("F1", "P", "PR", "R")}
    drawn = {f"train_batch{i}.jpg" for i in range(3)} | {"val_batch0_labels.jpg", "val_batch0_pred.jpg"}
    others = {"hyp.yaml", "opt.yaml", "results.csv", "results.png", "labels.jpg", "labels_correlogram.jpg"}
    assert files >= curves | drawn | others | {"confusion_matrix.png", "metrics.json", "weights"}
    report = json.loads((result.save_dir / "metrics.json").read_text())
    assert report["map50"] == pytest.approx(result.metrics.map50) and report["nc"] == 2
    assert report["gflops"] > 0 and report["ms_per_image"] > 0 and report["versions"]["torch"]
    assert [row["name"] for row in report["per_class"]] == NAMES
    best = load_checkpoint(result.best)
    assert best.training is None and best.model.names == dict(enumerate(NAMES))
    assert best.meta["hyp"]["lr0"] == 0.01 and best.meta["opt"]["imgsz"] == 96
    saved = yaml.safe_load((result.save_dir / "opt.yaml").read_text())
    assert saved["hyp"] == yaml.safe_load((result.save_dir / "hyp.yaml").read_text())
    assert load_checkpoint(result.last).training is None
    if is_installed("tensorboard"):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(result.save_dir)).Reload()
        pictures = {name.rpartition(".")[0] for name in curves | drawn | {"labels.jpg", "results.png"}}
        assert set(events.Tags()["images"]) >= pictures | {"confusion_matrix"}
        assert events.Images("labels")[0].step == 0 and events.Images("PR_curve")[0].step == 39
        assert [e.step for e in events.Scalars("metrics/mAP_0.5")] == list(range(40))


def test_a_logger_that_fails_does_not_end_the_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard", reason="the logger that fails here")
    monkeypatch.setattr(loggers.TensorBoard, "log_epoch", lambda *_: 1 / 0)
    result = train.run(**options(folder, tmp_path, logger=["tensorboard"]))
    assert len(read_results(result.save_dir / "results.csv")) == 2 and result.last.is_file()
    assert "--logger tensorboard: left out from here on (division by zero)" in log.text


@pytest.mark.parametrize("exist_ok", [False, True])
def test_a_run_that_fails_before_it_trains_leaves_no_folder(
    folder: Path, tmp_path: Path, exist_ok: bool
) -> None:
    """A folder that may be another run's stays."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="mlflow: cannot be started"):
        patch.setattr(loggers, "Mlflow", lambda *_: 1 / 0)
        patch.setattr(options_module, "is_installed", lambda _: True)
        train.run(**options(folder, tmp_path, logger=["mlflow"], exist_ok=exist_ok))
    assert [path.name for path in tmp_path.iterdir()] == (["exp"] if exist_ok else [])


def test_resumed_run_equals_an_uninterrupted_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hyp = load_hyp("hyp.scratch-low.yaml") | {"nominal_batch": 64}  # more than an epoch: gradients stay over
    same = {"epochs": 4, "save_period": 1, "image_weights": True, "multi_scale": True, "hyp": hyp}
    whole = train.run(**options(folder, tmp_path, **same))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, epoch=3)
        train.run(**options(folder, tmp_path, **same, name="broken"))
    last = tmp_path / "broken" / "weights" / "last.pt"
    state = load_checkpoint(last).training
    assert state["epochs"] == 3 and state["gradients"]  # pending ones, too, come back
    resumed = train.run(resume=str(last))
    assert resumed.save_dir == tmp_path / "broken"
    names = ("weights/epoch3.pt", "weights/epoch2.pt")
    for a, b in ((load_checkpoint(whole.save_dir / n), load_checkpoint(resumed.save_dir / n)) for n in names):
        pairs = list(zip(tensors(a.training), tensors(b.training), strict=True))
        pairs += zip(a.model.state_dict().values(), b.model.state_dict().values())
        assert len(pairs) > 60 and all(torch.equal(x, y) for x, y in pairs)
    texts = [(r.save_dir / "results.csv").read_text() for r in (whole, resumed)]
    assert texts[0] == texts[1]


def test_a_choice_that_cannot_be_taken_is_one_sentence(folder: Path, tmp_path: Path, started: Path) -> None:
    def refused(amp: str) -> str:
        with pytest.raises(UserError) as caught:
            train.run(**options(folder, tmp_path / "runs", amp=amp))
        return str(caught.value)

    assert f"there is no {tmp_path / 'none' / 'opt.yaml'}" in refused(f"from:{tmp_path / 'none' / 'last.pt'}")
    run = tmp_path / "run"
    shutil.copytree(started, run)
    saved = yaml.safe_load((run / "opt.yaml").read_text())
    foreign = ComputeMode(torch.bfloat16, float32=frozenset(["model.99.conv"])).to_plain()
    for choice, says in (
        (foreign, "was measured on another network: this one has no convolution 'model.99.conv'"),
        (foreign | {"dtype": "int3"}, "amp_choice: dtype='int3' cannot be"),
        (None, "has no amp_choice, because its run is of an older version"),
    ):
        held = {key: value for key, value in saved.items() if key != "amp_choice"}
        save_yaml(run / "opt.yaml", held | ({"amp_choice": choice} if choice else {}))
        assert says in refused(f"from:{run}")
        if choice:
            with pytest.raises(UserError, match=re.escape(says)):
                train.run(resume=str(run / "weights" / "last.pt"))
    assert not (tmp_path / "runs").exists()


def test_a_teacher_is_learnt_from_and_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """Resumed to the bit, also with batches of several sizes; another teacher is refused, not a moved one."""
    log.set_level("INFO", "yolo")
    hyp = LEARN_HYP | {"lr0": 0.01}
    trained = train.run(**options(folder, tmp_path, epochs=3, optimizer="Adam", hyp=hyp, name="teacher"))
    teacher = Path(shutil.copy(trained.last, tmp_path / "teacher.pt"))
    save_yaml(tmp_path / "other.yaml", TINY_MODEL | {"anchors": [[5, 5, 6, 6], [7, 7, 8, 8]]})
    same = {"cfg": str(tmp_path / "other.yaml"), "teacher": str(teacher), "multi_scale": True, "seed": 1}
    same |= {"epochs": 3, "save_period": 1, "hyp": LEARN_HYP | {"distill_neck": 2.0}}
    whole = train.run(**options(folder, tmp_path, **same))
    assert (
        f"--teacher {teacher}: teaches by its logits and by 2 of 2 maps, its anchors are taken; 0.0"
        in log.text
    )
    saved = yaml.safe_load((whole.save_dir / "opt.yaml").read_text())
    assert (saved["teacher"], len(saved["teacher_sha256"])) == (str(teacher), 64)
    assert (saved["hyp"]["distill_head"], saved["hyp"]["distill_neck"]) == (1.0, 2.0)
    models = [load_checkpoint(path).model for path in (teacher, whole.last)]
    assert torch.equal(models[0].detect.anchors, models[1].detect.anchors)
    assert len(models[1].state_dict()) == len(models[0].state_dict())  # nothing of the teacher is kept
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, epoch=2)
        train.run(**options(folder, tmp_path, **same, name="broken"))
    last = tmp_path / "broken" / "weights" / "last.pt"
    with pytest.raises(UserError, match="is not the file that was its teacher"):
        train.run(resume=str(last), teacher=str(whole.last))
    with pytest.raises(UserError, match="its run has a teacher"):
        train.run(resume=str(last), teacher="")
    moved = teacher.rename(tmp_path / "moved.pt")
    with pytest.raises(UserError, match="teacher.pt: no such file"):
        train.run(resume=str(last))
    resumed = train.run(resume=str(last), teacher=str(moved))
    a, b = (load_checkpoint(run.save_dir / "weights/epoch2.pt") for run in (whole, resumed))
    pairs = list(zip(tensors(a.training), tensors(b.training), strict=True))
    assert len(pairs) > 40 and all(torch.equal(x, y) for x, y in pairs)
    plain = train.run(**options(folder, tmp_path, **same | {"teacher": ""}, name="plain"))
    alone = load_checkpoint(plain.save_dir / "weights/epoch2.pt")
    assert "without --teacher, distill_neck does nothing" in log.text
    assert not torch.equal(tensors(alone.training["model"])[0], tensors(a.training["model"])[0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": "three"}, "has 2 classes, the data set 3, and class 2 is None there and 'ring' here"),
        ({"hyp": LEARN_HYP | {"anchors": 2}}, "its anchors must be taken; leave anchors in the hyperparam"),
        ({"noautoanchor": True, "cfg": "other"}, "its anchors must be taken; leave --noautoanchor out"),
        ({"teacher": "nowhere.pt"}, "nowhere.pt: no such file"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_sentence(
    folder: Path, tmp_path: Path, changes: dict, sentence: str
) -> None:
    model = DetectionModel(TINY_MODEL)
    model.names = dict(enumerate(NAMES))
    save_checkpoint(tmp_path / "teacher.pt", model, meta={})
    save_yaml(tmp_path / "other.yaml", TINY_MODEL | {"anchors": [[5, 5, 6, 6], [7, 7, 8, 8]]})
    three = yaml.safe_load((folder / "shapes.yaml").read_text()) | {"names": [*NAMES, "ring"]}
    save_yaml(tmp_path / "three.yaml", three)
    for name in ("data", "cfg"):
        if name in changes:
            changes = changes | {name: str(tmp_path / f"{changes[name]}.yaml")}
    with pytest.raises(UserError, match=sentence):
        train.run(**options(folder, tmp_path, **{"teacher": str(tmp_path / "teacher.pt")} | changes))
    assert not (tmp_path / "exp").exists()


def test_a_head_without_anchors_learns_and_works_as_any_other(folder: Path, tmp_path: Path) -> None:
    save_yaml(tmp_path / "free.yaml", TINY_FREE)
    hyp = LEARN_HYP | {"lr0": 0.01, "lrf": 0.1}
    given = {"cfg": str(tmp_path / "free.yaml"), "hyp": hyp, "optimizer": "Adam", "cache": "ram"}
    result = train.run(**options(folder, tmp_path, epochs=40, noval=True, **given))
    rows = read_results(result.save_dir / "results.csv")
    assert all(row[1] > 0 and row[2] == 0 and row[3] > 0 for row in rows)  # objectness is not learnt
    assert result.metrics.map50 > 0.8
    model = load_checkpoint(result.best).model
    assert type(model.detect).__name__ == "DetectFree" and "anchors" not in model.yaml
    common = {"data": str(folder / "shapes.yaml"), "imgsz": 96, "project": str(tmp_path / "val")}
    (file,) = export.run(weights=str(result.best), include=["onnx"], imgsz=[96])
    figures = [val.run(weights=str(path), **common).metrics.map for path in (result.best, file.path)]
    assert figures[0] == pytest.approx(result.metrics.map, abs=0.005)
    assert figures[1] == pytest.approx(figures[0], abs=0.05)  # squares, where the .pt sees wider batches
    (file,) = export.run(weights=str(result.best), include=["onnx"], imgsz=[96], nms=True)
    assert val.run(weights=str(file.path), **common).metrics.map50 > 0.7  # at its own thresholds
    network = hubconf.custom(str(result.best), _verbose=False)
    network.conf = 0.1
    found = network(str(folder / "images/val/0.png"), size=96)
    assert len(found.xyxy[0]) and set(found.xyxy[0][:, 5].tolist()) <= {0.0, 1.0}
    with pytest.raises(UserError, match="its head is DetectFree, the network's DetectFree; both must be Det"):
        train.run(**options(folder, tmp_path, **given, teacher=str(result.best)))


def test_a_head_without_anchors_is_resumed_to_the_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_yaml(tmp_path / "free.yaml", TINY_FREE)
    given = {"cfg": str(tmp_path / "free.yaml"), "epochs": 3, "save_period": 1, "multi_scale": True}
    given |= {"amp": "bf16", "hyp": LEARN_HYP}
    whole = train.run(**options(folder, tmp_path, **given))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, epoch=2)
        train.run(**options(folder, tmp_path, **given, name="broken"))
    resumed = train.run(resume=str(tmp_path / "broken" / "weights" / "last.pt"))
    a, b = (load_checkpoint(run.save_dir / "weights/epoch2.pt") for run in (whole, resumed))
    pairs = list(zip(tensors(a.training), tensors(b.training), strict=True))
    assert len(pairs) > 40 and all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label_smoothing": 0.1}, "learns the quality of its boxes; leave --label-smoothing out"),
        ({"hyp": LEARN_HYP | {"anchors": 3}}, "has no anchors; leave anchors in the hyperparameters out"),
    ],
)
def test_what_a_head_without_anchors_does_not_know_is_refused(
    folder: Path, tmp_path: Path, changes: dict, sentence: str
) -> None:
    save_yaml(tmp_path / "free.yaml", TINY_FREE)
    with pytest.raises(UserError, match=f"free.yaml: its head, DetectFree, {sentence}"):
        train.run(**options(folder, tmp_path, cfg=str(tmp_path / "free.yaml"), **changes))
    assert not (tmp_path / "exp").exists()


def test_resuming_best_points_to_last(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, epoch=1)
        train.run(**options(folder, tmp_path, epochs=3))
    best = tmp_path / "exp" / "weights" / "best.pt"
    last = best.with_name("last.pt")
    with pytest.raises(UserError, match=f"best.pt: keeps the weights after epoch 1 but.* resume {last}, or"):
        train.run(resume=str(best))
    assert train.run(resume=str(best), epochs=2, noval=True).last == last  # on purpose, from these weights
    with pytest.raises(UserError, match="has finished its 2 epochs"):
        train.run(resume=str(last))
    last.unlink()
    with pytest.raises(UserError, match="resume the run's last.pt, or"):
        train.run(resume=str(best))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["square", "disc", "star"], "learns 2 classes, and {yaml} has 3; give --data"),
        (["square", "ball"], "class 1 of {yaml} is 'ball', not 'disc'; give --data"),
    ],
)
def test_resumed_with_other_classes_is_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], says: str
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, epoch=0)
        train.run(**options(folder, tmp_path, noval=True))
    data = yaml.safe_load((folder / "shapes.yaml").read_text())
    other, last = tmp_path / "other.yaml", tmp_path / "exp" / "weights" / "last.pt"
    save_yaml(other, data | {"names": names})
    with pytest.raises(UserError) as caught:
        train.run(resume=str(last), data=str(other))
    assert says.format(yaml=other) in str(caught.value)
    assert f"--weights {last} --data {other}" in str(caught.value)
    save_yaml(other, data | {"names": dict(enumerate(NAMES))})  # the same in another way
    assert train.run(resume=str(last), data=str(other)).last == last


@pytest.fixture(scope="module")
def unfetchable(folder: Path) -> str:
    """A data set that must be fetched, from where nothing answers: to try it is an error."""
    path = folder / "unfetchable.yaml"
    save_yaml(path, {"path": "absent", "train": "t", "val": "v", "names": NAMES, "download": UNREACHABLE})
    return str(path)


@pytest.mark.parametrize("option", ["weights", "backbone_weights", "resume"])
@pytest.mark.parametrize("what", ["missing", "damaged", "pickled"])
def test_weights_are_read_before_a_data_set_is_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfetchable: str, option: str, what: str
) -> None:
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "datasets"))
    path = tmp_path / "weights.pt"
    if what == "damaged":
        path.write_bytes(b"no weights at all")
    elif what == "pickled":
        torch.save(Strange(), path)
    changes = {"data": unfetchable, option: str(path)}
    given = changes if option == "resume" else options(folder, tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        train.run(**given)
    assert str(path) in str(caught.value) and "absent.zip" not in str(caught.value)
    assert not (tmp_path / "datasets").exists()


def test_a_model_yaml_is_checked_before_a_data_set_is_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfetchable: str
) -> None:
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "datasets"))
    cfg = tmp_path / "wrong.yaml"
    save_yaml(cfg, TINY_MODEL | {"head": [[[2, 9], 1, "Detect", ["nc", "anchors"]]]})
    with pytest.raises(UserError, match=r"wrong\.yaml.*head row 1"):
        train.run(**options(folder, tmp_path, cfg=str(cfg), data=unfetchable))
    with pytest.raises(UserError, match=r"absent\.zip"):  # a right one is built, and then it is fetched
        train.run(**options(folder, tmp_path, data=unfetchable))


def test_classes_are_compared_before_a_data_set_is_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfetchable: str
) -> None:
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "datasets"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, epoch=0)
        train.run(**options(folder, tmp_path, noval=True))
    last, other = str(tmp_path / "exp" / "weights" / "last.pt"), tmp_path / "other.yaml"
    save_yaml(other, yaml.safe_load(Path(unfetchable).read_text()) | {"names": ["square", "ball"]})
    with pytest.raises(UserError, match="'ball', not 'disc'"):
        train.run(resume=last, data=str(other))
    with pytest.raises(UserError, match=r"absent\.zip"):
        train.run(resume=last, data=unfetchable)


def test_a_longer_interrupted_run_and_changed_images_are_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    write_set(tmp_path / "set")
    write_model(tmp_path / "set")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, epoch=1)
        train.run(**options(tmp_path / "set", tmp_path))
    last = tmp_path / "exp" / "weights" / "last.pt"
    label = sorted((tmp_path / "set" / "labels" / "train").glob("*.txt"))[0]
    label.write_text("1 0.5 0.5 0.25 0.25\n")
    result = train.run(resume=str(last), epochs=3)
    images = len(list((tmp_path / "set" / "images" / "train").iterdir()))
    told = (
        f"the training images have changed since the run began (still {images}, with other files or labels)"
    )
    assert told in log.text
    rows = read_results(result.save_dir / "results.csv")
    assert [row[0] for row in rows] == [0, 1, 2]


@pytest.mark.parametrize(
    "forge",
    [
        lambda state: state.pop("epochs"),
        lambda state: state.update(epochs="two"),
        lambda state: state.update(stopper=None),
        lambda state: state.update(stopper={"best_fitness": {}}),
        lambda state: state.pop("optimizer"),
        lambda state: state.update(optimizer={"param_groups": [{"params": 3}], "state": {}}),
        lambda state: state["optimizer"]["param_groups"].clear(),
        lambda state: state.update(gradients=[1]),
        lambda state: state.update(gradients={"model.0.conv.weight": torch.zeros(7)}),
        lambda state: state["model"].update({"model.0.conv.weight": torch.zeros(7)}),
        lambda state: state.update(maps=3.0),
    ],
)
def test_a_forged_training_state_is_one_sentence(started: Path, tmp_path: Path, forge: Callable) -> None:
    payload = torch.load(started / "weights" / "last.pt", weights_only=True)
    forge(payload["training"])
    last = tmp_path / "weights" / "last.pt"
    last.parent.mkdir()
    torch.save(payload, last)
    shutil.copy(started / "opt.yaml", tmp_path / "opt.yaml")
    with pytest.raises(UserError, match="training state is damaged|checkpoint's optimizer has groups"):
        train.run(resume=str(last))


def test_full_disk_keeps_the_old_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, last = os.fsync, tmp_path / "exp" / "weights" / "last.pt"

    def full(descriptor: int) -> None:
        if len(read_results(tmp_path / "exp" / "results.csv")) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((UserError, OSError)) as caught:
        train.run(**options(folder, tmp_path, noval=True))
    assert "No space left" in str(caught.value)
    assert load_checkpoint(last).training["epochs"] == 1
    assert not list(last.parent.glob("*.part")) and not list(last.parent.glob(".*"))


def test_a_loss_that_explodes_stops_and_keeps_the_last_good_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.train_epoch

    def poisoned(self, loader, epoch, on_batch=None):
        if epoch == 1:
            with torch.no_grad():
                self.model.model[2].conv.weight[0] = float("nan")
        return original(self, loader, epoch, on_batch)

    monkeypatch.setattr(Trainer, "train_epoch", poisoned)
    with pytest.raises(UserError) as caught:
        train.run(**options(folder, tmp_path))
    assert "epoch 2/2, batch 1/3" in str(caught.value) and "model.2.conv (Conv2d)" in str(caught.value)
    last = load_checkpoint(tmp_path / "exp" / "weights" / "last.pt")
    assert last.training["epochs"] == 1
    assert all(torch.isfinite(v).all() for v in last.model.state_dict().values())


def test_starts_from_weights_by_name_and_shape_and_freezes(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "yolo")
    first = train.run(**options(folder, tmp_path, epochs=1, noval=True))
    wider = TINY_MODEL | {"head": [[-1, 1, "Conv", [40, 3, 1]], [[2, 4], 1, "Detect", ["nc", "anchors"]]]}
    save_yaml(tmp_path / "wider.yaml", wider)
    changes = {"cfg": str(tmp_path / "wider.yaml"), "weights": str(first.last), "freeze": [3]}
    second = train.run(**options(folder, tmp_path, **changes, noval=True, single_cls=True, rect=True))
    assert "tensors transferred" in caplog.text
    before, after = (load_checkpoint(r.last).model.state_dict() for r in (first, second))
    frozen = [k for k in before if k.startswith(("model.0.", "model.1.", "model.2."))]
    assert len(frozen) == 3 * 6
    assert all(torch.allclose(before[k].float(), after[k].float(), atol=2e-3) for k in frozen)
    assert not torch.equal(before["model.3.bn.running_mean"], after["model.3.bn.running_mean"])
    model = load_checkpoint(second.last).model
    assert model.nc == 1 and model.names == {0: "item"} and len(model.rows) == 6


def test_anchors_per_layer_force_the_search(folder: Path, tmp_path: Path) -> None:
    hyp = LEARN_HYP | {"anchors": 3.4}
    result = train.run(**options(folder, tmp_path, epochs=1, hyp=hyp, noautoanchor=True, cos_lr=True))
    detect = load_checkpoint(result.last).model.detect
    pixels = detect.anchors * detect.stride.view(-1, 1, 1)
    assert detect.na == 3 and pixels.min() > 10 and pixels.max() < 45  # the shapes' own 16 to 34 px


@pytest.mark.parametrize("count", [3, 3.0])
def test_anchors_that_are_a_number_force_the_search(folder: Path, tmp_path: Path, count: float) -> None:
    """Placeholders that fit the shapes by chance are searched for all the same."""
    save_yaml(tmp_path / "counted.yaml", TINY_MODEL | {"anchors": count})
    hyp = LEARN_HYP | {"anchor_t": 100.0}
    result = train.run(
        **options(folder, tmp_path, cfg=str(tmp_path / "counted.yaml"), epochs=1, hyp=hyp, noval=True)
    )
    detect = load_checkpoint(result.last).model.detect
    pixels = detect.anchors * detect.stride.view(-1, 1, 1)
    assert detect.na == 3 and pixels.min() > 10 and pixels.max() < 45  # the shapes' own 16 to 34 px


def test_the_largest_seed_trains(folder: Path, tmp_path: Path) -> None:
    last = train.run(**options(folder, tmp_path, epochs=1, noval=True, seed=2**64 - 1, workers=1)).last
    assert load_checkpoint(last).meta["seed"] == 2**64 - 1


def test_the_recipe_is_saved_as_loaded_and_what_was_fitted_as_the_runs_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(patch, epoch=1)
        train.run(**options(folder, tmp_path, noval=True))
    result = train.run(resume=str(tmp_path / "exp" / "weights" / "last.pt"))
    # The stock recipe on so few images: every batch of 8 is a step. That holds for this run alone.
    assert load_hyp(result.save_dir / "hyp.yaml") == load_hyp("hyp.scratch-low.yaml")
    assert load_checkpoint(result.last).meta["hyp"]["nominal_batch"] == 8
    assert yaml.safe_load((result.save_dir / "opt.yaml").read_text())["hyp"]["nominal_batch"] == 8
    write_set(tmp_path / "more", train=160, val=8)
    more = {"data": str(tmp_path / "more" / "shapes.yaml"), "epochs": 1, "imgsz": 64, "noval": True}
    larger = train.run(**options(folder, tmp_path, hyp=str(result.save_dir / "hyp.yaml"), **more))
    assert load_checkpoint(larger.last).meta["hyp"]["nominal_batch"] == 16


def test_a_run_on_cuda_asks_for_deterministic_kernels(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    class Started(Exception):
        pass

    def start(*_) -> None:
        modes.append(torch.get_deterministic_debug_mode())
        raise Started

    monkeypatch.setattr(train, "train_from", start)
    for device in ("cuda", "cpu"):
        monkeypatch.setattr(train, "select_device", lambda spec, device=device: torch.device(device))
        with pytest.raises(Started):
            train.run(**options(folder, tmp_path))
        modes.append(torch.get_deterministic_debug_mode())
    assert modes == [1, 0, 0, 0]  # 1: deterministic, a warning where that is not to be had


@pytest.mark.parametrize(
    ("batch_size", "says"),
    [
        (8, "--batch-size 8 at 96 pixels does not fit into the memory of cpu; give a smaller one, or -1"),
        (-1, "the batch that --batch-size -1 found at 96 pixels does not fit .*; give a number"),
    ],
)
def test_too_little_memory_is_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, says: str
) -> None:
    def exhausted(self, *_) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Trainer, "train_epoch", exhausted)
    with pytest.raises(UserError, match=says):
        train.run(**options(folder, tmp_path, batch_size=batch_size))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 0}, "--epochs 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"seed": 10**23, "data": "nowhere.yaml"}, "--seed 100000000000000000000000: must be at most 1844"),
        ({"label_smoothing": 1.0}, "--label-smoothing 1.0"),
        ({"rect": True, "image_weights": True}, "use one"),
        ({"sync_bn": True}, "--sync-bn needs several processes"),
        ({"freeze": [99]}, "--freeze 99"),
        ({"amp": "fp16"}, "--amp fp16"),
        ({"cfg": "", "weights": ""}, "needs --cfg"),
        ({"cfg": ""}, "neither --cfg nor --weights"),
        ({"cfg": "", "data": "nowhere.yaml"}, "neither --cfg nor --weights"),  # before data is fetched
        ({"weights": "nowhere.pt", "data": "nowhere.yaml"}, "nowhere.pt"),
        ({"weights": "nowhere.pt"}, "nowhere.pt"),
        ({"backbone_weights": "nowhere.pth", "data": "nowhere.yaml"}, "nowhere.pth: no such file"),
        ({"cfg": "torchvision:nowhere", "data": "nowhere.yaml"}, "torchvision/nowhere"),
        ({"hyp": {"lr_0": 1.0}}, "did you mean 'lr0'"),
        ({"optimizer": "LAMB"}, "optimizer='LAMB'"),
        ({"resume": "nowhere/last.pt"}, "nowhere/last.pt: no such file"),
        ({"quad": True}, "quad"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        train.run(**options(folder, tmp_path / "runs", **changes))
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_wrong_word_for_freeze_is_one_sentence(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="1"):
        train.parse_opt(["--freeze", "neck"])
    assert "'neck' is no row; give row numbers, or backbone" in capsys.readouterr().err


def test_only_what_the_command_line_says_is_given() -> None:
    assert train.given_options(["--resume", "--epochs", "7"]) == {"resume": True, "epochs": 7}
    assert train.given_options(["--img", "64", "--cache", "--freeze", "1", "2"]) == {
        "imgsz": 64,
        "cache": "ram",
        "freeze": [1, 2],
    }


IDLE = """
from torch import nn

from models.registry import register_block


@register_block
class Spare(nn.Conv2d):
    def __init__(self, c1: int, c2: int) -> None:
        super().__init__(c1, c2, 1)
        self.idle = nn.Linear(4, 4)
"""


@pytest.mark.parametrize("idle", [False, True])
def test_two_processes_train_one_model(folder: Path, tmp_path: Path, idle: bool) -> None:
    """Also one with a parameter that no output depends on, for which no process ever has a gradient."""
    cfg = folder / "tiny.yaml"
    extra = []
    if idle:
        cfg = tmp_path / "spare.yaml"
        save_yaml(cfg, TINY_MODEL | {"backbone": [[-1, 1, "Spare", [8]], *TINY_MODEL["backbone"][:3]]})
        (tmp_path / "spare.py").write_text(IDLE)
        extra = ["--plugins", str(tmp_path / "spare.py")]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += [str(ROOT / "train.py"), "--noplots", "--device", "cpu", "--workers", "0", "--imgsz", "96"]
    command += ["--cfg", str(cfg), "--data", str(folder / "shapes.yaml"), *extra]
    command += ["--epochs", "2", "--batch-size", "8", "--project", str(tmp_path), "--noval"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read_results(tmp_path / "exp" / "results.csv")
    assert len(rows) == 2 and sum(rows[1][1:4]) > 0
    assert not (tmp_path / "exp2").exists()


def start_two(folder: Path, project: Path, *extra: str, script: Path = ROOT / "train.py") -> list[str]:
    """The command of a training in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += [str(script), "--noplots", "--device", "cpu", "--workers", "0", "--imgsz", "96"]
    command += ["--cfg", str(folder / "tiny.yaml"), "--data", str(folder / "shapes.yaml")]
    return [*command, "--batch-size", "8", "--project", str(project), *extra]


@pytest.mark.parametrize("taught", [False, True])
def test_two_processes_give_what_one_gives(folder: Path, tmp_path: Path, taught: bool) -> None:
    """Weights, metrics and losses, without augmentation; only sums come in another order."""
    save_yaml(tmp_path / "hyp.yaml", LEARN_HYP)
    same = {"hyp": str(tmp_path / "hyp.yaml"), "epochs": 3, "save_period": 1, "amp": "off"}
    words = ["--hyp", same["hyp"], "--epochs", "3", "--save-period", "1", "--amp", "off"]
    if taught:
        first = train.run(**options(folder, tmp_path, name="teacher", hyp=LEARN_HYP | {"lr0": 0.02}))
        same["teacher"] = str(first.last)
        words += ["--teacher", same["teacher"]]
    one = train.run(**options(folder, tmp_path, name="one", **same)).save_dir
    command = start_two(folder, tmp_path, *words, "--sync-bn", "--name", "two")
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = tmp_path / "two"
    for epoch in range(2):
        a, b = (load_checkpoint(path / "weights" / f"epoch{epoch}.pt") for path in (one, two))
        pairs = zip(a.training["model"].values(), b.training["model"].values(), strict=True)
        assert max(float((x - y).abs().max()) for x, y in pairs) < 1e-4
    rows = [read_results(path / "results.csv") for path in (one, two)]
    values = torch.tensor(rows)
    torch.testing.assert_close(values[1, :, :8], values[0, :, :8], rtol=2e-3, atol=2e-4)
    # A validation loss is the mean over shares of the images; a mean over objects would need them all.
    torch.testing.assert_close(values[1, :, 8:], values[0, :, 8:], rtol=3e-2, atol=2e-4)
    # One process alone measures the same file to the last bit.
    report = json.loads((two / "metrics.json").read_text())
    (two / "metrics.json").unlink()
    alone = train.run(resume=str(two / "weights" / "last.pt"))
    again = json.loads((two / "metrics.json").read_text())
    assert report["images"] == 8 and report["map50"] == alone.metrics.map50 > 0
    assert all(report[key] == value for key, value in again.items() if not TIMED.match(key))


DIES = """
import os, signal, sys
sys.path.insert(0, {root!r})
import train
from utils.cli import guard
from utils.training.trainer import Trainer
step = Trainer._step
def die(self, images, targets, epoch, batch):
    if self.rank == {rank} and (epoch, batch) == (1, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, images, targets, epoch, batch)
Trainer._step = die
guard(train.main)
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_process_ends_the_others_and_one_goes_on(folder: Path, tmp_path: Path, rank: int) -> None:
    script = tmp_path / "dies.py"
    script.write_text(DIES.format(root=str(ROOT), rank=rank))
    command = start_two(folder, tmp_path, "--epochs", "3", script=script)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode != 0
    told = re.findall(r"error: (?!Exception)(.*)", done.stderr)
    told = [line for line in told if not line.startswith("<")]  # torchrun's own table
    assert len(told) == 1, done.stderr
    assert f"process {1 - rank} of 2 stops because another process" in told[0] or "SIGTERM" in told[0]
    assert "train.py" not in done.stderr  # no traceback of ours, only torchrun's
    last = tmp_path / "exp" / "weights" / "last.pt"
    assert load_checkpoint(last).training["epochs"] == 1
    assert train.run(resume=str(last)).metrics.map50 >= 0
    assert len(read_results(tmp_path / "exp" / "results.csv")) == 3


def test_a_network_by_name_trains_and_resumes(folder: Path, tmp_path: Path) -> None:
    named = {"cfg": "torchvision:shufflenet_v2_x0_5", "name": "cfg", "freeze": ["backbone"]}
    result = train.run(**options(folder, tmp_path, imgsz=64, save_period=1, **named))
    assert result.save_dir.name == "torchvision-shufflenet_v2_x0_5"
    model = load_checkpoint(result.last).model
    assert DetectionModel(result.save_dir / f"{result.save_dir.name}.yaml").yaml == model.yaml
    first = load_checkpoint(result.save_dir / "weights" / "epoch0.pt")
    kept = "model.0.net.conv1.0.weight"  # frozen
    assert torch.equal(first.model.state_dict()[kept].half(), model.state_dict()[kept].half())
    assert train.run(resume=str(first.path)).save_dir == result.save_dir
    assert first.meta["opt"]["freeze"] == ["backbone"]
