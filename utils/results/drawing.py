"""Draw boxes and labels on a BGR image, in colours that everybody can tell apart."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

LOGGER = logging.getLogger("yolo.drawing")

Colour: TypeAlias = tuple[int, int, int]

# Okabe & Ito (2008) without black, then Paul Tol's "muted" scheme: both made to stay apart under
# deuteranopia, protanopia and tritanopia. RGB; the class index picks one, modulo the length.
PALETTE = [
    *("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7"),
    *("332288", "DDCC77", "117733", "88CCEE", "882255", "44AA99", "999933", "AA4499", "CC6677"),
]

PICTURE_PIXELS = (320, 480)
"""Longer side of a picture on a page: at least, so that names are legible, and at most."""

_PICTURE_QUALITY = 88
_MIN_FONT_SCALE = 0.3  # below this cv2's strokes run together
# Parts of file names, lower case, of fonts with many scripts made for screens; others are tried after them.
_PREFERRED_FONTS = (
    "notosanscjk",
    "sourcehansans",
    "notosans",
    "wqy-",
    "arialuni",
    "pingfang",
    "msyh",
    "yugoth",
)


def colour(class_index: int) -> Colour:
    """Return the BGR colour of a class, the same for the same index."""
    code = PALETTE[int(class_index) % len(PALETTE)]
    red, green, blue = (int(code[i : i + 2], 16) for i in (0, 2, 4))
    return blue, green, red


def text_colour(background: Colour) -> Colour:
    """Return black or white BGR, whichever has more contrast with a BGR background (WCAG luminance)."""
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in background]
    luminance = 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]
    # Contrast with white is 1.05 / (L + 0.05), with black (L + 0.05) / 0.05; they meet at L = 0.179.
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def class_name(names: Mapping[int, str] | Sequence[str], index: int) -> str:
    """Return the name of a class, or `class<index>` when it has none."""
    if isinstance(names, Mapping):
        return str(names.get(index, f"class{index}"))
    return str(names[index]) if 0 <= index < len(names) else f"class{index}"


def draw_detections(
    image: np.ndarray,
    det: np.ndarray,
    names: Mapping[int, str] | Sequence[str],
    *,
    line_thickness: int = 3,
    hide_labels: bool = False,
    hide_conf: bool = False,
    paint: Callable[[int], Colour] = colour,
    ids: np.ndarray | None = None,
) -> np.ndarray:
    """Return a copy of a BGR uint8 image (H,W,3) with detections drawn on it.

    `det` is (n,6): x1, y1, x2, y2 in pixels of the image, confidence, class; an array or a CPU tensor. The
    most confident box is drawn last, over the others. `line_thickness` is in pixels and sets the text size
    too. A label is always inside the image: above the box, else inside its top edge, moved left or made
    smaller where it would not fit. A name whose letters no installed font has becomes `class<index>`.
    `paint` gives the colour of a class. `ids` are the objects' numbers (n,), written after the name; negative
    ones are not.
    """
    canvas = np.ascontiguousarray(image).copy()
    rows = np.asarray(det, dtype=np.float64).reshape(-1, 6)
    rows = np.column_stack((rows, np.full(len(rows), -1) if ids is None else ids))
    rows = rows[np.isfinite(rows).all(axis=1)]
    for x1, y1, x2, y2, confidence, class_index, identity in rows[np.argsort(rows[:, 4], kind="stable")]:
        number = "" if hide_conf else f" {confidence:.2f}"
        number = f" #{int(identity)}{number}" if identity >= 0 else number
        label = "" if hide_labels else class_label(names, int(class_index), number)
        box = (round(x1), round(y1), round(x2), round(y2))
        draw_box(canvas, box, label, paint(int(class_index)), line_thickness)
    return canvas


def draw_line(image: np.ndarray, line: Sequence[float], label: str, line_thickness: int = 3) -> None:
    """Draw a line x1, y1, x2, y2 and a label at its start, in place."""
    x1, y1, x2, y2 = (round(value) for value in line)
    cv2.line(image, (x1, y1), (x2, y2), (255, 255, 255), line_thickness + 2, cv2.LINE_AA)
    cv2.line(image, (x1, y1), (x2, y2), (0, 0, 0), line_thickness, cv2.LINE_AA)
    draw_box(image, (x1, y1, x1, y1), label, (0, 0, 0), line_thickness)


def drawn_jpeg(
    image: np.ndarray,
    det: np.ndarray,
    names: Mapping[int, str] | Sequence[str],
    hide_conf: bool = False,
    paint: Callable[[int], Colour] = colour,
) -> bytes:
    """Draw boxes (n, 6) on a BGR image, and return a small JPEG.

    `paint` gives the colour of a class.
    """
    side = max(image.shape[:2])
    scale = float(np.clip(side, *PICTURE_PIXELS)) / side
    if scale != 1:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=method)
    det = np.array(det, dtype=np.float64)
    det[:, :4] *= scale
    drawn = draw_detections(image, det, names, line_thickness=2, hide_conf=hide_conf, paint=paint)
    return cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, _PICTURE_QUALITY])[1].tobytes()


def class_label(names: Mapping[int, str] | Sequence[str], index: int, end: str = "") -> str:
    """Return a class's name with `end` after it, as it can be drawn.

    Without a font for its letters the name is `class<index>`, and this is said once.
    """
    return shown_text(class_name(names, index) + end, f"class{index}{end}")


def shown_text(text: str, instead: str = "") -> str:
    """Return a text, or `instead` where no installed font has its letters.

    The lack is said once. Without `instead`, every letter outside ASCII becomes a question mark.
    """
    if text.isascii() or font_for(text):
        return text
    _warn_of_letters()
    return instead or text.encode("ascii", "replace").decode()


@lru_cache(maxsize=1)
def _warn_of_letters() -> None:
    """Tell once how to get a font."""
    LOGGER.warning(
        "class names with letters that no installed font has are drawn as class<number>, other texts with ?; "
        "install a font that has them, such as Noto Sans CJK (apt install fonts-noto-cjk, or from "
        "fonts.google.com/noto)"
    )


def draw_box(
    image: np.ndarray,
    box: tuple[int, int, int, int],
    label: str,
    box_colour: Colour,
    line_thickness: int = 3,
    ink: Colour | None = None,
) -> tuple[int, int, int, int] | None:
    """Draw one xyxy pixel box and its label in place.

    `ink` is the BGR colour of the letters; None: black or white, as is easier to read.

    Returns:
        The label's rectangle (xyxy), or None without a label.
    """
    thickness = max(int(line_thickness), 1)
    x1, y1, x2, y2 = box
    cv2.rectangle(image, (x1, y1), (x2, y2), box_colour, thickness)
    if not label:
        return None
    patch = _label_patch(label, box_colour, ink or text_colour(box_colour), thickness, image.shape[1])
    patch = patch[: image.shape[0], : image.shape[1]]
    height, width = patch.shape[:2]
    left = min(max(x1 - thickness // 2, 0), image.shape[1] - width)
    top = y1 - height if y1 >= height else y1  # on the box, or inside it at the image's top edge
    top = min(max(top, 0), image.shape[0] - height)
    image[top : top + height, left : left + width] = patch
    return left, top, left + width, top + height


@lru_cache(maxsize=512)
def _label_patch(label: str, background: Colour, ink: Colour, thickness: int, max_width: int) -> np.ndarray:
    """Return the label as a small BGR image (h, w, 3).

    It is at most `max_width` wide if it stays legible.

    Cached because the frames of a video repeat the same few labels; callers only read it.
    """
    label = " ".join(label.split())  # a line break or a tab has no glyph
    draw = _cv2_patch if label.isascii() else _pil_patch
    scale = max(thickness / 3, _MIN_FONT_SCALE)
    patch = draw(label, background, ink, scale, max(thickness - 1, 1))
    if patch.shape[1] > max_width:
        smaller = max(scale * max_width / patch.shape[1] * 0.95, _MIN_FONT_SCALE)
        patch = draw(label, background, ink, smaller, 1)
    return patch


def _cv2_patch(label: str, background: Colour, ink: Colour, scale: float, stroke: int) -> np.ndarray:
    """Draw an ASCII label with cv2's stroke font, several times faster than PIL."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, height), baseline = cv2.getTextSize(label, font, scale, stroke)
    margin = stroke + 1
    patch = np.full((height + baseline + 2 * margin, width + 2 * margin, 3), background, np.uint8)
    origin = (margin, margin + height)
    cv2.putText(patch, label, origin, font, scale, ink, stroke, cv2.LINE_AA)
    return patch


