"""Official YOLOv5 files: nothing in them runs, every tensor is taken over, other names are refused."""

import copy
import os
import pathlib
import pickle
import sys
import types
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn

import models.common
import models.weights.official
import models.yolo
from models.weights.checkpoint import load_checkpoint
from models.weights.official import SHELLS, Shell, read_file, refused_names
from models.yolo import DetectionModel
from utils.errors import UserError

TINY = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]],
    "backbone": [
        [-1, 1, "Conv", [32, 6, 2, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "C3", [32]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 1, "SPPF", [64, 5]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "C3", [32, False]],
        [[7, 4], 1, "Detect", ["nc", "anchors"]],
    ],
}
NAMES = ["cat", "dog"]


class Evil:
    """Its unpickling makes a folder: the sign that code ran."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def tiny(seed=0):
    torch.manual_seed(seed)
    model = DetectionModel(TINY)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    model.detect.anchors.mul_(1.25)  # not the YAML's: as after an anchor search
    return model


def as_official(model, monkeypatch, root="Model", names=NAMES):
    """The model as the official project pickles it: fp16 modules of its classes, attributes on the root."""
    fakes = {"root": (models.yolo, root), "detect": (models.yolo, "Detect")}
    classes = {
        key: type(name, (nn.Module,), {"__module__": "models.yolo"}) for key, (_, name) in fakes.items()
    }
    for key, (module, name) in fakes.items():
        monkeypatch.setattr(module, name, classes[key], raising=False)
    official = classes["root"]()
    official.model = copy.deepcopy(model.model)
    head = official.model[-1]
    head.__class__ = classes["detect"]
    head.register_buffer("anchor_grid", torch.zeros(2, 1, 3, 1, 1, 2))  # very old files carry it
    official.yaml, official.names, official.nc = copy.deepcopy(TINY), names, 2
    official.stride, official.hyp = torch.tensor([4.0, 8.0]), {"box": 0.05}
    return official.half()


def training_file(model, ema=None, **more):
    """What an interrupted official training run leaves: numpy's, paths and all."""
    beside = {
        "epoch": 7,
        "best_fitness": np.array([0.25]),
        "updates": 3,
        "optimizer": None,
        "date": "2022-11-22",
    }
    opt = Namespace(save_dir=pathlib.PurePosixPath("runs"), weights="")
    opt.save_dir = pathlib.Path("runs")
    scalar = np.float64(0.5)
    return {**beside, "model": model, "ema": ema, "opt": opt, "fitness": scalar, **more}


