"""Sizes in whole strides: what becomes of --imgsz, and what is said of it."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from utils.errors import UserError
from utils.image_size import fit_side, fit_size, read_size, whole_strides


def test_sizes_are_rounded_up_to_the_stride():
    assert fit_size([33, 64], 32) == (64, 64)
    assert fit_size(40, 8) == (40, 40)
    assert whole_strides(1, 32) == 32 and whole_strides(64, 32) == 64 and whole_strides(65, 32) == 96


def test_the_long_side_has_at_least_so_many_strides():
    assert fit_side(20, 32, least=2) == 64
    assert fit_side(20, 32) == 32
    assert fit_side(100, 32, least=2) == 128


def test_a_file_of_one_size_gets_that(caplog):
    with caplog.at_level(logging.WARNING):
        assert fit_size([64, 96], 32, only=(64, 96)) == (64, 96)
        assert fit_side(96, 32, only=(64, 96)) == 96
    assert not caplog.messages
    assert fit_size(640, 32, only=(64, 96)) == (64, 96)
    assert fit_side(640, 32, only=(64, 96)) == 96
    assert caplog.messages == [
        "--imgsz 640 640: using 64 96, the file takes 64x96 only",
        "--imgsz 640: using 96, the file takes 64x96 only",
    ]


def test_another_size_is_said(caplog):
    fit_size(50, 32)
    fit_side(50, 32)
    fit_side(64, 32)
    assert caplog.messages == [
        "--imgsz 50 50: using 64 64, sides are multiples of stride 32",
        "--imgsz 50: using 64, sides are multiples of stride 32",
    ]


def test_one_side_or_two_of_any_whole_number():
    assert read_size(64) == read_size([64]) == read_size((64, 64)) == read_size(np.int64(64)) == (64, 64)
    assert read_size([np.int32(32), 64]) == (32, 64)


@pytest.mark.parametrize("size", [0, -1, [], [1, 2, 3], [64, 0], 64.5, "64", [64, "64"], None])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(UserError, match="--imgsz .*: must be one side or height and width"):
        read_size(size)
