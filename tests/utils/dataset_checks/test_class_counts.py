"""Boxes are counted by class, and classes with few or none are found."""

from __future__ import annotations

from tests.utils.dataset_checks.sets import checked, noise, write_data, write_split
from utils.dataset_checks.class_counts import RARE, check_class_counts


def test_empty_and_rare_classes(tmp_path):
    many = "".join(f"0 0.5 0.5 0.2 0.{i + 10}\n" for i in range(RARE))
    write_split(tmp_path, "train", {"a.png": noise(0), "b.png": noise(1)}, {"a": many + "1 .5 .5 .1 .1\n"})
    write_split(tmp_path, "val", {"c.png": noise(2)}, {"c": "0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.3 0.2\n"})
    section = check_class_counts(checked(write_data(tmp_path, ("cat", "dog", "cow"))))
    assert section.facts["0 cat"] == f"train {RARE} boxes in 1 of 2 images; val 2 boxes in 1 of 1 images"
    assert section.facts["1 dog"] == "train 1 box in 1 of 2 images; val 0 boxes in 0 of 1 images"
    kinds = section.kinds()
    assert [(f.split, f.value) for f in kinds["rare-class"]] == [("train", "class 'dog' has 1 box")]
    assert {(f.split, f.value) for f in kinds["empty-class"]} == {
        ("train", "class 'cow' has no box"),
        ("val", "class 'dog' has no box"),
        ("val", "class 'cow' has no box"),
    }


def test_classes_without_a_name_are_not_counted(tmp_path):
    write_split(tmp_path, "train", {"a.png": noise(0)}, {"a": "0 0.5 0.5 0.2 0.2\n9 0.5 0.5 0.2 0.2\n"})
    section = check_class_counts(checked(write_data(tmp_path, ("cat",))))
    assert section.facts == {"0 cat": "train 1 box in 1 of 1 images"}
