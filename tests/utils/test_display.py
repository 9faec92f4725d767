"""utils/display.py: a display that is named but not there is found out before OpenCV aborts the process."""

import sys

import pytest

from utils.display import can_open_windows


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no $DISPLAY")
def test_a_display_that_does_not_answer_is_none(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":987")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not can_open_windows()
