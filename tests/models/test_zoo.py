"""Every shipped YAML, held to the same rules; a new file under models/ is tested without an edit here."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.common import MBConvBlock
from models.weights.pretrained import equal_reference
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.files import ROOT, load_yaml
from utils.profiling import gflops

ZOO = sorted(path.stem for path in (ROOT / "models").glob("*.yaml"))
# These have yolov5n's rows and differ in the multiples alone, as a test sees to.
SCALED = ["yolov5s", "yolov5m", "yolov5l", "yolov5x"]
SMALL = [name for name in ZOO if name not in SCALED]
SIZES = [(2, 64, 64), (1, 320, 192), (1, 640, 384)]  # images, height, width
MULTIPLES = [(0.33, 0.25), (0.33, 0.5), (0.67, 0.75), (1.0, 1.0), (1.33, 1.25)]  # depth, width of n s m l x


def config(name):
    return load_yaml(ROOT / f"models/{name}.yaml")


def on_meta(cfg):
    """A network without weights: all but its numbers."""
    with torch.device("meta"):
        return DetectionModel(cfg)


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module", params=ZOO)
def net(request):
    """One network after another, BatchNorm with statistics of its own so that folding proves something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DetectionModel(f"{request.param}.yaml", nc=3)
        for module in model.modules():  # a block that is left out gets no gradient; tested with the block
            if isinstance(module, MBConvBlock):
                module.drop_connect_rate = 0.0
        model.train()
        with torch.no_grad():
            for _ in range(3):
                model(torch.rand(2, 3, 64, 64))
    return model


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", ZOO)
def test_strides_and_the_figures_of_the_header(name):
    model = on_meta(f"{name}.yaml")
    assert [row.stride for row in model.rows if row.index in model.rows[-1].sources] == [8, 16, 32]
    text = (ROOT / f"models/{name}.yaml").read_text(encoding="utf-8")
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    found = re.search(r"([\d ]+) parameters \(([\d ]+) fused\), ([\d.]+) GFLOPs at 640 px", header)
    assert found, "the header states no figures"
    parameters, fused = (int(text.replace(" ", "")) for text in found.groups()[:2])
    assert count(model) == parameters
    assert round(gflops(model, 640), 2) == float(found[3])
    assert count(model.fuse()) == fused


@pytest.mark.parametrize("name", SCALED)
def test_the_scaled_differ_in_their_multiples_alone(name):
    ours, base = config(name), config("yolov5n")
    for key in ("depth_multiple", "width_multiple"):
        assert ours.pop(key) > 0
        base.pop(key)
    assert ours == base


@pytest.mark.parametrize("name", SMALL)
def test_pretrained_names_the_network_that_the_backbone_equals(name):
    named = config(name).get("pretrained")
    if named and named.startswith("timm/"):
        pytest.importorskip("timm", reason="timm, which holds this reference, is optional")
    model = DetectionModel(f"{name}.yaml", nc=1) if named else on_meta(f"{name}.yaml")
    try:
        inferred = equal_reference(model)
    except UserError:
        inferred = None
    assert inferred == named


def expected_maps(net, n, height, width, boxes=3):
    """The shapes of a detector's raw maps; without anchors a cell has one box, and no objectness."""
    boxes, outputs = (boxes, net.nc + 5) if hasattr(net.detect, "anchors") else (1, net.nc + 4)
    return [(n, boxes, height // s, width // s, outputs) for s in (8, 16, 32)]


def run_with_gradients(net, n, height, width):
    """A training step's forward and backward; the maps must be a detector's."""
    net.train().zero_grad()
    raws = net(torch.rand(n, 3, height, width, device=net.stride.device))
    assert [tuple(raw.shape) for raw in raws] == expected_maps(net, n, height, width)
    sum(raw.square().mean() for raw in raws).backward()
    return raws


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward_and_a_gradient_in_every_parameter(net, size):
    n, height, width = size
    run_with_gradients(net, *size)
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(p.grad.isfinite().all() for p in net.parameters())
    if size != SIZES[-1]:  # the largest is the same code at another size, and the dearest
        with torch.no_grad():
            decoded, _ = net.eval()(torch.rand(1, 3, height, width))
        boxes = 3 if hasattr(net.detect, "anchors") else 1
        assert decoded.shape == (1, boxes * sum((height // s) * (width // s) for s in (8, 16, 32)), 8)
        assert decoded.isfinite().all()


def test_bfloat16_without_nan(net):
    net.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        raws = net(torch.rand(2, 3, 64, 96))
    sum(raw.float().square().mean() for raw in raws).backward()
    assert all(raw.isfinite().all() for raw in raws)
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("size", [(320, 32), (32, 320), (96, 64)], ids=str)
def test_no_bfloat16_convolution_whose_result_a_cpu_gets_wrong(net, size):
    """Those with a stride and a result one pixel wide (docs/bf16-fault.md)."""
    wrong, reduced = [], []

    def look(name, module):
        def hook(_module, _inputs, output):
            if output.dtype == torch.bfloat16:
                reduced.append(name)
                if output.shape[3] == 1 and module.stride[1] > 1 and module.kernel_size[1] > 1:
                    wrong.append(name)

        return module.register_forward_hook(hook)

    hooks = [look(n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        net.eval()(torch.rand(1, 3, *size))
    for hook in hooks:
        hook.remove()
    assert wrong == []
    assert bool(reduced) == (size[1] > 32)  # narrow images are in float32, all others as they were


def test_fusion_changes_no_output(net):
    fused = copy.deepcopy(net).fuse()
    assert count(fused) < count(net)
    x = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        pairs = list(zip(net.eval()(x)[1], fused(x)[1]))
    for before, after in pairs:
        assert (before - after).abs().max() <= 1e-4 * before.abs().max()


def test_the_state_dict_makes_the_same_network_again(net):
    again = DetectionModel(net.yaml)
    again.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net.eval()(x)[0], again.eval()(x)[0])


def test_gflops_are_pytorchs_own(net):
    size = (64, 96)
    # PyTorch's counter misses the CPU's fused attention; the plain one is two matrix products it knows.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, 3, *size))
    assert gflops(net, size) == pytest.approx(counter.get_total_flops() / 1e9, rel=0.01)


@pytest.mark.parametrize("name", SMALL)
def test_multiples_of_width_and_depth(name):
    cfg = config(name)
    # One anchor and so many classes that a layer of the neck has as many channels as the detector outputs:
    # only the detector's own are never scaled.
    row = max(i for i, r in enumerate(cfg["head"]) if r[2] in ("Conv", "C3", "C3Ghost", "GhostConv"))
    index, c2 = len(cfg["backbone"]) + row, cfg["head"][row][3][0]
    sizes = []
    for depth, factor in MULTIPLES:
        changed = {"depth_multiple": depth, "width_multiple": factor, "nc": c2 - 5, "anchors": 1}
        model = on_meta({**cfg, **changed})
        assert model.rows[index].out_channels == math.ceil(c2 * factor / 8) * 8
        _, raws = model.eval()(torch.zeros(2, 3, 64, 96, device="meta"))
        assert [tuple(raw.shape) for raw in raws] == expected_maps(model, 2, 64, 96, boxes=1)
        sizes.append(count(model))
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("name", SMALL)
def test_depth_alone_makes_a_network_deeper(name):
    cfg = config(name)
    sizes = [count(on_meta({**cfg, "depth_multiple": depth, "nc": 1})) for depth in (0.33, 1.0, 1.33)]
    assert sizes == sorted(set(sizes))
