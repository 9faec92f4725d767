"""Checkpoints: what goes in comes out, plain, whole or not at all, and nothing foreign is believed."""

import copy
import errno
import os
import resource
import zipfile
from argparse import Namespace
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import plugins, registry
from models.plugins import load_plugins
from models.schema import SCHEMA
from models.weights.checkpoint import load_checkpoint, plain_data, save_checkpoint, transfer
from models.yolo import DetectionModel
from utils.errors import UserError

TINY = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30]],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "C3", [8]]],
    "head": [[[1], 1, "Detect", ["nc", "anchors"]]],
}
PLUGIN = """
from torch import nn
from models.registry import register_block

@register_block
class Doubling(nn.Module):
    def __init__(self, c1, c2):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, 1)

    def forward(self, x):
        return 2 * self.conv(x)
"""


def tiny(seed=0, **overrides):
    torch.manual_seed(seed)
    model = DetectionModel({**TINY, **overrides})
    model.names = {0: "cat", 1: "dog"}
    for name, buffer in model.named_buffers():
        if "running_var" in name:
            buffer.uniform_(1e-9, 2)  # float16 would lose the small ones
    return model


class Fruit(IntEnum):
    APPLE = 3


def test_round_trip_keeps_tensors_names_meta_and_training(tmp_path):
    model, path = tiny(), tmp_path / "a" / "last.pt"
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.zeros(1, 3, 32, 32))[0].sum().backward()
    optimizer.step()
    generator = np.random.default_rng(1).bit_generator.state  # 128-bit integers
    save_checkpoint(
        path,
        model,
        meta={
            "epoch": 3,
            "best_fitness": np.float64(0.25),
            "opt": Namespace(data=Path("x.yaml"), lr=[1, 2.5]),
        },
        training={
            "optimizer": optimizer.state_dict(),
            "generator": generator,
            "scores": np.array([0.5, 1.5]),
        },
    )
    before = torch.get_rng_state()
    loaded = load_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), before), "loading leaves the caller's random numbers alone"
    assert not loaded.official
    assert not loaded.model.training
    assert loaded.model.names == {0: "cat", 1: "dog"}
    assert loaded.model.yaml == model.yaml
    for (name, a), (other, b) in zip(model.state_dict().items(), loaded.model.state_dict().items()):
        assert name == other
        assert torch.equal(a, b), name
    assert loaded.meta == {"epoch": 3, "best_fitness": 0.25, "opt": {"data": "x.yaml", "lr": [1, 2.5]}}
    assert type(loaded.meta["best_fitness"]) is float
    assert loaded.training["generator"] == generator
    assert torch.equal(loaded.training["scores"], torch.tensor([0.5, 1.5], dtype=torch.float64))
    momentum = loaded.training["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, optimizer.state_dict()["state"][0]["momentum_buffer"])
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded.model(images)[0], model.eval()(images)[0]), "mean and std come back by the YAML"


def test_a_key_that_does_nothing_is_no_reason_to_refuse_the_weights(tmp_path):
    model = tiny()
    model.yaml |= {"Mean": [0.5, 0.5, 0.5], "author": "me"}  # a training of an earlier version took both
    save_checkpoint(tmp_path / "a.pt", model, meta={})
    again = load_checkpoint(tmp_path / "a.pt").model
    assert set(again.yaml) == set(tiny().yaml) and torch.equal(again.mean, tiny().mean)


def test_file_names_no_code_at_all(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, tiny(), meta={"n": np.int64(1), "b": np.bool_(True)}, training={"x": np.zeros(2)})
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    payload = torch.load(path, weights_only=True)
    assert payload["schema"] == SCHEMA
    assert payload["meta"] == {"n": 1, "b": True}


