"""A font is chosen among those installed by the very letters it has to draw."""

import sys

import cv2
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from utils import drawing, fonts

BOX = np.array([[5, 60, 150, 90, 0.5, 0]])


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
    for kept in (fonts.font_for, fonts._fonts, drawing._label_patch, drawing._warn_of_letters):
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
    chosen = {text: fonts.font_for(text) for text in ("żółw", "猫", "狗", "猫狗", "猫\u200d", "鱼")}
    assert chosen.pop("żółw") == fonts.default_font() and chosen.pop("鱼") is None
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
