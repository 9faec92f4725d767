"""Fetch, unpack and convert the published archives of VOC.yaml and coco.yaml."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from utils.dataset.convert.annotated import ConvertOptions
from utils.dataset.convert.voc_xml import read_voc
from utils.dataset.convert.yolo_labels import write_dataset
from utils.downloads import fetch, file_name, unpack
from utils.errors import UserError
from utils.files import ROOT, load_yaml
from utils.package import command

LOGGER = logging.getLogger("yolo.datasets")


class _Archive(NamedTuple):
    """Name a published file; size in bytes and MD5 where they are published."""

    url: str
    size: int | None = None
    md5: str | None = None


_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_VOC_ARCHIVES = (
    _Archive(f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", 460032000, "c52e279531787c972589f7e41ab4ae64"),
    _Archive(f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar", 451020800, "b6e924de25625d8de591ea690078ad9f"),
    _Archive(f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", 1999639040, "6cd6e144f989b92b3379bac3b3de84fd"),
)
_VOC_YAML = ROOT / "data" / "VOC.yaml"

_COCO_LABELS = _Archive("https://github.com/ultralytics/yolov5/releases/download/v1.0/coco2017labels.zip")
_COCO_IMAGES = (
    _Archive("http://images.cocodataset.org/zips/val2017.zip", 815585330),
    _Archive("http://images.cocodataset.org/zips/train2017.zip", 19336861798),
)


def fetch_voc(folder: Path) -> None:
    """Fetch VOC 2007 and 2012 into `folder`/images and `folder`/labels.

    Difficult objects are left out, as in YOLOv5's set.

    Raises:
        UserError: the archives cannot be fetched; the message says what to put where instead.
    """
    work = _work_folder(folder)
    kit, out = work / "VOCdevkit", work / "converted"
    try:
        for archive in _VOC_ARCHIVES:
            _fetch_and_unpack(archive, work, work)
    except UserError as error:
        raise UserError(
            f"{error}; or unpack the three VOC archives by hand and run "
            f"'{command('data/convert.py')} voc', so that {folder}/images/train2007, val2007, "
            "train2012, val2012 and test2007 exist"
        ) from None
    shutil.rmtree(out, ignore_errors=True)
    names = tuple(load_yaml(_VOC_YAML)["names"].values())
    for year, splits in ((2007, ("train", "val", "test")), (2012, ("train", "val"))):
        root = kit / f"VOC{year}"
        lists = tuple(f"{split}{year}=ImageSets/Main/{split}.txt" for split in splits)
        options = ConvertOptions(root, out, split=lists, names=names, drop_difficult=True)
        write_dataset(read_voc(options), out, name=None)
    _finish(work, out, folder)


def fetch_coco(folder: Path) -> None:
    """Fetch COCO 2017 train and val images, with the published YOLO labels, into `folder`.

    Raises:
        UserError: the archives cannot be fetched; the message says what to put where instead.
    """
    work = _work_folder(folder)
    out = work / "coco"
    try:
        _fetch_and_unpack(_COCO_LABELS, work, work)
        for archive in _COCO_IMAGES:
            _fetch_and_unpack(archive, work, out / "images")
    except UserError as error:
        raise UserError(
            f"{error}; or put the images in {folder}/images/train2017 and val2017, the labels in "
            f"{folder}/labels likewise and the lists train2017.txt and val2017.txt in {folder}"
        ) from None
    _finish(work, out, folder)


def _work_folder(folder: Path) -> Path:
    """Make the folder of the archives until the data set is complete.

    After a failure it stays for the next run.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder}: exists, but images of the YAML are missing in it; complete it or move it away"
        )
    work = folder.with_name(f"{folder.name}.part")
    work.mkdir(parents=True, exist_ok=True)
    return work


def _fetch_and_unpack(archive: _Archive, work: Path, folder: Path) -> None:
    """Fetch and unpack an archive, unless an earlier run has finished it."""
    path = work / file_name(archive.url)
    done = path.with_name(f"{path.name}.unpacked")
    if done.exists():
        return
    fetch(archive.url, path, archive.size, digest=f"md5:{archive.md5}" if archive.md5 else None)
    unpack(path, folder, replace=True)  # everything there is from such archives
    done.touch()
    path.unlink()


def _finish(work: Path, out: Path, folder: Path) -> None:
    """Move the complete data set to its folder."""
    os.replace(out, folder)
    shutil.rmtree(work, ignore_errors=True)
    LOGGER.info("%s: ready", folder)
