"""The published archives, with stand-ins for the network."""

import tarfile
import zipfile

import cv2
import numpy as np
import pytest

from tests.utils.dataset.convert.annotations import voc_folder, voc_object
from utils.dataset.bundled import published
from utils.dataset.config import load_dataset
from utils.dataset.images import load_images
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("own_folders")


def test_voc_archives_become_the_data_set_that_its_yaml_names(tmp_path, monkeypatch):
    for year, splits in ((2007, ("train", "val", "test")), (2012, ("train", "val"))):
        items = {
            f"{year}_{s}": [voc_object("cat", (1, 1, 9, 9)), voc_object("dog", (1, 1, 9, 9), 1)]
            for s in splits
        }
        voc_folder(tmp_path / "VOCdevkit" / f"VOC{year}", items, {s: [f"{year}_{s}"] for s in splits})
    asked = []

    def fetch(url, dest, size, digest):
        asked.append(url)
        with tarfile.open(dest, "w") as archive:
            archive.add(tmp_path / "VOCdevkit", "VOCdevkit")
        return dest

    monkeypatch.setattr(published, "fetch", fetch)
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "fetched"))
    monkeypatch.chdir(tmp_path)
    config = load_dataset("VOC.yaml")
    assert len(asked) == 3
    images = load_images(config, "train", workers=1)
    assert len(images) == 4
    assert {config.names[int(c)] for c in images.all_labels[:, 0]} == {"cat"}  # the dogs were difficult
    assert len(load_images(config, "val", workers=1)) == 1
    assert [p.name for p in (tmp_path / "fetched").iterdir()] == ["VOC"]


def test_coco_archives_are_taken_up_where_an_earlier_run_stopped(tmp_path, monkeypatch):
    png = cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    contents = {
        "coco2017labels.zip": {f"coco/{s}2017.txt": f"./images/{s}2017/1.png\n" for s in ("train", "val")}
        | {f"coco/labels/{s}2017/1.txt": "79 .5 .5 .5 .5\n" for s in ("train", "val")},
        "train2017.zip": {"train2017/1.png": png},
        "val2017.zip": {"val2017/1.png": png},
    }
    asked, failing = [], ["train2017.zip"]

    def fetch(url, dest, size, digest):
        asked.append(dest.name)
        if dest.name in failing:
            raise UserError(f"{url}: cannot be fetched")
        with zipfile.ZipFile(dest, "w") as archive:
            for name, data in contents[dest.name].items():
                archive.writestr(name, data)
        return dest

    monkeypatch.setattr(published, "fetch", fetch)
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "fetched"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="cannot be fetched; or put the images in .*/fetched/coco/images/train2017"
    ):
        load_dataset("coco.yaml")
    failing.clear()
    config = load_dataset("coco.yaml")
    assert asked == ["coco2017labels.zip", "val2017.zip", "train2017.zip", "train2017.zip"]
    assert load_images(config, "val", workers=1).all_labels[:, 0].tolist() == [79]