def test_half_halves_matrices_and_spares_statistics(tmp_path):
    model = tiny()
    model.model[0].conv.weight.data[0, 0, 0, 0] = 1e6  # beyond float16: that matrix must stay as it is
    save_checkpoint(tmp_path / "full.pt", model, meta={})
    save_checkpoint(tmp_path / "half.pt", model, meta={}, half=True)
    state = torch.load(tmp_path / "half.pt", weights_only=True)["state"]
    assert state["model.0.conv.weight"].dtype == torch.float32
    assert state["model.1.cv1.conv.weight"].dtype == torch.float16
    loaded = load_checkpoint(tmp_path / "half.pt").model
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert torch.equal(loaded.model[0].bn.running_var, model.model[0].bn.running_var)
    assert torch.equal(loaded.detect.anchors, model.detect.anchors)


def test_a_view_does_not_drag_its_storage_along(tmp_path):
    large = torch.zeros(1_000_000)
    save_checkpoint(tmp_path / "a.pt", tiny(), meta={}, training={"x": large[:3]})
    assert (tmp_path / "a.pt").stat().st_size < 200_000


def test_plain_says_where_it_found_what_it_cannot_keep():
    assert plain_data({"a": (1, Fruit.APPLE)}, "meta") == {"a": (1, 3)}
    assert type(plain_data(Fruit.APPLE, "meta")) is int
    with pytest.raises(TypeError, match=r"meta\.opt\[1\]: .*not Module"):
        plain_data({"opt": [1, nn.Module()]}, "meta")


def test_fused_model_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="fused"):
        save_checkpoint(tmp_path / "a.pt", tiny().fuse(), meta={})


