"""Batches hold the images they should, in shapes that fit them, for every rank."""

import numpy as np
import pytest

from utils.dataset.batch_sampler import BatchSampler, class_weights, image_weights, rect_batches
from utils.errors import UserError


def images_of(batches):
    return [key[1] for batch in batches for key in batch]


def test_every_image_comes_once_and_the_last_batch_is_kept():
    sampler = BatchSampler(10, 4, shuffle=True)
    batches = list(sampler)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert len(sampler) == 3
    assert sorted(images_of(batches)) == list(range(10))
    assert images_of(BatchSampler(10, 4)) == list(range(10))


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = BatchSampler(50, 8, seed=seed, shuffle=True)
        sampler.epoch = epoch
        return list(sampler)

    assert order(0, 3) == order(0, 3)
    assert images_of(order(0, 3)) != images_of(order(0, 4))
    assert images_of(order(0, 3)) != images_of(order(1, 3))
    assert {key[0] for batch in order(0, 3) for key in batch} == {3}


@pytest.mark.parametrize("count", [1, 7, 12])
@pytest.mark.parametrize("rect", [False, True])
def test_ranks_train_on_equally_many_and_miss_none(count, rect):
    fixed = np.split(np.arange(count)[::-1], range(6, count, 6)) if rect else None
    samplers = [BatchSampler(count, 2, shuffle=True, rank=r, world_size=3, fixed=fixed) for r in range(3)]
    shares = [list(s) for s in samplers]
    assert len({len(share) for share in shares}) == 1
    assert [len(share) for share in shares] == [len(s) for s in samplers]
    together = [key for share in shares for batch in share for key in batch]
    assert {key[1] for key in together} == set(range(count))
    assert len(set(together)) == len(together)  # a repeated image is not augmented in the same way again
    if not rect:
        assert len({tuple(len(b) for b in share) for share in shares}) == 1


@pytest.mark.parametrize("count", [1, 7, 12])
@pytest.mark.parametrize("rect", [False, True])
def test_ranks_validate_each_image_once(count, rect):
    fixed = np.split(np.arange(count), range(6, count, 6)) if rect else None
    samplers = [BatchSampler(count, 2, rank=r, world_size=3, even=False, fixed=fixed) for r in range(3)]
    assert sorted(images_of([b for s in samplers for b in s])) == list(range(count))
    assert [len(list(s)) for s in samplers] == [len(s) for s in samplers]


def test_rectangular_batches_are_shuffled_whole():
    sampler = BatchSampler(20, 4, shuffle=True, fixed=np.split(np.arange(20), range(4, 20, 4)))
    batches = [[key[1] for key in batch] for batch in sampler]
    assert sorted(batches) == [list(range(i, i + 4)) for i in range(0, 20, 4)]
    assert batches != sorted(batches)


def test_weights_draw_with_replacement_in_proportion():
    sampler = BatchSampler(400, 16, shuffle=True, seed=1)
    weights = np.zeros(400)
    weights[:100], weights[100:200] = 3, 1
    sampler.set_weights(weights)
    drawn = np.array(images_of(sampler))
    assert len(drawn) == 400
    assert drawn.max() < 200
    assert abs((drawn < 100).mean() - 0.75) < 0.07
    keys = [key for batch in sampler for key in batch]
    assert len(set(keys)) == len(keys)
    assert images_of(sampler) == drawn.tolist()
    sampler.epoch = 1
    assert images_of(sampler) != drawn.tolist()
    sampler.set_weights(None)
    assert sorted(images_of(sampler)) == list(range(400))


@pytest.mark.parametrize("weights", [np.zeros(4), np.ones(3), np.array([1, 2, -1, 1]), np.full(4, np.nan)])
def test_useless_weights_are_refused(weights):
    with pytest.raises(UserError, match="4 finite numbers"):
        BatchSampler(4, 2).set_weights(weights)


def test_a_square_at_640_is_validated_at_672():
    square = rect_batches(np.array([(500, 500)]), 640, 1, 32, 0.5)
    assert square.shape(0) == (672, 672)
    assert rect_batches(np.array([(500, 500)]), 640, 1, 32, 0.0).shape(0) == (640, 640)


