import logging

import pytest


@pytest.fixture(autouse=True)
def _log_as_before():
    """Importing utils.general sends the log to the terminal; other tests read it elsewhere."""
    logger = logging.getLogger("yolo")
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
