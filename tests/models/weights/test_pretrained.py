"""Backbone weights: mapped by structure, equal in every tap, refused where they would be silently wrong."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torchvision.models import efficientnet_b1, mobilenet_v2, resnet18, resnet34

from models.weights.checkpoint import save_checkpoint
from models.weights.matching import BackboneComparison, backbone_maps
from models.weights.pretrained import load_backbone
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
    assert BackboneComparison(changed(), OneSize(classifier.features), side=96).difference() is None
    with pytest.raises(AssertionError):
        BackboneComparison(changed(), OneSize(classifier.features)).difference()


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
