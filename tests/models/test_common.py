"""Blocks: what their figures, names and shapes must be, each family against its reference."""

import inspect
import re

import pytest
import torch
import yaml
from torch import nn

from models import common
from models.build.fusion import fuse_adjacent
from models.layers.activations import activation_factory, default_activation
from models.registry import REGISTRY
from models.yolo import parse_model
from tests.models.parity import randomise_norms

BLOCKS = {
    "Conv": lambda: common.Conv(8, 16, 3, 2),
    "Conv dilated": lambda: common.Conv(8, 16, 3, 1, None, 2, 2, "ReLU"),
    "DWConv": lambda: common.DWConv(8, 16, 3, 2),
    "DWConvTranspose2d": lambda: common.DWConvTranspose2d(8, 16, 4, 2, 1),
    "Bottleneck": lambda: common.Bottleneck(16, 16),
    "BottleneckCSP": lambda: common.BottleneckCSP(8, 16, 2),
    "C3": lambda: common.C3(8, 16, 2),
    "C3x": lambda: common.C3x(8, 16, 2),
    "C3TR": lambda: common.C3TR(8, 16, 2),
    "C3Ghost": lambda: common.C3Ghost(8, 16, 2),
    "C3SPP": lambda: common.C3SPP(8, 16),
    "CrossConv": lambda: common.CrossConv(8, 8, 3, 1, 1, 1.0, True),
    "CrossConv strided": lambda: common.CrossConv(8, 16, 3, 2),
    "SPP": lambda: common.SPP(8, 16),
    "SPPF": lambda: common.SPPF(8, 16),
    "Focus": lambda: common.Focus(8, 16, 3),
    "GhostConv": lambda: common.GhostConv(8, 16, 3, 2),
    "GhostConv odd": lambda: common.GhostConv(8, 33),
    "GhostBottleneck": lambda: common.GhostBottleneck(16, 16),
    "GhostBottleneck strided": lambda: common.GhostBottleneck(8, 16, 3, 2),
    "GhostBottleneck widening": lambda: common.GhostBottleneck(8, 16, 3, 1),
    "MixConv2d": lambda: common.MixConv2d(8, 15, (1, 3, 5)),
    "MixConv2d equal weights": lambda: common.MixConv2d(8, 20, (1, 3), 2, False),
    "TransformerBlock": lambda: common.TransformerBlock(8, 16, 4, 2),
    "Contract": lambda: common.Contract(2),
    "Expand": lambda: common.Expand(2),
    "ConvBNReLU": lambda: common.ConvBNReLU(8, 16, 3, 2),
    "InvertedResidual": lambda: common.InvertedResidual(8, 8, 1, 6),
    "InvertedResidual strided": lambda: common.InvertedResidual(8, 16, 2, 6),
    "InvertedResidual unexpanded": lambda: common.InvertedResidual(8, 16, 1, 1),
}
STRIDES = {
    "Conv": 2,
    "DWConv": 2,
    "DWConvTranspose2d": 0.5,
    "CrossConv strided": 2,
    "Focus": 2,
    "GhostConv": 2,
    "GhostBottleneck strided": 2,
    "MixConv2d equal weights": 2,
    "Contract": 2,
    "Expand": 0.5,
    "ConvBNReLU": 2,
    "InvertedResidual strided": 2,
}


