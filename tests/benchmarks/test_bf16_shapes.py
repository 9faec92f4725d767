"""The fault of bfloat16 convolutions: how it is looked for, and that no network meets it."""

import math

import pytest
import torch

from benchmarks.bf16_shapes import (
    Shape,
    differs,
    network_errors,
    shapes_of_the_zoo,
    unwritten_is_nan,
    wrong_results,
)
from utils.errors import UserError
from utils.files import ROOT


@pytest.fixture(autouse=True)
def _needs_glibc():
    try:
        with unwritten_is_nan():
            pass
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shapes() -> list[Shape]:
    """Those of all networks, which are built once: that takes seconds."""
    return shapes_of_the_zoo()


def test_memory_is_nan_until_written_and_only_while_asked():
    with unwritten_is_nan():
        assert torch.empty(1 << 16).isnan().all()
        assert torch.empty(1 << 16, dtype=torch.bfloat16).isnan().all()
        assert torch.zeros(1 << 16).isfinite().all()
    assert not torch.empty(1 << 16).isnan().all()


def test_a_difference_is_seen_and_rounding_is_none():
    exact = torch.linspace(-1, 1, 64)
    assert not differs(exact.bfloat16(), exact)
    assert differs(exact + 0.1, exact)
    assert differs(torch.where(exact == 1, math.nan, exact), exact)


def test_an_image_gives_the_result_that_was_asked_for():
    shape = Shape(3, 4, 1, (3, 3), (2, 2), (1, 1))
    for out in (1, 2, 8):
        for side in shape.inputs(out, 1):
            result = torch.conv2d(torch.zeros(1, 3, side, side), torch.zeros(4, 3, 3, 3), None, 2, 1)
            assert result.shape[2:] == (out, out)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_convolutions_that_stay_in_bfloat16_are_right(shapes, memory, width):
    """The networks' own kinds; those that float32 takes over are left out."""
    for shape in shapes:
        if shape.c1 * shape.c2 // shape.groups > 1 << 16:
            continue  # the same code on more numbers
        for w in shape.inputs(width, 1):
            if width == 1 and shape.stride[1] > 1 and shape.kernel[1] > 1:
                continue
            assert wrong_results(shape, (20, w), memory, True) == [], (shape, w)


@pytest.mark.parametrize("size", [(320, 32), (32, 320), (320, 64)], ids=str)
@pytest.mark.parametrize("name", ["yolov5n", "yolov5-mobilenetv2"])
def test_a_narrow_image_trains_as_in_float32(name, size):
    maps, gradients = network_errors(ROOT / f"models/{name}.yaml", size)
    if size[1] == 32:
        assert (maps, gradients) == (0, 0)
    else:
        assert 0 < maps < 0.1  # in bfloat16
        assert (
            0 < gradients < math.inf
        )  # of a network that was never trained they differ much, but are numbers
