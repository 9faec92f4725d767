"""utils/drawing.py: labels stay inside, colours stay apart, every script is drawn."""

import numpy as np
import pytest

from utils.drawing import PALETTE, class_name, colour, draw_box, draw_detections, text_colour


def contrast(a, b):
    def luminance(bgr):
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in bgr]
        return 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colour_is_stable_distinct_and_cyclic():
    colours = [colour(i) for i in range(len(PALETTE))]
    assert len(set(colours)) == len(PALETTE) >= 12
    assert colour(len(PALETTE)) == colours[0]
    assert colour(0) == (0x00, 0x9F, 0xE6)  # E69F00, as BGR


def test_text_is_readable_on_every_colour():
    for index in range(len(PALETTE)):
        background = colour(index)
        assert contrast(text_colour(background), background) >= 4.5  # WCAG AA


def test_drawing_leaves_the_input_alone_and_paints_the_frame():
    image = np.full((80, 100, 3), 50, np.uint8)
    det = np.array([[20, 30, 60, 70, 0.9, 3]], np.float32)
    drawn = draw_detections(image, det, ["a", "b", "c", "d"], line_thickness=1, hide_labels=True)
    assert (image == 50).all()
    assert tuple(drawn[50, 20]) == tuple(drawn[70, 40]) == colour(3)
    assert (drawn[40:60, 30:50] == 50).all()  # the inside stays free
    assert drawn.shape == image.shape


@pytest.mark.parametrize("box", [(0, 0, 30, 30), (90, 0, 119, 20), (100, 60, 119, 79), (-20, -20, 300, 300)])
@pytest.mark.parametrize("label", ["car 0.99", "żółw 0.99", "a label far wider than the whole image 0.99"])
@pytest.mark.parametrize("thickness", [1, 3])
def test_label_box_stays_inside_the_image(box, label, thickness):
    image = np.zeros((80, 120, 3), np.uint8)
    left, top, right, bottom = draw_box(image, box, label, colour(0), thickness)
    assert 0 <= left < right <= 120 and 0 <= top < bottom <= 80
    patch = image[top:bottom, left:right]
    assert (patch == colour(0)).all(axis=2).any()  # the ground of the label
    assert patch.sum(axis=2).min() < 0.6 * sum(colour(0))  # and its letters


def test_non_ascii_names_are_told_apart():
    # cv2's stroke font would print the same question marks for both.
    patches = []
    for name in ("кот", "пёс"):
        image = np.zeros((60, 120, 3), np.uint8)
        draw_detections(image, np.empty((0, 6)), [name])
        drawn = draw_detections(image, np.array([[5, 40, 100, 55, 0.5, 0]]), [name], hide_conf=True)
        patches.append(drawn[:38])
    assert patches[0].any() and not np.array_equal(patches[0], patches[1])


def test_hide_options_change_what_is_written():
    image = np.zeros((120, 200, 3), np.uint8)
    det = np.array([[20, 60, 180, 110, 0.5, 0]])
    full, no_conf, bare = (
        draw_detections(image, det, ["car"], **options)[:56].any(axis=(0, 2)).sum()
        for options in ({}, {"hide_conf": True}, {"hide_labels": True})
    )
    assert full > no_conf > bare == 0  # columns covered by the label above the box


def test_most_confident_box_lies_on_top():
    det = np.array([[10, 10, 40, 40, 0.9, 0], [10, 10, 40, 40, 0.3, 1]])
    drawn = draw_detections(
        np.zeros((50, 50, 3), np.uint8), det, ["a", "b"], line_thickness=1, hide_labels=True
    )
    assert tuple(drawn[25, 10]) == colour(0)


def test_broken_rows_and_unknown_classes_do_not_stop_the_drawing():
    det = np.array([[np.nan, 0, 1, 1, 0.9, 0], [5, 5, 20, 20, 0.4, 7]])
    drawn = draw_detections(np.zeros((60, 60, 3), np.uint8), det, {0: "a"})
    assert drawn.any()
    assert class_name({0: "a"}, 7) == class_name(["a"], 7) == "class7"