def build(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BLOCKS[name]()


@pytest.mark.parametrize("name", BLOCKS)
def test_shape_gradient_and_memory_formats(name):
    block = build(name).train()
    for height, width in ((32, 32), (20, 44)):
        channels = 16 if name in ("Bottleneck", "GhostBottleneck") else 8
        x = torch.rand(2, channels, height, width, requires_grad=True)
        y = block(x)
        stride = STRIDES.get(name, 1)
        assert y.shape[2:] == (height / stride, width / stride)
        y.square().mean().backward()
        assert x.grad.abs().sum() > 0
        assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
        block.eval()
        last = block.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert torch.allclose(last, block.to(memory_format=torch.contiguous_format)(x), atol=1e-5)
        block.train()


@pytest.mark.parametrize("name", BLOCKS)
def test_fusion_changes_no_output(name):
    block = build(name).eval()
    randomise_norms(block)
    x = torch.rand(1, 16 if name in ("Bottleneck", "GhostBottleneck") else 8, 16, 24)
    with torch.no_grad():
        before = block(x)
        norms = sum(isinstance(m, nn.BatchNorm2d) for m in block.modules())
        folded = fuse_adjacent(block, x)
        after = block(x)
    assert (before - after).abs().max() <= 1e-4
    # One BatchNorm of BottleneckCSP and of MixConv2d follows a concatenation, all others a convolution.
    left = sum(isinstance(m, nn.BatchNorm2d) for m in block.modules())
    assert left == (1 if name.startswith(("BottleneckCSP", "MixConv2d")) else 0)
    assert folded == norms - left


@pytest.mark.parametrize(
    ("block", "keys"),
    [
        (common.Conv(4, 4), {"conv.weight", "bn.weight"}),
        (common.BottleneckCSP(4, 4), {"cv2.weight", "cv3.weight", "bn.weight", "m.0.cv2.conv.weight"}),
        (
            common.C3TR(4, 8),
            {"m.linear.bias", "m.tr.0.q.weight", "m.tr.0.ma.in_proj_weight", "m.tr.0.fc2.weight"},
        ),
        (common.C3SPP(4, 8), {"m.cv1.conv.weight", "m.cv2.bn.bias"}),
        (common.Focus(3, 8), {"conv.conv.weight"}),
        (
            common.GhostBottleneck(4, 8, 3, 2),
            {"conv.0.cv2.conv.weight", "conv.1.bn.bias", "shortcut.1.conv.weight"},
        ),
        (common.MixConv2d(4, 4), {"m.0.weight", "m.1.weight", "bn.weight"}),
        (common.TransformerBlock(4, 8, 2, 1), {"conv.conv.weight", "tr.0.v.weight"}),
        (common.Sum(3, True), {"w"}),
        (common.Classify(4, 2), {"conv.conv.weight", "linear.bias"}),
        (
            common.InvertedResidual(4, 8, 2, 6),
            {"conv.0.0.weight", "conv.1.1.bias", "conv.2.weight", "conv.3.bias"},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_state_dict_names(block, keys):
    assert keys <= set(block.state_dict())


def test_each_family_keeps_its_own_batch_norm():
    def settings(block):
        return {(m.eps, m.momentum) for m in block.modules() if isinstance(m, nn.BatchNorm2d)}

    for block in (common.C3(8, 8), common.BottleneckCSP(8, 8), common.MixConv2d(8, 8), common.C3Ghost(8, 8)):
        assert settings(block) == {(1e-3, 0.03)}
    assert settings(common.InvertedResidual(8, 8)) == {(1e-5, 0.1)}
    assert settings(common.ConvBNReLU(8, 8)) == {(1e-5, 0.1)}


def test_ghost_conv_gives_an_odd_number_of_channels():
    assert common.GhostConv(8, 33)(torch.rand(1, 8, 4, 4)).shape[1] == 33
    assert common.GhostConv(8, 1)(torch.rand(1, 8, 4, 4)).shape[1] == 1


def test_sppf_equals_spp():
    spp, sppf = common.SPP(8, 8).eval(), common.SPPF(8, 8).eval()
    sppf.load_state_dict(spp.state_dict())
    x = torch.rand(1, 8, 9, 14)
    assert torch.equal(spp(x), sppf(x))


def test_contract_and_expand_are_inverse_and_ordered():
    x = torch.arange(2 * 8 * 4 * 6.0).view(2, 8, 4, 6)
    y = common.Contract(2)(x)
    assert torch.equal(y[:, 8:16], x[:, :, 0::2, 1::2])  # row 0, column 1, then the channels
    assert torch.equal(common.Expand(2)(y), x)


def test_focus_order_of_quarters():
    seen = []
    focus = common.Focus(1, 4)
    focus.conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    focus(torch.tensor([[[[0.0, 2.0], [1.0, 3.0]]]]).repeat(2, 1, 1, 1))
    assert seen[0][0].flatten().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_sum_starts_as_a_plain_sum():
    maps = [torch.full((1, 2, 2, 2), float(v)) for v in (1, 2, 4)]
    assert torch.equal(common.Sum(3, weight=True)(maps), common.Sum(3)(maps))
    assert common.Sum(3)(maps).unique().tolist() == [7.0]


def test_mixconv_shares_channels_or_weights():
    equal = [conv.out_channels for conv in common.MixConv2d(8, 64, (1, 3)).m]
    assert equal == [32, 32]
    by_weights = [conv.out_channels for conv in common.MixConv2d(8, 64, (1, 3), equal_ch=False).m]
    assert sum(by_weights) == 64
    assert by_weights[0] == pytest.approx(9 * by_weights[1], abs=5)


def test_inverted_residuals_equal_torchvision():
    models = pytest.importorskip("torchvision.models", reason="torchvision holds the reference")
    reference = models.mobilenet_v2(weights=None).features.eval()
    randomise_norms(reference)
    table = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    ours = [common.ConvBNReLU(3, 32, 3, 2)]
    channels = 32
    for expand, c2, repeats, stride in table:
        for i in range(repeats):
            ours.append(common.InvertedResidual(channels, c2, stride if i == 0 else 1, expand))
            channels = c2
    x = y = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        for layer, other in zip(ours, reference):
            assert list(layer.state_dict()) == list(other.state_dict())
            layer.load_state_dict(other.state_dict())
            x, y = layer.eval()(x), other(y)
            assert (x - y).abs().max() <= 1e-4 * y.abs().max()
    assert len(ours) == 18


def test_activations_are_looked_up_and_never_evaluated():
    assert activation_factory("nn.LeakyReLU(0.1)")().negative_slope == 0.1
    assert activation_factory("torch.nn.SiLU()")().inplace
    for text in ("__import__('os')", "nn.Conv2d", "ReLU(print())", "LeakyReLU(0.1, 0.2, 0.3, 0.4)"):
        with pytest.raises(ValueError, match="activation"):
            activation_factory(text)


def test_a_default_activation_holds_while_one_model_is_built():
    with default_activation("ReLU"):
        assert isinstance(common.C3(8, 8).cv1.act, nn.ReLU)
        assert isinstance(common.Conv(8, 8, act=False).act, nn.Identity)
    assert isinstance(common.Conv(8, 8).act, nn.SiLU)


FAMILIES = [
    *("InvertedResidual", "MBConvBlock", "stem", "SeBlock", "drop_connect", "MobileNetV3Conv"),
    *("MobileNetV3Block", "GhostConv", "GhostModule", "GhostNetStem", "GhostNetBottleneck", "ConvBNSiLU"),
    *("MV2Block", "MobileViTAttention", "ELAN", "SPPCSPC"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_defined_here(name):
    block = getattr(common, name)
    assert block.__module__ == "models.common"
    if isinstance(block, type):
        assert REGISTRY[name].cls is block


def example_rows():
    """The rows that the docstrings of the blocks show."""
    shown = re.compile(r"`(\[[^`]+\])`")
    classes = [spec.cls for spec in REGISTRY.values() if spec.cls.__module__ == "models.common"]
    return [yaml.safe_load(text) for cls in classes for text in shown.findall(inspect.getdoc(cls))]


@pytest.mark.parametrize("row", example_rows(), ids=lambda row: f"{row[2]}{row[3]}")
def test_the_examples_in_the_docstrings_can_be_built(row):
    first = [[-1, 1, "Conv", [64, 3, 8]], [-1, 1, "Conv", [64]]]
    output = [[0], 1, "Detect", ["nc", "anchors"]]
    layers, rows = parse_model({"nc": 2, "anchors": 1, "backbone": [*first, row], "head": [output]})
    assert rows[2].name == row[2]
    built = layers[2][0] if isinstance(layers[2], nn.Sequential) and rows[2].number > 1 else layers[2]
    assert type(built) is getattr(common, row[2])


def test_every_block_shows_an_example():
    ours = {name for name, spec in REGISTRY.items() if spec.cls.__module__ == "models.common"}
    assert ours - {row[2] for row in example_rows()} == {"Classify"}  # it gives no map, which no row here may
