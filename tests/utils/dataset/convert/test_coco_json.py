"""COCO: ids, boxes and outlines, and what is left out."""

import cv2
import numpy as np
import pytest

from tests.utils.dataset.convert.annotations import coco_annotation, coco_file, read_rows, run_convert
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
    report = run_convert("coco", coco_file(tmp_path, found), tmp_path / "pictures", tmp_path / "out")["train"]
    assert read_rows(tmp_path / "out/labels/train/a.txt") == [[0, 0.95, 0.9, 0.1, 0.2]]
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
    report = run_convert("coco", coco_file(tmp_path, [], images), tmp_path / "pictures", tmp_path / "out")[
        "train"
    ]
    assert report.images == 0
    assert len(report.messages) == 4


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
