"""Detect in overlapping tiles of large images, and merge the boxes without doubles.

A network sees an image scaled to its own size, and an object of 20 pixels in a photograph of 4000 vanishes.
A tile is scaled by far less, so the object keeps its pixels. `TiledDetector` is called as `Detector` is, with
the images at their own scale.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.cli import RunOptions, option
from utils.detector import Detecting, Detector, Found
from utils.errors import UserError
from utils.letterbox import Placement, letterbox, scale_boxes
from utils.nms import MAX_CANDIDATES, NmsOptions, suppress_overlaps

TILE_OVERLAP = 0.2
"""Default share of a tile that the next one shows too."""
MOST_OVERLAP = 0.9
LEAST_TILE = 32
"""Pixels of a tile's longer side."""
TILE_BATCH = 8
"""Tiles that the network gets at once, where neither the file nor the caller says how many."""
MOST_TILES = 50_000
"""Tiles of one image; 20 000 x 20 000 pixels are 12 544 of 224 pixels."""
SAME_SPAN = 0.5
"""Least overlap (intersection over union) along a border of two parts of one object."""
_BORDER = 2.0, 0.05  # a box ends at a border within so many pixels, or so much of its side
_PAIRS = 1 << 21  # pairs of boxes that are compared at once


def check_tiles(side: bool | int, overlap: float, prefix: str = "--") -> None:
    """Refuse a tile that is too small, and an overlap that leaves no step.

    Args:
        side: longer side of a tile in pixels; True or False: none is given.
        overlap: share of a tile.
        prefix: how the error begins to name them.

    Raises:
        UserError: which one, its value, and what is allowed.
    """
    if not isinstance(side, bool) and side < LEAST_TILE:
        raise UserError(f"{prefix}tile {side}: must be at least {LEAST_TILE} pixels")
    if not 0 <= overlap <= MOST_OVERLAP:
        raise UserError(f"{prefix}overlap {overlap}: must lie between 0 and {MOST_OVERLAP}")


@dataclass(frozen=True)
class TileOptions(RunOptions):
    """Hold the options of each script that can detect in tiles."""

    tile: bool | int = option(
        False,
        nargs="?",
        const=True,
        metavar="SIZE",
        help="detect in overlapping tiles of SIZE pixels, and in the whole image (without SIZE: --imgsz)",
    )
    overlap: float | None = option(
        None,
        metavar="FRACTION",
        help=f"of a tile, which the next one shows too, 0 to {MOST_OVERLAP} (default: {TILE_OVERLAP})",
    )
    tiles_only: bool = option(False, help="with --tile: leave the whole image out")

    def check_tiles(self) -> None:
        """Refuse what says how tiles are without any, and values that cannot work."""
        if self.tile is False and self.overlap is not None:
            raise UserError("--overlap: says how far tiles overlap; add --tile")
        if self.tile is False and self.tiles_only:
            raise UserError("--tiles-only: leaves the whole image out beside its tiles; add --tile")
        check_tiles(self.tile, TILE_OVERLAP if self.overlap is None else self.overlap)

    def tiling(self, size: tuple[int, int], stride: int, batch: int, rect: bool) -> Tiling | None:
        """Return how images are cut for a network of input size (h, w), or None."""
        if self.tile is False:
            return None
        overlap = TILE_OVERLAP if self.overlap is None else self.overlap
        whole = not self.tiles_only
        return Tiling.of(self.tile, size, stride, overlap=overlap, whole=whole, batch=batch, rect=rect)


