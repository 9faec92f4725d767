"""Lock files: one process or thread at a time does a piece of work."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import UserError

LOGGER = logging.getLogger("yolo.locks")


@contextlib.contextmanager
def exclusive(path: Path, what: str, pause: float = 0.2) -> Iterator[None]:
    """Hold a lock file while the block runs; others wait for it.

    It excludes processes and threads. The system frees the lock of a process that dies.

    Args:
        path: the lock file, made when missing and removed afterwards.
        what: what is waited for, for the log.
        pause: seconds between two tries.

    Raises:
        UserError: the file cannot be made or locked.
    """
    lock = FileLock(path, poll_interval=pause)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            LOGGER.info("%s: waiting for another run that works on it", what)
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written ({error.strerror}); make it writable or choose another"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that another run has open
            path.unlink()  # before the release: a process that waits sees this and makes a new file
        lock.release()


def is_held(path: Path) -> bool:
    """Return whether a running process holds a lock file.

    A file that nobody holds is removed.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    with contextlib.suppress(OSError):
        path.unlink()
    lock.release()
    return False
