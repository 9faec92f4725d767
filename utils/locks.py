"""Let one process at a time do something, by a lock that ends with it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError

LOGGER = logging.getLogger("yolo.locks")

_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


@contextlib.contextmanager
def exclusive(path: Path, what: str, pause: float = 0.2) -> Iterator[None]:
    """Hold a lock file while the block runs; others that want it wait.

    It holds between processes and between threads. Where the file system knows no locks, nothing is held.

    Args:
        path: the lock file, made when missing and removed afterwards.
        what: what is waited for, for the log.
        pause: seconds between two tries.

    Raises:
        UserError: the file cannot be made.
    """
    told = False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except OSError as error:
            raise UserError(
                f"{path.parent}: cannot be written ({error.strerror}); make it writable or choose another"
            ) from None
        # Whoever held the lock has removed the file that we opened before: then it locks nobody out.
        if _try(file) and _is_at(file, path):
            break
        file.close()
        if not told:
            LOGGER.info("%s: waiting for another run that is at it", what)
            told = True
        time.sleep(pause)
    try:
        yield
    finally:
        if sys.platform == "win32":
            file.close()  # Windows removes no file that is open, not even one that another run waits for
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def _try(file: BinaryIO) -> bool:
    """Take the lock if nobody has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _BUSY
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