@dataclass(frozen=True)
class Tiling:
    """Say how images are cut into tiles.

    Attributes:
        size: (height, width) that the network gets, in pixels.
        tile: (height, width) of a tile in pixels of the image; it is scaled to `size`.
        stride: the largest stride of the network.
        overlap: least share of a tile's height and width that the next tile shows too, 0 to 0.9.
        whole: whether the whole image is also seen, scaled to `size`: only there are objects whole that are
            too large for a tile.
        batch: tiles that the network gets at once.
        rect: whether an image that fits into one tile may be padded to a rectangle.

    Example:
        >>> Tiling.of(True, (640, 640), 32).tile, Tiling.of(320, (384, 640), 32).tile
        ((640, 640), (192, 320))
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    stride: int
    overlap: float = TILE_OVERLAP
    whole: bool = True
    batch: int = TILE_BATCH
    rect: bool = True

    # Any: each attribute has a type of its own.
    @classmethod
    def of(cls, side: bool | int, size: tuple[int, int], stride: int, **rest: Any) -> Tiling:
        """Return the tiling of a longer side in pixels; True: tiles of the network's size.

        The tile has the proportions of `size`; `rest` are further attributes.
        """
        gain = 1.0 if side is True else side / max(size)
        tile = max(round(size[0] * gain), 1), max(round(size[1] * gain), 1)
        return cls(size, tile, stride, **rest)

    def grid(self, shape: tuple[int, int]) -> Grid:
        """Return the tiles of an image (height, width).

        Raises:
            UserError: they are more than `MOST_TILES`.
        """
        spans = [_spans(*sides, self.overlap) for sides in zip(shape, self.tile)]
        count = len(spans[0]) * len(spans[1])
        if count > MOST_TILES:
            raise UserError(
                f"--tile: an image of {shape[1]}x{shape[0]} pixels would be cut into {count} tiles, more "
                f"than {MOST_TILES}; give a larger --tile or a smaller --overlap"
            )
        return Grid(*spans)


@dataclass(frozen=True)
class Grid:
    """Hold the tiles of one image, as spans of its rows and columns.

    Attributes:
        rows: (r, 2) first pixel and end of each row of tiles; columns: (c, 2) of each column.
    """

    rows: Tensor
    columns: Tensor

    def __len__(self) -> int:
        """Return how many tiles there are."""
        return len(self.rows) * len(self.columns)

    def place(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Return row and column of tiles (n,); row by row from the upper left."""
        return torch.div(tiles, len(self.columns), rounding_mode="floor"), tiles % len(self.columns)

    def regions(self, tiles: Tensor) -> Tensor:
        """Return tiles (n,) as xyxy (n, 4) in pixels of the image."""
        row, column = self.place(tiles)
        y, x = self.rows[row], self.columns[column]
        return torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), 1)


