"""COCO: ids, boxes and outlines, and what is left out."""

import cv2
import numpy as np
import pytest

from tests.utils.dataset.convert.annotations import coco_annotation, coco_file, read_rows, run_convert
from tests.utils.image_sets import write_image
from utils.dataset.config import load_dataset
from utils.dataset.images import load_images
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("own_folders")


def test_coco_ids_become_contiguous_and_boxes_centred(tmp_path):
    found = [coco_annotation([10, 5, 20, 30]), coco_annotation([0, 0, 100, 50], image=9, category=90)]
    run_convert("coco", coco_file(tmp_path, found), tmp_path / "pictures", tmp_path / "out")
    config = load_dataset(tmp_path / "out" / "out.yaml")
    assert config.names == {0: "car", 1: "brush"}
    images = load_images(config, "train", workers=1)
    np.testing.assert_allclose(images.labels(0), [[0, 0.2, 0.4, 0.2, 0.6]], atol=1e-6)
    np.testing.assert_allclose(images.labels(1), [[1, 0.5, 0.5, 1, 1]], atol=1e-6)
    assert images.path(1).endswith("images/train/sub/b.jpg")


def test_coco_crowds_and_boxes_without_area_go(tmp_path):
    found = [
        coco_annotation([0, 0, 50, 50], iscrowd=1),
        coco_annotation([10, 5, 0, 30]),
        coco_annotation([10, 5, 20]),
        coco_annotation([90, 40, 50, 50]),
        coco_annotation([0, 0, 5, 5], image=1234),
    ]
    arguments = ("coco", coco_file(tmp_path, found), tmp_path / "pictures", tmp_path / "out")
    with pytest.raises(UserError, match="4 of 5 boxes of train are lost .*--keep-crowds.*--allow-loss"):
        run_convert(*arguments)
    report = run_convert(*arguments, "--allow-loss")["train"]
    assert read_rows(tmp_path / "out/labels/train/a.txt") == [[0, 0.95, 0.9, 0.1, 0.2]]
    assert report.lost_boxes.total() == 4
    text = "\n".join(report.messages)
    for part in ("1 crowds", "no area", "has the bbox [10, 5, 20]", "1 unknown images, as 1234"):
        assert part in text


def test_coco_segments_are_polygons_with_their_parts_joined(tmp_path):
    square, far = [0, 0, 10, 0, 10, 10, 0, 10], [50, 0, 60, 0, 60, 10, 50, 10]
    found = [
        coco_annotation([0, 0, 10, 10], segmentation=[square]),
        coco_annotation([0, 0, 60, 10], segmentation=[square, far]),
        coco_annotation([20, 20, 10, 10], segmentation={"counts": "abc", "size": [50, 100]}),
    ]
    run_convert("coco", coco_file(tmp_path, found), tmp_path / "pictures", tmp_path / "out", "--segments")
    images = load_images(load_dataset(tmp_path / "out" / "out.yaml"), "train", workers=1)
    expected = [[0, 0.05, 0.1, 0.1, 0.2], [0, 0.3, 0.1, 0.6, 0.2], [0, 0.25, 0.5, 0.1, 0.2]]
    np.testing.assert_allclose(images.labels(0), expected, atol=1e-6)
    assert [len(s) for s in images.segments(0)] == [4, 10, 4]
    joined = (images.segments(0)[1] * (100, 50)).round(3).astype(np.float32)
    assert cv2.contourArea(joined) == pytest.approx(200)  # both squares, and a bridge without an area


