"""Reading a data set for the checks: every split, no cache, nothing written."""

from __future__ import annotations

import os

import pytest

from tests.utils.dataset_checks.sets import checked, noise, write_data, write_split
from utils.dataset_checks.findings import Finding, Section
from utils.errors import UserError


def test_every_split_is_read_and_nothing_is_written(tmp_path):
    write_split(tmp_path, "train", {"a.png": noise(0)}, {"a": "0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.4 0.4\n"})
    write_split(tmp_path, "val", {"b.png": noise(1), "c.png": noise(2)}, {"c": "1 0.5 0.5 0.2 0.2\n"})
    path = write_data(tmp_path)
    before = sorted((p, os.stat(p).st_mtime_ns) for p in tmp_path.rglob("*"))
    data = checked(path)
    assert sorted((p, os.stat(p).st_mtime_ns) for p in tmp_path.rglob("*")) == before
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 1, "val": 2}
    owners = {split: owner.tolist() for split, _, owner in data.labels()}
    assert owners == {"train": [0, 0], "val": [1]}


def test_a_split_that_is_missing_costs_only_itself(tmp_path):
    write_split(tmp_path, "train", {"a.png": noise(0)}, {})
    path = write_data(tmp_path)
    path.write_text(path.read_text() + "test: images/nowhere\n")
    data = checked(path)
    assert list(data.splits) == ["train"] and "nowhere: no such folder" in data.missing["test"]


def test_no_usable_image_at_all_is_the_user_s_error(tmp_path):
    write_split(tmp_path, "train", {"a.png": noise(0, (9, 9))}, {})
    with pytest.raises(UserError, match="no usable image in any split .*9 x 9 pixels"):
        checked(write_data(tmp_path))


def test_the_worst_of_a_kind_comes_first():
    scores = [("a", 0.2), ("b", 0.5), ("a", 0.9), ("a", 0.2)]
    found = [Finding(kind, f"{i}", "", "", score=score) for i, (kind, score) in enumerate(scores)]
    kinds = Section("", {}, found).kinds()
    assert {kind: [f.file for f in listed] for kind, listed in kinds.items()} == {
        "a": ["2", "0", "3"],
        "b": ["1"],
    }
