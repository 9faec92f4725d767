"""Write converted images, YOLO labels and their dataset YAML, whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from utils.dataset.convert.annotated import (
    LEAVES,
    NO_AREA,
    NO_IMAGE,
    UNREADABLE,
    Annotated,
    AnnotatedSet,
    ConvertReport,
)
from utils.dataset.labels import image_size
from utils.dataset.verification import log_findings
from utils.downloads import leaves_folder
from utils.errors import UserError, shown
from utils.files import YamlMapping, load_yaml, save_yaml
from utils.locks import exclusive

LOGGER = logging.getLogger("yolo.convert")


def write_dataset(
    source: AnnotatedSet, out: Path, *, name: str | None, copy: bool = False, allow_loss: bool = False
) -> dict[str, ConvertReport]:
    """Write the images and labels of all splits, whole or not at all.

    Args:
        source: the classes, and the images of each split; each is read when the one before is written.
        out: gets images/<split>/ and labels/<split>/; it may have other splits of the same classes.
        name: of the dataset YAML in `out`, which is written or gets the new splits; None writes none.
        copy: copy images even where a hard link would do.
        allow_loss: write the rest when more than half of a split is lost.

    Returns:
        A report for each split.

    Raises:
        UserError: a split exists already, the YAML has other classes, no image or box came through, or more
            than half of them is lost. `out` is unchanged then.
    """
    yaml_path = out / f"{name}.yaml"
    for split in source.splits:
        if not split.replace("_", "").replace("-", "").isalnum():
            raise UserError(f"--split {split}: expected a name of letters and digits, as train, val or test")
        for kind in ("images", "labels"):
            if (out / kind / split).exists():
                raise UserError(
                    f"{out / kind / split}: exists already; remove it, or choose another folder or split"
                )
    known = _read_yaml(yaml_path, source.names) if name else {}
    reports = {split: ConvertReport() for split in source.splits}
    with temporary_folder(out, "converted") as tree:
        for split, read in source.splits.items():
            _write_split(tree, split, read(reports[split]), reports[split], copy=copy)
        for report in reports.values():
            log_findings(report.messages)
        _refuse_losses(out, reports, allow_loss)
        if name:
            places = {split: f"images/{split}" for split in source.splits}
            save_yaml(tree / yaml_path.name, known | places | {"names": dict(enumerate(source.names))})
        _publish(tree, out)
    for split, report in reports.items():
        _log_summary(split, report, source.names)
    return reports


def _read_yaml(path: Path, names: list[str]) -> YamlMapping:
    """Return the dataset YAML of an earlier conversion, or the start of a new one."""
    if not path.exists():
        return {"path": "."}
    data = load_yaml(path)
    known = data.get("names")
    if known != dict(enumerate(names)):
        raise UserError(f"{path}: has other classes ({known}) than {names}; choose another --name")
    return data


@contextmanager
def temporary_folder(out: Path, purpose: str) -> Iterator[Path]:
    """Make a folder on the file system of `out` while the block runs.

    What a killed run left is removed first; a second run for the same `out` waits.

    Args:
        out: the folder to write.
        purpose: a word that keeps apart several such folders of one run.
    """
    parent = next(folder for folder in out.absolute().parents if folder.is_dir())
    folder = parent / f".{out.name[:40]}.{purpose}.part"
    with exclusive(folder.with_suffix(".lock"), str(out)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _publish(tree: Path, out: Path) -> None:
    """Move a finished tree to `out`, or its splits and its YAML into it."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(tree, out)
        return
    for kind in ("images", "labels"):
        (out / kind).mkdir(exist_ok=True)
        for split in (tree / kind).iterdir():
            os.replace(split, out / kind / split.name)
    for path in tree.glob("*.yaml"):
        os.replace(path, out / path.name)


def _write_split(
    tree: Path, split: str, found: Iterable[Annotated], report: ConvertReport, *, copy: bool
) -> None:
    """Write the images and labels of one split; report what is left out or changed."""
    for kind in ("images", "labels"):
        (tree / kind / split).mkdir(parents=True)
    for item in tqdm(found, desc=f"converting {split}", unit="image", dynamic_ncols=True):
        if leaves_folder(item.name):
            report.lose_image(LEAVES, f"{item.image}: its name {shown(item.name)} leads out of the folder")
            continue
        label = tree / "labels" / split / PurePosixPath(item.name).with_suffix(".txt")
        image = tree / "images" / split / item.name
        if os.path.lexists(label) or os.path.lexists(image):
            report.lose_image(
                "of a name that is taken", f"{item.image}: a second image of this name", len(item.boxes)
            )
            continue
        try:
            width, height, note = image_size(str(item.image))
        except (OSError, ValueError) as error:
            reason = NO_IMAGE if isinstance(error, FileNotFoundError) else UNREADABLE
            text = getattr(error, "strerror", None) or error
            report.lose_image(reason, f"{item.image}: {text}", len(item.boxes))
            continue
        if note:
            report.messages.append(f"{item.image}: {note}")
        _compare_sizes(item, width, height, report)
        rows = _rows(item, width, height, report)
        _place_image(item.image, image, copy)
        label.parent.mkdir(parents=True, exist_ok=True)
        with label.open("x", encoding="utf-8") as file:
            file.write("".join(rows))
        report.images += 1


