"""The loss against a slow one written from the formulas, target by target, and its properties."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from utils.training.loss import DetectionLoss

ANCHORS = torch.tensor(
    [
        [[10.0, 13], [16, 30], [33, 23]],
        [[30, 61], [62, 45], [59, 119]],
        [[116, 90], [156, 198], [373, 326]],
    ]
)
STRIDES = torch.tensor([8.0, 16, 32])
HYP = {"box": 0.05, "obj": 1.0, "cls": 0.5, "obj_pw": 1.0, "cls_pw": 1.0, "anchor_t": 4.0, "fl_gamma": 0.0}


def make_detect(nc: int) -> SimpleNamespace:
    return SimpleNamespace(anchors=ANCHORS / STRIDES[:, None, None], stride=STRIDES, nl=3, na=3, nc=nc)


def make_raws(generator: torch.Generator, n: int, nc: int, channels_last: bool, size: int = 96) -> list:
    """Leaves shaped as convolution outputs and the (N, na, ny, nx, 5 + nc) views the loss gets."""
    leaves, views = [], []
    for stride in (8, 16, 32):
        leaf = torch.randn(n, 3 * (5 + nc), size // stride, size // stride, generator=generator)
        if channels_last:
            leaf = leaf.contiguous(memory_format=torch.channels_last)
        leaf.requires_grad_()
        leaves.append(leaf)
        views.append(leaf.view(n, 3, 5 + nc, *leaf.shape[2:]).permute(0, 1, 3, 4, 2))
    return [leaves, views]


def make_targets(generator: torch.Generator, n: int, count: int, nc: int) -> torch.Tensor:
    targets = torch.rand(count, 6, generator=generator)
    targets[:, 0] = torch.randint(0, n, (count,), generator=generator)
    targets[:, 1] = torch.randint(0, nc, (count,), generator=generator)
    targets[:, 4:] = targets[:, 4:] * 0.4 + 0.05
    return targets


def ciou(p: list, t: list) -> torch.Tensor:
    """CIoU of two xywh boxes of scalar tensors, term by term (Zheng et al. 2020)."""
    eps = 1e-7
    left = [max(p[i] - p[i + 2] / 2, t[i] - t[i + 2] / 2) for i in (0, 1)]
    right = [min(p[i] + p[i + 2] / 2, t[i] + t[i + 2] / 2) for i in (0, 1)]
    inter = (right[0] - left[0]).clamp(0) * (right[1] - left[1]).clamp(0)
    iou = inter / (p[2] * p[3] + t[2] * t[3] - inter + eps)
    low = [min(p[i] - p[i + 2] / 2, t[i] - t[i + 2] / 2) for i in (0, 1)]
    high = [max(p[i] + p[i + 2] / 2, t[i] + t[i + 2] / 2) for i in (0, 1)]
    c2 = (high[0] - low[0]) ** 2 + (high[1] - low[1]) ** 2 + eps
    rho2 = (p[0] - t[0]) ** 2 + (p[1] - t[1]) ** 2
    v = 4 / math.pi**2 * (torch.atan(t[2] / t[3]) - torch.atan(p[2] / p[3])) ** 2
    alpha = (v / (v - iou + 1 + eps)).detach()
    return iou - rho2 / c2 - alpha * v


def bce(logit: torch.Tensor, target: float | torch.Tensor, weight: float) -> torch.Tensor:
    p = logit.sigmoid()
    return -(weight * target * p.log() + (1 - target) * (1 - p).log())


def slow_loss(
    detect: SimpleNamespace, hyp: dict, raws: list, targets: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """The fact sheet's loss with one loop per layer, offset, anchor and target; float64."""
    total = torch.zeros(3, dtype=torch.float64)
    for raw, anchors, balance in zip(raws, detect.anchors.double(), (4.0, 1.0, 0.4)):
        _, na, ny, nx, _ = raw.shape
        wanted = torch.zeros(raw.shape[:-1], dtype=torch.float64)
        boxes, classes = [], []
        for step in ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1)):
            for a in range(na):
                for row in targets.double():
                    x, y, w, h = row[2] * nx, row[3] * ny, row[4] * nx, row[5] * ny
                    ratios = [w / anchors[a][0], h / anchors[a][1]]
                    if max(max(r, 1 / r) for r in ratios) >= hyp["anchor_t"]:
                        continue
                    if step != (0, 0):
                        along, length = (x, nx) if step[0] else (y, ny)
                        along = along if sum(step) < 0 else length - along
                        if not (along % 1 < 0.5 and along > 1):
                            continue
                    gx = min(max(int(x - 0.5 * -step[0]), 0), nx - 1) if step[0] else int(x)
                    gy = min(max(int(y - 0.5 * -step[1]), 0), ny - 1) if step[1] else int(y)
                    logits = raw[int(row[0]), a, gy, gx].double()
                    s = logits[:4].sigmoid() * 2
                    predicted = [s[0] - 0.5, s[1] - 0.5, s[2] ** 2 * anchors[a][0], s[3] ** 2 * anchors[a][1]]
                    iou = ciou(predicted, [x - gx, y - gy, w, h])
                    boxes.append(1 - iou)
                    wanted[int(row[0]), a, gy, gx] = iou.detach().clamp(0)
                    for c in range(detect.nc):
                        target = 1 - smoothing / 2 if c == int(row[1]) else smoothing / 2
                        classes.append(bce(logits[5 + c], target, hyp["cls_pw"]))
        if boxes:
            total[0] = total[0] + torch.stack(boxes).mean()
            total[2] = total[2] + (torch.stack(classes).mean() if detect.nc > 1 else 0)
        total[1] = total[1] + bce(raw[..., 4].double(), wanted, hyp["obj_pw"]).mean() * balance
    return total * torch.tensor([hyp["box"], hyp["obj"], hyp["cls"]], dtype=torch.float64)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("nc", "smoothing", "change"), [(4, 0.1, {"cls_pw": 0.5, "obj_pw": 1.7}), (1, 0.0, {})]
)
def test_equals_the_formulas_and_their_gradient(
    nc: int, smoothing: float, change: dict, channels_last: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    detect, hyp = make_detect(nc), HYP | change
    leaves, raws = make_raws(generator, 2, nc, channels_last)
    targets = make_targets(generator, 2, 9, nc)
    loss, items = DetectionLoss(detect, hyp, label_smoothing=smoothing)(raws, targets)
    expected = slow_loss(detect, hyp, raws, targets, smoothing)
    assert items.numpy() == pytest.approx(expected.detach().numpy(), rel=1e-5)
    assert loss.item() == pytest.approx(expected.sum().item() * 2, rel=1e-5)
    assert (items[2] == 0) == (nc == 1)
    found = torch.autograd.grad(loss, leaves, retain_graph=True)
    wanted = torch.autograd.grad(expected.sum() * 2, leaves)
    for a, b in zip(found, wanted):
        assert torch.allclose(a, b.float(), rtol=1e-4, atol=1e-7)


def test_both_memory_formats_give_the_same_gradient() -> None:
    results = []
    for channels_last in (False, True):
        generator = torch.Generator().manual_seed(5)
        leaves, raws = make_raws(generator, 3, 7, channels_last)
        loss, _ = DetectionLoss(make_detect(7), HYP)(raws, make_targets(generator, 3, 40, 7))
        results.append(torch.autograd.grad(loss, leaves))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_a_centre_claims_its_cell_and_the_two_nearest() -> None:
    """A 16 x 30 box at x = 5.3, y = 6.8 cells of stride 8: left and down; at the border only what exists."""
    loss = DetectionLoss(make_detect(2), HYP)
    target = torch.tensor([[0, 1, 5.3 / 12, 6.8 / 12, 16 / 96, 30 / 96]])
    found = loss.match(target, [(12, 12), (6, 6), (3, 3)])
    first = slice(0, found.counts[0])
    cells = set(zip(found.x[first].tolist(), found.y[first].tolist()))
    assert cells == {(5, 6), (4, 6), (5, 7)}
    assert found.boxes[:, :2].min() >= -0.5 and found.boxes[:, :2].max() < 1.5
    corner = loss.match(
        torch.tensor([[0, 1, 0.3 / 12, 0.3 / 12, 16 / 96, 30 / 96]]), [(12, 12), (6, 6), (3, 3)]
    )
    assert set(zip(corner.x[: corner.counts[0]].tolist(), corner.y[: corner.counts[0]].tolist())) == {(0, 0)}


def test_a_shape_four_times_the_anchor_matches_none() -> None:
    loss = DetectionLoss(make_detect(2), HYP)
    sizes = [(12, 12), (6, 6), (3, 3)]
    just_too_small = torch.tensor([[0, 0, 0.5, 0.5, 10 / 4.001 / 96, 13 / 4.001 / 96]])
    just_large_enough = torch.tensor([[0, 0, 0.5, 0.5, 10 / 3.999 / 96, 13 / 3.999 / 96]])
    assert sum(loss.match(just_too_small, sizes).counts) == 0
    assert loss.match(just_large_enough, sizes).counts[0] >= 1


def test_without_targets_only_objectness_remains() -> None:
    leaves, raws = make_raws(torch.Generator().manual_seed(0), 2, 3, True)
    loss, items = DetectionLoss(make_detect(3), HYP)(raws, torch.zeros(0, 6))
    loss.backward()
    assert items[0] == 0 and items[2] == 0 and items[1] > 0
    grad = leaves[0].grad.view(2, 3, 8, 12, 12)
    assert grad[:, :, 4].abs().min() > 0 and grad[:, :, :4].abs().max() == 0


def test_focal_weights_the_hard_and_spares_the_easy() -> None:
    focal = DetectionLoss(make_detect(3), HYP | {"fl_gamma": 1.5})
    logits, wanted = torch.tensor([-6.0, 2.0]), torch.zeros(2)
    plain = torch.nn.functional.softplus(logits)
    factor = focal._cross_entropy(logits, wanted, None) / plain
    expected = 0.75 * logits.sigmoid() ** 1.5
    assert torch.allclose(factor, expected, rtol=1e-4)


def test_bfloat16_maps_give_float32_math() -> None:
    generator = torch.Generator().manual_seed(1)
    leaves, raws = make_raws(generator, 2, 5, True)
    targets = make_targets(generator, 2, 20, 5)
    loss = DetectionLoss(make_detect(5), HYP)
    _, exact = loss([raw.bfloat16().float() for raw in raws], targets)
    low = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves]
    value, items = loss(
        [leaf.view(2, 3, 10, *leaf.shape[2:]).permute(0, 1, 3, 4, 2) for leaf in low], targets
    )
    value.backward()
    assert value.dtype == torch.float32 and torch.equal(items, exact)
    assert all(leaf.grad.dtype == torch.bfloat16 and leaf.grad.abs().sum() > 0 for leaf in low)


def test_overfits_one_box() -> None:
    """Gradient descent on the maps alone ends at a box that overlaps the target."""
    leaves, _ = make_raws(torch.Generator().manual_seed(4), 1, 3, True)
    target = torch.tensor([[0, 2, 0.4, 0.55, 0.3, 0.35]])
    loss, optimizer = DetectionLoss(make_detect(3), HYP), torch.optim.Adam(leaves, lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        views = [leaf.view(1, 3, 8, *leaf.shape[2:]).permute(0, 1, 3, 4, 2) for leaf in leaves]
        value, items = loss(views, target)
        value.backward()
        optimizer.step()
    assert items[0] < 0.1 * HYP["box"] and items[2] < 0.1 * HYP["cls"]
