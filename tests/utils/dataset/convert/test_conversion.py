"""Formats are recognised, archives are unpacked and removed, and nothing is left after an error."""

import json
import logging
import zipfile

import pytest

from tests.utils.dataset.convert.annotations import (
    coco_annotation,
    coco_file,
    read_rows,
    run_convert,
    voc_folder,
    voc_object,
)
from tests.utils.dataset.convert.test_kitti_txt import kitti_folder
from tests.utils.dataset.convert.test_kitti_txt import row as kitti_row
from tests.utils.dataset.convert.test_open_images_csv import open_images_folder
from tests.utils.dataset.convert.test_open_images_csv import row as open_images_row
from tests.utils.dataset.convert.test_yolo_txt import cvat_folder, write_text
from tests.utils.image_sets import make_dataset, write_image, write_yaml
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("own_folders")


def voc(root):
    voc_folder(root, {"a": [voc_object("cat", (1, 1, 9, 9))]})


def coco(root):
    root.mkdir()
    coco_file(root, [coco_annotation([0, 0, 9, 9])])


def labelimg(root):
    write_image(root / "a.jpg")
    write_text(root / "a.txt", "0 .5 .5 .2 .4\n")
    write_text(root / "classes.txt", "cat\n")


def label_studio(root):
    write_image(root / "images/a.jpg")
    write_text(root / "labels/a.txt", "0 .5 .5 .2 .4\n")
    write_text(root / "classes.txt", "cat\n")
    write_text(root / "notes.json", json.dumps({"categories": [{"id": 0, "name": "cat"}], "info": {}}))


def kitti(root):
    kitti_folder(root / "training", {"000000": [kitti_row("Car", (0, 0, 9, 9))]})


def open_images(root):
    open_images_folder(root, {"train": [open_images_row("a", "/m/01", (0, 0, 0.5, 0.5))]})


MAKERS = {
    "Pascal VOC XML (1 XML files": voc,
    "COCO JSON (instances.json)": coco,
    "CVAT YOLO 1.1 or Darknet (obj.data": cvat_folder,
    "labelImg or Darknet folder (1 images": labelimg,
    "Label Studio YOLO (classes.txt and notes.json": label_studio,
    "KITTI (": kitti,
    "Open Images CSV (annotations/train-annotations-bbox.csv)": open_images,
}


@pytest.mark.parametrize("said", MAKERS)
@pytest.mark.parametrize("archive", [False, True])
def test_the_format_is_found_out(tmp_path, said, archive, log):
    source = tmp_path / "set"
    MAKERS[said](source)
    if archive:
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
            for path in source.rglob("*"):
                file.write(path, path.relative_to(tmp_path))
            file.writestr("__MACOSX/set/._a.jpg", b"x")
        source = tmp_path / "set.zip"
    log.set_level(logging.INFO, "yolo.convert")
    reports = run_convert("auto", source, tmp_path / "out")
    assert any(f"{source}: {said}" in message for message in log.messages)
    assert reports["train"].boxes.total() >= 1
    assert sum(bool(read_rows(p)) for p in (tmp_path / "out/labels/train").rglob("*.txt")) >= 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({"set", "out", source.name})


def test_two_formats_in_one_folder_are_named(tmp_path):
    voc(tmp_path / "set")
    coco_file(tmp_path / "set", [coco_annotation([0, 0, 9, 9])])
    with pytest.raises(
        UserError, match="more than one format is there, Pascal VOC.* and COCO.* say 'voc' or 'coco'"
    ):
        run_convert("auto", tmp_path / "set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        run_convert("auto", tmp_path / "none", tmp_path / "out")
    write_image(tmp_path / "pictures/a.jpg")
    with pytest.raises(UserError, match="none of the known formats .Pascal VOC XML, COCO JSON, "):
        run_convert("auto", tmp_path / "pictures", tmp_path / "out")
    ready = make_dataset(tmp_path / "ready", ["0 .5 .5 .2 .4\n"])
    write_yaml(ready)
    with pytest.raises(UserError, match="nothing to convert; d.yaml may be its dataset YAML"):
        run_convert("auto", ready, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_that_leaves_its_folder_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        file.writestr("../classes.txt", "cat\n")
    with pytest.raises(UserError, match="would leave the folder"):
        run_convert("auto", tmp_path / "set.zip", tmp_path / "deep" / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["set.zip"]


def test_what_a_killed_run_left_is_removed(tmp_path):
    labelimg(tmp_path / "set")
    left = tmp_path / ".out.converted.part/images/train/old.jpg"
    left.parent.mkdir(parents=True)
    left.write_text("of a killed run")
    run_convert("labelimg", tmp_path / "set", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out/images/train").iterdir()] == ["a.jpg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "set"]


def test_the_split_that_training_lacks_is_named(tmp_path, log):
    labelimg(tmp_path / "set")
    log.set_level(logging.INFO, "yolo.convert")
    run_convert("labelimg", tmp_path / "set", tmp_path / "out")
    assert any("out.yaml: has no val images, which training needs" in message for message in log.messages)
    run_convert("labelimg", tmp_path / "set", tmp_path / "out", "--split", "val")
    assert log.messages[-1] == f"{tmp_path / 'out' / 'out.yaml'}: ready for --data"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("labelimg", "set/classes.txt"), "set/classes.txt: is one file of a data set; give the folder"),
        (("auto", "set/a.txt"), "none of the known formats .* is there; give the folder that it is in"),
        (("labelimg", "set", "pictures"), "pictures: no such folder of images; check the path"),
    ],
)
def test_paths_that_no_format_can_use(tmp_path, monkeypatch, arguments, message):
    labelimg(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run_convert(*arguments, "out")
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
