"""What the converters write, and that the source is never touched."""

import os

import pytest

from tests.utils.dataset.convert.annotations import (
    coco_annotation,
    coco_file,
    read_rows,
    run_convert,
    voc_folder,
    voc_object,
)
from tests.utils.image_sets import write_image
from utils.dataset.config import load_dataset
from utils.dataset.convert.yolo_labels import _place_image
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.mark.parametrize("size", [(0, 0), (640, 480)])
def test_the_size_of_the_image_counts(tmp_path, size):
    root = voc_folder(tmp_path / "voc", {"a": [voc_object("cat", (1, 1, 100, 50))]}, size=size)
    reports = run_convert("voc", root, tmp_path / "out")
    assert read_rows(tmp_path / "out/labels/train/a.txt") == [[0, 0.5, 0.5, 1, 1]]
    assert len(reports["train"].messages) == (size != (0, 0))


def test_the_source_is_read_only_and_copies_are_independent(tmp_path):
    root = voc_folder(tmp_path / "voc", {"a": [voc_object("cat", (1, 1, 9, 9))]})
    source = root / "JPEGImages" / "a.jpg"
    before = source.read_bytes()
    run_convert("voc", root, tmp_path / "link")
    run_convert("voc", root, tmp_path / "copy", "--copy")
    assert source.read_bytes() == before
    assert os.path.samefile(source, tmp_path / "link/images/train/a.jpg")
    assert not os.path.samefile(source, tmp_path / "copy/images/train/a.jpg")
    with pytest.raises(UserError, match="exists already"):
        run_convert("voc", root, tmp_path / "copy")


def test_an_image_is_never_put_over_another_file(tmp_path):
    write_image(tmp_path / "a.jpg")
    (tmp_path / "mine.jpg").write_text("mine")
    for copy in (False, True):
        with pytest.raises(FileExistsError):
            _place_image(tmp_path / "a.jpg", tmp_path / "mine.jpg", copy)
    assert (tmp_path / "mine.jpg").read_text() == "mine"


def test_coco_splits_gather_in_one_yaml_with_the_same_classes(tmp_path):
    path = coco_file(tmp_path, [coco_annotation([0, 0, 9, 9])])
    for split in ("train", "val"):
        run_convert("coco", path, tmp_path / "pictures", tmp_path / "out", "--split", split)
    assert set(load_dataset(tmp_path / "out" / "out.yaml").splits) == {"train", "val"}
    other = coco_file(tmp_path, [coco_annotation([0, 0, 9, 9])], categories=[{"id": 3, "name": "bus"}])
    with pytest.raises(UserError, match="has other classes"):
        run_convert("coco", other, tmp_path / "pictures", tmp_path / "out", "--split", "test")
    assert not list((tmp_path / "out").rglob("test"))
    path = coco_file(tmp_path, [coco_annotation([0, 0, 9, 9])])  # the right classes are still accepted
    assert (
        run_convert("coco", path, tmp_path / "pictures", tmp_path / "out", "--split", "test")["test"].images
        == 2
    )


def test_voc_splits_of_other_classes_are_refused_before_they_are_written(tmp_path):
    items = {"a": [voc_object("cat", (1, 1, 9, 9))], "b": [voc_object("dog", (1, 1, 9, 9))]}
    root = voc_folder(tmp_path / "voc", items, {"train": ["a"], "val": ["b"]})
    lists = [f"{s}=ImageSets/Main/{s}.txt" for s in ("train", "val")]
    run_convert("voc", root, tmp_path / "out", "--split", lists[0])
    with pytest.raises(UserError, match="has other classes"):
        run_convert("voc", root, tmp_path / "out", "--split", lists[1])
    assert not list((tmp_path / "out").rglob("val"))
