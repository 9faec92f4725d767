"""The YOLO labels of CVAT, Darknet, labelImg and Label Studio."""

import pytest

from tests.utils.dataset.convert.annotations import read_rows, run_convert
from tests.utils.image_sets import write_image
from utils.dataset.config import load_dataset
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("own_folders")


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def cvat_folder(root, images=True):
    """CVAT's YOLO 1.1: every path starts with data/, which is not there."""
    write_text(
        root / "obj.data",
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = b/\n",
    )
    write_text(root / "obj.names", "cat\ndog\n")
    write_text(root / "train.txt", "data/obj_train_data/day/1.jpg\ndata/obj_train_data/night/1.jpg\n")
    write_text(root / "valid.txt", "data/obj_valid_data/2.jpg\n")
    rows = {
        "obj_train_data/day/1": "0 .5 .5 .2 .4\n",
        "obj_train_data/night/1": "1 .5 .5 .4 .2\n",
        "obj_valid_data/2": "",
    }
    for stem, text in rows.items():
        write_text(root / f"{stem}.txt", text)
        if images:
            write_image(root / f"{stem}.jpg")
    return root


def test_cvat_paths_are_found_without_their_first_folder(tmp_path):
    reports = run_convert("darknet", cvat_folder(tmp_path / "cvat"), tmp_path / "out")
    config = load_dataset(tmp_path / "out/out.yaml")
    assert (config.names, set(config.splits)) == ({0: "cat", 1: "dog"}, {"train", "val"})
    out = tmp_path / "out/labels/train/obj_train_data"
    assert read_rows(out / "day/1.txt") == [[0, 0.5, 0.5, 0.2, 0.4]]
    assert read_rows(out / "night/1.txt") == [[1, 0.5, 0.5, 0.4, 0.2]]
    assert {s: (r.images, r.boxes.total()) for s, r in reports.items()} == {"train": (2, 2), "val": (1, 0)}


def test_cvat_exports_without_images_take_them_from_elsewhere(tmp_path):
    root = cvat_folder(tmp_path / "cvat", images=False)
    with pytest.raises(
        UserError, match="2 of 2 images of train are lost .*give the folder of images as IMAGES"
    ):
        run_convert("darknet", root, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cvat"]
    for name in ("day/1", "night/1", "2"):
        write_image(tmp_path / "pictures" / f"{name}.jpg")
    reports = run_convert("darknet", root, tmp_path / "pictures", tmp_path / "out")
    assert reports["train"].boxes == {0: 1, 1: 1}


def test_a_darknet_file_whose_lists_are_not_there(tmp_path):
    root = cvat_folder(tmp_path / "cvat")
    (root / "valid.txt").unlink()
    with pytest.raises(UserError, match="its valid is data/valid.txt, and no valid.txt is in"):
        run_convert("darknet", root, tmp_path / "out")


def test_labelimg_folders(tmp_path):
    root = tmp_path / "set"
    for stem in ("a", "b", "sub/c"):
        write_image(root / f"{stem}.jpg")
    write_text(root / "classes.txt", "cat\ndog\n\n")
    write_text(root / "a.txt", "0 .5 .5 .2 .4\n5 .5 .5 .1 .1\nx\n")
    write_text(root / "sub/c.txt", "1 .1 .1 .9 .1 .9 .5\n0 .5 .5 .2 .4\n")
    write_text(root / "gone.txt", "1 .5 .5 .2 .4\n")
    report = run_convert("labelimg", root, tmp_path / "out", "--split", "val")["val"]
    out = tmp_path / "out/labels/val"
    assert read_rows(out / "a.txt") == [[0, 0.5, 0.5, 0.2, 0.4]]
    assert read_rows(out / "b.txt") == []  # background
    assert read_rows(out / "sub/c.txt")[0] == [1, 0.1, 0.1, 0.9, 0.1, 0.9, 0.5]  # a polygon stays one
    assert report.lost_images == {"without an image of that name": 1}
    assert report.lost_boxes == {
        "of a class that the list of classes lacks": 1,
        "in rows that are no label, or are there twice": 1,
        "of images without an image of that name": 1,
    }


def test_labels_without_a_valid_row_are_no_background(tmp_path):
    for stem in "ab":
        write_image(tmp_path / "set" / f"{stem}.jpg")
    write_text(tmp_path / "set/classes.txt", "cat\n")
    write_text(tmp_path / "set/a.txt", "0 .5 .5 .2 .4\n")
    write_text(tmp_path / "set/b.txt", "0 50 50 20 40\n")
    report = run_convert("labelimg", tmp_path / "set", tmp_path / "out")["train"]
    assert (report.images, report.lost_images) == (1, {"without a valid row": 1})


def test_the_darknet_folders_of_roboflow_are_splits(tmp_path):
    for split in ("train", "valid"):
        write_image(tmp_path / "set" / split / "a.jpg")
        write_text(tmp_path / "set" / split / "a.txt", "1 .5 .5 .2 .4\n")
        write_text(tmp_path / "set" / split / "_darknet.labels", "cat\ndog\n")
    reports = run_convert("labelimg", tmp_path / "set", tmp_path / "out")
    assert {split: report.boxes.total() for split, report in reports.items()} == {"train": 1, "val": 1}
    write_text(tmp_path / "set/valid/_darknet.labels", "dog\ncat\n")
    with pytest.raises(UserError, match="other splits have other classes"):
        run_convert("labelimg", tmp_path / "set", tmp_path / "other")


@pytest.mark.parametrize("classes", ["classes.txt", "notes.json"])
def test_label_studio_names_its_labels_after_addresses(tmp_path, classes):
    root = tmp_path / "set"
    text = {
        "classes.txt": "cat\ndog\n",
        "notes.json": '{"categories": [{"id": 1, "name": "dog"}, {"id": 0, "name": "cat"}]}',
    }
    write_text(root / classes, text[classes])
    labels = ("0a1b2c3d-first", "4c9e3fa1__d%C3%A9cran", "?d=day%5Csecond", "plain")
    for name in labels:
        write_text(root / f"labels/{name}.txt", "1 .5 .5 .2 .4\n")
    (root / "images").mkdir()
    for name in ("first", "décran", "second", "plain", "never-annotated"):
        write_image(tmp_path / "pictures" / f"{name}.jpg")
    with pytest.raises(UserError, match="4 of 4 images of train are lost .*exports often lack them"):
        run_convert("labelstudio", root, tmp_path / "out")
    report = run_convert("labelstudio", root, tmp_path / "pictures", tmp_path / "out")["train"]
    assert (report.images, report.boxes) == (4, {1: 4})
    found = {p.samefile(tmp_path / "pictures/second.jpg") for p in (tmp_path / "out/images/train").iterdir()}
    assert True in found


def test_labelimg_without_a_list_takes_the_classes_that_are_given(tmp_path):
    write_image(tmp_path / "set/a.gif")
    write_text(tmp_path / "set/a.txt", "1 .5 .5 .2 .4\n")
    with pytest.raises(UserError, match="no list of classes in it .*classes.txt, or give --names"):
        run_convert("labelimg", tmp_path / "set", tmp_path / "out")
    report = run_convert("labelimg", tmp_path / "set", tmp_path / "out", "--names", "cat", "dog")["train"]
    assert (report.images, report.boxes) == (1, {1: 1})
    assert load_dataset(tmp_path / "out/out.yaml").names == {0: "cat", 1: "dog"}
