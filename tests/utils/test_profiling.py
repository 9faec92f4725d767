"""GFLOPs against the published figures and against PyTorch's own counter; nothing stays on the model."""

import copy

import pytest
import thop
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import common
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.files import ROOT, load_yaml
from utils.profiling import count_parameters, gflops, interleaved, latency, layer_table, percentiles, summary

POSTS = ROOT / "tests/fixtures/posts"


def reference(model, imgsz):
    """The same in PyTorch's counter, on a real run."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, getattr(model, "ch", 3), *imgsz))
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        (ROOT / "models/yolov5n.yaml", 4.47),
        (ROOT / "models/yolov5s.yaml", 16.43),
        (ROOT / "models/yolov5m.yaml", 48.87),
        (ROOT / "models/yolov5l.yaml", 108.99),
        (ROOT / "models/yolov5x.yaml", 205.45),
        (POSTS / "yolov5s-ghost-backbone.yaml", 11.22),
        (POSTS / "yolov5-mobilenetv2.yaml", 7.03),
        (ROOT / "models/yolov5-mobilenetv2.yaml", 5.88),
    ],
    ids=lambda value: value.stem if hasattr(value, "stem") else "",
)
def test_published_figures(yaml, expected):
    with torch.device("meta"):
        model = DetectionModel(yaml, nc=80)
    assert round(gflops(model, 640), 2) == expected


@pytest.mark.parametrize("name", ["yolov5n", "yolov5-mobilenetv2"])
def test_whole_models_against_pytorchs_counter(name):
    model = DetectionModel(f"{name}.yaml", nc=5)
    assert gflops(model, (64, 96)) == pytest.approx(reference(model, (64, 96)), rel=0.01)


def test_a_convolution_net_against_thop():
    model = DetectionModel("yolov5n.yaml", nc=5)
    nothing = {kind: lambda *_: None for kind in (nn.BatchNorm2d, nn.Upsample)}
    macs, _ = thop.profile(copy.deepcopy(model).eval(), (torch.zeros(1, 3, 64, 96),), nothing, verbose=False)
    assert gflops(model, (64, 96)) == pytest.approx(2 * macs / 1e9, rel=1e-9)


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.LSTM(8, 4, batch_first=True), 15 * (8 + 4) * 16),
        (nn.MultiheadAttention(8, 2, batch_first=True), 15 * 8 * (4 * 8) + 2 * 15 * 15 * 8),
    ],
    ids=["LSTM", "attention"],
)
@pytest.mark.parametrize("numbers", [False, True], ids=["shapes", "numbers"])
def test_layers_with_fused_kernels_are_counted_by_their_products(layer, macs, numbers):
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)
            self.layer = layer

        def forward(self, x):
            x = self.conv(x).flatten(2).mT
            if numbers:
                assert x.sum().item() is not None  # needs a real run
            return self.layer(*[x] * (3 if isinstance(layer, nn.MultiheadAttention) else 1))[0]

    assert gflops(Sequence(), (3, 5)) == pytest.approx(2 * (macs + 15 * 24) / 1e9)


class Attention(nn.Module):
    """Attention written with functions."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.qkv = nn.Conv2d(3, 48, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).flatten(2).transpose(1, 2).reshape(1, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        if self.how == "sdpa":
            return F.scaled_dot_product_attention(q, k, v)
        if self.how == "matmul":
            return (q @ k.transpose(-1, -2)).softmax(-1) @ v
        if self.how == "torch.matmul":
            return torch.matmul(torch.matmul(q, k.mT).softmax(-1), v)
        if self.how == "bmm":
            return torch.bmm(torch.bmm(q[0], k[0].mT).softmax(-1), v[0])
        if self.how == "einsum":
            scores = torch.einsum("bhld,bhmd->bhlm", q, k)
            return torch.einsum("bhlm,bhmd->bhld", scores.softmax(-1), v)
        if self.how == "ellipsis":
            scores = torch.einsum("...ld,...md->...lm", q, k)
            return torch.einsum("...lm,...md", scores.softmax(-1), v)
        if self.how == "list of operands":
            return torch.einsum("oh,...hld->...old", [torch.ones(5, 2, device=q.device), q])
        if self.how == "sublists":
            return torch.einsum(q, [0, 1, 2, 3], k, [0, 1, 4, 3])
        if self.how == "tensordot":
            return torch.tensordot(q, k, dims=([0, 1, 3], [0, 1, 3]))
        return torch.einsum("bhld,bhmd,bhmd->bhl", q, k, v)


EINSUMS = ["einsum", "ellipsis", "list of operands", "sublists", "three operands", "tensordot"]


@pytest.mark.parametrize("how", ["sdpa", "matmul", "torch.matmul", "bmm", *EINSUMS])
def test_attention_by_functions_is_counted(how):
    module = Attention(how)
    assert gflops(module, (8, 12)) == pytest.approx(reference(module, (8, 12)), rel=1e-6)


