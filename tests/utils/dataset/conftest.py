"""Fixtures of the tests of data sets."""

import logging

import pytest


@pytest.fixture
def own_folders(tmp_path, monkeypatch):
    """Caches and data sets of a test stay in its own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "fetched"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def logged():
    """Messages of the logger `yolo.datasets`, whoever else listens to it."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("yolo.datasets")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
