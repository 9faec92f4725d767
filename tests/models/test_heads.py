"""Detect and DetectFree: the decoding formula, the order of its rows, the prior of its biases."""

import math

import pytest
import torch

from models.heads import Detect, DetectFree

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


def make_free(nc=3):
    torch.manual_seed(0)
    head = DetectFree(nc, [4, 6])
    head.set_stride([8, 16])
    return head


def test_free_shapes_and_names():
    head = make_free()
    raws = head.train()(maps())
    assert [tuple(raw.shape) for raw in raws] == [(2, 1, 4, 6, 7), (2, 1, 2, 3, 7)]
    decoded, raws = head.eval()(maps())
    assert decoded.shape == (2, 24 + 6, 8)
    head.export = True
    assert torch.equal(head(maps()), decoded)
    assert "stride" not in head.state_dict() and not hasattr(head, "anchors")
    assert head.classes[1][4].weight.shape == (3, 4, 1, 1)  # as wide as the narrowest level


def test_free_one_row_by_the_formula():
    decoded, raws = make_free().eval()(maps())
    level, y, x = 1, 1, 2
    raw = raws[level][1, 0, y, x].detach().double()
    expected = [
        (x + 0.5 + raw[0]) * 16,
        (y + 0.5 + raw[1]) * 16,
        raw[2].exp() * 16,
        raw[3].exp() * 16,
        1.0,
        *raw[4:].sigmoid(),
    ]
    assert decoded[1, 24 + y * 3 + x].tolist() == pytest.approx([float(v) for v in expected], rel=1e-5)


def test_free_starts_with_boxes_of_five_cells_and_a_probability_of_a_hundredth():
    head = make_free(nc=80)
    for boxes, classes in zip(head.boxes, head.classes):
        assert boxes[4].bias.exp().tolist() == pytest.approx([1, 1, 5, 5], rel=1e-5)
        assert torch.allclose(classes[4].bias.sigmoid(), torch.full((80,), 0.01))


def test_free_decodes_in_float32_and_no_side_is_infinite():
    head = make_free().eval()
    with torch.no_grad():
        head.boxes[0][4].bias[2:] = 1000.0
    with torch.autocast("cpu", torch.bfloat16):
        decoded, raws = head(maps())
    assert raws[0].dtype == torch.bfloat16 and decoded.dtype == torch.float32
    assert decoded.isfinite().all()
    assert float(decoded[0, 0, 2].detach()) == pytest.approx(math.exp(6) * 8, rel=1e-3)
