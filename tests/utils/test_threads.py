"""utils/threads.py: order, errors and the end of work that runs beside its caller."""

import threading
import time

import pytest

from utils import threads
from utils.threads import Background, read_ahead


def test_background_runs_in_order_and_hands_back_the_first_error():
    done = []

    def fail():
        raise OSError("full")

    background = Background(depth=2)
    for k in range(10):
        background.submit(lambda k=k: done.append(k))
    background.submit(fail)
    with pytest.raises(OSError, match="full"):
        for _ in range(100):  # more than the queue holds: a writer that died must not block its caller
            background.submit(lambda: done.append("after"))
        background.close()
    assert done[:10] == list(range(10)) and "after" not in done


def test_items_keep_their_order_and_passes_errors_on():
    def items():
        yield from range(20)
        raise OSError("disk gone")

    got = []
    with pytest.raises(OSError, match="disk gone"):
        for item in read_ahead(items(), 3):
            got.append(item)
    assert got == list(range(20))


def test_leaving_early_stops_the_thread_and_closes_the_items():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    stream = read_ahead(items(), 2)
    assert next(stream) == 1
    stream.close()
    assert closed.wait(5)
    assert not any(t.name == "decode" for t in threading.enumerate())


def test_leaving_does_not_wait_for_a_thread_that_is_held_up(monkeypatch):
    """By a pipe in which nothing comes, or by a download: Ctrl-C has to end the program all the same."""
    monkeypatch.setattr(threads, "_LAST_WAIT", 0.1)
    go_on = threading.Event()

    def items():
        yield 1
        go_on.wait(20)

    stream = read_ahead(items(), 2)
    assert next(stream) == 1
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 5
    go_on.set()
