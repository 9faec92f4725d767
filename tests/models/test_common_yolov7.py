"""The blocks of YOLOv7's neck: the paper's wiring, checked by what must follow from it."""

import torch
from torch import nn

from models.build.fusion import fuse_adjacent
from models.common import ELAN, SPPCSPC


def convolutions(block):
    return [
        (m.in_channels, m.out_channels, m.kernel_size[0]) for m in block.modules() if type(m) is nn.Conv2d
    ]


def test_elan_keeps_every_depth():
    chain = [(8, 8, 3)] * 3
    assert convolutions(ELAN(12, 16, 3)) == [(12, 8, 1), (12, 8, 1), *chain, (40, 16, 1)]
    block = ELAN(12, 16, 3).eval()
    seen = []
    block.cv3.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    x = torch.rand(2, 12, 6, 10)
    assert block(x).shape == (2, 16, 6, 10)
    first, second, *rest = seen[0].split(8, 1)
    assert torch.equal(first, block.cv1(x))
    assert torch.equal(second, block.cv2(x))
    for layer, result in zip(block.m, rest, strict=True):
        second = layer(second)
        assert torch.equal(second, result)


def test_sppcspc_pools_one_branch():
    block = SPPCSPC(12, 16, (3, 5)).eval()
    assert convolutions(block) == [
        (12, 8, 1), (8, 8, 3), (8, 8, 1), (24, 8, 1), (8, 8, 3), (12, 8, 1), (16, 16, 1),
    ]  # fmt: skip
    seen = []
    block.after.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    assert block(torch.rand(1, 12, 7, 5)).shape == (1, 16, 7, 5)
    plain, small, large = seen[0].split(8, 1)
    assert torch.equal(small, nn.functional.max_pool2d(plain, 3, 1, 1))
    assert torch.equal(large, nn.functional.max_pool2d(small, 3, 1, 1))


def test_they_fuse_whole():
    for block in (ELAN(8, 16), SPPCSPC(8, 16)):
        x = torch.rand(1, 8, 8, 8)
        with torch.no_grad():
            before = block.eval()(x)
            fuse_adjacent(block, x)
            assert torch.allclose(before, block(x), atol=1e-5)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in block.modules())
