"""Digits as masks: different from each other, as high and as turned as asked for."""

import cv2
import numpy as np
import pytest

from utils.dataset.bundled.glyphs import FONTS, draw, master


def test_every_font_draws_ten_different_digits():
    for font in FONTS:
        masks = [cv2.resize(master(font, str(d)), (32, 48)).astype(float) for d in range(10)]
        for a in range(10):
            assert masks[a].max() > 200
            for b in range(a):
                assert np.abs(masks[a] - masks[b]).mean() > 12, (font, a, b)


@pytest.mark.parametrize("height", [12, 40, 120])
def test_drawn_height_is_the_height_asked_for(height):
    for font in FONTS:
        mask = draw(font, "8", height, 0, 0, 1)
        assert abs(mask.shape[0] - height) <= 2, font
    turned = draw(FONTS[0], "1", height, 25, 0, 1)
    assert turned.shape[1] > draw(FONTS[0], "1", height, 0, 0, 1).shape[1]


def test_positive_angles_turn_counter_clockwise():
    mask = draw(FONTS[0], "7", 100, 20, 0, 1)
    level = draw(FONTS[0], "7", 100, 0, 0, 1)
    # The bar of a 7 is level when upright; turned counter-clockwise its right end rises.
    right, left = mask[:, -8:].max(1), mask[:, :8].max(1)
    assert np.flatnonzero(right > 0.5)[0] < np.flatnonzero(left > 0.5)[0]
    assert np.flatnonzero(level[:, -8:].max(1) > 0.5)[0] < 5
