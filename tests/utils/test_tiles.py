"""Tiles: where they lie, what becomes of objects that their borders cut, and how much memory they take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from utils.detector import Detector
from utils.errors import UserError
from utils.letterbox import UNSCALED, letterbox, rgb_planes
from utils.nms import NmsOptions
from utils.tiles import MOST_TILES, TiledDetector, TileOptions, Tiling, make_detector, merge_tiles

SIDE = 64
IMAGE = (112, 208)  # 2 rows of tiles, 4 columns, 48 pixels apart: neighbours share 16


class Blobs:
    """Finds every bright rectangle of an input, as far as the input shows it; its class is its brightness."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def prepare(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def infer(self, images: Tensor, wanted: NmsOptions, *, augment: bool = False) -> Tensor:
        self.batches.append(len(images))
        rows = torch.zeros(len(images), 12, 7)
        for image, boxes in zip(images[:, 0], rows):
            for number, level in enumerate(image.mul(20).round().unique().tolist()):
                if level < 10:  # the ground, and the grey around a small image
                    continue
                y, x = (image.mul(20).round() == level).nonzero(as_tuple=True)
                x1, x2, y1, y2 = int(x.min()), int(x.max()) + 1, int(y.min()), int(y.max()) + 1
                box = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
                boxes[number] = torch.tensor([*box, 1.0, (1 - level % 2) * 0.8, level % 2 * 0.9])
        return rows

    def suppress(self, inferred: Tensor, wanted: NmsOptions, labels: Sequence[Tensor] = ()) -> list[Tensor]:
        return wanted.suppress(inferred, labels)


