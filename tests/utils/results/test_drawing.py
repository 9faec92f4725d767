"""Labels stay inside, colours stay apart, every script is drawn with an installed font."""

import sys

import cv2
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from utils.results import drawing
from utils.results.drawing import (
    PALETTE,
    class_name,
    colour,
    draw_box,
    draw_detections,
    draw_line,
    text_colour,
)

BOX = np.array([[5, 60, 150, 90, 0.5, 0]])


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


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The folder of this system's fonts, empty at first."""
    if not sys.platform.startswith("linux"):
        pytest.skip("other systems keep their fonts elsewhere")
    font_manager = pytest.importorskip("matplotlib.font_manager")
    monkeypatch.setattr(font_manager, "X11FontDirectories", [tmp_path])
    monkeypatch.setattr(font_manager, "_get_fontconfig_fonts", list)
    forget()
    yield tmp_path
    forget()


def forget():
    for kept in (drawing.font_for, drawing._font_files, drawing._label_patch, drawing._warn_of_letters):
        kept.cache_clear()


def make_font(path, letters):
    """A font whose letters are rectangles, each of its own height."""
    names = [".notdef", *(f"letter{i}" for i in range(len(letters)))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): names[i + 1] for i, letter in enumerate(letters)})
    glyphs = {}
    for i, name in enumerate(names):
        pen = TTGlyphPen(None)
        height = 900 if i == 0 else 200 + 700 * i // len(names)
        pen.moveTo((100, 0))
        for corner in ((100, height), (800, height), (800, 0)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupOS2()
    builder.setupPost()
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.save(path)


def drawn(name, **options):
    return drawing.draw_detections(np.zeros((100, 160, 3), np.uint8), BOX, [name], **options)


def test_letters_are_looked_for_in_the_installed_fonts(installed):
    make_font(installed / "a.ttf", "猫 0.5")
    make_font(installed / "b.ttf", "猫狗 0.5")
    make_font(installed / "NotoSansCJK-Regular.ttf", "鳥狗 0.5")
    (installed / "broken.ttf").write_bytes(b"no font")
    chosen = {text: drawing.font_for(text) for text in ("żółw", "猫", "狗", "猫狗", "猫\u200d", "鱼")}
    assert chosen.pop("żółw") == drawing._font_files()[0] and chosen.pop("鱼") is None
    assert {text: path.rpartition("/")[2] for text, path in chosen.items()} == {
        "猫": "a.ttf",
        "狗": "NotoSansCJK-Regular.ttf",
        "猫狗": "b.ttf",
        "猫\u200d": "a.ttf",
    }


def test_names_are_told_apart_with_a_font_and_without_one(installed, caplog):
    for name in ("猫", "狗"):
        assert np.array_equal(drawn(name), drawn("class0"))
        assert np.array_equal(drawn(name, hide_conf=True), drawn("class0", hide_conf=True))
    assert caplog.text.count("install a font") == 1
    make_font(installed / "cjk.ttf", "猫狗 0.5")
    forget()
    pictures = [drawn(name) for name in ("猫", "狗", "class0")]
    assert not any(np.array_equal(a, b) for a, b in zip(pictures, pictures[1:] + pictures[:1]))
    assert caplog.text.count("install a font") == 1


def test_a_font_must_have_the_figures_too(installed):
    make_font(installed / "cjk.ttf", "猫")
    assert np.array_equal(drawn("猫"), drawn("class0"))
    plain = cv2.absdiff(drawn("猫", hide_conf=True), drawn("class0", hide_conf=True))
    assert plain.any()


def test_numbers_are_drawn_and_negative_ones_are_not():
    image, det = np.zeros((80, 200, 3), np.uint8), np.array([[40, 40, 120, 70, 0.9, 0]])
    plain, numbered, not_yet = (
        draw_detections(image, det, {0: "cat"}, hide_conf=True, ids=ids) for ids in (None, [12], [-1])
    )
    assert np.array_equal(plain, not_yet) and (numbered[:40] != plain[:40]).any()
    wide = draw_detections(image, det, {0: "cat #12"}, hide_conf=True)
    assert np.array_equal(numbered, wide)


def test_a_line_is_drawn_with_its_label():
    image = np.zeros((80, 200, 3), np.uint8)
    draw_line(image, (10, 70, 190, 70), "in 1 out 2", 3)
    assert image[66:75, 150].max() > 200 and image[70, 150].max() == 0 and image[30, 150].max() == 0
    assert image[40:68, 10:90].max() > 0
