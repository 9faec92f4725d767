"""Whether pictures can be shown here; OpenCV aborts the process where there is no display."""

from __future__ import annotations

import os
import sys

import cv2


def has_display() -> bool:
    """Whether there is a screen that a program may open windows on."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def can_open_windows() -> bool:
    """Whether OpenCV can show a window: a display, and a build of OpenCV that knows windows."""
    return bool(getattr(cv2, "currentUIFramework", lambda: "unknown")()) and has_display()
