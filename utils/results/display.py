"""Windows that show results, where there is a display for them."""

from __future__ import annotations

import os
import sys

import cv2
import numpy as np

from utils.errors import UserError, first_line


def has_display() -> bool:
    """Return whether there is a screen that a program may open windows on."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def can_open_windows() -> bool:
    """Return whether there is a display, and an OpenCV that was built with windows."""
    return has_display() and bool(getattr(cv2, "currentUIFramework", lambda: "unknown")())


def show_image(title: str, image: np.ndarray) -> None:
    """Show a BGR image (H,W,3) in the window of that title.

    Raises:
        UserError: OpenCV cannot open the window.
    """
    try:
        cv2.imshow(title, image)
        cv2.waitKey(1)
    except cv2.error as error:
        raise UserError(
            f"--view-img: OpenCV cannot show a window ({first_line(error)}); leave the option out"
        ) from None
