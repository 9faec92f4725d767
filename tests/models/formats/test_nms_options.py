"""What NMS inside a file can fulfil of a wish, and the sentence where it cannot."""

import pytest
import torch

from models.formats.nms_graph import Suppressed
from models.formats.nms_options import Suppression, changes
from tests.models.decoded_rows import rows
from utils.nms import NmsOptions

FIXED = Suppression(0.25, 0.45, 300)
FREE = Suppression(0.25, 0.45, 300, inputs=True)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (NmsOptions(0.1), "not above confidence 0.25, so --conf-thres 0.1 cannot be had; give 0.25 or more"),
        (NmsOptions(0.25, 0.6), "IoU threshold 0.45, not 0.6; give --iou-thres 0.45 or export again"),
        (NmsOptions(agnostic=True), "keeps classes apart; leave --agnostic-nms out"),
        (NmsOptions(multi_label=True), "gives a box one class"),
    ],
)
def test_what_a_fixed_file_cannot_do(wanted, sentence):
    assert sentence in FIXED.refusal(wanted, 2)
    if wanted.agnostic or wanted.multi_label:
        assert FIXED.refusal(wanted, 1) is None, "with one class there is no difference"
    else:
        assert FREE.refusal(wanted, 2) is None


def test_what_a_fixed_file_can_do():
    assert FIXED.refusal(NmsOptions(0.5, 0.45, classes=[1], max_det=1000), 2) is None
    assert FIXED.note(NmsOptions(), 2) is None
    agnostic = Suppression(agnostic=True)
    assert "as it was exported" in agnostic.note(NmsOptions(), 2)
    assert "--classes" in agnostic.note(NmsOptions(classes=[0]), 2)
    assert agnostic.note(NmsOptions(agnostic=True), 2) is None
    assert agnostic.note(NmsOptions(), 1) is None


@pytest.mark.parametrize("seed", range(4))
def test_a_higher_confidence_by_filtering_is_exact(seed):
    """What is left of the file's detections is what NMS with the higher threshold gives."""
    decoded = rows(seed, images=1)
    module = Suppressed(torch.nn.Identity(), Suppression(0.1, 0.45, 300))
    output0, counts = module(decoded)
    for wanted in (NmsOptions(0.4), NmsOptions(0.4, classes=[0, 2]), NmsOptions(0.2, max_det=3)):
        (truth,) = wanted.suppress(decoded)
        assert len(truth) > 0
        assert torch.equal(module.nms.narrow(output0[0, : counts[0]], wanted), truth)


def test_nearest_for_validation():
    wanted = NmsOptions(0.001, 0.6, multi_label=True, max_det=300)
    assert FIXED.nearest(wanted, 2) == NmsOptions(0.25, 0.45, max_det=300)
    assert FREE.nearest(wanted, 2) == NmsOptions(0.001, 0.6, max_det=300)
    assert FREE.nearest(wanted, 1) == wanted
    assert changes(wanted, wanted) == ""
    assert changes(wanted, FIXED.nearest(wanted, 2)) == (
        "the confidence threshold is 0.25, not 0.001, the IoU threshold is 0.45, not 0.6, "
        "a box has its best class only"
    )


def test_figures_are_inputs_where_the_file_has_them():
    assert FIXED.figures(NmsOptions(0.5)) == {}
    assert FREE.figures(NmsOptions(0.5, 0.6, max_det=1000)) == {
        "conf_thres": 0.5,
        "iou_thres": 0.6,
        "max_det": 300,
    }


def test_full_output_is_noticed():
    full, free = torch.zeros(300, 6), torch.zeros(299, 6)
    assert FIXED.full([free, full], NmsOptions(max_det=1000))
    assert not FIXED.full([free, full], NmsOptions(max_det=300))
    assert not FIXED.full([free], NmsOptions(max_det=1000))
    assert FIXED.full([full], NmsOptions(classes=[1])), "detections of other classes took the place"


@pytest.mark.parametrize("figures", [{"conf_thres": 2}, {"iou_thres": -1}, {"max_det": 0}])
def test_figures_that_cannot_be(figures):
    with pytest.raises(ValueError, match="NMS"):
        Suppression(**figures)
