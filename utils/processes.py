"""Share work among processes, in order, with one sentence when one is killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2
from tqdm import tqdm

from utils.device import available_cpus
from utils.errors import UserError

MOST_WORKERS = 8
_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def in_processes(
    work: Callable[[Sequence[_Job]], _Result],
    jobs: Sequence[_Job],
    workers: int,
    *,
    chunk: int,
    doing: str,
    name: Callable[[_Job], str],
    remedy: str,
) -> Generator[_Result, None, None]:
    """Yield `work` of each `chunk` jobs, in order.

    Two chunks per process are under way at any time. Close the generator (`contextlib.closing`) where it may
    be left early: that ends the processes at once.

    Args:
        work: a function at the top level of a module, so that it can be pickled.
        jobs: the arguments of the work.
        workers: processes; below 2 this process does the work.
        chunk: jobs of one call.
        doing: what is being done, for the message: `verifying`.
        name: how a message calls a job.
        remedy: what the user can do when a process was ended.

    Raises:
        UserError: the system ended a process; the message names the jobs that were not finished.
        Exception: whatever `work` raised.
    """
    parts = (jobs[start : start + chunk] for start in range(0, len(jobs), chunk))
    if workers < 2:
        yield from map(work, parts)
        return
    others = set(multiprocessing.active_children())
    # Not multiprocessing.Pool: it starts another process in place of one that died and waits for ever for
    # the result that went with it.
    pool = ProcessPoolExecutor(workers, initializer=start_worker)
    waiting: deque[tuple[Sequence[_Job], Future[_Result]]] = deque()
    try:
        for part in parts:
            waiting.append((part, pool.submit(work, part)))
            if len(waiting) >= 2 * workers:
                yield waiting[0][1].result()
                waiting.popleft()
        while waiting:
            yield waiting[0][1].result()
            waiting.popleft()
    except BrokenProcessPool:
        # Processes take chunks in order, so those in hand are the first that are not done.
        unfinished = [part for part, done in waiting if not done.done() or done.exception() is not None]
        in_hand = " or ".join(_span(part, name) for part in unfinished[:workers])
        raise UserError(
            f"a process was ended by the system while {doing} {in_hand}, which happens when memory is full "
            f"or a file makes the decoder crash; {remedy}"
        ) from None
    except BaseException:  # Ctrl-C, too: nobody wants what is under way
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def collect_in_processes(
    work: Callable[[Sequence[_Job]], Sequence[_Result]],
    jobs: Sequence[_Job],
    workers: int | None,
    *,
    doing: str,
    title: str,
    name: Callable[[_Job], str],
    chunk: int = 32,
    remedy: str = "run with fewer --workers, and if it happens again remove the damaged image",
) -> list[_Result]:
    """Return one result for each job, in order, under a progress bar.

    Less than a chunk of jobs shows no bar.

    Args:
        work: returns a result for each job of its chunk; the other arguments are those of `in_processes`.
        workers: processes, at most MOST_WORKERS and the number of cores; None: as many as these allow.
        title: text of the bar.
    """
    asked = MOST_WORKERS if workers is None else min(workers, MOST_WORKERS)
    workers = min(asked, available_cpus(), -(-len(jobs) // chunk))
    parts = in_processes(work, jobs, workers, chunk=chunk, doing=doing, name=name, remedy=remedy)
    hidden = len(jobs) < chunk
    results: list[_Result] = []
    with (
        contextlib.closing(parts),
        tqdm(total=len(jobs), desc=title, unit="image", disable=hidden, dynamic_ncols=True) as bar,
    ):
        for part in parts:
            results += part
            bar.update(len(part))
    return results


def _span(chunk: Sequence[_Job], name: Callable[[_Job], str]) -> str:
    """Return how a message names a chunk: its first and its last job."""
    first, last = name(chunk[0]), name(chunk[-1])
    return first if len(chunk) == 1 else f"{first} to {last}"


def start_worker() -> None:
    """Make a process a worker: the parent handles Ctrl-C, and it uses one thread.

    OpenCV gets 0 and not 1: with 1 it waits for the threads of the pool that the fork did not bring along.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the parent's handler, which the fork brought along
    cv2.setNumThreads(0)
