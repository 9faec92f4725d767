"""MobileViT: timm's networks stage by stage, every size with every patch, traces that hold elsewhere."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import export
from models import common
from models.weights.checkpoint import save_checkpoint
from models.yolo import DetectionModel
from tests.models.parity import settle_norms
from utils.errors import UserError
from utils.files import ROOT, load_yaml
from utils.profiling import gflops

POST = ROOT / "tests/fixtures/posts/yolov5-mobilevit.yaml"
STAGES = ("0.0", "1.0", "1.1", "1.2", "2.0", "2.1", "3.0", "3.1", "4.0", "4.1")  # of timm, by row from 1
TAPS = (6, 8, 10)


def randomise_norms(module):
    """BatchNorm and LayerNorm as after training: fresh ones hide a wrong eps or order."""
    generator = torch.Generator().manual_seed(1)
    for m in module.modules():
        for name, low, high in (
            ("running_mean", -0.2, 0.2),
            ("running_var", 0.01, 1.0),
            ("weight", 0.5, 1.5),
            ("bias", -0.2, 0.2),
        ):
            tensor = getattr(m, name, None)
            if isinstance(m, nn.BatchNorm2d | nn.LayerNorm) and tensor is not None:
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)


def attention(patch, c=8, kernel=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = common.MobileViTAttention(c, c, 16, 1, kernel, patch, 32)
    randomise_norms(block)
    return block.eval()


def small(**changes):
    """The post's network, without the width of its neck, for speed."""
    cfg = copy.deepcopy(load_yaml(POST))
    for row in cfg["head"]:
        if row[2] in ("Conv", "C3"):
            row[1], row[3][0] = 1, 16
    return {**cfg, **changes}


def image(height, width, n=1):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(height + width))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = DetectionModel("yolov5-mobilevit-xxs.yaml", nc=2)
    randomise_norms(net)
    for conv in net.detect.m:
        conv.weight.data.normal_(0, 0.05)
        conv.bias.data.zero_()  # scores over the whole of 0..1, as after training
    return net.eval()


@pytest.mark.parametrize("size", ["xxs", "xs", "s"])
def test_every_stage_equals_timm_given_its_weights(size):
    timm = pytest.importorskip("timm", reason="timm, the reference, is optional")
    torch.manual_seed(0)
    reference = timm.create_model(f"mobilevit_{size}", pretrained=False).eval()
    settle_norms(reference, image(96, 160, n=4))
    ours = DetectionModel(f"yolov5-mobilevit-{size}.yaml", nc=2).eval()
    theirs = [reference.stem, *(reference.get_submodule(f"stages.{name}") for name in STAGES)]
    for layer, module in zip(ours.model, theirs):
        layer.load_state_dict(module.state_dict(), strict=True)
    assert tuple(ours.yaml["mean"]) == reference.default_cfg["mean"]
    assert tuple(ours.yaml["std"]) == reference.default_cfg["std"]
    info = reference.feature_info  # timm's last tap is the 1x1 convolution that is not used here
    assert [ours.rows[i].out_channels for i in TAPS[:2]] == [info[i]["num_chs"] for i in (2, 3)]
    assert [ours.rows[i].stride for i in TAPS] == [info[i]["reduction"] for i in (2, 3, 4)]
    for shape in ((64, 64), (96, 160)):  # 96 x 160: 3 x 5 cells at stride 32, no multiple of the patch
        with torch.no_grad():
            x = y = image(*shape, n=2)
            x = ours._prepare(x)
            for number, (layer, module) in enumerate(zip(ours.model, theirs)):
                x, y = layer(x), module(y)
                assert (x - y).abs().max() <= 1e-4 * y.abs().max(), (number, shape)
    assert x.shape[2:] == (3, 5)


@pytest.mark.parametrize("size", ["xxs", "xs", "s"])
def test_every_norm_is_the_papers(size):
    with torch.device("meta"):
        net = DetectionModel(f"yolov5-mobilevit-{size}.yaml")
    backbone = net.model[:11]
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}
    assert {m.eps for m in backbone.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    depths = [len(m.transformer) for m in backbone if isinstance(m, common.MobileViTAttention)]
    assert depths == [2, 4, 3]


@pytest.mark.parametrize("patch", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 6), (12, 12)])
def test_any_size_with_any_patch(patch, shape):
    block = attention(patch).train()
    x = torch.rand(2, 8, *shape, requires_grad=True)
    y = block(x)
    assert y.shape == x.shape
    y.square().mean().backward()
    assert x.grad.isfinite().all() and all(p.grad is not None for p in block.parameters())