def test_file_size_limit_leaves_the_old_checkpoint_whole(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, tiny(), meta={"epoch": 1})
    old = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, hard))
    try:
        with pytest.raises(
            UserError, match=r"last\.pt: could not be saved .*checkpoint that was there is unchanged"
        ):
            save_checkpoint(path, tiny(1), meta={"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old
    assert load_checkpoint(path).meta == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.pt"]


def test_full_disk_is_a_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("utils.files.os.fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*nothing was written"):
        save_checkpoint(tmp_path / "last.pt", tiny(), meta={})
    assert os.listdir(tmp_path) == []


def _zip_of_something_else(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday/beach.jpg", b"sand")


def _torchscript(path):
    torch.jit.save(torch.jit.script(nn.Identity()), str(path))


def _cut_short(path):
    save_checkpoint(path, tiny(), meta={})
    path.write_bytes(path.read_bytes()[:-2000])


FOREIGN = {
    "empty": (lambda p: p.write_bytes(b""), "the file is empty"),
    "text": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "not a checkpoint or is damaged",
    ),
    "zip": (_zip_of_something_else, r"zip archive of something else \(it holds holiday/beach\.jpg\)"),
    "torchscript": (_torchscript, "TorchScript file, not a checkpoint"),
    "cut short": (_cut_short, "not a checkpoint or is damaged"),
    "list": (lambda p: torch.save([1, 2], p), "a list without a schema version"),
    "weights": (
        lambda p: torch.save(nn.Conv2d(1, 1, 1).state_dict(), p),
        "bare weights without the model's YAML",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_told_apart(tmp_path, kind):
    path = tmp_path / "x.pt"
    make, sentence = FOREIGN[kind]
    make(path)
    with pytest.raises(UserError, match=rf"x\.pt: .*{sentence}"):
        load_checkpoint(path)


def test_missing_file_and_folder_are_sentences(tmp_path):
    with pytest.raises(UserError, match="nowhere.pt: no such file"):
        load_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(UserError, match="no such file"):
        load_checkpoint(tmp_path)


def _change(path, **changes):
    payload = torch.load(path, weights_only=True)
    payload.update(changes)
    torch.save({k: v for k, v in payload.items() if v is not ...}, path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"schema": SCHEMA + 1},
            rf"later version \(schema {SCHEMA + 1}, this version reads up to {SCHEMA}\)",
        ),
        ({"state": ...}, "its state is missing or damaged"),
        ({"state": {"model.0.conv.weight": 3}}, "its state is missing or damaged"),
        ({"state": {1.5: torch.zeros(1), "a": torch.zeros(1)}}, "its state is missing or damaged"),
        ({"plugins": {1: "a.py"}}, "its plugins is missing or damaged"),
        ({"names": {"a": "cat"}}, "its names is missing or damaged"),
        ({"training": [1]}, "its training is missing or damaged"),
        ({"state": {}}, "39 tensors missing.*do not belong to its YAML"),
        ({"yaml": {"nc": 2}}, "cannot be rebuilt from its YAML"),
        ({"yaml": {"nc": 2, "head": [[torch.zeros(2)]]}}, "its YAML holds tensors"),
    ],
)
def test_damaged_payloads_are_named(tmp_path, changes, sentence):
    path = tmp_path / "x.pt"
    save_checkpoint(path, tiny(), meta={})
    _change(path, **changes)
    with pytest.raises(UserError, match=sentence):
        load_checkpoint(path)


def test_checkpoint_names_the_plugin_it_needs_and_never_runs_it_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    monkeypatch.setattr(plugins, "_loaded", {})
    plugin, path = tmp_path / "my_blocks.py", tmp_path / "x.pt"
    plugin.write_text(PLUGIN)
    load_plugins([plugin])
    model = tiny(backbone=[[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Doubling", [8]]])
    save_checkpoint(path, model, meta={})
    assert torch.load(path, weights_only=True)["plugins"] == {"Doubling": str(plugin.resolve())}
    assert load_checkpoint(path).model.rows[1].name == "Doubling"
    del registry.REGISTRY["Doubling"]
    plugins._loaded.clear()
    with pytest.raises(UserError, match=r"uses Doubling from a plug-in; add --plugins .*my_blocks\.py"):
        load_checkpoint(path)
    load_plugins([plugin])
    assert torch.equal(load_checkpoint(path).model.model[1].conv.weight, model.model[1].conv.weight)


def test_transfer_takes_what_has_the_same_name_and_shape_and_reports_the_rest():
    source, target = tiny(0), tiny(1, nc=5)
    state = {**source.state_dict(), "stranger": torch.zeros(1)}
    del state["model.0.bn.weight"]
    untouched = copy.deepcopy(target.state_dict())
    report = transfer(target, state, exclude=["anchor"])
    assert report.missing == ["model.0.bn.weight"]
    assert report.mismatched == [
        ("model.2.m.0.weight", (14, 8, 1, 1), (20, 8, 1, 1)),
        ("model.2.m.0.bias", (14,), (20,)),
    ]
    assert report.excluded == ["model.2.anchors"]
    assert report.unused == ["stranger"]
    assert len(report.matched) == report.total - 4
    assert not report.complete
    assert str(report) == (
        f"{report.total - 4}/{report.total} tensors transferred "
        "(1 missing, 2 of another shape, 1 excluded, 1 unused)"
    )
    for name, tensor in target.state_dict().items():
        expected = state[name] if name in report.matched else untouched[name]
        assert torch.equal(tensor, expected), name


def test_transfer_bridges_precision():
    source, target = tiny(0), tiny(1)
    report = transfer(target, source.half().state_dict())
    assert report.complete
    assert target.model[0].conv.weight.dtype == torch.float32


def test_a_small_file_that_stands_for_gigabytes_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, DetectionModel(TINY), meta={})
    good = torch.load(path, weights_only=True)
    lists = [1]
    for _ in range(40):
        lists = [lists, lists]
    first = next(iter(good["state"]))
    for change, words in [
        (
            {"state": good["state"] | {first: torch.zeros(1).expand(1 << 20, 1 << 16)}},
            "larger than what is stored",
        ),
        ({"meta": {"opt": lists}}, "values are nested without end"),
        (
            {"yaml": good["yaml"] | {"width_multiple": 90.0, "channel_multiple": 4096}},
            "parameters, expected at most",
        ),
    ]:
        torch.save(good | change, path)
        with pytest.raises(UserError, match=words):
            load_checkpoint(path)


def test_a_compressed_file_and_a_bytearray_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, DetectionModel(TINY), meta={})
    with zipfile.ZipFile(path) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data + (bytes(1 << 20) if name.endswith("/version") else b""))
    with pytest.raises(UserError, match="it is compressed"):
        load_checkpoint(path)
    torch.save({"a": bytearray(8)}, path)
    with pytest.raises(UserError, match="makes a bytearray"):
        load_checkpoint(path)
