"""The line through the measurements, and its fallbacks; a CPU gets 16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from utils.training.autobatch import choose_batch_size, fit_batch_size

SIZES = [1, 2, 4, 8, 16]


def test_the_batch_meets_the_budget_on_the_line() -> None:
    used = [1e9 + 0.5e9 * size for size in SIZES]
    assert fit_batch_size(SIZES, used, 1e9 + 0.5e9 * 40.5) == 40


def test_a_size_that_failed_is_not_exceeded() -> None:
    assert fit_batch_size([1, 2, 4], [1e9, 1.2e9, 1.6e9], 1e12) == 4
    assert fit_batch_size([1], [1e9], 2e9) == 1


def test_nonsense_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    assert fit_batch_size(SIZES, [1e9] * 5, 2e9) == 16
    assert fit_batch_size(SIZES, [float(size) for size in SIZES], 1e9) == 16
    assert "using 16" in caplog.text


def test_without_cuda_it_is_sixteen() -> None:
    assert choose_batch_size(nn.Conv2d(3, 3, 1), 64, torch.device("cpu"), None) == 16