@pytest.mark.parametrize("root", ["Model", "DetectionModel"])
def test_file_is_rebuilt_tensor_for_tensor(tmp_path, monkeypatch, root):
    model, path = tiny(), tmp_path / "official.pt"
    with monkeypatch.context() as patch:
        torch.save(training_file(as_official(model, patch, root)), path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.official
    assert checkpoint.model.licence == "AGPL-3.0"
    assert checkpoint.training is None
    assert checkpoint.meta["epoch"] == 7
    assert checkpoint.meta["date"] == "2022-11-22"
    assert checkpoint.model.names == {0: "cat", 1: "dog"}
    wanted, found = model.state_dict(), checkpoint.model.state_dict()
    assert list(wanted) == list(found)
    for name, tensor in found.items():
        expected = wanted[name].half().float() if wanted[name].is_floating_point() else wanted[name]
        assert tensor.dtype == wanted[name].dtype, name
        assert torch.equal(tensor, expected), name
    assert not checkpoint.model.training


def test_averaged_weights_are_preferred_and_names_may_be_a_dict(tmp_path, monkeypatch):
    path = tmp_path / "official.pt"
    model, ema = tiny(0), tiny(1)
    with monkeypatch.context() as patch:
        pickled = as_official(model, patch)
        averaged = copy.deepcopy(pickled)
        averaged.model.load_state_dict(ema.half().model.state_dict(), strict=False)
        averaged.names = {0: "a", 1: "b"}
        torch.save(training_file(pickled, averaged), path)
    loaded = load_checkpoint(path).model
    assert loaded.names == {0: "a", 1: "b"}
    assert torch.equal(loaded.model[0].conv.weight, ema.float().model[0].conv.weight)


def test_a_bare_model_is_read(tmp_path, monkeypatch):
    path, model = tmp_path / "bare.pt", tiny()
    with monkeypatch.context() as patch:
        torch.save(as_official(model, patch), path)
    weight = load_checkpoint(path).model.model[0].conv.weight
    assert torch.equal(weight, model.model[0].conv.weight.half().float())


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_model_in_the_oldest_container_is_told_apart_from_damage(tmp_path, monkeypatch):
    path = tmp_path / "old.pt"
    with monkeypatch.context() as patch:
        torch.save(as_official(tiny(), patch), path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="container before 1.6"):
        load_checkpoint(path)


def write(path, payload, how):
    if how == "torch zip":
        torch.save(payload, path)
    elif how == "torch legacy":
        torch.save(payload, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(payload, protocol=2 if how == "pickle 2" else 4))


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("how", ["torch zip", "torch legacy", "pickle 2", "pickle 4"])
@pytest.mark.parametrize("place", ["top", "beside the model"])
def test_pickle_that_would_run_code_is_refused_by_name_and_does_not_run(tmp_path, monkeypatch, how, place):
    trap, path = tmp_path / "ran", tmp_path / "evil.pt"
    with monkeypatch.context() as patch:
        payload = (
            Evil(trap) if place == "top" else training_file(as_official(tiny(), patch), optimizer=Evil(trap))
        )
        write(path, payload, how)
    with pytest.raises(UserError, match=r"evil\.pt: refused.*(posix|nt)\.mkdir.*nothing of it was run"):
        load_checkpoint(path)
    assert not trap.exists()
    if how.startswith("pickle") and place == "top":
        pickle.loads(path.read_bytes())
        assert trap.exists(), "the trap works, so its silence above means something"


@pytest.mark.parametrize("name", ["PosixPath", "WindowsPath"])
def test_paths_are_read_as_python_3_13_names_them(tmp_path, monkeypatch, name):
    module = "pathlib._local"

    class Ours:
        def __init__(self, *parts):
            self.parts = parts

        def __reduce__(self):
            return type(self), self.parts

    Ours.__module__, Ours.__name__, Ours.__qualname__ = module, name, name
    path = tmp_path / "official.pt"
    with monkeypatch.context() as patch:
        place = types.ModuleType(module)
        setattr(place, name, Ours)
        patch.setitem(sys.modules, module, place)
        opt = Namespace(save_dir=Ours("runs", "exp"))
        torch.save({**training_file(as_official(tiny(), patch)), "opt": opt}, path)
    with zipfile.ZipFile(path) as archive:
        member = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
        assert f"c{module}\n{name}\n".encode() in archive.read(member)
    assert refused_names(path) == set()
    assert load_checkpoint(path).model.names == {0: "cat", 1: "dog"}


@pytest.mark.parametrize("missing", ["_get_allowed_globals", "NAME_MAPPING"])
def test_a_torch_that_keeps_its_list_elsewhere_still_refuses_in_a_sentence(tmp_path, monkeypatch, missing):
    trap, path = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save(Evil(trap), path)
    sentences = []

    def note(path, error):
        with monkeypatch.context() as patch:
            patch.delattr(f"torch._weights_only_unpickler.{missing}")
            sentences.append(sentence(path, error))
        return sentences[0]

    sentence = models.weights.official._sentence
    monkeypatch.setattr(models.weights.official, "_sentence", note)
    with pytest.raises(UserError, match=r"evil\.pt: is not a checkpoint or is damaged .*give a \.pt file"):
        load_checkpoint(path)
    assert len(sentences) == 1
    assert not trap.exists()


@pytest.mark.parametrize(
    "name", ["models.yolo.SegmentationModel", "models.common.autopad", "torch.nn.modules.rnn.LSTM"]
)
def test_names_off_the_list_are_refused(tmp_path, monkeypatch, name):
    module, _, attribute = name.rpartition(".")
    owner = models.yolo if module.endswith("yolo") else models.common
    if "LSTM" in name:
        stranger = nn.LSTM(1, 1)
    else:
        fake = type(attribute, (nn.Module,), {"__module__": module})
        monkeypatch.setattr(owner, attribute, fake, raising=False)
        stranger = fake()
    path = tmp_path / "other.pt"
    torch.save({"model": stranger}, path)
    assert refused_names(path) == {name}
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("ultralytics.nn.tasks.DetectionModel torch.nn.modules.loss.BCELoss", "package ultralytics .YOLOv8"),
        ("models.yolo.SegmentationModel models.common.Proto", "a YOLOv5 segmentation checkpoint.*-seg or"),
        ("yolov5.models.yolo.ClassificationModel", "a YOLOv5 classification checkpoint.*-cls or train one"),
        (
            "models.common.CBAM utils.more.Mish",
            "names models.common.CBAM.*train.py --cfg YAML --plugins FILE",
        ),
        ("models.common.CBAM shutil.rmtree", "refused, because .* names models.common.CBAM, shutil.rmtree"),
    ],
)
def test_other_checkpoints_are_named_with_the_way_that_is_open(tmp_path, monkeypatch, names, sentence):
    members = []
    with monkeypatch.context() as patch:
        for module, _, attribute in (name.rpartition(".") for name in names.split()):
            kind = type(attribute, (), {"__module__": module})
            for place in (module.partition(".")[0], module):
                patch.setitem(sys.modules, place, sys.modules.get(place) or types.ModuleType(place))
            patch.setattr(sys.modules[module], attribute, kind, raising=False)
            members.append(kind())
        torch.save({"model": members}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=rf"other\.pt: .*{sentence}"):
        load_checkpoint(tmp_path / "other.pt")


