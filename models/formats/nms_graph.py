"""Put non-maximum suppression inside an exported graph.

Images go in, finished detections of a fixed shape come out.

The rules are those of `utils.nms.non_max_suppression` with one class for a box. One module serves every
format: traced for TorchScript, the two steps whose sizes depend on the data are scripted and need nothing but
libtorch; traced for ONNX, they are the standard operators TopK and NonMaxSuppression, from which OpenVINO
converts too.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.formats.nms_options import Suppression
from utils.nms import MAX_CANDIDATES, NmsOptions

# The graph's inputs after `images`, where it has them: scalars.
INPUTS = {"conf_thres": torch.float32, "iou_thres": torch.float32, "max_det": torch.int64}
OUTPUTS = ("output0", "counts")

_Context = Any  # Any: torch leaves the exporter's graph and a function's context untyped
_Value = Any  # Any: the same of a value in that graph
_Function = Callable[..., Any]  # Any: functions of several signatures are scripted


def figure_tensors(nms: Suppression, wanted: NmsOptions | None = None) -> dict[str, Tensor]:
    """Return the graph's inputs after the images, in order.

    They are the usual values unless `wanted` is given; empty where the graph has none.

    float64, so that a TorchScript file compares with 0.45 and not with the float32 beside it; ONNX files take
    the types of `INPUTS`.
    """
    figures = nms.figures(wanted or nms.usual())
    wide = {torch.float32: torch.float64}
    kinds = {name: wide.get(kind, kind) for name, kind in INPUTS.items()}
    return {name: torch.tensor(figures[name], dtype=kinds[name]) for name in INPUTS if name in figures}


class Suppressed(nn.Module):
    """Join a network and its NMS into one function.

    `forward` takes images (N, ch, H, W) and, where `nms.inputs`, three scalars: float conf_thres, float
    iou_thres and int64 max_det, which cannot be above the fixed one. It returns

        output0 (N, nms.max_det, 6) float32: x1, y1, x2, y2 in pixels of the input, confidence, class; best
            first, zeros after the last;
        counts (N,) int64: how many rows of output0 are detections.
    """

    def __init__(self, model: nn.Module, nms: Suppression, *, openvino: bool = False) -> None:
        """Take the network and the NMS that follows it.

        Args:
            model: gives the decoded tensor (N, boxes, 5 + nc) alone.
            nms: thresholds and the size of the output.
            openvino: the ONNX graph is for OpenVINO, whose operators differ from ONNX's in two points. Its
                NonMaxSuppression drops boxes whose IoU reaches the threshold, ONNX's and ours those above
                it: it is given a threshold just larger. Its TopK shuffles equals: they are put in order.
        """
        super().__init__()
        self.model = model
        self.nms = nms
        self.openvino = openvino
        self.eval()

    def forward(
        self,
        images: Tensor,
        conf_thres: Tensor | None = None,
        iou_thres: Tensor | None = None,
        max_det: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the detections (N, max_det, 6) of images (N, ch, H, W), and their counts."""
        decoded = self.model(images)
        if conf_thres is None or iou_thres is None:
            conf_thres = torch.tensor(self.nms.conf_thres, dtype=torch.float32, device=decoded.device)
            # as written, because TorchScript compares IoUs in float64
            iou_thres = torch.tensor(self.nms.iou_thres, dtype=torch.float64, device=decoded.device)
        scores, boxes, classes = _candidates(decoded, conf_thres, ordered=not self.openvino)
        valid = scores >= 0
        groups = 1 if self.nms.agnostic else decoded.shape[2] - 5
        if torch.onnx.is_in_onnx_export():
            keep = self._keep_by_operator(boxes, classes, valid, iou_thres, groups)
        else:
            loop = _scripted(_keep_by_loop)
            keep = loop(boxes, classes, valid, iou_thres, self.nms.max_det, groups > 1)
        return self._rows(keep, boxes, scores, classes, max_det)

    def _keep_by_operator(
        self, boxes: Tensor, classes: Tensor, valid: Tensor, iou_thres: Tensor, groups: int
    ) -> Tensor:
        """Return which of the candidates (N, K) stay, by ONNX's operator.

        The operator knows images and classes itself.

        Its scores are ranks: no two are equal, so no runtime's way with ties matters.
        """
        iou_thres = iou_thres.float()
        if self.openvino:
            iou_thres = (iou_thres * (1 + 2**-23)).clamp(min=1e-12)
        ranks = _ranks(valid) * valid.float()
        if groups > 1:
            number = torch.arange(groups, device=classes.device, dtype=classes.dtype).view(1, groups, 1)
            ranks = ranks[:, None] * (classes[:, None] == number).float()
        else:
            ranks = ranks[:, None]
        return _Nms.apply(boxes, ranks, iou_thres, valid.float(), self.nms.max_det) > 0.5

    def _rows(
        self, keep: Tensor, boxes: Tensor, scores: Tensor, classes: Tensor, limit: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Turn candidates (N, K), best first, and whether they stay into output0 and counts."""
        size = self.nms.max_det
        rows = torch.cat((boxes, scores[..., None], classes[..., None].float()), 2)
        rows = torch.cat(
            (rows, rows.new_zeros(rows.shape[0], size, 6)), 1
        )  # so that there are `size` to take
        left = _ranks(keep) * keep.float()
        left = torch.cat((left, left.new_zeros(left.shape[0], size)), 1)
        left, order = left.topk(size, dim=1)
        rows = _take(rows, order)
        stays = left > 0.5
        if limit is not None:
            stays = stays & (torch.arange(size, device=rows.device) < limit)
        rows = torch.where(stays[..., None], rows, torch.zeros_like(rows))
        return rows, stays.to(torch.int64).sum(1)


def _ranks(like: Tensor) -> Tensor:
    """Return (1, K) float32 K, K-1, ..., 1: larger is better.

    They are exact for any K that fits into memory.
    """
    size = like.shape[1]
    return (size - torch.arange(size, device=like.device)).float()[None]


def _candidates(decoded: Tensor, conf_thres: Tensor, ordered: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores (N, K), xyxy (N, K, 4) and classes (N, K), best first.

    `decoded` is (N, boxes, 5 + nc).

    K is the most candidates that an image of the batch has (at least 1); images with fewer end in rows of
    score -1. Only rows whose objectness passes are looked at closely: of 25 200 that is a handful. `ordered`:
    the runtime's TopK leaves equals in order.
    """
    image, row = (decoded[..., 4] > conf_thres).nonzero(as_tuple=True)
    rows = decoded[image, row]
    score, label = (rows[:, 5:] * rows[:, 4:5]).max(1)
    finite = (rows[:, :4].abs() <= torch.finfo(torch.float32).max).to(torch.int64).sum(1) == 4
    score = torch.where(finite & (score > conf_thres), score, torch.full_like(score, -1))
    scores = torch.full_like(decoded[..., 4], -1).index_put((image, row), score)
    labels = torch.zeros_like(decoded[..., 4]).index_put((image, row), label.to(decoded.dtype))
    if torch.onnx.is_in_onnx_export():
        count = (scores >= 0).float().sum(1).max().clamp(1, MAX_CANDIDATES).to(torch.int64)
        best, order = _TopK.apply(scores, count)
        scores, order = (best, order) if ordered else _equals_in_order(scores, best, order, count)
    else:
        scores, order = _scripted(_best)(scores, MAX_CANDIDATES)
    xywh = _take(decoded[..., :4], order)
    half = xywh[..., 2:] / 2
    boxes = torch.cat((xywh[..., :2] - half, xywh[..., :2] + half), 2)
    return scores, boxes, labels.gather(1, order)


@functools.cache
def _scripted(function: _Function) -> _Function:
    """Script a function, which keeps loops and sizes that tracing loses.

    torch calls scripting old, but a TorchScript file can hold nothing newer.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(function)


def _equals_in_order(scores: Tensor, best: Tensor, order: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return the K best (N, K) of scores (N, boxes), equal ones in row order.

    By integer keys that no two share: which of the different scores, then which of the image's candidates.
    """
    level = torch.cat((torch.zeros_like(order[:, :1]), (best[:, 1:] < best[:, :-1]).to(order.dtype)), 1)
    place = ((scores >= 0).to(order.dtype).cumsum(1) - 1).clamp(min=0).gather(1, order)
    key = level.cumsum(1) * best.shape[1] + place  # below 30 000 squared, which 31 bits hold
    _, sorting = _TopK.apply(-key, count)
    return best.gather(1, sorting), order.gather(1, sorting)


def _take(rows: Tensor, order: Tensor) -> Tensor:
    """Return the rows at `order` (N, K) of rows (N, B, c): (N, K, c).

    One flat Gather does it, which every runtime computes correctly; OpenVINO loses the slice before a
    GatherElements.
    """
    images, size, columns = rows.shape
    first = torch.arange(images, device=rows.device)[:, None] * size
    return rows.reshape(-1, columns)[order + first]


def _best(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return scores (N, boxes) sorted, (N, K), and their places.

    A score of -1 is no candidate. Ties stay in order.
    """
    count = max(min(int((scores >= 0).sum(1).max()), most), 1)
    values, order = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :count], order[:, :count]


def _keep_by_loop(
    boxes: Tensor, classes: Tensor, valid: Tensor, iou_thres: Tensor, max_det: int, apart: bool
) -> Tensor:
    """Return which candidates (N, K), best first, greedy NMS keeps.

    At most `max_det` of an image stay.

    The figures are those of torchvision's operator in float64, with classes kept apart by the offset of
    `non_max_suppression`, and so are its growing prefixes; but torchvision is not needed to load the file.
    """
    limit = float(iou_thres)
    keep = torch.zeros_like(valid)
    for i in range(boxes.size(0)):
        number = int(valid[i].sum())
        size, found = 0, 0
        while found < max_det and size < number:
            size = min(4 * max(size, max_det), number)
            corners = boxes[i, :number].double()
            if apart:
                extent = corners.max() - corners.min() + 1
                corners = corners + classes[i, :number, None].double() * extent
            left, top, right, bottom = corners[:size].t().contiguous().unbind(0)
            area = (right - left) * (bottom - top)
            alive = torch.ones(size, dtype=torch.bool, device=boxes.device)
            at, found = 0, 0
            while at < size and found < max_det:
                keep[i, at] = True
                found += 1
                width = torch.minimum(right[at], right[at:]) - torch.maximum(left[at], left[at:])
                height = torch.minimum(bottom[at], bottom[at:]) - torch.maximum(top[at], top[at:])
                shared = width.clamp_(min=0).mul_(height.clamp_(min=0))
                overlaps = shared / (area[at] + area[at:] - shared) > limit
                alive[at:].logical_and_(~overlaps)  # "&=" on a slice is lost in a script
                alive[at] = False
                # the first that is still there: 0 when none is, and there the loop has been
                step = int(alive[at:].to(torch.uint8).argmax())
                at = at + step if step > 0 else size
    return keep


class _TopK(torch.autograd.Function):
    """Return the `count` largest of scores (N, boxes), best first.

    Of equal scores the earlier comes first, as in ONNX's TopK.

    torch.topk promises no order of equals, and traced it would take the count for a constant.
    """

    @staticmethod
    def forward(ctx: _Context, scores: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        values, order = scores.sort(dim=1, descending=True, stable=True)
        return values[:, : int(count)], order[:, : int(count)]

    @staticmethod
    def symbolic(g: _Context, scores: _Value, count: _Value) -> _Value:
        count = g.op("Reshape", count, g.op("Constant", value_t=torch.tensor([1])))
        return g.op("TopK", scores, count, axis_i=1, largest_i=1, sorted_i=1, outputs=2)


class _Nms(torch.autograd.Function):
    """Give ONNX's NonMaxSuppression as a mask (N, K): 1 for what stays.

    Boxes (N, K, 4), ranks (N, groups, K) with 0 for what is not in the group, a float threshold, anything of
    shape (N, K) to take it from, and the most boxes of a group.
    """

    @staticmethod
    def forward(
        ctx: _Context, boxes: Tensor, ranks: Tensor, iou_thres: Tensor, like: Tensor, max_det: int
    ) -> Tensor:
        return like.clone()  # only traced, never asked: what comes of the example's figures is thrown away

    @staticmethod
    def symbolic(
        g: _Context, boxes: _Value, ranks: _Value, iou_thres: _Value, like: _Value, max_det: int
    ) -> _Value:
        def constant(*values: float, dtype: torch.dtype = torch.int64) -> _Value:
            return g.op("Constant", value_t=torch.tensor(values, dtype=dtype))

        iou_thres = g.op("Reshape", iou_thres, constant(1))
        above_none = constant(0.5, dtype=torch.float32)
        chosen = g.op("NonMaxSuppression", boxes, ranks, constant(max_det), iou_thres, above_none)
        places = g.op("Gather", chosen, constant(0, 2), axis_i=1)  # image, group, box -> image, box
        number = g.op("Gather", g.op("Shape", chosen), constant(0), axis_i=0)
        ones = g.op("Expand", constant(1.0, dtype=torch.float32), number)
        nothing = g.op("ConstantOfShape", g.op("Shape", like), value_t=torch.zeros(1))
        mask = g.op("ScatterND", nothing, places, ones)
        mask.setType(like.type())
        return mask
