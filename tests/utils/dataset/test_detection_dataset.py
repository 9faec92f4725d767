"""Images of a set as batches show them: boxes on their pixels, one shape a batch, augmentation by hyp."""

import os

import numpy as np
import pytest
import torch

from tests.utils.image_sets import HYP, SIZES, write_images
from utils.boxes import xywhn2xyxy
from utils.dataset.detection_dataset import BatchOptions, DetectionDataset, collate
from utils.dataset.loader import build_loader
from utils.letterbox import scale_boxes


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("set"), SIZES, polygons=True)


@pytest.mark.parametrize("frame", [None, (64, 96)])
def test_an_item_depends_on_its_key_alone(images, frame):
    first = DetectionDataset(images, BatchOptions(64, 4, hyp=HYP, frame=frame, seed=3))
    second = DetectionDataset(images, BatchOptions(64, 2, hyp=HYP, frame=frame, seed=3))
    keys = [(0, 1), (1, 1), (0, 1, 1), (0, 2)]
    for key in keys:
        second[(5, 9)]  # whatever was loaded before
        a, b = first[key], second[key]
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.labels, b.labels)
    assert len({first[key].image.tobytes() for key in keys}) == len(keys)


def test_a_frame_is_the_shape_of_every_image(images):
    dataset = DetectionDataset(images, BatchOptions(64, 4, frame=(64, 96)))
    assert {dataset[(0, i)].image.shape for i in range(len(images))} == {(64, 96, 3)}


def test_collating_numbers_the_boxes_by_their_image(images):
    dataset = DetectionDataset(images, BatchOptions(64, 4))
    batch, targets, paths, placements = collate([dataset[(0, i)] for i in (3, 0, 2)])
    assert batch.shape == (3, 3, 64, 64)
    assert targets[:, 0].tolist() == [0, 0, 0, 2, 2]
    assert [os.path.basename(path) for path in paths] == ["003.jpg", "000.jpg", "002.jpg"]
    assert [native for native, _ in placements] == [SIZES[i][::-1] for i in (3, 0, 2)]


@pytest.mark.parametrize("rect", [False, True])
def test_validation_boxes_lie_on_their_pixels_and_go_back_to_the_native_ones(images, rect):
    loader = build_loader(images, BatchOptions(96, 4, rect=rect, pad=0.5 if rect else 0.0), workers=0)
    seen = []
    for batch, targets, paths, shapes in loader:
        height, width = batch.shape[2:]
        for i, (path, (native, ratio_pad)) in enumerate(zip(paths, shapes)):
            index = int(os.path.basename(path)[:3])
            seen.append(index)
            assert native == SIZES[index][::-1]
            rows = targets[targets[:, 0] == i]
            boxes = xywhn2xyxy(rows[:, 2:], width, height)
            for x1, y1, x2, y2 in boxes.round().int().tolist():
                inside = batch[i, :, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
                assert inside.float().mean() > 220
            back = scale_boxes((height, width), boxes, native, ratio_pad)
            expected = xywhn2xyxy(torch.from_numpy(images.labels(index))[:, 1:], native[1], native[0])
            torch.testing.assert_close(back, expected, atol=0.02, rtol=0)
            assert rows[:, 1].tolist() == images.labels(index)[:, 0].tolist()
    assert sorted(seen) == list(range(len(images)))


def test_rectangles_save_pixels_and_hold_one_shape_a_batch(images):
    loader = build_loader(images, BatchOptions(96, 2, rect=True), workers=0)
    shapes = [tuple(batch.shape[2:]) for batch, *_ in loader]
    assert shapes[0] == (64, 96)
    assert shapes[-1] == (96, 64)
    assert all(h % 32 == w % 32 == 0 for h, w in shapes)


def test_images_are_rgb(tmp_path):
    import cv2

    images = write_images(tmp_path, [(64, 64)])
    cv2.imwrite(images.path(0), np.full((64, 64, 3), (10, 20, 200), np.uint8))
    (batch, *_), *_ = build_loader(images, BatchOptions(64, 1), workers=0)
    assert batch[0, :, 30, 30].tolist() == pytest.approx([200, 20, 10], abs=3)


def test_small_images_are_enlarged_to_the_long_side(images):
    loader = build_loader(images, BatchOptions(128, len(SIZES)), workers=0)
    (batch, _, paths, shapes), *_ = loader
    native, ((ratio_h, ratio_w), pad) = shapes[9]
    assert paths[9].endswith("009.jpg")
    assert native == (50, 50)
    assert (ratio_h, ratio_w, pad) == (2.56, 2.56, (0, 0))
    assert batch.shape == (10, 3, 128, 128)


def test_absent_augmentation_hyperparameters_are_zero(images):
    batches = list(build_loader(images, BatchOptions(64, 4, hyp={}), workers=0))
    plain = list(build_loader(images, BatchOptions(64, 4, hyp=dict.fromkeys(HYP, 0.0)), workers=0))
    for batch, other in zip(batches, plain, strict=True):
        assert torch.equal(batch[0], other[0])
        assert torch.equal(batch[1], other[1])
    assert {c for _, targets, *_ in plain for c in targets[:, 1].tolist()} == {0.0, 1.0, 2.0}
    assert images.all_labels[:, 0].max() == 2


def test_mosaic_shows_four_images_and_rect_turns_it_off(images):
    hyp = {"mosaic": 1.0}
    targets = [len(b[1]) for b in build_loader(images, BatchOptions(64, 10, hyp=hyp), workers=0)]
    rect = [len(b[1]) for b in build_loader(images, BatchOptions(64, 10, hyp=hyp, rect=True), workers=0)]
    assert rect == [len(images.all_labels)]
    assert targets[0] > 1.2 * rect[0]


def test_native_images_keep_their_size_and_labels(images):
    loader = build_loader(images, BatchOptions(32, 1, native=True), workers=0)
    for index, (batch, targets, _, placements) in enumerate(loader):
        assert batch.shape == (1, 3, *SIZES[index][::-1])
        assert placements == [(SIZES[index][::-1], ((1.0, 1.0), (0, 0)))]
        np.testing.assert_allclose(targets[:, 1:], images.labels(index), atol=1e-4)
    assert index == len(SIZES) - 1
    with pytest.raises(ValueError, match="one in a batch"):
        BatchOptions(32, 2, native=True)
