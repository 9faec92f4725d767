"""Draw boxes and cut them out as YOLOv5's `utils.plots` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from torch import Tensor

from utils.boxes import xywh2xyxy, xyxy2xywh
from utils.results.drawing import Colour, colour, draw_box, shown_text, write_text
from utils.results.result_files import crop_box, write_image

from .general import increment_path

Box = Sequence[float] | np.ndarray | Tensor


def colors(i: float, bgr: bool = False) -> Colour:
    """Return the colour of a class, RGB, or BGR for OpenCV."""
    blue, green, red = colour(int(i))
    return (blue, green, red) if bgr else (red, green, blue)


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
        color: Colour = (128, 128, 128),
        txt_color: Colour = (255, 255, 255),
    ) -> None:
        """Draw a box (xyxy, pixels) and its label."""
        x1, y1, x2, y2 = (int(side) for side in box)
        draw_box(self.im, (x1, y1, x2, y2), shown_text(label), color, self.lw, txt_color)

    def rectangle(
        self, xy: Box, fill: Colour | None = None, outline: Colour | None = None, width: int = 1
    ) -> None:
        """Draw a rectangle (xyxy, pixels)."""
        x1, y1, x2, y2 = (int(side) for side in xy)
        if fill is not None:
            cv2.rectangle(self.im, (x1, y1), (x2, y2), fill, -1)
        if outline is not None or fill is None:
            cv2.rectangle(self.im, (x1, y1), (x2, y2), outline or (255, 255, 255), width)

    def text(
        self, xy: Sequence[float], text: str, txt_color: Colour = (255, 255, 255), anchor: str = "top"
    ) -> None:
        """Write text with its top left corner at (x, y).

        With `anchor` 'bottom' that is its lower left corner.
        """
        corner = "ld" if anchor == "bottom" else "la"
        write_text(self.im, (float(xy[0]), float(xy[1])), text, txt_color, self.font_size, corner)

    def fromarray(self, im: np.ndarray) -> None:
        """Go on with another image."""
        self.im = im

    def result(self) -> np.ndarray:
        """Return the drawn image."""
        return self.im


def plot_one_box(
    x: Box, img: np.ndarray, color: Colour | None = None, label: str | None = None, line_thickness: int = 3
) -> None:
    """Draw a box and its label in place, as until YOLOv5 5.0."""
    Annotator(img, line_thickness).box_label(x, label or "", color or colors(0, True))


def save_one_box(
    xyxy: Box,
    im: np.ndarray,
    file: str | Path = "im.jpg",
    gain: float = 1.02,
    pad: float = 10,
    square: bool = False,
    BGR: bool = False,  # noqa: N803 YOLOv5's name
    save: bool = True,
) -> np.ndarray:
    """Cut a box out of an image, and save it under a free name.

    The file is a JPEG.

    Args:
        xyxy: the box in pixels.
        im: (h, w, 3), RGB unless `BGR`.
        gain, pad: the sides are gain * side + pad pixels.
        square: make it a square.

    Returns:
        The part, BGR.
    """
    box = np.array([[float(side) for side in xyxy]])
    if square:
        box = xyxy2xywh(box)
        box[:, 2:] = box[:, 2:].max()
        box = xywh2xyxy(box)
    part = crop_box(im, box[0], gain, pad)
    part = np.ascontiguousarray(part if BGR else part[..., ::-1])
    if save:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        write_image(increment_path(Path(file).with_suffix(".jpg")), part)
    return part
