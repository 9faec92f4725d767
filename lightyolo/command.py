"""Run a script by its name: `lightyolo train --epochs 3` is `python train.py --epochs 3`."""

from __future__ import annotations

import sys
from importlib import import_module

from utils.cli import Parser, guard
from utils.package import MODULE_PREFIX, PACKAGE, VERSION

COMMANDS = {
    "train": ("train", "train a detector; without options, on the bundled data set"),
    "val": ("val", "measure a detector on a data set"),
    "detect": ("detect", "detect in images, videos, streams"),
    "export": ("export", "write a checkpoint in another format"),
    "compare": ("compare", "train and measure several networks side by side"),
    "convert": ("data.convert", "convert data sets of other tools"),
    "check": ("data.check", "check a data set"),
    "yolo": ("models.yolo", "print a network, its parameters and GFLOPs"),
    "info": (f"{PACKAGE}.info", "print versions, devices and folders"),
}
"""Each command's module, and a line about it."""


def _parser() -> Parser:
    """Return the parser of the first word; what follows is the script's."""
    parser = Parser(prog=PACKAGE, description="An object detector whose backbone you choose in a YAML file.")
    parser.add_argument("--version", action="version", version=f"{PACKAGE} {VERSION}")
    kinds = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, (_, line) in COMMANDS.items():
        kinds.add_parser(name, help=line)
    return parser


def run_script() -> None:
    """Run the script that the command line names, with the words after its name."""
    first, rest = sys.argv[1:2] or ["--help"], sys.argv[2:]
    name = _parser().parse_args(first).command
    module, _ = COMMANDS[name]
    sys.argv = [f"{PACKAGE} {name}", *rest]
    import_module(module if name == "info" else f"{MODULE_PREFIX}{module}").main()


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 1."""
    guard(run_script)
