"""Detect: the decoding formula, the order of its rows, the prior of its biases."""

import math

import pytest
import torch

from models.heads import Detect

ANCHORS = [[10, 13, 16, 30], [30, 61, 62, 45]]


def make_head(nc=3):
    torch.manual_seed(0)
    head = Detect(nc, ANCHORS, [4, 6])
    head.set_stride([8, 16])
    return head


def maps(n=2, height=4, width=6):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.rand(n, 4, height, width, generator=generator),
        torch.rand(n, 6, height // 2, width // 2, generator=generator),
    ]


def test_shapes_and_anchors_in_stride_units():
    head = make_head()
    assert torch.equal(head.anchors[1], torch.tensor(ANCHORS[1]).view(2, 2) / 16)
    assert set(head.state_dict()) == {"anchors", "m.0.weight", "m.0.bias", "m.1.weight", "m.1.bias"}
    raws = head.train()(maps())
    assert [tuple(raw.shape) for raw in raws] == [(2, 2, 4, 6, 8), (2, 2, 2, 3, 8)]
    decoded, raws = head.eval()(maps())
    assert decoded.shape == (2, 2 * 24 + 2 * 6, 8)
    head.export = True
    assert torch.equal(head(maps()), decoded)


def test_one_row_by_the_formula():
    decoded, raws = make_head().eval()(maps())
    level, anchor, y, x = 1, 1, 1, 2
    row = decoded[1, 2 * 24 + anchor * 6 + y * 3 + x]
    sigma = raws[level][1, anchor, y, x].double().sigmoid()
    expected = [
        (2 * sigma[0] - 0.5 + x) * 16,
        (2 * sigma[1] - 0.5 + y) * 16,
        (2 * sigma[2]) ** 2 * 62,
        (2 * sigma[3]) ** 2 * 45,
        *sigma[4:],
    ]
    assert row.detach().tolist() == pytest.approx([float(v.detach()) for v in expected], rel=1e-5)


def test_prior_of_the_biases():
    head = Detect(80, ANCHORS, [4, 6])
    before = [conv.bias.detach().clone() for conv in head.m]
    head.set_stride([8, 16])
    for conv, old, stride in zip(head.m, before, (8, 16)):
        change = (conv.bias.detach() - old).view(2, 85)
        assert torch.allclose(change[:, 4], torch.tensor(math.log(8 / (640 / stride) ** 2)), atol=1e-5)
        assert torch.allclose(change[:, 5:], torch.tensor(math.log(0.6 / (80 - 0.99999))), atol=1e-5)
        assert not change[:, :4].any()
    single = Detect(1, ANCHORS, [4, 6])
    single.set_stride([8, 16])
    assert all(conv.bias.isfinite().all() for conv in single.m)


def test_raw_maps_are_views_in_both_memory_formats():
    head = make_head().train()
    results = []
    for conv in head.m:
        conv.register_forward_hook(lambda m, x, y: results.append(y))
    for memory in (torch.contiguous_format, torch.channels_last):
        results.clear()
        raws = head([level.contiguous(memory_format=memory) for level in maps()])
        assert [raw.data_ptr() for raw in raws] == [y.data_ptr() for y in results]


def test_decoding_is_float32_under_autocast():
    head = make_head().eval()
    with torch.autocast("cpu", torch.bfloat16):
        decoded, raws = head(maps())
    assert raws[0].dtype == torch.bfloat16
    assert decoded.dtype == torch.float32
