"""GhostNet 1.0x against timm, tap by tap; YOLOv5's own ghost networks to the digit."""

import pytest
import torch
from torch import nn

from models import common
from models.yolo import DetectionModel
from tests.models.parity import settle_norms
from utils.errors import UserError
from utils.files import ROOT, load_yaml

FIGURES = {  # parameters by number of classes
    "yolov5s-ghost": {1: 3_684_542, 5: 3_695_330, 80: 3_897_605},
    "yolov5s-ghost-backbone": {1: 5_088_078, 5: 5_098_866, 80: 5_301_141},
}


@pytest.mark.parametrize("name", FIGURES)
def test_yolov5s_ghosts_to_the_digit(name):
    for nc, parameters in FIGURES[name].items():
        with torch.device("meta"):
            net = DetectionModel(f"{name}.yaml", nc=nc)
        assert sum(p.numel() for p in net.parameters()) == parameters


def test_shipped_ghost_backbone_is_the_posts():
    shipped = load_yaml(ROOT / "models/yolov5s-ghost-backbone.yaml")
    post = load_yaml(ROOT / "tests/fixtures/posts/yolov5s-ghost-backbone.yaml")
    assert shipped == post


def test_every_tap_equals_timm_given_its_weights():
    timm = pytest.importorskip("timm", reason="timm, the reference, is optional")
    torch.manual_seed(0)
    reference = timm.create_model("ghostnet_100", pretrained=False).eval()
    settle_norms(reference, torch.rand(4, 3, 96, 160, generator=torch.Generator().manual_seed(2)))
    ours = DetectionModel("yolov5-ghostnet.yaml", nc=2).eval()
    # timm's last stage is the 1x1 convolution that is not used here
    blocks = [block for stage in reference.blocks[:9] for block in stage]
    assert len(blocks) == 16
    stem = {k: v for k, v in reference.state_dict().items() if k.startswith(("conv_stem.", "bn1."))}
    ours.model[0].load_state_dict(stem, strict=True)
    for layer, block in zip(ours.model[1:17], blocks):
        layer.load_state_dict(block.state_dict(), strict=True)
    assert tuple(ours.yaml["mean"]) == reference.default_cfg["mean"]
    assert tuple(ours.yaml["std"]) == reference.default_cfg["std"]
    mean, std = (torch.tensor(reference.default_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    for shape in ((64, 64), (96, 160)):
        image = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(shape[1]))
        with torch.no_grad():
            x = ours.model[0](ours._prepare(image))
            y = reference.act1(reference.bn1(reference.conv_stem((image - mean) / std)))
            assert (x - y).abs().max() <= 1e-4 * y.abs().max()
            for number, (layer, block) in enumerate(zip(ours.model[1:17], blocks), 1):
                x, y = layer(x), block(y)
                assert (x - y).abs().max() <= 1e-4 * y.abs().max(), (number, shape)


def test_taps_norms_and_activations_are_the_papers():
    with torch.device("meta"):
        net = DetectionModel("yolov5-ghostnet.yaml")
    assert [(net.rows[i].out_channels, net.rows[i].stride) for i in (5, 11, 16)] == [
        (40, 8),
        (112, 16),
        (160, 32),
    ]
    backbone = net.model[:17]
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}
    assert not any(isinstance(m, nn.SiLU) for m in backbone.modules())
    gated = [
        i
        for i, layer in enumerate(backbone)
        if i and isinstance(layer.se, nn.Module) and [*layer.se.children()]
    ]
    assert gated == [4, 5, 10, 11, 12, 14, 16]
    squeezed = [backbone[i].se.conv_reduce.out_channels for i in gated]
    assert squeezed == [20, 32, 120, 168, 168, 240, 240]


@pytest.mark.parametrize("c2", [15, 16])
def test_module_gives_the_channels_asked_for(c2):
    module = common.GhostModule(8, c2, 3, 2)
    y = module(torch.rand(2, 8, 8, 12))
    assert y.shape == (2, c2, 4, 6)
    assert y.min() >= 0  # ReLU in both halves
    linear = common.GhostModule(8, c2, relu=False)(torch.rand(2, 8, 4, 4) - 0.5)
    assert linear.min() < 0


@pytest.mark.parametrize(("s", "c2"), [(1, 8), (1, 16), (2, 8)])
def test_bottleneck_adds_its_input_whatever_changes(s, c2):
    """With the last module silenced what is left is the shortcut."""
    block = common.GhostNetBottleneck(8, c2, 3, s, 24, 0.25).eval()
    for part in (block.ghost2.primary_conv, block.ghost2.cheap_operation):
        nn.init.zeros_(part[1].weight)
    x = torch.rand(2, 8, 6, 10)
    with torch.no_grad():
        y = block(x)
        assert y.shape == (2, c2, 6 // s, 10 // s)
        assert torch.equal(y, block.shortcut(x))
    assert isinstance(block.shortcut, nn.Identity) == (s == 1 and c2 == 8)


def test_width_multiple_scales_the_inside_too():
    cfg = {**load_yaml(ROOT / "models/yolov5-ghostnet.yaml"), "width_multiple": 0.5}
    with torch.device("meta"):
        net = DetectionModel(cfg)
    assert net.rows[4].args == [16, 24, 5, 2, 40, 0.25]
    assert net.rows[16].args == [80, 80, 5, 1, 480, 0.25]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([24, 2, 2, 48, 0.25], r"backbone row 3 .*k is 2, expected an odd number"),
        ([24, 3, 2, 48, 1.5], r"se_ratio is 1\.5, expected 0 to 1"),
        ([24, 3, 2, 0, 0.25], "mid is 0, expected a number above 0"),
    ],
)
def test_what_cannot_be_is_told(args, sentence):
    cfg = load_yaml(ROOT / "models/yolov5-ghostnet.yaml")
    cfg["backbone"][2][3] = args
    with pytest.raises(UserError, match=sentence):
        DetectionModel(cfg)
