"""Processes that share work: order stays, a death is a sentence, leaving early ends them, few jobs wait."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from utils.errors import UserError
from utils.processes import collect_in_processes, in_processes

OPTIONS = {"chunk": 2, "doing": "squaring", "name": str, "remedy": "square less"}


def _square(chunk):
    time.sleep(0.05 * (chunk[0] == 0))  # the first chunk is ready last
    return [number * number for number in chunk]


def _die_at_five(chunk):
    if 5 in chunk:
        os.kill(os.getpid(), signal.SIGKILL)
    return _square(chunk)


def _sleep_long(chunk):
    time.sleep(chunk[0])
    return chunk


def _fail_at_five(chunk):
    if 5 in chunk:
        raise OSError(28, "No space left on device")
    return chunk


def _resize(chunk):
    return [int(cv2.resize(np.full((900, 900, 3), n, np.uint8), (700, 700)).max()) for n in chunk]


class Noted(Sequence):
    """Numbers that remember how far they were taken."""

    def __init__(self, count):
        self.numbers, self.taken = range(count), 0

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, place):
        self.taken = max(self.taken, place.stop)
        return self.numbers[place]


@pytest.fixture(autouse=True)
def limit():
    """A test that waits for ever fails instead."""

    def late(*_):
        raise TimeoutError("still waiting after 60 s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert multiprocessing.active_children() == []


def test_results_come_in_order():
    found = list(itertools.chain(*in_processes(_square, range(20), 2, **OPTIONS)))
    assert found == [n * n for n in range(20)]


def test_a_killed_process_is_a_sentence_that_names_what_it_had_in_hand():
    with pytest.raises(UserError, match=r"ended by the system while squaring .*4 to 5.*; square less$"):
        list(in_processes(_die_at_five, range(20), 2, **OPTIONS))


def test_an_error_of_the_work_arrives_as_it_is():
    with pytest.raises(OSError, match="No space left") as caught:
        list(in_processes(_fail_at_five, range(20), 2, **OPTIONS))
    assert caught.value.errno == 28


def test_jobs_are_taken_only_as_results_are():
    jobs = Noted(100_000)
    with contextlib.closing(in_processes(_square, jobs, 2, **OPTIONS)) as found:
        assert [next(found) for _ in range(3)] == [[0, 1], [4, 9], [16, 25]]
    assert jobs.taken <= 2 * (3 + 2 * 2)


@pytest.mark.parametrize("handled", [False, True])
def test_leaving_early_ends_what_is_under_way(handled):
    """Also where this process, as detect.py does, answers a polite kill itself: a fork inherits that."""
    start = time.monotonic()
    before = signal.signal(signal.SIGTERM, (lambda *_: None) if handled else signal.SIG_DFL)
    try:
        with contextlib.closing(in_processes(_sleep_long, [0, 0, 50, 50, 50, 50], 2, **OPTIONS)) as found:
            assert next(found) == [0, 0]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - start < 20


def test_opencv_works_in_processes_forked_after_it_used_its_threads():
    cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (1500, 1500))
    found = itertools.chain(*in_processes(_resize, range(8), 2, **OPTIONS))
    assert list(found) == list(range(8))


def test_one_worker_is_this_process():
    found = list(in_processes(lambda part: (os.getpid(), list(part)), range(5), 1, **OPTIONS))
    assert found == [(os.getpid(), [0, 1]), (os.getpid(), [2, 3]), (os.getpid(), [4])]


@pytest.mark.parametrize(("workers", "jobs"), [(2, 9), (1, 9), (2, 1), (0, 0)])
def test_results_are_collected_in_order_under_a_bar_unless_they_are_few(workers, jobs, capsys):
    found = collect_in_processes(_square, range(jobs), workers, title="squares", **OPTIONS)
    assert found == [number * number for number in range(jobs)]
    assert ("squares" in capsys.readouterr().err) == (jobs >= OPTIONS["chunk"])
