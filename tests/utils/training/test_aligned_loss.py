"""The assignment and loss of the head without anchors, by figures worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from utils.training.aligned_loss import MOST_CELLS, AlignedLoss, align, cell_centres

HYP = {"box": 0.05, "cls": 0.5, "cls_pw": 1.0, "fl_gamma": 0.0}
STRIDE = torch.tensor([8.0])


def loss_of(nc: int, stride: torch.Tensor = STRIDE, mean_counts=None, **changes: float) -> AlignedLoss:
    head = SimpleNamespace(stride=stride, nc=nc)
    return AlignedLoss(head, HYP | changes, mean_counts=mean_counts)


def cells(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    return cell_centres([torch.zeros(1, 1, side, side, 5)], STRIDE)


def cross(probability: float, wanted: float) -> float:
    return -wanted * math.log(probability) - (1 - wanted) * math.log(1 - probability)


def test_a_target_takes_the_cells_of_the_best_score_times_iou_to_the_sixth():
    centres, strides = cells(4)
    truth = torch.tensor([[16.0, 16.0, 16.0, 16.0]])  # the four middle cells: 5, 6, 9, 10
    boxes = torch.cat((centres, torch.full((16, 2), 8.0)), 1)  # each a quarter of the target
    boxes[5] = torch.tensor([16.0, 16.0, 16.0, 8.0])  # half of it
    scores = torch.full((1, 16), 0.5)
    scores[0, 6] = 0.25
    found = align(scores, boxes, truth, centres, strides)
    assert found.cells.tolist() == [5, 6, 9, 10] and found.targets.tolist() == [0] * 4
    # alignments 0.5 * 0.5^6, 0.25 * 0.25^6, twice 0.5 * 0.25^6; the best has its IoU, 0.5
    best = 0.5 * 0.5**6
    expected = [0.5, 0.25 * 0.25**6 / best * 0.5, 0.5 * 0.25**6 / best * 0.5, 0.5 * 0.25**6 / best * 0.5]
    assert found.quality.tolist() == pytest.approx(expected, rel=1e-4)


def test_no_target_takes_more_cells_than_toods_13():
    centres, strides = cells(8)
    truth = torch.tensor([[32.0, 32.0, 64.0, 64.0]])
    boxes = truth.expand(64, 4)
    scores = torch.linspace(0.1, 0.9, 64)[None]
    found = align(scores, boxes, truth, centres, strides)
    assert found.cells.tolist() == list(range(64 - MOST_CELLS, 64)) and MOST_CELLS == 13
    assert float(found.quality.max()) == pytest.approx(1.0, rel=1e-5)


def test_a_cell_of_two_targets_learns_the_one_that_its_box_overlaps_more():
    centres, strides = cells(2)
    truth = torch.tensor([[4.0, 4.0, 8.0, 8.0], [8.0, 8.0, 16.0, 16.0]])
    boxes = torch.tensor([[4.0, 4.0, 8.0, 8.0]]).repeat(4, 1)
    boxes[3] = torch.tensor([8.0, 8.0, 16.0, 16.0])
    found = align(torch.full((2, 4), 0.5), boxes, truth, centres, strides)
    owners = dict(zip(found.cells.tolist(), found.targets.tolist()))
    assert owners == {0: 0, 1: 1, 2: 1, 3: 1}
    assert found.quality[0] == pytest.approx(1.0, rel=1e-5) and found.quality[3] == pytest.approx(
        1.0, rel=1e-5
    )


def test_a_target_smaller_than_a_cell_between_centres_has_a_cell():
    centres, strides = cells(2)
    truth = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    boxes = torch.cat((centres, torch.full((4, 2), 8.0)), 1)
    found = align(torch.full((1, 4), 0.5), boxes, truth, centres, strides)
    assert found.cells.tolist() == [0] and found.quality.tolist() == pytest.approx([1 / 64], rel=1e-4)


def test_a_target_that_no_box_overlaps_has_no_cell():
    centres, strides = cells(2)
    boxes = torch.tensor([[100.0, 100.0, 1.0, 1.0]]).expand(4, 4)
    found = align(torch.full((1, 4), 0.5), boxes, torch.tensor([[4.0, 4.0, 8.0, 8.0]]), centres, strides)
    assert not len(found.cells) and not len(found.targets) and not len(found.quality)


def one_target(fill: float = 0.0, nc: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """2 x 2 cells of 8 px, whose first has a box of half the target's width."""
    raw = torch.zeros(1, 1, 2, 2, 4 + nc)
    raw[..., 4:] = fill
    raw[..., 0, 0, 2] = math.log(0.5)
    return raw.requires_grad_(), torch.tensor([[0.0, 1.0, 0.25, 0.25, 0.5, 0.5]])


