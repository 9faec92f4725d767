"""Work in a thread beside the caller: jobs in order, items ahead of their reader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

_LAST_WAIT = 2.0  # seconds for a thread to finish its present item

_Item = TypeVar("_Item")


class Background:
    """Run jobs in order in a thread.

    A job that fails drops those after it, and its error is raised by the next call.
    """

    def __init__(self, depth: int = 8) -> None:
        self._jobs: Queue[Callable[[], None] | None] = Queue(depth)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._work, name="write", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job; wait while `depth` are queued already."""
        self._raise()
        self._jobs.put(job)

    def close(self) -> None:
        """Finish the queued jobs, stop the thread and raise what a job raised."""
        self._jobs.put(None)
        self._thread.join()
        self._raise()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is None:  # after a failure the queue is emptied, so that nobody waits on it
                try:
                    job()
                except BaseException as error:  # noqa: BLE001 raised again by submit() or close()
                    self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def read_ahead(items: Iterable[_Item], depth: int) -> Iterator[_Item]:
    """Yield `items` in order while a thread works up to `depth` of them ahead.

    An exception of the items is raised here, in its place. Closing the generator early stops the thread. A
    thread that waits for a silent pipe or a slow download is not waited for, and ends with the process.
    """
    done: Queue[tuple[list[_Item], BaseException | None]] = Queue(
        depth
    )  # one item; none: the end or an error
    stop = Event()

    def put(item: list[_Item], error: BaseException | None = None) -> bool:
        while not stop.is_set():
            try:
                done.put((item, error), timeout=0.05)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put([item]):
                    return
            put([])
        except BaseException as error:  # noqa: BLE001 raised again in the reader's thread
            put([], error)

    thread = Thread(target=work, name="decode", daemon=True)
    thread.start()
    try:
        while True:
            item, error = done.get()
            if error is not None:
                raise error
            if not item:
                return
            yield item[0]
    finally:
        stop.set()
        thread.join(_LAST_WAIT)
