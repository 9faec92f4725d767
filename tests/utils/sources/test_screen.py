"""utils/sources/screen.py: which part of which screen; a machine without one says so."""

import pytest

from utils.errors import UserError
from utils.sources.screen import Screen, parse_screen


def test_numbers():
    assert parse_screen("screen") == (0, None)
    assert parse_screen("screen 2") == (2, None)
    assert parse_screen("screen 10 20 300 200") == (0, (10, 20, 300, 200))
    assert parse_screen("screen 1 -10 20 300 200") == (1, (-10, 20, 300, 200))


@pytest.mark.parametrize(
    "text", ["screen x", "screen 1 2", "screen 1 2 3 4 5 6", "screen 0 0 0 5", "screen -1"]
)
def test_other_numbers_are_refused(text):
    with pytest.raises(UserError, match=text):
        parse_screen(text)


def test_no_display_is_a_sentence(monkeypatch):
    pytest.importorskip("mss", reason="capturing the screen is optional")
    monkeypatch.setenv("DISPLAY", ":987")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UserError, match="no screen to capture"):
        next(Screen("screen").batches())
