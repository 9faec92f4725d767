"""NMS as a graph: the detections of non_max_suppression, whatever ties and overlaps the rows have."""

import io

import pytest
import torch
from torch import nn

from models.formats.nms_graph import Suppressed, figure_tensors
from models.formats.nms_options import Suppression
from tests.models.decoded_rows import assert_same, rows
from utils.nms import NmsOptions

FIXED = Suppression(0.3, 0.45, 12)


def scripted(module, decoded):
    """Traced, saved and loaded again, as a TorchScript file is."""
    inputs = (decoded, *figure_tensors(module.nms).values())
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, inputs, check_trace=False), file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.fixture(scope="module")
def modules():
    """By (agnostic, inputs), the module as it is and as a TorchScript file, traced on other sizes."""
    made = {}
    for agnostic in (False, True):
        for inputs in (False, True):
            nms = Suppression(0.3, 0.45, 12, agnostic, inputs)
            module = Suppressed(nn.Identity(), nms)
            made[agnostic, inputs] = (module, scripted(module, rows(99, 1, 9)))
    return made


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_equals_non_max_suppression(modules, seed, agnostic):
    decoded = rows(seed, images=1 + seed % 3, boxes=20 + 30 * seed)
    wanted = NmsOptions(0.3, 0.45, agnostic=agnostic, max_det=12).suppress(decoded)
    assert any(len(image) for image in wanted)
    for module in modules[agnostic, False]:
        assert_same(module(decoded), wanted, 12)


@pytest.mark.parametrize(
    ("conf", "iou", "most"),
    [(0.0, 0.6, 12), (0.05, 0.45, 5), (0.6, 0.25, 12), (0.3, 0.0, 12), (0.3, 1.0, 12), (1.0, 0.5, 1)],
)
def test_figures_as_inputs(modules, conf, iou, most):
    decoded = rows(7)
    wanted = NmsOptions(conf, iou, max_det=most)
    figures = figure_tensors(Suppression(max_det=12, inputs=True), wanted)
    for module in modules[False, True]:
        assert_same(module(decoded, *figures.values()), wanted.suppress(decoded), 12)


def test_images_without_detections_and_rows_that_are_no_numbers(modules):
    decoded = rows(3, images=3)
    decoded[0, :, 4] = 0
    decoded[1, 5, 0] = torch.inf
    decoded[1, 6, 2] = torch.nan
    decoded[2, 7, 4] = torch.nan
    wanted = NmsOptions(0.3, 0.45, max_det=12).suppress(decoded)
    assert len(wanted[0]) == 0
    for module in modules[False, False]:
        assert_same(module(decoded), wanted, 12)
        assert_same(module(decoded[:1]), wanted[:1], 12)


def test_fewer_rows_than_max_det():
    nms = Suppression(0.0, 0.5, 50)
    decoded = rows(1, boxes=4)
    assert_same(Suppressed(nn.Identity(), nms)(decoded), nms.usual().suppress(decoded), 50)


def test_the_file_needs_no_torchvision():
    script = scripted(Suppressed(nn.Identity(), FIXED), rows(0))
    assert "torchvision" not in str(script.inlined_graph)
