"""Augmentations keep boxes on their objects, draw only from the generator given, and write to no input."""

import importlib.util

import cv2
import numpy as np
import pytest

from utils.dataset.augmentations import (
    LabelledImage,
    albumentations_stage,
    box_candidates,
    colour_and_flip,
    copy_paste,
    fliplr,
    flipud,
    hsv,
    mixup,
    mosaic4,
    perspective_matrix,
    random_perspective,
    visible_bounds,
    warp_boxes,
)

GREY = 114
EMPTY = np.zeros((0, 2), np.float32)


def rng(*key):
    return np.random.default_rng(key)


def rectangle(box):
    x1, y1, x2, y2 = box
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float32)


def scene(height, width, boxes, colours, polygons=False):
    """Boxes filled with one colour each on the grey of the padding."""
    image = np.full((height, width, 3), GREY, np.uint8)
    for (x1, y1, x2, y2), colour in zip(boxes, colours):
        image[y1:y2, x1:x2] = colour
    labels = np.array([(i, *box) for i, box in enumerate(boxes)], np.float32).reshape(-1, 5)
    return LabelledImage(image, labels, [rectangle(b) if polygons else EMPTY for b in boxes])


def bounds_of(image, colour, tolerance=60):
    """Bounds of the pixels near a colour."""
    near = np.abs(image.astype(int) - colour).sum(2) < tolerance
    ys, xs = np.nonzero(near)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def frozen(sample):
    """The sample, refusing to be written to."""
    for array in (sample.image, sample.labels, *sample.polygons):
        array.flags.writeable = False
    return sample


COLOURS = [(250, 20, 20), (20, 250, 20), (20, 20, 250), (250, 250, 20)]


def test_mosaic_puts_each_tile_with_its_boxes_at_the_centre():
    size = 64
    shapes = [(64, 48), (48, 64), (64, 64), (33, 64)]
    tiles = [frozen(scene(h, w, [(4, 4, w - 4, h - 4)], [c], True)) for (h, w), c in zip(shapes, COLOURS)]
    canvas = mosaic4(tiles, size, rng(3))
    assert canvas.image.shape == (128, 128, 3)
    assert len(canvas.labels) == len(canvas.polygons) == 4
    for row, polygon, colour in zip(canvas.labels, canvas.polygons, COLOURS):
        np.testing.assert_allclose(row[1:], bounds_of(canvas.image, colour), atol=0.01)
        np.testing.assert_allclose(np.concatenate([polygon.min(0), polygon.max(0)]), row[1:], atol=0.01)


def test_mosaic_centre_is_uniform_over_the_middle_half():
    tile = LabelledImage(np.zeros((64, 64, 3), np.uint8), np.array([[0, 0, 0, 64, 64]], np.float32), [EMPTY])
    centres = np.array([mosaic4([tile] * 4, 64, rng(i)).labels[0, 3:] for i in range(300)])
    assert centres.min() >= 32
    assert centres.max() <= 96
    np.testing.assert_allclose(centres.mean(0), 64, atol=4)
    np.testing.assert_allclose(centres.std(0), 64 / 12**0.5, atol=2)


def test_mosaic_fills_what_no_tile_covers_with_grey():
    tile = LabelledImage(np.zeros((8, 8, 3), np.uint8), np.zeros((0, 5), np.float32), [])
    canvas = mosaic4([tile] * 4, 64, rng(0)).image
    assert (canvas == 0).all(2).sum() == 16 * 16
    assert (canvas == GREY).all(2).sum() == 128 * 128 - 16 * 16


def test_without_any_jitter_perspective_is_the_identity_and_crops_the_centre():
    sample = scene(80, 120, [(10, 20, 60, 70)], COLOURS)
    same = random_perspective(sample, {}, rng(0))
    assert np.array_equal(same.image, sample.image)
    np.testing.assert_array_equal(same.labels, sample.labels)
    cropped = random_perspective(sample, {}, rng(0), border=-10)
    assert np.array_equal(cropped.image, sample.image[10:-10, 10:-10])
    np.testing.assert_allclose(cropped.labels[0, 1:], (0, 10, 50, 60))


