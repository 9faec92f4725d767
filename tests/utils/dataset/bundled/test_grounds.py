"""Backgrounds of the digits: what a generator decides, and how quiet they are."""

import numpy as np

from utils.dataset.bundled import grounds


def rng(*key):
    return np.random.default_rng(key)


def test_a_ground_depends_on_its_generator_alone():
    first, again, other = (grounds.ground(rng(seed), 90, 120) for seed in (1, 1, 2))
    assert first.shape == (90, 120, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_grounds_are_softer_than_the_picture_they_come_from():
    """Contrast is cut to at most 0.95 of its own, plus noise of at most 6 levels."""
    image = grounds._tiles(rng(0), 80, 80)
    soft = [grounds._soften(rng(i), image) for i in range(30)]
    assert max(float(s.std()) for s in soft) < np.hypot(0.95 * image.std(), 6) + 1
    assert max(abs(float(s.mean()) - image.mean()) for s in soft) < 3


def test_without_the_sample_data_of_matplotlib_the_terrain_is_noise(tmp_path, monkeypatch):
    grounds._terrain.cache_clear()
    real = grounds._terrain()
    grounds._terrain.cache_clear()
    monkeypatch.setattr(grounds.matplotlib, "get_data_path", lambda: str(tmp_path))
    noise = grounds._terrain()
    grounds._terrain.cache_clear()
    assert noise.shape == real.shape
    for land in (real, noise):
        assert (land.min(), land.max()) == (0, 1)


def test_colours_come_from_all_of_hsv():
    colours = np.stack([grounds.random_colour(rng(i)) for i in range(500)])
    assert colours.dtype == np.float32
    assert (colours.max(0) > 230).all()
    assert (colours.min(0) < 20).all()