def test_loss_by_hand():
    raw, target = one_target()
    total, (box, obj, cls) = loss_of(2)([raw], target)
    # The first cell alone: IoU 0.5, aspects 2 : 1 and 1 : 1, one centre.
    v = 4 / math.pi**2 * (math.atan(1.0) - math.atan(0.5)) ** 2
    ciou = 0.5 - v * v / (v - 0.5 + 1)
    # The quality, 0.5, sums to less than 1, so nothing is divided; the gains are TOOD's 2 and 1.
    assert float(box) == pytest.approx((1 - ciou) * 0.5 * 2, rel=1e-4)
    # Gamma is TOOD's 2: what should be 0.5 and is costs nothing, what should be 0 a quarter.
    assert float(cls) == pytest.approx(7 * 0.25 * math.log(2), rel=1e-4)
    assert float(obj) == 0.0 and float(total.detach()) == pytest.approx(float(box + cls), rel=1e-6)


def test_focus_and_weight_of_positives_by_hand():
    raw, target = one_target(fill=math.log(0.25 / 0.75))  # probability 0.25 everywhere
    _, (_, _, cls) = loss_of(2, fl_gamma=1.0)([raw], target)
    expected = 7 * 0.25 * cross(0.25, 0.0) + 0.25 * cross(0.25, 0.5)
    assert float(cls) == pytest.approx(expected, rel=1e-4)
    _, (_, _, cls) = loss_of(2, cls_pw=3.0)([raw], target)
    expected = 7 * 0.25**2 * cross(0.25, 0.0)
    expected -= 0.25**2 * (3 * 0.5 * math.log(0.25) + 0.5 * math.log(0.75))
    assert float(cls) == pytest.approx(expected, rel=1e-4)


def test_gains_and_batch_size_scale_the_loss():
    raw, target = one_target()
    total, parts = loss_of(2)([raw], target)
    more, scaled = loss_of(2, box=0.1, cls=1.5)([raw], target)
    assert torch.allclose(scaled, parts * torch.tensor([2.0, 1.0, 3.0]))
    both = torch.cat((raw, raw))
    targets = torch.cat((target, target + torch.tensor([1.0, 0, 0, 0, 0, 0])))
    doubled, same = loss_of(2)([both], targets)
    # Two qualities of 0.5 sum to 1, so both images' sums are still undivided.
    assert float(doubled.detach()) == pytest.approx(4 * float(total.detach()), rel=1e-5)
    assert torch.allclose(same, parts * 2)


def test_processes_divide_by_the_mean_of_their_qualities():
    raw, target = one_target()
    seen = []

    def counts(values, device):
        seen.extend(values)
        return [4.0]

    _, parts = loss_of(2, mean_counts=counts)([raw], target)
    _, alone = loss_of(2)([raw], target)
    assert seen == pytest.approx([0.5], rel=1e-4) and torch.allclose(parts * 4, alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_targets_only_classes_learn_and_all_is_finite(dtype):
    raw = torch.full((2, 1, 2, 2, 5), 30.0, dtype=dtype, requires_grad=True)
    total, (box, _, cls) = loss_of(1)([raw], torch.zeros(0, 6))
    total.backward()
    assert float(box) == 0.0 and float(cls) > 0 and total.dtype == torch.float32
    assert raw.grad.isfinite().all() and not raw.grad[..., :4].any() and raw.grad[..., 4].all()


def test_a_box_of_a_huge_logit_is_finite():
    raw, target = one_target()
    with torch.no_grad():
        raw[..., 2:4] = 1000.0
    total, _ = loss_of(2)([raw], target)
    total.backward()
    assert total.isfinite() and raw.grad.isfinite().all()


def test_gradients_descend_to_the_target():
    torch.manual_seed(0)
    strides = torch.tensor([8.0, 16.0])
    raws = [torch.zeros(1, 1, n, n, 6).requires_grad_() for n in (8, 4)]
    targets = torch.tensor([[0, 0, 0.3, 0.4, 0.5, 0.3], [0, 1, 0.8, 0.8, 0.1, 0.15]])
    loss = loss_of(2, strides)
    optimizer = torch.optim.Adam(raws, lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss(raws, targets)[0].backward()
        optimizer.step()
    centres, sides = cell_centres(raws, strides)
    rows = torch.cat([raw.detach().flatten(1, 3) for raw in raws], 1)[0]
    for _, label, *box in targets.tolist():
        best = int(rows[:, 4 + int(label)].argmax())
        xy = rows[best, :2] * sides[best] + centres[best]
        found = torch.cat((xy, rows[best, 2:4].exp() * sides[best])) / 64
        assert found.tolist() == pytest.approx(box, abs=0.01)
        assert rows[best, 4 + int(label)].sigmoid() > 0.9 and rows[best, 5 - int(label)].sigmoid() < 0.1
