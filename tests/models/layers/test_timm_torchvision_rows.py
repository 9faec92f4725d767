"""Networks of timm and torchvision as one row under an ordinary neck."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from models.layers.timm_torchvision_rows import Timm, TorchVision
from models.weights.pretrained import load_backbone
from models.yolo import DetectionModel
from utils.errors import UserError

HAS_TIMM = importlib.util.find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm, which is optional, is not installed")
SMALL = {
    "timm": [("timm:mobilenetv4_conv_small", [64, 96, 960]), ("timm:tf_efficientnet_lite0", [40, 112, 320])],
    "torchvision": [("torchvision:shufflenet_v2_x0_5", [48, 96, 1024])],
}
CASES = [pytest.param(*case, marks=needs_timm) for case in SMALL["timm"]] + SMALL["torchvision"]


def detector(**changes) -> dict:
    return {"nc": 2, "anchors": 1, "head": [[[1, 2], 1, "Detect", ["nc", "anchors"]]]} | changes


@pytest.mark.parametrize(("cfg", "channels"), CASES)
def test_channels_and_strides_are_the_networks_own(cfg, channels):
    model = DetectionModel(cfg)
    assert model.stride.tolist() == [8, 16, 32]
    assert [row.out_channels for row in model.rows[1:4]] == channels
    assert DetectionModel(model.yaml).state_dict().keys() == model.state_dict().keys()
    assert model.yaml["mean"][2] == (0.5 if "tf_" in cfg else 0.406)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
    x = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        before = model.eval()(x)[0]
        after = model.fuse()(x)[0]
    assert before.shape[1] == 3 * (12 * 8 + 6 * 4 + 3 * 2)
    assert (before - after).abs().max() <= 1e-4 * before.abs().max()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("mnasnet0_5", [24, 48, 1280]),  # its stages stand in one Sequential called otherwise than `features`
        ("regnet_y_400mf", [104, 208, 440]),
        ("swin_t", [192, 384, 768]),  # its maps have their channels last, the last one excepted
    ],
)
def test_stages_are_found_wherever_torchvision_puts_them(name, channels):
    layer = TorchVision(3, name).eval()
    for height, width in ((64, 64), (96, 160)):
        with torch.no_grad():
            maps = layer(torch.rand(1, 3, height, width))
        expected = [(c, height // s, width // s) for c, s in zip(channels, (8, 16, 32))]
        assert [tuple(m.shape[1:]) for m in maps] == expected


def test_a_network_without_padding_has_no_whole_strides():
    with pytest.raises(UserError, match=r"torchvision/inception_v3: its maps have no whole strides, none 8"):
        DetectionModel("torchvision:inception_v3")


def test_weights_of_the_whole_classifier_fill_the_row(tmp_path):
    from torchvision.models import shufflenet_v2_x0_5

    network = shufflenet_v2_x0_5(weights=None)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    model = DetectionModel("torchvision:shufflenet_v2_x0_5")
    report = load_backbone(model, f"torchvision/shufflenet_v2_x0_5={tmp_path / 'weights.pth'}")
    assert report.left == [] and report.fitted == report.total > 200
    own = model.state_dict()
    assert torch.equal(own["model.0.net.stage4.3.branch2.0.weight"], network.stage4[3].branch2[0].weight)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["TorchVision", ["no_such_net"]]], r"layer 0, TorchVision\): .*no such classifier"),
        ([["TorchVision", ["shufflenet_v2_x0_5", [4, 64]]]], r"have strides .*none 64"),
        ([["TorchVision", ["shufflenet_v2_x0_5", ["stage9"]]]], r"gives no feature maps"),
        ([["TorchVision", ["shufflenet_v2_x0_5"]], ["Index", [3]]], r"there are 3 maps, 0 to 2"),
        (
            [["TorchVision", ["shufflenet_v2_x0_5"]], ["Conv", [8]]],
            r"take one by a row \[0, 1, Index, \[0\]\]",
        ),
        ([["Conv", [8, 3, 2]], ["Index", [0]]], r"gives one map, expected a row of several"),
    ],
)
def test_rows_that_cannot_work_say_why(rows, words):
    backbone = [[-1 if i == 0 else 0, 1, name, args] for i, (name, args) in enumerate(rows)]
    with pytest.raises(UserError, match=words):
        DetectionModel(detector(backbone=backbone, head=[[[-1], 1, "Detect", ["nc", "anchors"]]]))


@needs_timm
@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "mobilevitv2_050", "resnet18d", "efficientvit_b0"]
)
def test_networks_with_windows_or_patches_take_any_multiple_of_32(name):
    layer = Timm(3, name).eval()
    for size in ((64, 64), (96, 160), (224, 32)):
        with torch.no_grad():
            maps = layer(torch.rand(1, 3, *size))
        assert [tuple(m.shape[2:]) for m in maps] == [(size[0] // s, size[1] // s) for s in (8, 16, 32)]
    assert layer.resizes == (name == "mobilevitv2_050")  # it pads to patches of 2 and leaves them


ONE_SIZE = ["timm:maxvit_rmlp_pico_rw_256", "timm:coatnet_0_rw_224", "timm:hiera_tiny_224"]


@pytest.mark.parametrize(
    "cfg", [*(pytest.param(cfg, marks=needs_timm) for cfg in ONE_SIZE), "torchvision:maxvit_t"]
)
def test_networks_of_one_size_are_refused(cfg):
    label = cfg.replace(":", "/")
    with pytest.raises(UserError, match=rf"{label}: does not take images of every size \(.*choose one"):
        DetectionModel(cfg)


@needs_timm
def test_unknown_names_and_networks_without_a_pyramid():
    with pytest.raises(UserError, match=r"timm has no such network; did you mean mobilenetv4_conv_small"):
        DetectionModel("timm:mobilenetv4_conv_smal")
    with pytest.raises(UserError, match=r"strides 16, 16, 16, none 8"):
        DetectionModel("timm:vit_tiny_patch16_224")
