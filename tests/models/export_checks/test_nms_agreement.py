"""The check of a file with NMS inside: passes what NMS gives, and counts every kind of fault."""

from types import SimpleNamespace

import pytest
import torch

from models.export_checks.nms_agreement import compare_detections
from models.formats.nms_options import Suppression
from tests.models.decoded_rows import rows
from utils.nms import NmsOptions

TOLERANCE = (1e-3, 0.5)
NMS = Suppression(0.3, 0.45, 40)


def compared(change=lambda found: found, nms=NMS, noise=0.0, iou=None):
    """What the check says of a file whose detections are those of NMS, changed."""
    decoded = rows(0, images=2, boxes=200)
    generator = torch.Generator().manual_seed(1)
    decoded[..., 4] *= 1 - 0.02 * torch.rand(decoded.shape[:2], generator=generator)  # no equal scores
    moved = decoded + noise * torch.rand(decoded.shape, generator=generator)

    def detections(images, wanted):
        options = NmsOptions(wanted.conf_thres, iou or wanted.iou_thres, max_det=wanted.max_det)
        return [change(found) for found in options.suppress(moved)]

    backend = SimpleNamespace(nms=nms, detections=detections)
    return compare_detections(lambda images: decoded, backend, [torch.zeros(2, 3, 8, 8)], TOLERANCE)


@pytest.mark.parametrize("nms", [NMS, Suppression(0.3, 0.45, 8), Suppression(inputs=True)])
def test_what_nms_gives_passes(nms):
    result = compared(nms=nms)
    assert result.detections >= 16
    assert (result.wrong, result.score, result.box) == (0, 0, 0)


def test_rounding_passes_and_is_measured():
    result = compared(noise=1e-5)
    assert result.wrong == 0
    assert 0 < result.score < 1e-4
    assert 0 < result.box < 1e-4


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found[1:],
        lambda found: torch.cat((found[:1], found)),
        lambda found: found[[1, 0, *range(2, len(found))]],
        lambda found: found + torch.tensor([1.0, 0, 0, 0, 0, 0]),
        lambda found: found + torch.tensor([0, 0, 0, 0, 0.01, 0]),
        lambda found: torch.cat((found[:, :5], (found[:, 5:] + 1) % 3), 1),
        lambda found: found[:0],
    ],
    ids=["best missing", "best twice", "out of order", "moved", "other score", "other class", "nothing"],
)
def test_faults_are_counted(change):
    assert compared(change).wrong >= 2, "one in each of two images at least"


@pytest.mark.parametrize("iou", [0.3, 0.6])
def test_another_iou_threshold_is_found_out(iou):
    assert compared(iou=iou).wrong > 0
