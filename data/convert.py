"""Convert Pascal VOC XML or COCO JSON to images, YOLO labels and a dataset YAML.

    python data/convert.py voc ROOT OUT [--split train=ImageSets/Main/train.txt ...] [--names cat dog ...]
    python data/convert.py coco ANNOTATIONS.json IMAGES_DIR OUT [--split train]

The source is only read: images are hard-linked, or copied where that does not work or `--copy` is given.
VOC's corners are pixels counted from 1; with `--zero-based` they are edges counted from 0. A box with
xmax <= xmin or ymax <= ymin has no area and is left out.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the project's folder is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import Parser
from utils.dataset.convert.coco_json import convert_coco
from utils.dataset.convert.voc_xml import convert_voc, find_names
from utils.dataset.convert.yolo_labels import ConvertReport, read_yaml, write_yaml
from utils.errors import UserError

LOGGER = logging.getLogger("yolo.convert")


def _parse_splits(given: list[str] | None, root: Path) -> dict[str, Path]:
    """Return split -> list of images from `train=LIST` arguments.

    LIST is relative to the root or to the working folder; without arguments ImageSets/Main is used.
    """
    if not given:
        main = root / "ImageSets" / "Main"
        found = {s: main / f"{s}.txt" for s in ("train", "val", "test") if (main / f"{s}.txt").is_file()}
        if not found:
            raise UserError(
                f"{main}: no train.txt, val.txt or test.txt in it; give --split train=LIST val=LIST"
            )
        return found
    splits = {}
    for text in given:
        split, equals, listed = text.partition("=")
        if not equals or not listed or not split.replace("_", "").replace("-", "").isalnum():
            raise UserError(f"--split {text}: expected NAME=LIST, as in train=ImageSets/Main/train.txt")
        splits[split] = root / listed if (root / listed).is_file() else Path(listed)
    return splits


def parse_opt(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of both converters."""
    parser = Parser(description="Convert a data set to YOLO labels. The source is only read.")
    kinds = parser.add_subparsers(dest="kind", required=True, parser_class=Parser)
    shared = Parser(add_help=False)
    shared.add_argument("--name", help="of the dataset YAML (default: that of OUT)")
    shared.add_argument("--copy", action="store_true", help="copy images instead of hard-linking them")
    voc = kinds.add_parser("voc", parents=[shared], help="Pascal VOC XML")
    voc.add_argument("root", type=Path, help="folder with Annotations, JPEGImages and ImageSets")
    voc.add_argument("out", type=Path, help="folder to write")
    voc.add_argument(
        "--split", nargs="+", action="extend", metavar="NAME=LIST", help="default: ImageSets/Main/*"
    )
    voc.add_argument("--names", nargs="+", help="classes in order (default: all found, sorted)")
    voc.add_argument("--drop-difficult", action="store_true", help="leave out objects marked difficult")
    voc.add_argument("--zero-based", action="store_true", help="corners are edges counted from 0")
    coco = kinds.add_parser("coco", parents=[shared], help="COCO JSON")
    coco.add_argument("annotations", type=Path, help="the JSON")
    coco.add_argument("images", type=Path, help="folder that its file names are below")
    coco.add_argument("out", type=Path, help="folder to write; a second split may be added to it")
    coco.add_argument("--split", default="train", help="train, val or test")
    coco.add_argument("--segments", action="store_true", help="write polygons instead of boxes")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> dict[str, ConvertReport]:
    """Convert as the parsed command line says, and return a report for each split."""
    yaml_path = options.out / f"{options.name or options.out.resolve().name}.yaml"
    if options.kind == "voc":
        splits = _parse_splits(options.split, options.root)
        names = options.names or find_names(options.root, splits.values())
        read_yaml(yaml_path, names)  # other classes are refused before images and labels are written
        reports = convert_voc(
            options.root,
            options.out,
            splits,
            names,
            drop_difficult=options.drop_difficult,
            zero_based=options.zero_based,
            copy=options.copy,
        )
    else:
        if not options.split.isalnum():
            raise UserError(f"--split {options.split}: expected train, val or test")
        names, report = convert_coco(
            options.annotations,
            options.images,
            options.out,
            options.split,
            segments=options.segments,
            copy=options.copy,
            yaml_path=yaml_path,
        )
        reports = {options.split: report}
    write_yaml(yaml_path, names, reports)
    for split, report in reports.items():
        counts = ", ".join(f"{report.boxes[i]} {name}" for i, name in enumerate(names) if report.boxes[i])
        LOGGER.info("%s: %d images, %d boxes (%s)", split, report.images, report.boxes.total(), counts)
    LOGGER.info("%s: ready for --data", yaml_path)
    return reports


def main() -> None:
    """Run the command line."""
    run(parse_opt())


if __name__ == "__main__":
    from utils.cli import guard

    guard(main)