@pytest.mark.parametrize(
    "hyp",
    [
        {"translate": 0.1, "scale": 0.5},
        {"degrees": 90.0},
        {"shear": 20.0},
        {"perspective": 0.001},
        {"translate": 0.2, "scale": 0.3, "degrees": 30.0, "shear": 10.0, "perspective": 0.0005},
    ],
    ids=lambda hyp: "-".join(hyp),
)
@pytest.mark.parametrize("border", [0, -40])
def test_boxes_of_polygons_stay_on_what_is_seen(hyp, border):
    boxes = [(20, 30, 90, 80), (100, 20, 150, 140), (15, 100, 80, 150)]
    sample = frozen(scene(160, 160, boxes, COLOURS, polygons=True))
    errors = []
    for i in range(20):
        found = random_perspective(sample, hyp, rng(i), border=border)
        side = 160 + 2 * border
        assert found.image.shape == (side, side, 3)
        for row in found.labels:
            errors += np.abs(row[1:] - bounds_of(found.image, COLOURS[int(row[0])])).tolist()
    assert len(errors) > 80
    assert np.quantile(errors, 0.98) < 2.6
    assert max(errors) < 10  # the tip of an acute corner is thinner than a pixel and not seen


def test_a_box_without_polygon_takes_the_bounds_of_its_corners():
    quarter = {"degrees": 45.0}
    sample = scene(200, 200, [(60, 60, 140, 140)], COLOURS)
    matrix, scale = perspective_matrix(200, 200, (200, 200), quarter, rng(5))
    found = random_perspective(sample, quarter, rng(5)).labels[0, 1:]
    angle = abs(np.arctan2(matrix[1, 0], matrix[0, 0]))
    assert scale == 1.0
    half = 40 * (np.cos(angle) + np.sin(angle))
    np.testing.assert_allclose(found, (100 - half, 100 - half, 100 + half, 100 + half), rtol=1e-5)


def test_ranges_of_the_random_homography():
    hyp = {"degrees": 30.0, "scale": 0.5, "translate": 0.1, "shear": 0.0, "perspective": 0.0}
    drawn = [perspective_matrix(100, 200, (100, 200), hyp, rng(i)) for i in range(400)]
    scales = np.array([s for _, s in drawn])
    angles = np.degrees([np.arctan2(m[1, 0], m[0, 0]) for m, _ in drawn])
    centres = np.array([m[:2] @ (100, 50, 1) for m, _ in drawn])
    for values, middle, spread in (
        (scales, 1.0, 0.5),
        (angles, 0.0, 30.0),
        (centres[:, 0], 100.0, 20.0),
        (centres[:, 1], 50.0, 10.0),
    ):
        assert np.abs(values - middle).max() <= spread + 1e-9
        assert np.abs(values - middle).max() > 0.95 * spread
        assert abs(values.mean() - middle) < 0.1 * spread


def test_which_boxes_are_dropped():
    before = np.array([(0, 0, 100, 100)] * 5, float)
    after = np.array(
        [(0, 0, 2, 100), (0, 0, 2.1, 100), (0, 0, 100, 9.9), (0, 0, 100, 10.1), (0, 0, 300, 2.9)], float
    )
    assert box_candidates(before, after, 0.0).tolist() == [False, True, True, True, False]
    assert box_candidates(before, after, 0.1).tolist() == [False, False, False, True, False]


@pytest.mark.parametrize(("polygons", "kept"), [(True, 1), (False, 0)])
def test_a_polygon_keeps_an_object_of_which_little_is_left(polygons, kept):
    sample = scene(200, 200, [(0, 80, 55, 120)], COLOURS, polygons=polygons)
    found = random_perspective(sample, {}, rng(0), border=-50).labels  # 5 of its 55 columns are left
    assert len(found) == kept
    if kept:
        np.testing.assert_allclose(found[0, 1:], (0, 30, 5, 70))


@pytest.mark.parametrize("seed", range(30))
def test_visible_bounds_equal_those_of_the_painted_polygon(seed):
    generator = rng(seed)
    width, height, corners = 120, 90, int(generator.integers(3, 9))
    around = np.sort(generator.uniform(0, 2 * np.pi, corners))
    centre = generator.uniform(-40, 160, 2)
    radius = generator.uniform(20, 150, corners)
    polygon = centre + radius[:, None] * np.stack([np.cos(around), np.sin(around)], 1)
    found = visible_bounds(polygon, width, height)
    painted = np.zeros((height * 8, width * 8), np.uint8)
    cv2.fillPoly(painted, [np.round(polygon * 8).astype(np.int32)], 1)
    ys, xs = np.nonzero(painted)
    expected = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 8 if len(xs) else np.zeros(4)
    np.testing.assert_allclose(found, expected, atol=1.0)


