"""Convert a data set of another tool: unpack, find out the format, read, write."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from utils.dataset.convert.annotated import ConvertOptions, ConvertReport, FolderIndex, SourceFormat
from utils.dataset.convert.coco_json import COCO
from utils.dataset.convert.kitti_txt import KITTI
from utils.dataset.convert.open_images_csv import OPEN_IMAGES
from utils.dataset.convert.voc_xml import VOC
from utils.dataset.convert.yolo_labels import temporary_folder, write_dataset
from utils.dataset.convert.yolo_txt import DARKNET, LABEL_STUDIO, LABELIMG
from utils.downloads import is_archive, unpack
from utils.errors import UserError
from utils.files import load_yaml

LOGGER = logging.getLogger("yolo.convert")

SOURCE_FORMATS = {f.name: f for f in (VOC, COCO, DARKNET, LABELIMG, LABEL_STUDIO, KITTI, OPEN_IMAGES)}
_SINGLE_FILES = ("auto", COCO.name, OPEN_IMAGES.name)  # a data set may be one file


def convert_dataset(options: ConvertOptions) -> dict[str, ConvertReport]:
    """Convert a data set to images, YOLO labels and a dataset YAML.

    It returns a report for each split.

    Raises:
        UserError: there is no such data set, or `write_dataset` refuses it. Nothing is written then.
    """
    _check_options(options)
    name = options.name or options.out.resolve().name
    try:
        with _unpacked(options) as path:
            auto = options.kind == "auto"
            found = _recognise(path, options.path) if auto else SOURCE_FORMATS[options.kind]
            source = found.read(replace(options, path=path))
            reports = write_dataset(
                source, options.out, name=name, copy=options.copy, allow_loss=options.allow_loss
            )
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{error.filename or options.out}: {reason}; check the path, its rights and the space on its disk"
        ) from None
    _say_what_is_next(options.out / f"{name}.yaml")
    return reports


def _check_options(options: ConvertOptions) -> None:
    """Refuse paths and names that no format can use."""
    path, names = options.path, options.names or ()
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    if path.is_file() and not is_archive(path.name) and options.kind not in _SINGLE_FILES:
        raise UserError(f"{path}: is one file of a data set; give the folder that it is in")
    if options.images is not None and not options.images.is_dir():
        raise UserError(f"{options.images}: no such folder of images; check the path")
    if len(set(names)) < len(names):
        raise UserError(f"--names {' '.join(names)}: a class is named twice; name each once")


def _say_what_is_next(path: Path) -> None:
    """Log whether the dataset YAML can be trained on, or which split it lacks."""
    lacking = [split for split in ("train", "val") if split not in load_yaml(path)]
    if not lacking:
        LOGGER.info("%s: ready for --data", path)
        return
    LOGGER.warning(
        "%s: has no %s images, which training needs; convert them into the same folder (--split names them), "
        "or add a line as 'val: images/train' to it",
        path,
        " and no ".join(lacking),
    )


@contextmanager
def _unpacked(options: ConvertOptions) -> Iterator[Path]:
    """Unpack an archive beside OUT while the block runs.

    A folder that holds only one folder is replaced by that one.
    """
    with ExitStack() as stack:
        path = options.path
        if path.is_file() and is_archive(path.name):
            path = unpack(path, stack.enter_context(temporary_folder(options.out, "unpacked")))
        while path.is_dir():
            inside = [p for p in path.iterdir() if not p.name.startswith((".", "__MACOSX"))]
            if len(inside) != 1 or not inside[0].is_dir():
                break
            path = inside[0]
        yield path


def _recognise(path: Path, shown: Path) -> SourceFormat:
    """Return the only format at this path, and log what was found of it."""
    found = {f.name: what for f in SOURCE_FORMATS.values() if (what := f.find(path))}
    said = " and ".join(f"{SOURCE_FORMATS[name].title} ({what})" for name, what in found.items())
    if len(found) == 1:
        LOGGER.info("%s: %s", shown, said)
        return SOURCE_FORMATS[next(iter(found))]
    if found:
        words = " or ".join(f"'{name}'" for name in found)
        raise UserError(f"{shown}: more than one format is there, {said}; say {words} instead of 'auto'")
    if path.is_dir() and (yaml := FolderIndex(path, {".yaml", ".yml"}).paths):
        raise UserError(
            f"{shown}: nothing to convert; {yaml[0].name} may be its dataset YAML, so give that to --data"
        )
    titles = ", ".join(f.title for f in SOURCE_FORMATS.values())
    remedy = "give the folder that it is in" if path.is_file() else "check the path"
    raise UserError(f"{shown}: none of the known formats ({titles}) is there; {remedy}")