def _pil_patch(label: str, background: Colour, ink: Colour, scale: float, stroke: int) -> np.ndarray:
    """Draw any other label with PIL: cv2's stroke font prints '?' for everything outside ASCII."""
    pixels = max(round(30 * scale), 9)  # cap height like cv2's 22 px at scale 1
    font = _font(font_for(label) or _font_files()[0], pixels)
    left, top, right, bottom = font.getbbox(label)
    margin = stroke + 2
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    patch = Image.new("RGB", size, background[::-1])
    origin = (margin - left, margin - top)
    ImageDraw.Draw(patch).text(origin, label, font=font, fill=ink[::-1])
    return np.asarray(patch)[:, :, ::-1]


def write_text(
    image: np.ndarray, place: tuple[float, float], text: str, ink: Colour, pixels: float, anchor: str = "la"
) -> None:
    """Write text on an image (h, w, 3), in place.

    `anchor` is Pillow's: which corner of the text lies at `place` (x, y); `pixels` is the size.
    """
    text = shown_text(text)
    picture = Image.fromarray(image)
    font = _font(font_for(text) or _font_files()[0], pixels)
    ImageDraw.Draw(picture).text(place, text, fill=ink, font=font, anchor=anchor)
    image[:] = np.asarray(picture)


@lru_cache(maxsize=16)
def _font(path: str, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@lru_cache(maxsize=2048)
def font_for(text: str) -> str | None:
    """Return a font file that has a glyph for every character, or None."""
    needed = {ord(character) for character in text if _is_inked(character)}
    return next((path for path in _font_files() if needed <= _characters(path)), None)


def _is_inked(character: str) -> bool:
    """Return whether a character is drawn, as spaces, joiners and variation selectors are not."""
    unseen = unicodedata.category(character) in ("Cc", "Cf") or "\ufe00" <= character <= "\ufe0f"
    return not (character.isspace() or unseen)


@cache
def _font_files() -> list[str]:
    """Return matplotlib's own DejaVu Sans, then the installed fonts, the best for labels first."""
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    def rank(path: str) -> tuple[int, bool, str]:
        name = Path(path).name.lower()
        kind = next((i for i, part in enumerate(_PREFERRED_FONTS) if part in name), len(_PREFERRED_FONTS))
        return kind, "regular" not in name, path

    return [f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", *sorted(findSystemFonts(), key=rank)]


@cache
def _characters(path: str) -> frozenset[int]:
    """Return the code points that a font file draws; none when it is unusable."""
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(path, 20)  # refuses fonts of coloured pictures, which have one size only
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()
