"""Draw digits and letters as masks.

The fonts are those of the required packages: Matplotlib's, Pillow's, OpenCV's.
A mask is float32 (h, w) in 0..1, cropped to what is visible of the character.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_TRUETYPE = (
    *("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf", "DejaVuSans-BoldOblique.ttf"),
    *("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSansMono-BoldOblique.ttf"),
    *("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSerif-Italic.ttf"),
    *("STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf", "STIXGeneralBolIta.ttf"),
    *("cmr10.ttf", "cmb10.ttf", "cmss10.ttf", "cmti10.ttf", "cmtt10.ttf"),
)
"""Files of Matplotlib that have ordinary digits; its other fonts have symbols or nothing in their place."""

_OPENCV = ("hershey-simplex", "hershey-duplex", "hershey-triplex", "hershey-script")
"""Drawn by `cv2.putText`: stroke fonts in OpenCV 4, its own outlines in OpenCV 5."""

FONTS = (*_TRUETYPE, *_OPENCV, "pillow-default", "seven-segment")
HELD_OUT = ("STIXGeneralBolIta.ttf", "DejaVuSansMono-BoldOblique.ttf", "cmss10.ttf")
"""Fonts of the validation images only."""

_MASTER = 160
"""Height in pixels at which a character is drawn once; every other size is scaled from it."""

_SEGMENTS = {
    "0": "abcdef",
    "1": "bc",
    "2": "abged",
    "3": "abgcd",
    "4": "fgbc",
    "5": "afgcd",
    "6": "afgedc",
    "7": "abc",
    "8": "abcdefg",
    "9": "abfgcd",
}
_SEGMENT_LINES = {
    "a": ((0, 0), (1, 0)),
    "b": ((1, 0), (1, 1)),
    "c": ((1, 1), (1, 2)),
    "d": ((0, 2), (1, 2)),
    "e": ((0, 1), (0, 2)),
    "f": ((0, 0), (0, 1)),
    "g": ((0, 1), (1, 1)),
}


@lru_cache(maxsize=1024)
def master(font: str, character: str) -> np.ndarray:
    """Return the character as a uint8 mask, cropped, its longer side _MASTER pixels.

    Args:
        font: one of FONTS; 'seven-segment' has digits only.
        character: a single character.
    """
    size = _MASTER
    canvas = np.zeros((3 * size, 3 * size), np.uint8)
    if font == "seven-segment":
        unit, thick = size // 2 - 12, size // 8
        for segment in _SEGMENTS[character]:
            ends = [(size + x * unit * 4 // 5, size + y * unit) for x, y in _SEGMENT_LINES[segment]]
            cv2.line(canvas, ends[0], ends[1], 255, thick, cv2.LINE_AA)
    elif font in _OPENCV:
        face = (
            cv2.FONT_HERSHEY_SIMPLEX,
            cv2.FONT_HERSHEY_DUPLEX,
            cv2.FONT_HERSHEY_TRIPLEX,
            cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
        )[_OPENCV.index(font)]
        cv2.putText(canvas, character, (size, 2 * size), face, size / 22, 255, 12, cv2.LINE_AA)
    else:
        image = Image.new("L", canvas.shape[::-1])
        ImageDraw.Draw(image).text((size // 2, size // 2), character, fill=255, font=_typeface(font, size))
        canvas = np.array(image)
    mask = _crop(canvas, 128)
    scale = size / max(mask.shape)
    shape = (max(round(mask.shape[1] * scale), 1), max(round(mask.shape[0] * scale), 1))
    return cv2.resize(mask, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _typeface(font: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Open a font of Pillow or Matplotlib."""
    if font == "pillow-default":
        return ImageFont.load_default(size)
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


def _crop(mask: np.ndarray, threshold: float) -> np.ndarray:
    """Return the part of a mask that is above the threshold."""
    rows, columns = np.flatnonzero((mask > threshold).any(1)), np.flatnonzero((mask > threshold).any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def draw(font: str, character: str, height: float, angle: float, shear: float, stretch: float) -> np.ndarray:
    """Return a character, scaled and turned.

    Args:
        font: one of FONTS.
        character: what to draw.
        height: of the upright character in pixels.
        angle: counter-clockwise, in degrees.
        shear: horizontal, as a fraction of the height.
        stretch: factor on the width.

    Returns:
        Mask (h, w) float32 in 0..1, cropped to the pixels that are at least one third covered.
    """
    glyph = master(font, character)
    scale = height / glyph.shape[0]
    # Halved step by step first, because the warp below reads four pixels only and would skip the others.
    while scale < 0.5:
        glyph = cv2.resize(glyph, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        scale = height / glyph.shape[0]
    h, w = glyph.shape
    side = int(np.ceil(2 * scale * np.hypot(h, w * stretch * (1 + abs(shear))))) + 8
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([[cos, sin], [-sin, cos]])
    form = np.array([[scale * stretch, -scale * shear], [0, scale]])
    matrix = turn @ form
    offset = side / 2 - matrix @ np.array([w / 2, h / 2])
    warped = cv2.warpAffine(glyph, np.column_stack([matrix, offset]), (side, side), flags=cv2.INTER_LINEAR)
    return _crop(warped, 85).astype(np.float32) / 255
