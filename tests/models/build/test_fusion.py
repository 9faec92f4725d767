"""Folding follows the data: what stands directly behind a convolution folds, whatever it is called."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from models.build.fusion import adjacent_pairs, fold, fuse_adjacent
from models.yolo import DetectionModel
from utils.files import ROOT

YAMLS = [
    "models/yolov5n.yaml",
    "models/yolov5-mobilenetv2.yaml",
    "tests/fixtures/posts/yolov5s-ghost-backbone.yaml",
]


def trained_norm(norm):
    generator = torch.Generator().manual_seed(norm.num_features)
    for tensor in (norm.running_mean, norm.bias.data if norm.bias is not None else norm.running_mean):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.5)
    norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
    return norm


class Wired(nn.Module):
    """One convolution and one BatchNorm, joined by the given function of (conv, norm, x)."""

    def __init__(self, flow, **options):
        super().__init__()
        self.flow = flow
        self.first = nn.Conv2d(4, 4, 3, padding=1, **options)
        self.behind = trained_norm(nn.BatchNorm2d(4))

    def forward(self, x):
        return self.flow(self.first, self.behind, x)


@pytest.mark.parametrize(
    ("flow", "folds"),
    [
        (lambda conv, norm, x: norm(conv(x)).relu(), 1),
        (lambda conv, norm, x: norm(nn.Identity()(conv(x))), 1),
        (lambda conv, norm, x: (conv(x).shape, norm(conv(x)))[1], 0),  # the convolution runs twice
        (lambda conv, norm, x: norm(torch.cat([conv(x)], 1)), 0),
        (lambda conv, norm, x: norm(conv(x).relu()), 0),
        (lambda conv, norm, x: norm(x) + conv(x), 0),
        (lambda conv, norm, x: conv(norm(x)), 0),
        (lambda conv, norm, x: (lambda y: norm(y) + y)(conv(x)), 0),  # the raw result is used too
        (lambda conv, norm, x: (lambda y: (norm(y), y))(conv(x))[0], 1),  # read by nobody
        (lambda conv, norm, x: (lambda y: norm(y).view(y.shape))(conv(x)), 1),  # a shape is no use of values
        (lambda conv, norm, x: norm(norm(conv(x))), 0),
    ],
)
def test_only_direct_neighbours_fold_and_the_output_stays(flow, folds):
    module = Wired(flow, bias=True).eval()
    x = torch.rand(1, 4, 6, 6)
    with torch.no_grad():
        before = module(x)
        assert fuse_adjacent(module, x) == folds
        assert (module(x) - before).abs().max() <= 1e-5
    assert isinstance(module.behind, nn.Identity) == bool(folds)
    assert not module.first._forward_hooks


def test_a_result_that_leaves_the_network_is_not_folded():
    module = Wired(lambda conv, norm, x: (lambda y: (norm(y), y))(conv(x))).eval()
    assert adjacent_pairs(module, torch.rand(1, 4, 6, 6)) == []


def test_shared_weights_are_not_folded():
    module = nn.Sequential(nn.Conv2d(4, 4, 1), trained_norm(nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 1)).eval()
    module[2].weight = module[0].weight
    assert adjacent_pairs(module, torch.rand(1, 4, 6, 6)) == []


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda module: prune.l1_unstructured(module, "weight", 0.5),
    ],
    ids=["weight_norm", "spectral_norm", "weight_norm hook", "spectral_norm hook", "pruning"],
)
def test_weights_computed_at_each_run_are_not_folded(wrap):
    torch.manual_seed(0)
    model = nn.Sequential(
        wrap(nn.Conv2d(4, 4, 3)),
        trained_norm(nn.BatchNorm2d(4)),
        nn.Conv2d(4, 4, 1),  # this pair is a plain one
        trained_norm(nn.BatchNorm2d(4)),
    ).eval()
    x = torch.rand(1, 4, 8, 8)
    with torch.no_grad():
        before = model(x)
        assert fuse_adjacent(model, x) == 1
        assert (model(x) - before).abs().max() <= 1e-5
    assert isinstance(model[1], nn.BatchNorm2d) and isinstance(model[3], nn.Identity)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 8, 3, groups=2, bias=False),
        nn.Conv2d(4, 8, 3, dilation=2),
        nn.ConvTranspose2d(4, 8, 3, stride=2, bias=False),
        nn.ConvTranspose2d(4, 8, 2, stride=2, groups=2),
    ],
)
@pytest.mark.parametrize("affine", [True, False])
def test_fold_every_kind_of_convolution(conv, affine):
    norm = trained_norm(nn.BatchNorm2d(8, affine=affine)).eval()
    x = torch.rand(2, 4, 9, 9)
    with torch.no_grad():
        expected = norm(conv(x))
        fold(conv, norm)
        assert (conv(x) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("yaml", YAMLS)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_whole_models_fuse_without_changing_their_output(yaml, memory):
    torch.manual_seed(0)
    model = DetectionModel(ROOT / yaml, nc=3).eval().to(memory_format=memory)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            trained_norm(m)
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=memory)
    with torch.no_grad():
        decoded, raws = model(x)
        assert model.fuse() is model
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        fused, fused_raws = model(x)
    assert model.is_fused
    assert (decoded[..., 4:] - fused[..., 4:]).abs().max() <= 1e-4
    for raw, fused_raw in zip(raws, fused_raws):
        assert (raw - fused_raw).abs().max() <= 1e-4 * max(1.0, float(raw.abs().max()))
    keys = set(model.state_dict())
    model.fuse()
    assert set(model.state_dict()) == keys