def test_files_of_the_package_yolov5_have_their_own_module_names(tmp_path, monkeypatch):
    model, path = tiny(), tmp_path / "package.pt"
    with monkeypatch.context() as patch:
        pickled = as_official(model, patch)
        kinds = {type(m): m for m in pickled.modules() if type(m).__module__.startswith("models.")}
        for kind in kinds:
            for name in ("yolov5", "yolov5.models", f"yolov5.{kind.__module__}"):
                patch.setitem(sys.modules, name, sys.modules.get(name) or types.ModuleType(name))
            setattr(sys.modules[f"yolov5.{kind.__module__}"], kind.__name__, kind)
            patch.setattr(kind, "__module__", f"yolov5.{kind.__module__}")
        torch.save({"model": pickled}, path)
    with zipfile.ZipFile(path) as archive:
        member = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        assert b"yolov5.models.common" in archive.read(member)
    weight = load_checkpoint(path).model.model[0].conv.weight
    assert torch.equal(weight, model.model[0].conv.weight.half().float())


def test_a_block_alone_is_no_model(tmp_path):
    path = tmp_path / "block.pt"
    torch.save({"model": models.common.Conv(3, 8)}, path)
    with pytest.raises(
        UserError, match=r"holds models\.common\.Conv where a YOLOv5 detection model is expected"
    ):
        load_checkpoint(path)


def test_weights_that_do_not_fit_their_yaml_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "official.pt"
    with monkeypatch.context() as patch:
        pickled = as_official(tiny(), patch)
        pickled.yaml["nc"] = 5
        torch.save({"model": pickled}, path)
    with pytest.raises(
        UserError, match=r"4 of another shape.*do not belong to its YAML.*model\.8\.m\.0\.weight"
    ):
        load_checkpoint(path)


def test_other_activations_than_the_yaml_builds_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "official.pt"
    model = tiny()
    model.model[0].act = nn.Hardswish()
    with monkeypatch.context() as patch:
        torch.save({"model": as_official(model, patch)}, path)
    with pytest.raises(UserError, match=r"trained with Hardswish, SiLU, its YAML builds SiLU"):
        load_checkpoint(path)


def test_shells_do_nothing_but_record():
    for shell, name in SHELLS:
        assert issubclass(shell, Shell)
        assert shell.path == name.removeprefix("yolov5.")
    made = SHELLS[0][0].__new__(SHELLS[0][0], 1, 2)
    made.__setstate__({"_modules": {"a": 1}, "yaml": {}})
    assert made.part("_modules") == {"a": 1}
    assert made.part("_buffers") == {}
    made.__setstate__("not a mapping")
    assert made.get("yaml") is None


def test_modules_nested_in_themselves_end_in_a_sentence(tmp_path, monkeypatch):
    path = tmp_path / "loop.pt"
    with monkeypatch.context() as patch:
        pickled = as_official(tiny(), patch)
        pickled.model[0]._modules["again"] = pickled.model[0]
        torch.save({"model": pickled}, path)
    with pytest.raises(UserError, match="nested without end"):
        load_checkpoint(path)


def test_damaged_bytes_end_in_a_sentence_or_a_model(tmp_path, monkeypatch):
    """Sixty files with one byte of the pickle changed: never another exception, never code."""
    path, broken = tmp_path / "official.pt", tmp_path / "broken.pt"
    with monkeypatch.context() as patch:
        torch.save({"model": as_official(tiny(), patch)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = [name for name in members if name.endswith("/data.pkl")]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        data = bytearray(members[pickled])
        data[rng.integers(len(data))] = rng.integers(256)
        with zipfile.ZipFile(broken, "w", zipfile.ZIP_STORED) as archive:
            for name, content in members.items():
                archive.writestr(name, bytes(data) if name == pickled else content)
        try:
            load_checkpoint(broken)
        except UserError:
            refused += 1
    assert refused > 12


@pytest.mark.skipif(
    not os.environ.get("LIGHT_YOLO_OFFICIAL"), reason="LIGHT_YOLO_OFFICIAL names no official yolov5n.pt"
)
def test_the_real_release_file():
    path = pathlib.Path(os.environ["LIGHT_YOLO_OFFICIAL"])
    checkpoint = load_checkpoint(path)
    assert len(checkpoint.model.state_dict()) == 349
    assert sum(p.numel() for p in checkpoint.model.parameters()) == 1_872_157
    assert checkpoint.model.names[0] == "person"
    assert read_file(path)["epoch"] == -1
