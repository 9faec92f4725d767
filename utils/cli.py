"""What every script's command line shares: the parser, options from Python, logging, and how errors end."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from utils.errors import UserError
from utils.files import ROOT

LOGGER = logging.getLogger("yolo")

WORKERS_HELP = "processes that load images (without it 8 of them, or none on a CPU of one or two cores)"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence and exit code 1, as every user error here."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the command line and where its options are listed, then exit with 1."""
        self.exit(1, f"error: {message} (see {self.prog} --help)\n")

    def refuse(self, reason: str, *flags: str) -> None:
        """Know options of YOLOv5 that this script does not have, so that naming one says why."""
        for flag in flags:
            self.add_argument(flag, action=_Refusal, reason=reason)


class _Refusal(argparse.Action):
    """An option that is known and not had; `--help` and namespaces are without it."""

    def __init__(self, option_strings: list[str], dest: str, reason: str) -> None:
        hidden = argparse.SUPPRESS
        super().__init__(option_strings, dest, nargs="*", default=hidden, help=hidden)
        self.reason = reason

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error(f"{self.option_strings[0]}: {self.reason}")


def add_run_options(parser: argparse.ArgumentParser, project: str) -> None:
    """Options that every script which runs a model and writes a folder has.

    Args:
        project: the default folder of the script's runs, below runs/.
    """
    add = parser.add_argument
    add("--project", default=str(ROOT / "runs" / project), help="folder of the runs")
    add("--name", default="exp", help="folder of this run")
    add("--exist-ok", action="store_true", help="write into the folder although it exists")
    add("--half", action="store_true", help="float16 inference (CUDA)")
    add("--dnn", action="store_true", help="run .onnx files with OpenCV")
    add("--plugins", nargs="+", default=[], metavar="FILE", help="Python files with blocks of your own")


def overlay(parser: argparse.ArgumentParser, options: dict[str, Any]) -> argparse.Namespace:
    """The parser's defaults with keyword options laid over them: how `run(**options)` gets its namespace.

    Values are taken as they are (Python callers pass typed values); `choices` are still held.

    Raises:
        UserError: an option the script does not have, or a value outside an option's choices.
    """
    actions = {a.dest: a for a in parser._actions if a.dest != "help"}
    for dest in [dest for dest, action in actions.items() if isinstance(action, _Refusal)]:
        reason = actions.pop(dest).reason
        if dest in options:
            raise UserError(f"run() got {dest}: {reason}")
    unknown = sorted(set(options) - set(actions))
    if unknown:
        raise UserError(f"run() got unknown options {unknown}; it takes {sorted(actions)}")
    missing = sorted(d for d, a in actions.items() if a.required and d not in options)
    if missing:
        raise UserError(f"run() needs a value for {missing}")
    values = {dest: options.get(dest, action.default) for dest, action in actions.items()}
    for dest, action in actions.items():
        given = values[dest]
        if given == action.default:  # a default may be outside the choices: None for "not asked for"
            continue
        for value in given if isinstance(given, list | tuple) else [given]:
            if dest in options and action.choices is not None and value not in action.choices:
                raise UserError(f"run() got {dest}={value!r}; it takes one of {list(action.choices)}")
    return argparse.Namespace(**values)


def setup_logging(verbose: bool = True) -> None:
    """Send this project's messages, plain, to standard output; quiet processes (other ranks) only errors."""
    if not LOGGER.handlers:
        handler = _Output(sys.stdout)
        handler.setFormatter(_LevelFormatter())
        LOGGER.addHandler(handler)
        LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO if verbose else logging.ERROR)


class _Output(logging.StreamHandler):
    """Standard output; when its reader has gone, as `| head` does, the work goes on without a word."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 logging's name
        """Called within the `except` of what went wrong."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)


class _LevelFormatter(logging.Formatter):
    """Information as it is; anything graver with its level in front."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


def guard(main: Callable[[], Any]) -> None:
    """Run a script's `main` so that whatever a user can cause ends in one sentence and exit code 1.

    A defect of ours still shows its traceback: hiding it would only hide the report.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    setup_logging()
    try:
        main()
    except UserError as error:
        _stop(str(error))
    except KeyboardInterrupt:
        _stop("stopped from the keyboard", code=130)
    except OSError as error:
        if error.errno not in _USERS_OS_ERRORS:
            raise
        _stop(
            f"{error.strerror or error}: {error.filename or 'while writing'}; {_USERS_OS_ERRORS[error.errno]}"
        )


_USERS_OS_ERRORS = {
    errno.ENOSPC: "free some space on that disk and run again",
    errno.EDQUOT: "free some of your quota and run again",
    errno.EFBIG: "raise the file size limit and run again",
    errno.EACCES: "check who may read and write there",
    errno.EPERM: "check who may read and write there",
    errno.EROFS: "that disk is read-only, choose another folder",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "shorten the name",
    errno.EISDIR: "a file is needed, not a folder",
    errno.ENOTDIR: "a folder is needed, not a file",
}


def _stop(sentence: str, code: int = 1) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)  # noqa: T201 the last word belongs on stderr, logging or not
    sys.exit(code)
