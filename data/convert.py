"""Convert data sets of other tools to images, YOLO labels and a dataset YAML.

    python data/convert.py auto PATH OUT
    python data/convert.py voc PATH [IMAGES] OUT [--split train=LIST val=LIST] [--names cat dog ...]
    python data/convert.py coco ANNOTATIONS.json IMAGES OUT [--split train]

PATH is a folder, or a zip or tar of it; IMAGES is needed only where the images are elsewhere. The source is
only read: images are hard-linked, or copied where that does not work or `--copy` is given. OUT is written
whole or not at all. What is left out is counted by reason, and losing more than half is an error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the project's folder is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import Parser
from utils.dataset.convert.annotated import ConvertOptions
from utils.dataset.convert.conversion import SOURCE_FORMATS, convert_dataset


def parse_opt(argv: Sequence[str] | None = None) -> ConvertOptions:
    """Parse the command line of all converters."""
    parser = Parser(description="Convert a data set to YOLO labels. The source is only read.")
    kinds = parser.add_subparsers(dest="kind", required=True, parser_class=Parser)
    titles = {"auto": "find out the format"} | {name: f.title for name, f in SOURCE_FORMATS.items()}
    for kind, title in titles.items():
        sub = kinds.add_parser(kind, help=title, argument_default=argparse.SUPPRESS)
        sub.add_argument(
            "path", type=Path, help="folder of the data set, its JSON or CSV, or a zip or tar of it"
        )
        sub.add_argument(
            "images",
            type=Path,
            nargs="?",
            default=None,
            metavar="IMAGES",
            help="folder of images, if elsewhere",
        )
        sub.add_argument("out", type=Path, help="folder to write; another split may be added to it")
        sub.add_argument("--name", help="of the dataset YAML (default: that of OUT)")
        sub.add_argument("--copy", action="store_true", help="copy images instead of hard-linking them")
        sub.add_argument(
            "--allow-loss", action="store_true", help="write the rest when more than half is lost"
        )
        if kind not in ("auto", "coco"):
            sub.add_argument("--names", nargs="+", help="classes in order (default: as found)")
        if kind == "voc":
            sub.add_argument(
                "--split", nargs="+", action="extend", metavar="NAME[=LIST]", help="default: ImageSets/Main/*"
            )
            sub.add_argument(
                "--drop-difficult", action="store_true", help="leave out objects marked difficult"
            )
            sub.add_argument("--zero-based", action="store_true", help="corners are edges counted from 0")
        elif kind not in ("auto", "darknet"):
            sub.add_argument(
                "--split", nargs=1, metavar="NAME", help="train, val or test, for a source without splits"
            )
        if kind == "coco":
            sub.add_argument("--segments", action="store_true", help="write polygons instead of boxes")
        if kind in ("auto", "coco", "openimages"):
            sub.add_argument("--keep-crowds", action="store_true", help="keep boxes of crowds or groups")
    given = vars(parser.parse_args(argv))
    for key in ("split", "names"):
        if key in given:
            given[key] = tuple(given[key])
    return ConvertOptions(**given)


def main() -> None:
    """Run the command line."""
    convert_dataset(parse_opt())


if __name__ == "__main__":
    from utils.cli import guard

    guard(main)