def _spans(length: int, tile: int, overlap: float) -> Tensor:
    """Return (n, 2) first pixel and end of tiles along one axis, evenly spread.

    >>> _spans(1000, 400, 0.25).tolist(), _spans(300, 400, 0.25).tolist()
    ([[0, 400], [300, 700], [600, 1000]], [[0, 300]])
    """
    step = max(int(tile * (1 - overlap)), 1)
    rest = max(length - tile, 0)
    starts = torch.linspace(0, rest, -(-rest // step) + 1, dtype=torch.float64).round().long()
    return torch.stack((starts, starts + min(tile, length)), 1)


class TiledDetector(Detector):
    """Find the objects of images in overlapping tiles, and time it.

    It is called as `Detector` is, but with each image at its own scale, of which no copy is made: (3, h, w)
    uint8 RGB, where a view of another layout will do. Tiles run in batches, so memory does not grow with
    their number. An image that fits into one tile gives what `Detector` gives.

    Attributes:
        tiling: how images are cut.
    """

    def __init__(self, backend: Detecting, nms: NmsOptions, tiling: Tiling, *, augment: bool = False) -> None:
        super().__init__(backend, nms, augment=augment)
        self.tiling = tiling

    def __call__(
        self,
        images: Tensor | Sequence[np.ndarray],
        placements: Sequence[Placement],
        *,
        labels: Sequence[Tensor] = (),
        spent: float = 0.0,
    ) -> Found:
        """Detect the objects of one batch; the arguments are those of `Detector`.

        Raises:
            UserError: an image of too many tiles, or the file cannot do what the options ask for.
        """
        views = Detector(self.backend, self.nms, augment=self.augment)
        views.seconds["preprocess"] += spent
        found, native = [], []
        for number, (image, placement) in enumerate(zip(images, placements)):
            planes = image.numpy() if isinstance(image, Tensor) else image
            truth = labels[number] if len(labels) else None
            found.append(self._detect(views, planes, truth))
            size = (planes.shape[1], planes.shape[2])
            native.append(scale_boxes(size, found[-1], *placement))
        self._count(len(found), views.seconds)
        return Found(native, found, (views.images, 3, *self.tiling.size), views.seconds)

    def _detect(self, views: Detector, planes: np.ndarray, truth: Tensor | None) -> Tensor:
        """Return the detections (n, 6) of one image.

        `truth` are labels (m, 5) class + xywh, added with confidence 1.
        """
        shape = (planes.shape[1], planes.shape[2])
        grid = self.tiling.grid(shape)
        numbers = torch.arange(len(grid))
        regions = grid.regions(numbers)
        if self.tiling.whole and len(grid) > 1:
            numbers = torch.cat((numbers, torch.tensor([-1])))
            regions = torch.cat((regions, torch.tensor([[0, 0, shape[1], shape[0]]])))
        rows = torch.zeros(0, 7)  # as detections, and the tile: -1 for the whole image
        alone = len(regions) == 1
        for start in range(0, len(regions), self.tiling.batch):
            part = regions[start : start + self.tiling.batch]
            begun = time.perf_counter()
            inputs, placements = zip(*(self._view(planes, region, alone) for region in part.tolist()))
            boxes = views(inputs, placements, spent=time.perf_counter() - begun).boxes
            begun = time.perf_counter()
            rows = torch.cat((rows, *_placed(boxes, part, numbers[start:])))
            if len(rows) > 4 * MAX_CANDIDATES:
                rows = _best(rows)
            views.seconds["nms"] += time.perf_counter() - begun
        begun = time.perf_counter()
        merged = merge_tiles(_best(rows), grid, shape, self.nms, truth)
        views.seconds["nms"] += time.perf_counter() - begun
        return merged

    def _view(self, planes: np.ndarray, region: Sequence[int], alone: bool) -> tuple[np.ndarray, Placement]:
        """Return a part xyxy of the image as the network takes it, and its placement."""
        x1, y1, x2, y2 = region
        auto = alone and self.tiling.rect
        fitted = [
            letterbox(
                np.ascontiguousarray(plane[y1:y2, x1:x2]),
                self.tiling.size,
                auto=auto,
                stride=self.tiling.stride,
            )
            for plane in planes
        ]
        _, ratio, pad = fitted[0]
        return np.stack([plane for plane, _, _ in fitted]), ((y2 - y1, x2 - x1), (ratio, pad))


def make_detector(
    backend: Detecting, nms: NmsOptions, tiling: Tiling | None, *, augment: bool = False
) -> Detector:
    """Return what detects in letterboxed images, or with a tiling in tiles.

    A `TiledDetector` takes images at their own scale.
    """
    if tiling is None:
        return Detector(backend, nms, augment=augment)
    return TiledDetector(backend, nms, tiling, augment=augment)


def _placed(boxes: Sequence[Tensor], regions: Tensor, numbers: Tensor) -> list[Tensor]:
    """Return the tiles' boxes (n, 6) in pixels of the image, with numbers (n, 7)."""
    placed = []
    for found, region, number in zip(boxes, regions, numbers.tolist()):
        shift = torch.cat((region[:2], region[:2], region.new_zeros(2)))
        placed.append(torch.cat((found + shift, found.new_full((len(found), 1), number)), 1))
    return placed


def _best(rows: Tensor) -> Tensor:
    """Return the most confident rows, `MAX_CANDIDATES` at most."""
    return rows[rows[:, 4].argsort(descending=True, stable=True)[:MAX_CANDIDATES]]


def merge_tiles(
    rows: Tensor, grid: Grid, shape: tuple[int, int], nms: NmsOptions, truth: Tensor | None = None
) -> Tensor:
    """Merge the boxes of all tiles of an image, so that each object has one.

    A box that ends at a border between tiles is cut there: it may be part of an object.

    1. A box is dropped where a tile shows all of it with fewer cuts: the object is judged there. So is a box
       of the whole image that a tile shows without a cut, at a better scale.
    2. Two cut boxes of a class on either side of a seam are parts of one object where they span the same
       length of it (`SAME_SPAN`): they become the box around both, of the higher confidence. A side is
       joined once; the most confident pairs go first.
    3. A box that is still cut is dropped where a box of its class with fewer cuts agrees with it in what its
       tile shows (IoU above that of NMS). That one takes the higher confidence of the two.
    4. What is left goes through NMS, by class and over all tiles, as in one image.

    Args:
        rows: (n, 7) xyxy in pixels of the image, confidence, class, tile (-1: the whole image); best first.
        grid: the tiles.
        shape: (height, width) of the image.
        nms: which IoU, how many boxes, and whether classes suppress each other.
        truth: (m, 5) class + xywh, added with confidence 1 before the last step.

    Returns:
        (k, 6) xyxy, confidence, class; best first; k <= `nms.max_det`.
    """
    found = rows[:, :6]
    if len(grid) == 1 and truth is None:  # nothing to merge
        return found
    if len(rows):
        parts = _Parts.of(rows, grid, shape)
        parts = parts.without(_seen_better(parts, grid))
        found = _absorbed(_joined(parts, nms.agnostic), nms).boxes
    if truth is not None and len(truth):
        centre, half = truth[:, 1:3], truth[:, 3:5] / 2
        sure = torch.cat((centre - half, centre + half, torch.ones(len(truth), 1), truth[:, :1]), 1)
        found = torch.cat((sure.to(found.dtype), found))
    if not len(found):
        return found
    found = found[found[:, 4].argsort(descending=True, stable=True)]
    return suppress_overlaps(found, nms.iou_thres, nms.agnostic, nms.max_det)


@dataclass(frozen=True)
class _Parts:
    """Hold boxes with the tiles that they were found in.

    Attributes:
        boxes: (n, 6) xyxy in pixels of the image, confidence, class.
        tile: (n,) -1 for the whole image.
        regions: (n, 4) xyxy of the tile, or of several joined ones.
        cut: (n, 4) whether it ends at the left, upper, right, lower border, which is none of the image.
        row, column: (n,) of the tile.
    """

    boxes: Tensor
    tile: Tensor
    regions: Tensor
    cut: Tensor
    row: Tensor
    column: Tensor

    @classmethod
    def of(cls, rows: Tensor, grid: Grid, shape: tuple[int, int]) -> _Parts:
        """Return rows (n, 7) as `merge_tiles` takes them."""
        tile = rows[:, 6].long()
        whole = torch.tensor([0, 0, shape[1], shape[0]])
        regions = torch.where(tile[:, None] < 0, whole, grid.regions(tile.clamp(min=0)))
        inner = regions != whole
        row, column = grid.place(tile)
        return cls(rows[:, :6].clone(), tile, regions, _at_border(rows, regions) & inner, row, column)

    def without(self, gone: Tensor) -> _Parts:
        """Return the boxes that a mask (n,) leaves."""
        return _Parts(*(value[~gone] for value in vars(self).values()))


def _at_border(boxes: Tensor, regions: Tensor) -> Tensor:
    """Return (n, 4) which sides of boxes (n, 4+) end at their regions' borders."""
    sides = boxes[:, 2:4] - boxes[:, :2]
    near = (_BORDER[1] * sides).clamp(min=_BORDER[0]).repeat(1, 2)
    return (boxes[:, :4] - regions).abs() <= near


def _seen_better(parts: _Parts, grid: Grid) -> Tensor:
    """Return (n,) which boxes another tile shows with fewer cuts; step 1."""
    worse = torch.zeros(len(parts.boxes), dtype=torch.bool)
    fits = torch.ones(len(parts.boxes), dtype=torch.bool)
    # The tiles are all pairs of a row and a column, so each axis can be judged alone.
    for axis, spans in ((0, grid.columns), (1, grid.rows)):
        low, high = parts.boxes[:, axis, None], parts.boxes[:, axis + 2, None]
        near = (_BORDER[1] * (high - low)).clamp(min=_BORDER[0])
        inside = (low >= spans[:, 0] - 0.5) & (high <= spans[:, 1] + 0.5)
        start = (low - spans[:, 0] <= near) & (spans[:, 0] > spans[0, 0])
        end = (spans[:, 1] - high <= near) & (spans[:, 1] < spans[-1, 1])
        cuts = torch.where(inside, start.long() + end.long(), 3).min(1).values
        worse |= cuts < parts.cut[:, axis].long() + parts.cut[:, axis + 2].long()
        fits &= cuts == 0
    return worse | (fits & (parts.tile < 0))


def _joined(parts: _Parts, agnostic: bool) -> _Parts:
    """Return the boxes with the parts of one object joined; step 2."""
    pairs = []
    for axis, across, along in ((0, parts.column, parts.row), (1, parts.row, parts.column)):
        before, after = (parts.cut[:, side].nonzero()[:, 0] for side in (axis + 2, axis))
        for chunk in before.split(max(_PAIRS // max(len(after), 1), 1)):
            a, b = chunk[:, None], after[None]
            near = (across[b] == across[a] + 1) & (along[a] == along[b])
            if not agnostic:
                near &= parts.boxes[a, 5] == parts.boxes[b, 5]
            first, second = near.nonzero(as_tuple=True)
            first, second = chunk[first], after[second]
            span = _span_iou(parts.boxes[first], parts.boxes[second], 1 - axis)
            worth = span * torch.minimum(parts.boxes[first, 4], parts.boxes[second, 4])
            good = (span > SAME_SPAN).nonzero()[:, 0].tolist()
            pairs += [(-float(worth[i]), int(first[i]), int(second[i]), axis) for i in good]
    return _united(parts, sorted(pairs))


def _span_iou(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """Return the IoU (n,) of boxes (n, 4+) along one axis, x or y."""
    low, high = (torch.stack((a[:, k], b[:, k])) for k in (axis, axis + 2))
    common = (high.min(0).values - low.max(0).values).clamp(min=0)
    return common / (high.max(0).values - low.min(0).values).clamp(min=1e-6)


def _united(parts: _Parts, pairs: Sequence[tuple[float, int, int, int]]) -> _Parts:
    """Return the boxes with those of pairs united.

    Each side of a box is used once, in the order of the pairs.
    """
    used: set[tuple[int, int]] = set()
    group = list(range(len(parts.boxes)))
    members: dict[int, list[int]] = {}
    for _, a, b, axis in pairs:
        if (a, axis + 2) in used or (b, axis) in used:
            continue
        used |= {(a, axis + 2), (b, axis)}
        into, other = group[a], group[b]
        if into != other:
            members.setdefault(into, [into]).extend(members.pop(other, [other]))
            for index in members[into]:
                group[index] = into
    gone = torch.zeros(len(parts.boxes), dtype=torch.bool)
    boxes, regions, cut = parts.boxes.clone(), parts.regions.clone(), parts.cut.clone()
    for keeper, indices in members.items():
        best = max(indices, key=lambda index: float(parts.boxes[index, 4]))
        gone[indices] = True
        gone[keeper] = False
        for around, source in ((boxes, parts.boxes), (regions, parts.regions)):
            around[keeper, :2] = source[indices, :2].min(0).values
            around[keeper, 2:4] = source[indices, 2:4].max(0).values
        boxes[keeper, 4:] = parts.boxes[best, 4:]
        ends = _at_border(boxes[keeper : keeper + 1], regions[keeper : keeper + 1])[0]
        cut[keeper] = ends & parts.cut[indices].any(0)
    return replace(parts, boxes=boxes, regions=regions, cut=cut).without(gone)


def _absorbed(parts: _Parts, nms: NmsOptions) -> _Parts:
    """Return the boxes without those that a less cut one explains; step 3."""
    cuts = parts.cut.sum(1)
    gone = torch.zeros(len(cuts), dtype=torch.bool)
    boxes = parts.boxes.clone()
    for count in (4, 3, 2, 1):  # so that a confidence is handed on
        open_ones = (cuts == count).nonzero()[:, 0]
        for region in parts.regions[open_ones].unique(dim=0):
            here = open_ones[(parts.regions[open_ones] == region).all(1)]
            meets = (boxes[:, :2] < region[2:]) & (boxes[:, 2:4] > region[:2])
            others = (meets.all(1) & (cuts < count)).nonzero()[:, 0]
            for chunk in here.split(max(_PAIRS // max(len(others), 1), 1)) if len(others) else ():
                agree = _agreement(boxes[chunk], region, boxes[others]) > nms.iou_thres
                if not nms.agnostic:
                    agree &= boxes[others, 5] == boxes[chunk, None, 5]
                best = torch.where(agree, boxes[others, 4], -1.0).max(1)
                taken = best.values >= 0
                gone[chunk[taken]] = True
                heirs = others[best.indices[taken]]
                boxes[:, 4].scatter_reduce_(0, heirs, boxes[chunk[taken], 4], "amax")
    return replace(parts, boxes=boxes).without(gone)


def _agreement(mine: Tensor, region: Tensor, others: Tensor) -> Tensor:
    """Return the IoU (n, m) of boxes and of what a region shows of others.

    Args:
        mine: (n, 4+) xyxy. region: (4,) xyxy. others: (m, 4+) xyxy.
    """
    mine, others = mine[:, None], others[None]
    low = torch.maximum(others[..., :2], region[:2])
    high = torch.minimum(others[..., 2:4], region[2:])
    shown = (high - low).clamp(min=0).prod(2)
    common = torch.minimum(high, mine[..., 2:4]) - torch.maximum(low, mine[..., :2])
    overlap = common.clamp(min=0).prod(2)
    area = (mine[..., 2:4] - mine[..., :2]).prod(2)
    return overlap / (shown + area - overlap).clamp(min=1e-6)