def test_an_einsum_with_an_ellipsis_costs_what_the_same_convolution_costs():
    class Pointwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5, 3))

        def forward(self, x):
            return torch.einsum("oc,...chw->...ohw", self.weight, x)

    assert gflops(Pointwise(), (8, 12)) == pytest.approx(2 * 5 * 3 * 8 * 12 / 1e9)


class Pairs(nn.Module):
    """A block that takes no single image."""

    def forward(self, x):
        if len(x) < 2:
            raise ValueError("needs two images")
        return x


def test_what_cannot_be_counted_is_said_and_is_no_error(log):
    model = DetectionModel("yolov5n.yaml", nc=2)
    model.model[3].conv = nn.Sequential(model.model[3].conv, Pairs())
    model.fuse = lambda: model
    assert gflops(model, 64) is None
    assert summary(model, 64)["gflops"] is None
    assert "layer 3, Conv, cannot be counted on one image of 64x64 px: needs two images" in log.text
    with pytest.raises(UserError, match="layer 3, Conv, cannot"):
        layer_table(model, 64, timed=True)


class Functional(nn.Module):
    """Convolutions and products by function, by subclass, and transposed ones with groups."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6, 3, 3, 3))
        self.up = common.DWConvTranspose2d(6, 4, 2, 2)
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        x = self.up(F.conv2d(x, self.weight, padding=1))
        y = self.linear(x.flatten(2).transpose(1, 2))
        y = F.linear(y, self.linear.weight.t())
        return torch.addmm(torch.zeros(4), y[0], self.linear.weight.t() @ self.linear.weight)


def test_functional_layers_and_subclasses_are_counted():
    module = Functional()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, 8, 12))
    assert gflops(module, (8, 12)) == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-6)


def test_the_transformer_block_is_counted_with_its_attention():
    module = nn.Sequential(common.TransformerBlock(3, 16, 4, 2)).eval()
    # In its fused kernels PyTorch's counter sees no product at all, so it gets the plain one.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, 8, 12, requires_grad=True))
    assert gflops(module, (8, 12)) == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-6)


def test_the_model_stays_as_it_was():
    model = DetectionModel("yolov5n.yaml", nc=2).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    summary(model, 64)
    layer_table(model, 64, timed=True)
    assert model.training
    assert not model.is_fused
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not hasattr(module, "total_ops")


class NeedsNumbers(common.Conv):
    """A block that cannot run on shapes alone."""

    def forward(self, x):
        return super().forward(x) if x.sum().item() is not None else x


def test_a_block_that_needs_numbers_is_counted_by_a_real_run():
    assert gflops(nn.Sequential(NeedsNumbers(3, 8, 3)), 16) == pytest.approx(2 * 16 * 16 * 3 * 8 * 9 / 1e9)


def test_table_adds_up():
    model = DetectionModel("yolov5n.yaml", nc=2)
    table = layer_table(model, (64, 96), timed=True)
    assert sum(row["params"] for row in table) == count_parameters(model)
    assert sum(row["gflops"] for row in table) == pytest.approx(gflops(model, (64, 96)), rel=1e-6)
    assert all(row["ms"] > 0 for row in table)
    assert table[2]["shape"] == (32, 16, 24)
    assert table[-1]["shape"] == [(3, 8, 12, 7), (3, 4, 6, 7), (3, 2, 3, 7)]
    assert "ms" not in layer_table(model, 64)[0]


def test_summary_of_a_one_channel_model():
    cfg = {**load_yaml(ROOT / "models/yolov5n.yaml"), "ch": 1}
    cost = summary(DetectionModel(cfg), 64)
    assert cost["parameters"] == 1_872_157 - 2 * 16 * 36
    assert cost["parameters_fused"] == 1_867_405 - 2 * 16 * 36
    assert cost["layers"] > 100


def test_a_size_that_is_none_is_refused():
    with pytest.raises(UserError, match="image size"):
        gflops(DetectionModel("yolov5n.yaml"), (1, 2, 3))


def test_latency_calls_as_often_as_it_says_and_orders_its_figures():
    calls = []
    times = latency(lambda: calls.append(1), repeats=7, warmup=2)
    assert len(calls) == 9
    assert 0 <= times["min"] <= times["median"] <= times["p90"] <= times["p95"]


def test_interleaved_calls_take_turns():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    found = interleaved(calls, repeats=5, rounds=2)
    assert (
        "".join(order) == "aaaa" + "bbbb" + "bbbbb" + "aaaaa"
    )  # two unmeasured each, the second round turned
    assert set(found) == {"a", "b"} and found["a"]["median"] > 0
    assert interleaved({}, 5, 2) == {}


def test_percentiles_of_known_times():
    found = percentiles([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found["min"], found["mean"], found["median"]) == (1.0, 3.0, 3.0)
    assert found["p90"] == pytest.approx(4.6) and found["p95"] == pytest.approx(4.8)
