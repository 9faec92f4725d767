"""MobileNetV2 and V3: every layer of the shipped backbones equals torchvision's with the same weights."""

import pytest
import torch
from torch import nn

from models.common import MobileNetV3Block, SeBlock, make_divisible
from tests.models.parity import (
    assert_equal_layers,
    backbone_of,
    copy_in_order,
    layer_outputs,
    randomise_norms,
)

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
NETS = {  # torchvision's builder: our YAML, layers, taps and their channels
    "mobilenet_v2": ("yolov5-mobilenetv2", 18, {6: 32, 13: 96, 17: 320}),
    "mobilenet_v3_large": ("yolov5-mobilenetv3-large", 16, {6: 40, 12: 112, 15: 160}),
    "mobilenet_v3_small": ("yolov5-mobilenetv3-small", 12, {3: 24, 8: 48, 11: 96}),
}


def reference(name):
    models = pytest.importorskip("torchvision.models", reason="torchvision holds the reference")
    return randomise_norms(getattr(models, name)(weights=None).features)


@pytest.mark.parametrize("name", NETS)
def test_every_layer_equals_torchvision(name):
    _compare(name, NETS[name][0])


def test_the_same_backbone_under_another_neck():
    _compare("mobilenet_v3_large", "yolov7-tiny-mobilenetv3")


def _compare(name, yaml):
    features = reference(name)
    _, layers, taps = NETS[name]
    model, backbone = backbone_of(f"{yaml}.yaml", layers)
    blocks = list(features[:layers])
    ours = [key.partition(".")[0] for key in backbone.state_dict()]
    assert ours == [key.partition(".")[0] for key in features[:layers].state_dict()]
    assert copy_in_order(features, backbone) == len(ours)
    for kind in (nn.BatchNorm2d, nn.Hardswish, nn.ReLU, nn.ReLU6, nn.Hardsigmoid):
        of_ours = [m for m in backbone.modules() if type(m) is kind]
        of_theirs = [m for m in features[:layers].modules() if type(m) is kind]
        assert len(of_ours) == len(of_theirs), kind
        if kind is nn.BatchNorm2d:
            assert [(m.eps, m.momentum) for m in of_ours] == [(m.eps, m.momentum) for m in of_theirs]
    image = torch.rand(1, 3, 96, 160)
    assert_equal_layers(layer_outputs(model, image, layers), blocks, (image - MEAN) / STD)
    assert {i: model.rows[i].out_channels for i in taps} == taps
    assert [model.rows[i].stride for i in taps] == [8, 16, 32]
    used = {s for row in model.rows[layers:] for s in row.sources if s < layers}
    assert used == set(taps)


def test_width_scales_the_expansion_and_the_squeeze():
    block = MobileNetV3Block(40, 40, 5, 1, 3, True, "ReLU")
    assert [m.out_channels for m in block.modules() if isinstance(m, nn.Conv2d)] == [120, 120, 32, 120, 40]
    half = MobileNetV3Block(24, 24, 5, 1, 3, True, "ReLU")
    assert [m.out_channels for m in half.modules() if isinstance(m, nn.Conv2d)] == [72, 72, 24, 72, 24]
    assert MobileNetV3Block(16, 16, 3, 1, 1).block[0][0].groups == 16
    squeeze = next(m for m in block.modules() if isinstance(m, SeBlock))
    assert (type(squeeze.act), type(squeeze.gate)) == (nn.ReLU, nn.Hardsigmoid)


def test_make_divisible_loses_no_more_than_a_tenth():
    assert [make_divisible(v) for v in (1, 8, 18, 30, 88.008, 172)] == [8, 8, 24, 32, 88, 176]
    assert all(make_divisible(v) >= 0.9 * v and make_divisible(v) % 8 == 0 for v in range(1, 400))