def test_pixels_attend_to_their_own_place_in_other_patches():
    """Behind 1x1 kernels a pixel moves what shares its place in a patch of 2, and no other."""
    block = attention(2, kernel=1)
    x = torch.rand(1, 8, 6, 6)
    changed = x.clone()
    changed[0, :, 2, 3] += 1
    with torch.no_grad():
        moved = (block(changed) - block(x)).abs().amax((0, 1)) > 1e-6
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[0::2, 1::2] = True
    assert torch.equal(moved, expected)


@pytest.mark.parametrize("patch", [2, 3, 4])
def test_a_trace_holds_for_sizes_it_has_not_seen(patch):
    block = attention(patch)
    with torch.no_grad():
        traced = torch.jit.trace(block, torch.rand(1, 8, 12, 12), check_trace=False)
        for shape in ((2, 8, 12, 24), (1, 8, 5, 7), (3, 8, 1, 2)):
            x = torch.rand(shape)
            torch.testing.assert_close(traced(x), block(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (128, 128), (192, 192), (96, 160)])
def test_the_posts_network_trains_as_printed(shape):
    net = DetectionModel(small(), nc=10).train()
    raws = net(image(*shape, n=2))
    assert [raw.shape[2:4] for raw in raws] == [(shape[0] // s, shape[1] // s) for s in (8, 16, 32)]
    sum(raw.square().mean() for raw in raws).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_the_post_builds_as_printed_and_at_640():
    with torch.device("meta"):
        net = DetectionModel(POST).train()
        assert [row.stride for row in net.rows if row.index in (17, 20, 23)] == [8, 16, 32]
        raws = net(torch.empty(1, 3, 640, 416))
    assert [tuple(raw.shape[1:]) for raw in raws] == [(3, 80, 52, 15), (3, 40, 26, 15), (3, 20, 13, 15)]


def test_width_multiple_scales_the_transformer_with_its_map():
    with torch.device("meta"):
        net = DetectionModel({**load_yaml(POST), "width_multiple": 0.5, "depth_multiple": 0.33})
    assert [net.rows[i].args for i in (5, 7, 9)] == [
        [32, 32, 48, 2, 3, 2, 96],
        [40, 40, 64, 2, 3, 4, 240],
        [48, 48, 72, 2, 3, 3, 288],
    ]
    assert net.rows[3].number == 1


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            [80, 96, 2, 3, 2, 192],
            r"backbone row 6 .*c_in, after width_multiple, is 80 but 64 channels arrive",
        ),
        ([64, 96, 2, 3, 2, 192, 5], "dim 96 cannot be divided by heads 5"),
        ([64, 96, 2, 2, 2, 192], "kernel is 2, expected an odd number"),
        ([64, 96, 2, 3, 0, 192], "patch is 0, expected a number above 0"),
        ([64, 96, 2, 3], r"expected \[c_in, dim, depth, kernel, patch, mlp_dim, heads=4\]"),
    ],
)
def test_what_cannot_be_is_told(args, sentence):
    cfg = copy.deepcopy(load_yaml(POST))
    cfg["backbone"][5][3] = args
    with pytest.raises(UserError, match=sentence):
        DetectionModel(cfg)


@pytest.mark.parametrize("shape", [(64, 64), (96, 160)])
def test_gflops_count_attention(model, shape):
    # On a CPU torch's counter knows attention only in its plain form, as matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image(*shape))
    assert gflops(model, shape) == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-6)


def test_dynamic_onnx_agrees_at_sizes_it_was_not_exported_at(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is optional")
    pytest.importorskip("onnx", reason="onnx is optional")
    save_checkpoint(tmp_path / "best.pt", model, meta={})
    (result,) = export.run(weights=str(tmp_path / "best.pt"), include=["onnx"], imgsz=[64], dynamic=True)
    session = onnxruntime.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
    for height, width, n in ((96, 160, 1), (128, 32, 2)):
        x = image(height, width, n)
        with torch.no_grad():
            expected = model(x)[0].numpy()
        (found,) = session.run(None, {"images": x.numpy()})
        assert found.shape == expected.shape
        assert np.abs(found[..., 4:] - expected[..., 4:]).max() < 1e-4
        assert np.abs(found[..., :4] - expected[..., :4]).max() < 1e-2