def picture(*boxes: tuple[int, int, int, int], shape: tuple[int, int] = IMAGE) -> np.ndarray:
    """RGB planes with bright rectangles xyxy, each of a brightness of its own, the first of class 1."""
    planes = np.zeros((3, *shape), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        planes[:, y1:y2, x1:x2] = round((11 + number) / 20 * 255)
    return planes


def tiling(**changes: object) -> Tiling:
    return Tiling.of(True, (SIDE, SIDE), 32, **{"overlap": 0.25, "whole": False} | changes)


def found(planes: np.ndarray, **changes: object) -> list[list[float]]:
    """Boxes of one image, sorted."""
    detect = TiledDetector(Blobs(), NmsOptions(), tiling(**changes))
    boxes = detect([planes], [(planes.shape[1:], UNSCALED)]).boxes[0]
    return sorted([round(v, 2) for v in row] for row in boxes.tolist())


def test_tiles_cover_the_image_and_overlap_at_least_as_asked():
    for length in (64, 65, 112, 113, 1000):
        for overlap in (0.0, 0.25, 0.9):
            spans = tiling(overlap=overlap).grid((64, length)).columns
            assert spans[0, 0] == 0 and spans[-1, 1] == length and (spans[:, 1] - spans[:, 0] == 64).all()
            assert (spans[:-1, 1] - spans[1:, 0] >= int(64 * overlap)).all(), (length, overlap)
    assert tiling().grid((40, 50)).regions(torch.tensor([0])).tolist() == [[0, 0, 50, 40]]
    assert len(tiling().grid(IMAGE)) == 8


@pytest.mark.parametrize(
    "box",
    [
        (20, 20, 30, 30),  # inside one tile
        (50, 20, 60, 30),  # inside the overlap: seen whole twice
        (45, 20, 60, 30),  # begins before the second tile: cut there only
        (60, 20, 75, 30),  # cut by the first tile only
        (40, 20, 75, 30),  # longer than the overlap: cut by both
        (40, 40, 75, 75),  # by four
        (40, 20, 130, 30),  # across three tiles
        (60, 58, 70, 68),  # the first tile sees a corner of it
    ],
)
def test_an_object_that_a_seam_cuts_is_one_box(box):
    assert found(picture(box)) == [[*box, 0.9, 1.0]]
    assert found(picture(box), whole=True) == [[*box, 0.9, 1.0]]


def test_objects_on_both_sides_of_a_seam_stay_apart():
    boxes = (40, 10, 62, 20), (62, 10, 90, 20), (40, 30, 75, 40), (40, 42, 75, 52)
    assert [row[:4] for row in found(picture(*boxes))] == sorted(list(map(float, box)) for box in boxes)


def test_parts_that_do_not_touch_the_same_length_of_a_seam_or_differ_in_class_are_not_joined():
    grid = tiling().grid(IMAGE)
    left, right = [30.0, 10, 64, 30, 0.9, 0, 0], [48.0, 24, 90, 60, 0.8, 0, 1]
    for other in (right, [48.0, 10, 90, 30, 0.8, 1, 1]):
        assert len(merge_tiles(torch.tensor([left, other]), grid, IMAGE, NmsOptions())) == 2
    same = torch.tensor([left, [48.0, 10, 90, 30, 0.8, 1, 1]])
    joined = merge_tiles(same, grid, IMAGE, NmsOptions(agnostic=True))
    assert joined[0].tolist() == pytest.approx([30, 10, 90, 30, 0.9, 0])


def test_the_whole_image_gives_what_no_tile_shows_whole_and_only_that():
    grid = tiling().grid(IMAGE)
    huge, small = [10.0, 10, 200, 100, 0.4, 1, -1], [52.0, 20, 72, 34, 0.9, 1, -1]
    part = [50.0, 10, 112, 64, 0.7, 1, 1]  # what the second tile shows of the huge one
    merged = merge_tiles(torch.tensor([small, part, huge]), grid, IMAGE, NmsOptions())
    assert merged.tolist() == [pytest.approx([10, 10, 200, 100, 0.7, 1])]
    alone = merge_tiles(torch.tensor([part]), grid, IMAGE, NmsOptions())
    assert alone.tolist() == [pytest.approx(part[:6])], "without it the part is better than nothing"


def test_an_image_of_one_tile_gives_what_the_detector_gives():
    image = np.random.default_rng(0).integers(0, 60, (40, 50, 3), dtype=np.uint8)
    image[10:20, 5:30] = 160
    boxed, ratio, pad = letterbox(image, (SIDE, SIDE), stride=32)
    plain = Detector(Blobs(), NmsOptions())([rgb_planes(boxed)], [((40, 50), (ratio, pad))])
    tiles = TiledDetector(Blobs(), NmsOptions(), tiling(whole=True))
    seen = tiles([image[..., ::-1].transpose(2, 0, 1)], [((40, 50), UNSCALED)])
    assert len(seen.boxes[0]) and torch.equal(seen.boxes[0], plain.boxes[0])


def test_tiles_of_another_size_are_scaled_and_boxes_come_back():
    detect = TiledDetector(Blobs(), NmsOptions(), Tiling.of(32, (SIDE, SIDE), 32, whole=False))
    boxes = detect([picture((20, 20, 30, 30))], [(IMAGE, UNSCALED)]).boxes[0]
    assert boxes.tolist() == [pytest.approx([20, 20, 30, 30, 0.9, 1], abs=1)]


def test_batches_are_of_the_given_size_and_times_are_those_of_whole_images():
    network = Blobs()
    detect = make_detector(network, NmsOptions(), tiling(batch=3, whole=True))
    seen = detect([picture((20, 20, 30, 30))] * 2, [(IMAGE, UNSCALED)] * 2, spent=2.0)
    assert network.batches == [3, 3, 3] * 2 and seen.shape == (18, 3, SIDE, SIDE)
    assert detect.images == 2 and detect.seconds["preprocess"] > 2
    assert detect.speed["preprocess"] == pytest.approx(1000 * seen.seconds["preprocess"] / 2)
    assert type(make_detector(network, NmsOptions(), None)) is Detector


def test_labels_are_added_with_confidence_one():
    detect = TiledDetector(Blobs(), NmsOptions(), tiling())
    label = torch.tensor([[0.0, 100, 50, 20, 10]])
    seen = detect([picture()], [(IMAGE, UNSCALED)], labels=[label])
    assert seen.boxes[0].tolist() == [[90, 45, 110, 55, 1, 0]]


def test_the_best_boxes_are_kept_and_no_more_than_asked():
    planes = picture(*((10 + 20 * n, 10, 20 + 20 * n, 20) for n in range(9)))
    detect = TiledDetector(Blobs(), NmsOptions(max_det=3), tiling())
    assert detect([planes], [(IMAGE, UNSCALED)]).boxes[0][:, 4].tolist() == pytest.approx([0.9] * 3)


def test_large_images_are_never_copied(monkeypatch):
    planes = np.broadcast_to(np.zeros((3, 1, 1), np.uint8), (3, 20_000, 20_000))  # three bytes
    biggest = 0
    original = np.ascontiguousarray

    def noting(array: np.ndarray) -> np.ndarray:
        nonlocal biggest
        biggest = max(biggest, array.size)
        return original(array)

    monkeypatch.setattr(np, "ascontiguousarray", noting)
    network = Blobs()
    detect = TiledDetector(network, NmsOptions(), Tiling.of(4000, (SIDE, SIDE), 32, whole=False, batch=4))
    assert detect([planes], [((20_000, 20_000), UNSCALED)]).boxes[0].shape == (0, 6)
    assert sum(network.batches) == 36 and max(network.batches) == 4 and biggest == 4000**2


def test_too_many_tiles_and_senseless_options_are_refused():
    with pytest.raises(UserError, match=f"more than {MOST_TILES}; give a larger --tile"):
        tiling(overlap=0.9).grid((20_000, 20_000))
    for options, message in (
        ({"overlap": 0.1}, "--overlap: says how far tiles overlap; add --tile"),
        ({"tiles_only": True}, "--tiles-only: .*; add --tile"),
        ({"tile": True, "overlap": 0.95}, "--overlap 0.95: must lie between 0 and 0.9"),
        ({"tile": 8}, "--tile 8: must be at least 32 pixels"),
    ):
        with pytest.raises(UserError, match=message):
            TileOptions(**options).check_tiles()
    assert TileOptions().tiling((64, 64), 32, 8, True) is None
    assert TileOptions(tile=True, tiles_only=True).tiling((64, 96), 32, 8, True) == Tiling(
        (64, 96), (64, 96), 32, 0.2, False, 8
    )
