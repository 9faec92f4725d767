"""utils/results/progress.py: the rate of late, and the time that is left at it."""

import time

import pytest

from utils.results.progress import Pace


def test_rate_and_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace(window=5.0)
    assert pace.rate == 0 and pace.text(10) == "0.0/s"
    for _ in range(20):
        now[0] += 0.5
        pace.count(1)
    assert pace.rate == pytest.approx(2)
    assert pace.text(None) == "2.0/s" and pace.text(150) == "2.0/s, 1:15 left"
    assert pace.text(9000) == "2.0/s, 1:15:00 left"
    for _ in range(80):  # it got faster: the old pace is forgotten
        now[0] += 0.1
        pace.count(1)
    assert pace.rate == pytest.approx(10)
