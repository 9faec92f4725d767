"""Whether pictures can be shown here; OpenCV aborts the process where there is no display."""

from __future__ import annotations

import os
import subprocess
import sys

import cv2

_PATIENCE = 60.0  # seconds for another process to import OpenCV and to open a window


def has_display() -> bool:
    """Whether there is a screen that a program may open windows on."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def can_open_windows() -> bool:
    """Whether OpenCV can show a window: a build of it that knows windows, and a display that answers."""
    return bool(getattr(cv2, "currentUIFramework", lambda: "unknown")()) and has_display() and _opens_one()


def _opens_one() -> bool:
    """Open a window in another process, which is aborted where $DISPLAY names a display that is not there."""
    trial = [sys.executable, "-c", "import cv2; cv2.namedWindow('trial'); cv2.destroyAllWindows()"]
    try:
        done = subprocess.run(trial, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