def test_rectangles_follow_the_batch_and_hold_every_image():
    sizes = np.array([(640, 480), (480, 640), (640, 320), (500, 500), (640, 427), (300, 900)])
    rect = rect_batches(sizes, 640, 2, 32, 0.0)
    assert rect.order.tolist() == [2, 4, 0, 3, 1, 5]
    # Landscapes: as high as 427 asks for; 640x480 with a square: square; portraits: as wide as 480 asks for.
    assert [rect.shape(i) for i in (2, 0, 5)] == [(448, 640), (640, 640), (640, 480)]
    assert rect.shape(4) == rect.shape(2)
    padded = rect_batches(sizes, 640, 2, 32, 0.5)
    assert padded.shape(2) == (448, 672)


def test_rectangles_are_never_smaller_than_their_images():
    sizes = np.random.default_rng(0).integers(10, 900, (500, 2))
    rect = rect_batches(sizes, 320, 7, 32, 0.0)
    width, height = sizes.T
    scale = 320 / sizes.max(1)
    shapes = rect.shapes[rect.batch_of]
    assert (shapes % 32 == 0).all()
    assert (shapes[:, 0] >= height * scale - 1e-6).all()
    assert (shapes[:, 1] >= width * scale - 1e-6).all()
    aspect = (height / width)[rect.order]
    assert (np.diff(aspect) >= 0).all()


LABELS = np.zeros((6, 5), np.float32)
LABELS[:, 0] = [0, 0, 0, 1, 0, 1]
OFFSETS = np.array([0, 3, 3, 5, 6])  # three of class 0; none; one of each; one of class 1


def test_rare_classes_weigh_more_and_average_one() -> None:
    weights = class_weights(LABELS[:, 0], 3)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[1] / weights[0] == pytest.approx(2.0) and weights[2] / weights[0] == pytest.approx(4.0)


def test_an_image_weighs_what_its_boxes_do() -> None:
    weights = image_weights(LABELS, OFFSETS, 2, None)
    assert weights == pytest.approx(np.array([3, 0, 3, 2]) * (2 / 3) / 2)


def test_classes_learnt_well_count_less() -> None:
    weights = image_weights(LABELS, OFFSETS, 2, np.array([0.5, 0.9]))
    assert weights == pytest.approx(np.array([3 * 0.25, 0, 0.25 + 2 * 0.01, 2 * 0.01]) / 3)


def test_when_all_is_learnt_images_are_equal() -> None:
    assert (image_weights(LABELS, OFFSETS, 2, np.ones(2)) == 1).all()


@pytest.mark.parametrize(("count", "sizes"), [(5, [2, 3]), (4, [2, 2]), (1, [1]), (3, [3])])
def test_a_lone_last_image_joins_the_batch_before_in_training(count, sizes):
    sampler = BatchSampler(count, 2, shuffle=True)
    assert [len(batch) for batch in sampler] == sizes
    assert len(sampler) == len(sizes)
    assert sorted(images_of(sampler)) == list(range(count))
    assert {len(batch) for batch in BatchSampler(count, 1)} == {1}
    assert len(BatchSampler(5, 2, even=False)) == 3


def test_a_lone_rectangle_joins_the_batch_before_in_its_shape():
    sizes = np.array([(640, 320), (640, 320), (320, 640)])
    apart, joined = (rect_batches(sizes, 640, 2, 32, 0.0, alone=alone) for alone in (0, 1))
    assert [batch.tolist() for batch in apart.batches] == [[0, 1], [2]]
    assert (apart.shape(0), apart.shape(2)) == ((320, 640), (640, 320))
    assert [sorted(batch.tolist()) for batch in joined.batches] == [[0, 1, 2]]
    assert joined.shape(0) == joined.shape(2) == (640, 640)
    assert len(BatchSampler(3, 2, fixed=joined.batches)) == 1


@pytest.mark.parametrize(("count", "batches"), [(6, 1), (7, 1), (9, 1), (10, 2), (12, 2), (14, 2)])
def test_the_ranks_of_a_rectangle_have_two_images_or_more_each(count, batches):
    sizes = np.random.default_rng(0).integers(10, 900, (count, 2))
    rect = rect_batches(sizes, 320, 2 * 3, 32, 0.0, alone=3)
    samplers = [BatchSampler(count, 2, rank=r, world_size=3, fixed=rect.batches) for r in range(3)]
    assert [len(sampler) for sampler in samplers] == [batches] * 3
    assert min(len(batch) for sampler in samplers for batch in sampler) >= 2
    assert set(images_of([batch for sampler in samplers for batch in sampler])) == set(range(count))
