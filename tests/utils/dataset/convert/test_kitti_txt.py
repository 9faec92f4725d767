"""KITTI: boxes to the digit, and regions that are no objects."""

import pytest

from tests.utils.dataset.convert.annotations import read_rows, run_convert
from tests.utils.image_sets import write_image
from utils.dataset.config import load_dataset
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("own_folders")


def row(kind, box, columns=15):
    """A row of the label file; 16 columns are those of a result with its score."""
    rest = ["1.5", "1.6", "3.9", "1.0", "1.7", "20.0", "0.1", "0.9"]
    return " ".join([kind, "0.00", "0", "-1.57", *map(str, box), *rest[: columns - 8]]) + "\n"


def kitti_folder(root, labels):
    (root / "label_2").mkdir(parents=True)
    for stem, rows in labels.items():
        write_image(root / "image_2" / f"{stem}.png", (100, 50))
        (root / "label_2" / f"{stem}.txt").write_text("".join(rows))
    return root


def test_boxes_are_edges_from_zero_and_dont_care_is_no_object(tmp_path):
    labels = {
        "000000": [row("Pedestrian", (10.0, 5.0, 30.0, 35.0)), row("DontCare", (1, 1, 9, 9))],
        "000001": [
            row("Car", (0, 0, 100.5, 50), 16),
            row("DontCare", (1, 1, 9, 9)),
            row("DontCare", (1, 1, 5, 5)),
        ],
        "000002": [],
    }
    root = kitti_folder(tmp_path / "kitti" / "training", labels)
    report = run_convert("kitti", tmp_path / "kitti", tmp_path / "out")["train"]
    assert load_dataset(tmp_path / "out/out.yaml").names == {0: "Car", 1: "Pedestrian"}
    assert read_rows(tmp_path / "out/labels/train/000000.txt") == [[1, 0.2, 0.4, 0.2, 0.6]]
    assert read_rows(tmp_path / "out/labels/train/000001.txt") == [[0, 0.5, 0.5, 1, 1]]
    assert read_rows(tmp_path / "out/labels/train/000002.txt") == []
    assert (report.ignored, report.lost_boxes.total()) == ({"DontCare": 3}, 0)
    with pytest.raises(UserError, match="--names Car: .* also has Pedestrian; add them"):
        run_convert("kitti", root, tmp_path / "other", "--names", "Car")


def test_rows_that_are_no_rows_and_images_elsewhere(tmp_path):
    root = kitti_folder(tmp_path / "kitti", {"0": [row("Car", (0, 0, 10, 10)), "Car 0 0\n"]})
    report = run_convert("kitti", root, tmp_path / "out", "--split", "val")["val"]
    assert (report.boxes.total(), report.lost_boxes) == (1, {"that are not a box of four numbers": 1})
    (root / "image_2").rename(tmp_path / "pictures")
    with pytest.raises(UserError, match="1 of 1 images of train are lost .*IMAGES"):
        run_convert("kitti", root, tmp_path / "none")
    assert run_convert("kitti", root, tmp_path / "pictures", tmp_path / "more")["train"].images == 1
    with pytest.raises(UserError, match="no folder label_2"):
        run_convert("kitti", tmp_path / "pictures", tmp_path / "none")