def test_an_object_that_fills_the_frame_keeps_the_whole_frame():
    around = np.array([(-50, -50), (300, -60), (320, 310), (-40, 300)], float)
    np.testing.assert_array_equal(visible_bounds(around, 100, 80), (0, 0, 100, 80))
    np.testing.assert_array_equal(visible_bounds(around + 1000, 100, 80), np.zeros(4))


def test_warping_boxes_by_a_known_matrix():
    turn = np.array([(0, -1, 10), (1, 0, 20), (0, 0, 1)], float)
    np.testing.assert_allclose(warp_boxes(np.array([(1, 2, 3, 5)], float), turn), [(5, 21, 8, 23)])


def test_copy_paste_mirrors_objects_where_there_is_room():
    sample = frozen(scene(100, 200, [(10, 20, 60, 70)], COLOURS, polygons=True))
    found = copy_paste(sample, 1.0, rng(0))
    np.testing.assert_allclose(found.labels, [(0, 10, 20, 60, 70), (0, 140, 20, 190, 70)])
    np.testing.assert_allclose(found.polygons[1].min(0), (140, 20))
    assert (found.image[20:70, 140:190] == COLOURS[0]).all()
    assert (found.image == COLOURS[0]).all(2).sum() <= 2 * 51 * 51
    assert (sample.image[:, 100:] == GREY).all()


@pytest.mark.parametrize(("overlap", "pasted"), [(14, True), (16, False)])
def test_copy_paste_leaves_what_would_be_covered_by_thirty_percent(overlap, pasted):
    other = (140 - 50 + overlap, 20, 140 + overlap, 70)
    sample = scene(100, 200, [(10, 20, 60, 70), other], COLOURS, polygons=True)
    sample = sample._replace(polygons=[sample.polygons[0], EMPTY])
    found = copy_paste(sample, 1.0, rng(0))
    assert len(found.labels) == 2 + pasted


def test_copy_paste_takes_a_rounded_share_and_only_polygons():
    boxes = [(2, 10 * i, 12, 10 * i + 8) for i in range(10)]
    sample = scene(100, 100, boxes, COLOURS * 3, polygons=True)
    assert [len(copy_paste(sample, p, rng(0)).labels) for p in (0.0, 0.04, 0.3, 1.0)] == [10, 10, 13, 20]
    plain = scene(100, 100, boxes, COLOURS * 3)
    unchanged = copy_paste(plain, 1.0, rng(0))
    assert len(unchanged.labels) == 10
    assert unchanged.image is plain.image
    nothing = LabelledImage(plain.image, np.zeros((0, 5), np.float32), [])
    assert len(copy_paste(nothing, 1.0, rng(0)).labels) == 0


def test_copy_paste_takes_the_shape_and_not_the_box():
    triangle = np.array([(10, 10), (50, 10), (10, 50)], np.float32)
    image = np.full((60, 120, 3), GREY, np.uint8)
    cv2.fillPoly(image, [triangle.astype(np.int32)], COLOURS[0])
    image[40:50, 40:50] = COLOURS[1]  # in the box of the triangle, outside of it
    sample = LabelledImage(image, np.array([(0, 10, 10, 50, 50)], np.float32), [triangle])
    found = copy_paste(sample, 1.0, rng(0)).image
    assert (found[12, 105] == COLOURS[0]).all()
    assert (found[40:50, 70:80] == GREY).all()


def test_mixup_blends_by_beta_and_keeps_all_labels():
    black = scene(16, 16, [(0, 0, 16, 16)], [(0, 0, 0)])
    white = scene(16, 16, [(0, 0, 16, 16), (2, 2, 9, 9)], [(255, 255, 255)] * 2)
    levels = []
    for i in range(300):
        found = mixup(frozen(black), frozen(white), rng(i))
        assert len(found.labels) == len(found.polygons) == 3
        assert found.image.min() == found.image.max()
        levels.append(int(found.image[0, 0, 0]) / 255)
    assert abs(np.mean(levels) - 0.5) < 0.02
    assert abs(np.std(levels) - (1 / (4 * 65)) ** 0.5) < 0.01