def test_coco_file_names_stay_below_the_images(tmp_path):
    names = ("../a.jpg", "/etc/passwd", "C:\\a.jpg", "")
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    path = coco_file(tmp_path, [coco_annotation([0, 0, 9, 9], image=0)], images)
    with pytest.raises(
        UserError, match="4 of 4 images of train are lost .4 whose name leads out of the folder"
    ):
        run_convert("coco", path, tmp_path / "pictures", tmp_path / "out", "--allow-loss")
    assert not (tmp_path / "out").exists()
    images.append({"id": 9, "file_name": "sub\\b.jpg"})
    path = coco_file(tmp_path, [coco_annotation([0, 0, 9, 9], image=9)], images)
    report = run_convert("coco", path, tmp_path / "pictures", tmp_path / "out", "--allow-loss")["train"]
    assert (report.images, len(report.messages)) == (1, 4)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "is not JSON"), ("[]", "holds a list"), ('{"images": []}', "not a COCO detection file")],
)
def test_coco_files_that_are_none(tmp_path, text, sentence):
    path = coco_file(tmp_path, [])
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        run_convert("coco", path, tmp_path / "pictures", tmp_path / "out")


def test_coco_undefined_category(tmp_path):
    with pytest.raises(UserError, match="category_id 5, which its categories do not define"):
        run_convert(
            "coco",
            coco_file(tmp_path, [coco_annotation([0, 0, 9, 9], category=5)]),
            tmp_path / "pictures",
            tmp_path / "o",
        )


def test_a_folder_without_the_images_is_an_error_that_names_the_right_one(tmp_path):
    found = [coco_annotation([0, 0, 9, 9])]
    images = [{"id": 7, "file_name": "sub/b.jpg"}]
    path = coco_file(tmp_path, found, images)
    with pytest.raises(UserError) as error:
        run_convert("coco", path, tmp_path, tmp_path / "out")
    assert "1 of 1 images of train are lost (1 without an image of that name)" in str(error.value)
    assert f"so give {tmp_path / 'pictures'} as IMAGES" in str(error.value)
    assert not (tmp_path / "out").exists()
    images = [{"id": 7, "file_name": "pictures/sub/b.jpg"}]  # relative to the JSON
    with pytest.raises(UserError, match=f"so give {tmp_path} as IMAGES"):
        run_convert("coco", coco_file(tmp_path, found, images), tmp_path / "pictures", tmp_path / "out")
    assert run_convert("coco", path, tmp_path / "out")["train"].images == 1  # without IMAGES it is found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["instances.json", "out", "pictures"]


@pytest.mark.parametrize("missing", [{}, {"bbox": []}, {"bbox": [0, 0, 0, 0]}, {"bbox": None}])
@pytest.mark.parametrize("options", [(), ("--segments",)])
def test_boxes_that_are_missing_are_those_of_the_polygon(tmp_path, missing, options):
    item = {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [[10, 10, 50, 10, 50, 40, 10, 40]]}
    path = coco_file(tmp_path, [item | missing])
    run_convert("coco", path, tmp_path / "pictures", tmp_path / "out", *options)
    images = load_images(load_dataset(tmp_path / "out" / "out.yaml"), "train", workers=1)
    np.testing.assert_allclose(images.labels(0), [[0, 0.3, 0.5, 0.4, 0.6]], atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"category_id": "3"},
        {"image_id": "7"},
        {"iscrowd": "0"},
        {"bbox": ["10", "5", "20", "30"]},
        {"image_id": 7.0, "category_id": 3.0},
    ],
)
@pytest.mark.parametrize("text_ids", [False, True])
def test_ids_and_numbers_may_be_text(tmp_path, change, text_ids):
    kind = str if text_ids else int
    images = [{"id": kind(7), "file_name": "a.jpg", "width": "100", "height": "50"}]
    categories = [{"id": kind(90), "name": "brush"}, {"id": kind(3), "name": "car"}]
    path = coco_file(tmp_path, [coco_annotation([10, 5, 20, 30]) | change], images, categories)
    report = run_convert("coco", path, tmp_path / "pictures", tmp_path / "out")["train"]
    assert read_rows(tmp_path / "out/labels/train/a.txt") == [[0, 0.2, 0.4, 0.2, 0.6]]
    assert report.messages == []


