"""utils/results/display.py: whether a window can be opened, and one sentence where it cannot after all."""

import sys

import cv2
import numpy as np
import pytest

from utils.errors import UserError
from utils.results.display import can_open_windows, show_image


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no $DISPLAY")
@pytest.mark.parametrize("name", ["DISPLAY", "WAYLAND_DISPLAY"])
def test_a_window_needs_a_display_and_a_build_with_windows(monkeypatch, name):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "QT")
    assert not can_open_windows()
    monkeypatch.setenv(name, ":0")
    assert can_open_windows()
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "")
    assert not can_open_windows()


def test_a_window_that_cannot_be_opened_is_a_sentence(monkeypatch):
    def fail(title, image):
        raise cv2.error("The function is not implemented.\nRebuild the library with GTK+ support.")

    monkeypatch.setattr(cv2, "imshow", fail)
    with pytest.raises(UserError, match="--view-img: OpenCV cannot show a window") as error:
        show_image("a.png", np.zeros((4, 4, 3), np.uint8))
    assert "\n" not in str(error.value)
