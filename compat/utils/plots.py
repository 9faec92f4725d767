"""Draw boxes and cut them out as YOLOv5's `utils.plots` does."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image
from torch import Tensor

from utils.results.drawing import Colour, colour, draw_box, shown_text, write_text

from .general import save_one_box as save_one_box  # its place since YOLOv5 6.1

Box = Sequence[float] | np.ndarray | Tensor


def colors(i: float, bgr: bool = False) -> Colour:
    """Return the colour of a class, RGB, or BGR for OpenCV."""
    blue, green, red = colour(int(i))
    return (blue, green, red) if bgr else (red, green, blue)


def _ints(color: Sequence[int]) -> Colour:
    """Return the three numbers of a colour; scripts also give lists and arrays."""
    first, second, third = color
    return int(first), int(second), int(third)


class Annotator:
    """Draw boxes and text on an image, in place.

    Args:
        im: (h, w, 3) uint8, or a PIL image, of which a copy is drawn on.
        line_width: pixels; None: by the size of the image.
        font_size: pixels of `text`; None: by the size of the image.
        font, pil, example: change nothing; the font is an installed one that has the letters.

    Attributes:
        im: the image.
        lw: the width of lines.
    """

    def __init__(
        self,
        im: np.ndarray | Image.Image,
        line_width: int | None = None,
        font_size: float | None = None,
        font: str = "Arial.ttf",
        pil: bool = False,
        example: str = "abc",
    ) -> None:
        self.im = np.array(im) if isinstance(im, Image.Image) else im
        self.lw = line_width or max(round(sum(self.im.shape) / 2 * 0.003), 2)
        self.font_size = font_size or max(round(sum(self.im.shape[:2]) / 2 * 0.035), 12)

    def box_label(
        self,
        box: Box,
        label: str = "",
        color: Sequence[int] = (128, 128, 128),
        txt_color: Sequence[int] = (255, 255, 255),
    ) -> None:
        """Draw a box (xyxy, pixels) and its label."""
        x1, y1, x2, y2 = (int(side) for side in box)
        draw_box(self.im, (x1, y1, x2, y2), shown_text(label), _ints(color), self.lw, _ints(txt_color))

    def rectangle(
        self, xy: Box, fill: Sequence[int] | None = None, outline: Sequence[int] | None = None, width: int = 1
    ) -> None:
        """Draw a rectangle (xyxy, pixels)."""
        x1, y1, x2, y2 = (int(side) for side in xy)
        if fill is not None:
            cv2.rectangle(self.im, (x1, y1), (x2, y2), _ints(fill), -1)
        if outline is not None or fill is None:
            cv2.rectangle(
                self.im, (x1, y1), (x2, y2), _ints((255, 255, 255) if outline is None else outline), width
            )

    def text(
        self, xy: Sequence[float], text: str, txt_color: Sequence[int] = (255, 255, 255), anchor: str = "top"
    ) -> None:
        """Write text with its top left corner at (x, y).

        With `anchor` 'bottom' that is its lower left corner.
        """
        corner = "ld" if anchor == "bottom" else "la"
        write_text(self.im, (float(xy[0]), float(xy[1])), text, _ints(txt_color), self.font_size, corner)

    def fromarray(self, im: np.ndarray) -> None:
        """Go on with another image."""
        self.im = im

    def result(self) -> np.ndarray:
        """Return the drawn image."""
        return self.im


def plot_one_box(
    x: Box,
    img: np.ndarray,
    color: Sequence[int] | None = None,
    label: str | None = None,
    line_thickness: int = 3,
) -> None:
    """Draw a box and its label in place, as until YOLOv5 5.0."""
    Annotator(img, line_thickness).box_label(x, label or "", colors(0, True) if color is None else color)