def test_hsv_moves_each_channel_within_its_gain():
    patch = np.zeros((8, 8, 3), np.uint8)
    patch[:] = cv2.cvtColor(np.uint8([[(90, 120, 150)]]), cv2.COLOR_HSV2BGR)[0, 0]
    start = cv2.cvtColor(patch, cv2.COLOR_BGR2HSV)[0, 0].astype(float)
    patch.flags.writeable = False
    gains = (0.1, 0.5, 0.4)
    found = np.array([cv2.cvtColor(hsv(patch, gains, rng(i)), cv2.COLOR_BGR2HSV)[0, 0] for i in range(300)])
    ratio = np.abs(found / start - 1).max(0)
    assert (ratio <= np.array(gains) + 0.03).all()
    assert (ratio >= np.array(gains) * 0.85).all()
    assert hsv(patch, (0, 0, 0), rng(0)) is patch


def test_hue_wraps_and_grey_stays_grey():
    red = np.zeros((4, 4, 3), np.uint8)
    red[:] = cv2.cvtColor(np.uint8([[(175, 255, 255)]]), cv2.COLOR_HSV2BGR)[0, 0]
    hues = {int(cv2.cvtColor(hsv(red, (0.5, 0, 0), rng(i)), cv2.COLOR_BGR2HSV)[0, 0, 0]) for i in range(60)}
    assert max(hues) < 180
    assert min(hues) < 20
    grey = np.full((4, 4, 3), 100, np.uint8)
    changed = hsv(grey, (0.5, 0.9, 0.5), rng(1))
    assert len(set(changed[0, 0].tolist())) == 1


def test_flips_move_pixels_and_boxes_together():
    image = np.zeros((40, 80, 3), np.uint8)
    image[4:12, 8:24] = 255
    labels = np.array([(1, 16 / 80, 8 / 40, 16 / 80, 8 / 40)], np.float32)
    for flip, expected in ((fliplr, (56, 4, 72, 12)), (flipud, (8, 28, 24, 36))):
        flipped, rows = flip(image, labels)
        _, x, y, w, h = rows[0] * (1, 80, 40, 80, 40)
        np.testing.assert_allclose((x - w / 2, y - h / 2, x + w / 2, y + h / 2), expected, atol=1e-4)
        np.testing.assert_array_equal(bounds_of(flipped, (255, 255, 255)), expected)
        np.testing.assert_allclose(flip(*flip(image, labels))[1], labels, atol=1e-6)


def test_the_last_stages_follow_their_probabilities():
    image = np.zeros((8, 8, 3), np.uint8)
    image[0, 0] = 255
    labels = np.zeros((0, 5), np.float32)
    turned = [colour_and_flip(image, labels, {"fliplr": 0.5, "flipud": 0.25}, rng(i))[0] for i in range(400)]
    right = np.mean([image[:, 7].any() for image in turned])
    down = np.mean([image[7].any() for image in turned])
    assert abs(right - 0.5) < 0.08
    assert abs(down - 0.25) < 0.07


@pytest.mark.skipif(not importlib.util.find_spec("albumentations"), reason="albumentations is not installed")
def test_albumentations_is_seeded_by_the_generator():
    image = rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    first, second = ([albumentations_stage(image, rng(7, i)) for i in range(200)] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    changed = np.mean([not np.array_equal(a, image) for a in first])
    assert 0.01 < changed < 0.09


def test_the_same_generator_gives_the_same_sample_and_another_a_different_one():
    sample = scene(64, 64, [(10, 10, 40, 40)], COLOURS, polygons=True)
    hyp = {
        "degrees": 10.0,
        "scale": 0.5,
        "translate": 0.1,
        "hsv_h": 0.1,
        "hsv_s": 0.7,
        "hsv_v": 0.4,
        "fliplr": 0.5,
    }

    def run(key):
        generator = rng(key)
        warped = random_perspective(mosaic4([sample] * 4, 64, generator), hyp, generator, border=-32)
        return colour_and_flip(warped.image, warped.labels, hyp, generator)[0]

    assert np.array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))