def test_objects_that_are_all_crowds(tmp_path):
    path = coco_file(tmp_path, [coco_annotation([0, 0, 50, 25], iscrowd=1)])
    with pytest.raises(
        UserError, match=r"1 of 1 boxes of train are lost \(1 marked as crowds\); .*--keep-crowds"
    ):
        run_convert("coco", path, tmp_path / "pictures", tmp_path / "out")
    run_convert("coco", path, tmp_path / "pictures", tmp_path / "out", "--keep-crowds")
    assert read_rows(tmp_path / "out/labels/train/a.txt") == [[0, 0.25, 0.25, 0.5, 0.5]]


def test_the_placeholder_class_of_roboflow_is_left_out(tmp_path):
    categories = [
        {"id": 0, "name": "fish", "supercategory": "none"},
        {"id": 1, "name": "pike", "supercategory": "fish"},
        {"id": 2, "name": "carp", "supercategory": "fish"},
    ]
    path = coco_file(tmp_path, [coco_annotation([0, 0, 9, 9], category=2)], categories=categories)
    report = run_convert("coco", path, tmp_path / "pictures", tmp_path / "out")["train"]
    assert load_dataset(tmp_path / "out" / "out.yaml").names == {0: "pike", 1: "carp"}
    assert report.boxes == {1: 1}
    assert "the class 'fish' has no object" in report.messages[0]


def test_a_folder_of_splits_finds_the_images_of_each(tmp_path):
    root = tmp_path / "set"
    for split, width in (("train", 100), ("valid", 200)):  # as Roboflow does: the same name in each
        write_image(root / split / "a.jpg", (width, 50))
        source = coco_file(tmp_path, [coco_annotation([0, 0, 50, 50])], [{"id": 7, "file_name": "a.jpg"}])
        source.rename(root / split / "_annotations.coco.json")
    reports = run_convert("coco", root, tmp_path / "out")
    assert {split: report.images for split, report in reports.items()} == {"train": 1, "val": 1}
    assert read_rows(tmp_path / "out/labels/train/a.txt")[0][3] == 0.5
    assert read_rows(tmp_path / "out/labels/val/a.txt")[0][3] == 0.25


@pytest.mark.parametrize(
    "damage",
    [
        {"category_id": [[]]},
        {"bbox": [5, 5, 9, [[1e200]]]},
        {"bbox": [10**999, 1, 2, 3]},
        {"segmentation": [[1, 2, [10**999] * 4, 2, 30, 40]], "bbox": None},
        {"iscrowd": {"a": []}},
        {"image_id": [1]},
    ],
)
def test_values_of_a_wrong_kind_end_in_a_sentence(tmp_path, damage):
    path = coco_file(tmp_path, [coco_annotation([1, 2, 30, 40]) | damage])
    with pytest.raises(UserError) as error:
        run_convert("coco", path, tmp_path / "pictures", tmp_path / "out", "--segments")
    assert len(str(error.value)) < 600
    assert not (tmp_path / "out").exists()


def test_coco_images_of_one_name_are_told_apart_by_the_folder_of_their_split(tmp_path):
    for split, width in (("train2017", 20), ("val2017", 50)):
        path = coco_file(tmp_path, [coco_annotation([0, 0, width, 50])], [{"id": 7, "file_name": "1.jpg"}])
        (tmp_path / "set/annotations").mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / f"set/annotations/instances_{split}.json")
        write_image(tmp_path / f"set/{split}/1.jpg", (100, 50))
    run_convert("auto", tmp_path / "set", tmp_path / "out")
    for split, width in (("train", 0.2), ("val", 0.5)):
        assert read_rows(tmp_path / f"out/labels/{split}/1.txt") == [[0, width / 2, 0.5, width, 1]]


def test_coco_categories_of_one_id_are_refused(tmp_path):
    twice = [{"id": 3, "name": "car"}, {"id": "3", "name": "brush"}]
    path = coco_file(tmp_path, [coco_annotation([0, 0, 9, 9])], categories=twice)
    with pytest.raises(UserError, match="two of its categories have the same id"):
        run_convert("coco", path, tmp_path / "pictures", tmp_path / "out")