def _compare_sizes(item: Annotated, width: int, height: int, report: ConvertReport) -> None:
    """Note when the annotation states another size than the image has.

    The size of the image is used.
    """
    stated = item.stated_size
    if stated in ((width, height), (0, 0)):
        return
    hint = ""
    if stated == (height, width):
        hint = "; its EXIF tag turns it, so check that the boxes are in the right place"
    report.messages.append(
        f"{item.image}: {width} x {height} pixels where the annotation says {stated[0]} x {stated[1]}{hint}"
    )


def _rows(item: Annotated, width: int, height: int, report: ConvertReport) -> list[str]:
    """Return the label rows of an image: clipped to it, normalised, without empty ones."""
    rows = []
    size = (1, 1) if item.normalised else (width, height)
    polygons = item.polygons or [None] * len(item.boxes)
    for (number, *box), polygon in zip(item.boxes, polygons):
        x1, x2 = (min(max(x / size[0], 0.0), 1.0) for x in (box[0], box[2]))
        y1, y2 = (min(max(y / size[1], 0.0), 1.0) for y in (box[1], box[3]))
        if not (round(x2 - x1, 6) > 0 and round(y2 - y1, 6) > 0):
            corners = " ".join(f"{v:g}" for v in box)
            report.lose_box(NO_AREA, f"{item.image}: box {corners} has no area in the image")
            continue
        if item.polygons:
            outline = polygon or [(box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3])]
            values = [min(max(v / s, 0.0), 1.0) for point in outline for v, s in zip(point, size)]
        else:
            values = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        rows.append(f"{number} " + " ".join(f"{v:.6f}" for v in values) + "\n")
        report.boxes[number] += 1
    return rows


def _place_image(source: Path, target: Path, copy: bool) -> None:
    """Hard-link an image, or copy it where links do not work.

    Another file is never replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or one without links: the copy below does it
    with source.open("rb") as read, target.open("xb") as written:
        shutil.copyfileobj(read, written)


def _log_summary(split: str, report: ConvertReport, names: list[str]) -> None:
    """Log what was written of a split, and what was left out, by reason."""
    counts = ", ".join(f"{report.boxes[i]} {name}" for i, name in enumerate(names) if report.boxes[i])
    LOGGER.info(
        "%s: %d images, %d boxes (%s)", split, report.images, report.boxes.total(), counts or "background"
    )
    for what, lost in (
        ("images", report.lost_images),
        ("boxes", report.lost_boxes),
        ("boxes", report.ignored),
    ):
        if lost:
            LOGGER.warning("%s: %d %s left out: %s", split, lost.total(), what, _reasons(lost))


def _reasons(lost: Counter[str]) -> str:
    """Return the counts of what was lost, in words, the most frequent first."""
    return ", ".join(f"{count} {reason}" for reason, count in lost.most_common())


def _refuse_losses(out: Path, reports: dict[str, ConvertReport], allow_loss: bool) -> None:
    """Raise when nothing came through, or more than half was lost."""
    for split, report in reports.items():
        for what, kept, lost in (
            ("images", report.images, report.lost_images),
            ("boxes", report.boxes.total(), report.lost_boxes),
        ):
            gone = lost.total()
            if kept == gone == 0 and what == "images":
                raise UserError(
                    f"{out}: nothing is written, because no image of {split} was found; check the path, "
                    "or name the folder of images as IMAGES"
                )
            if gone > kept and not (allow_loss and report.images):
                remedy = report.remedy or "correct the source"
                rest = ", or write the rest with --allow-loss" if report.images else ""
                raise UserError(
                    f"{out}: nothing is written, because {gone} of {gone + kept} {what} of {split} are lost "
                    f"({_reasons(lost)}); {remedy}{rest}"
                )
    if not allow_loss and not any(report.boxes for report in reports.values()):
        ignored = sum((report.ignored for report in reports.values()), Counter[str]())
        found = f" other than {_reasons(ignored)}" if ignored else ""
        raise UserError(
            f"{out}: nothing is written, because the source has no box{found}; check where its annotations "
            "are, or write the images without boxes with --allow-loss"
        )
