"""What holds for every test: side by side (pytest -n), each process computes with one thread."""

import logging
import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch, here and in what tests start, reads it on import


@pytest.fixture
def log(caplog):
    """The project's log, whether or not an earlier test configured it for a script."""
    logger = logging.getLogger("yolo")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
