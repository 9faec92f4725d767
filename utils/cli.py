"""Declare a script's options as a dataclass, and derive its command line from it.

>>> @dataclass(frozen=True)
... class CountOptions(Options):
...     source: str = option("data/images", help="folder of images")
...     batch_size: int = option(16, help="images at a time")
>>> parse(CountOptions, ["--batch-size", "4"]).batch_size
4
>>> from_keywords(CountOptions, {"batch_size": 4}).source
'data/images'

Logging and the exit of a script are here too, because all scripts share them.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import errno
import inspect
import io
import logging
import numbers
import os
import signal
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TextIO, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from utils.errors import UserError, shown
from utils.files import RUNS_DIR

LOGGER = logging.getLogger("yolo")

WORKERS_HELP = "processes that load images (without it 8 of them, or none on a CPU of one or two cores)"


class Parser(argparse.ArgumentParser):
    """Parse arguments; an error is one sentence and exit code 1, as every user error."""

    # Any: what argparse takes.
    def __init__(self, prog: str | None = None, **options: Any) -> None:
        # argparse's own default leaves `train` out of `python -m lightyolo train` from Python 3.14 on.
        super().__init__(prog or os.path.basename(sys.argv[0]), **options)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the command line, and exit with 1."""
        self.exit(1, f"error: {message} (see {self.prog} --help)\n")

    def refuse(self, reason: str, *flags: str) -> None:
        """Add options of YOLOv5 that are not offered; naming one prints the reason."""
        for flag in flags:
            self.add_argument(flag, action=_Refusal, reason=reason)


class _Refusal(argparse.Action):
    """Refuse an option with its reason; `--help` and the parsed options do not contain it."""

    def __init__(self, option_strings: list[str], dest: str, reason: str) -> None:
        hidden = argparse.SUPPRESS
        super().__init__(option_strings, dest, nargs="*", default=hidden, help=hidden)
        self.reason = reason

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error(f"{self.option_strings[0]}: {self.reason}")


_T = TypeVar("_T")
_Chosen = TypeVar("_Chosen", bound="Options")
_Maker = Callable[[Any], object]  # Any: what a value may be is what it finds out


@dataclass(frozen=True)
class _Given:
    """Hold what the type of an option does not say; see `option`."""

    help: str
    flags: tuple[str, ...]
    choices: tuple[object, ...] | None
    nargs: str | None
    const: object
    metavar: str | None
    type: _Maker | None


def option(
    default: _T,
    *,
    help: str = "",
    flags: Sequence[str] = (),
    choices: Iterable[object] | None = None,
    nargs: str | None = None,
    const: object = None,
    metavar: str | None = None,
    type: _Maker | None = None,
) -> _T:
    """Declare one option, as a field of a subclass of `Options`.

    The annotation of the field is the type of its values. `bool` makes a switch, `list[int]` takes one or
    more numbers, and `str | None` has no value unless one is given.

    Args:
        default: the value if none is given. A list is copied.
        help: one line for `--help`, which adds the default.
        flags: other spellings beside `--name-of-the-field`.
        choices: the only values that are allowed.
        nargs, const, metavar: as in argparse.
        type: makes the value from a text or from what a Python caller gives. It raises ValueError, TypeError
            or ArgumentTypeError.
    """
    only = None if choices is None else tuple(choices)
    metadata = {"given": _Given(help, tuple(flags), only, nargs, const, metavar, type)}
    if isinstance(default, list):
        return cast(_T, dataclasses.field(default_factory=lambda: list(default), metadata=metadata))
    return dataclasses.field(default=default, metadata=metadata)


def _number(value: Any) -> int | float:  # Any: any number, numpy's too
    return int(value) if isinstance(value, numbers.Integral) else float(value)


# For each type of a field: what values it accepts, what makes one of it, and what it is called.
_KINDS: dict[type, tuple[type | tuple[type, ...], _Maker, str]] = {
    bool: (bool, bool, "True or False"),
    int: (numbers.Integral, int, "a whole number"),
    float: (numbers.Real, _number, "a number"),
    str: ((str, os.PathLike), str, "text"),
    dict: (Mapping, dict, "a mapping"),
}


@dataclass(frozen=True)
class OptionSpec:
    """Hold one option as its field and its annotation declare it.

    Attributes:
        name: name of the field.
        default: its default.
        kinds: allowed types of the value, or of each value of a list.
        is_list: whether several values are allowed.
        optional: whether None is allowed.
        given: what `option` was called with.
    """

    name: str
    default: object
    kinds: tuple[type, ...]
    is_list: bool
    optional: bool
    given: _Given

    @property
    def flag(self) -> str:
        """Return the option as it is typed, such as `--batch-size`."""
        return f"--{self.name.replace('_', '-')}"

    def take(self, value: object, where: str = "") -> object:
        """Check a value and convert it to this option's type.

        A path becomes a text, and a single value of a list option becomes a list.

        Args:
            value: what the user gives.
            where: first words of an error message.

        Raises:
            UserError: the value has another type, or is none of the choices.
        """
        if value is None and self.optional:
            return None
        if not self.is_list:
            return self._take_one(value, where)
        if not isinstance(value, Iterable) or isinstance(value, str | os.PathLike | Mapping):
            value = [value]
        return [self._take_one(item, where) for item in value]

    def _take_one(self, value: object, where: str) -> object:
        """Check and convert a value that is no list, or one of a list."""
        if self.given.type is not None and value is not None:
            try:
                value = self.given.type(value)
            except (ValueError, TypeError, OverflowError, argparse.ArgumentTypeError) as error:
                raise UserError(f"{where}{self.name}={shown(value)}: {error}") from None
        for kind in self.kinds:
            accepted, make, _ = _KINDS[kind]
            if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)):
                value = make(value)
                break
        else:
            wanted = " or ".join(_KINDS[kind][2] for kind in self.kinds)
            raise UserError(
                f"{where}{self.name}={shown(value)}; it takes {wanted}{', or several' * self.is_list}"
            )
        if self.given.choices is not None and value not in self.given.choices:
            raise UserError(f"{where}{self.name}={shown(value)}; it takes one of {list(self.given.choices)}")
        return value

    def words(self, value: object) -> list[str]:
        """Return the words that give this option a value; none for False and None."""
        if value is None or value is False:
            return []
        if value is True:
            return [self.flag]
        return [self.flag, *map(str, value if isinstance(value, list) else [value])]

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add this option to a parser, without a default: only typed options are returned."""
        names = (self.flag, *self.given.flags)
        # Any: argparse gives each of its keywords a type of its own.
        keywords: dict[str, Any] = {"dest": self.name, "default": argparse.SUPPRESS, "help": self._help()}
        if self.kinds == (bool,):
            parser.add_argument(*names, action="store_true", **keywords)
            return
        number = next((kind for kind in (int, float) if kind in self.kinds and str not in self.kinds), None)
        keywords |= {
            "type": self.given.type or number,
            "nargs": self.given.nargs or ("+" if self.is_list else None),
            "const": self.given.const,
            "choices": self.given.choices,
            "metavar": self.given.metavar,
        }
        parser.add_argument(*names, **keywords)

    def _help(self) -> str | None:
        """Return the help with the default, unless that is None, False or in it already."""
        text, default = self.given.help, self.default
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        if shown and default is not None and default is not False and "default" not in text:
            text = f"{text} (default: {shown})".lstrip()
        return text.replace("%", "%%") or None


@dataclass(frozen=True)
class Options:
    """Hold the options of a script, checked when an object is made.

    A subclass is a frozen dataclass whose fields are made by `option`. The first line of its docstring
    describes the script in `--help`. Values are converted to the types of their fields; then `check` refuses
    what cannot work.

    Attributes:
        REFUSED: options of YOLOv5 that the script does not offer, as typed, each with the reason.
    """

    REFUSED: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        """Convert and check all values."""
        self._follow(**{name: spec.take(getattr(self, name)) for name, spec in specs(type(self)).items()})
        self.check()

    def check(self) -> None:
        """Refuse values and combinations that cannot work.

        Raises:
            UserError: which option, its value, and what is allowed.
        """

    def _follow(self, **values: object) -> None:
        """Set options that follow from others. Call it in `__post_init__` only."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def at_least(self, **least: float) -> None:
        """Check that options are not below their least values; None is allowed.

        Raises:
            UserError: which option, its value, and the least one.
        """
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {low}")


@dataclass(frozen=True)
class RunOptions(Options):
    """Hold the options of each script that runs a model and writes a folder."""

    project: str = option(str(RUNS_DIR), help="folder of the runs")
    name: str = option("exp", type=str, help="folder of this run")
    exist_ok: bool = option(False, help="write into the folder although it exists")
    half: bool = option(False, help="float16 inference (CUDA)")
    dnn: bool = option(False, help="run .onnx files with OpenCV")
    plugins: list[str] = option([], metavar="FILE", help="Python files with blocks of your own")


def specs(options_class: type[Options]) -> Mapping[str, OptionSpec]:
    """Return the options of a class by name.

    Its own options come before those of its base classes.
    """
    hints = get_type_hints(options_class)
    fields = {field.name: field for field in dataclasses.fields(options_class)}
    declared = (name for base in options_class.__mro__ for name in inspect.get_annotations(base))
    names = dict.fromkeys(name for name in declared if name in fields)
    return types.MappingProxyType({name: _spec(fields[name], hints[name]) for name in names})


def _spec(field: dataclasses.Field[object], hint: object) -> OptionSpec:
    """Read one field and its annotation."""
    made = field.default_factory
    default = field.default if made is dataclasses.MISSING else made()
    members = _members(hint)
    optional = types.NoneType in members
    rest = [member for member in members if member is not types.NoneType]
    is_list = get_origin(rest[0]) is list
    kinds = _members(get_args(rest[0])[0]) if is_list else rest
    return OptionSpec(
        field.name,
        default,
        tuple(get_origin(kind) or kind for kind in kinds),
        is_list,
        optional,
        field.metadata["given"],
    )


def _members(hint: Any) -> list[Any]:  # Any: an annotation has no type of its own
    """Return the types of a union, or the single type."""
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


def build_parser(options_class: type[Options]) -> Parser:
    """Derive the parser of a class of options. It returns what is typed, without defaults."""
    parser = Parser(description=(options_class.__doc__ or "").partition("\n")[0])
    for spec in specs(options_class).values():
        spec.add_to(parser)
    for flag, reason in options_class.REFUSED.items():
        parser.refuse(reason, flag)
    return parser


def given(options_class: type[Options], argv: Sequence[str] | None = None) -> dict[str, object]:
    """Return only the options on a command line, by name.

    Args:
        argv: the arguments; None for those of the process.
    """
    return vars(build_parser(options_class).parse_args(argv))


def parse(options_class: type[_Chosen], argv: Sequence[str] | None = None) -> _Chosen:
    """Return the options of a command line, with all defaults.

    Raises:
        UserError: a value or a combination that cannot work.
    """
    return options_class(**given(options_class, argv))


def from_keywords(
    options_class: type[_Chosen], options: Mapping[str, object], where: str = "run() got "
) -> _Chosen:
    """Return the options that are given by name, with all defaults.

    Args:
        options: values by name.
        where: first words of an error message: who or what gives these options.

    Raises:
        UserError: an unknown option, a value of another type, or one that cannot work.
    """
    return options_class(**typed(options_class, options, where))


def typed(options_class: type[Options], options: Mapping[str, object], where: str) -> dict[str, object]:
    """Check names and values of given options, and convert the values to their types.

    Args:
        options: values by name.
        where: first words of an error message: who or what gives these options.

    Raises:
        UserError: an unknown option, a value of another type, or one that is none of the choices.
    """
    known = specs(options_class)
    refused = {flag.lstrip("-").replace("-", "_"): reason for flag, reason in options_class.REFUSED.items()}
    for name in options:
        if name in refused:
            raise UserError(f"{where}{name}: {refused[name]}")
    if unknown := sorted(str(name) for name in options if name not in known):
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the options are {', '.join(sorted(known))}"
        raise UserError(f"{where}the unknown option {shown(unknown[0])}; {hint}")
    return {name: known[name].take(value, where) for name, value in options.items()}


def setup_logging(verbose: bool = True) -> None:
    """Send this project's messages to standard output; without `verbose`, errors only."""
    if not LOGGER.handlers:
        handler = _Output(sys.stdout)
        handler.setFormatter(_LevelFormatter())
        LOGGER.addHandler(handler)
        LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO if verbose else logging.ERROR)


class _Output(logging.StreamHandler[TextIO]):
    """Write to standard output; drop messages when its reader has ended, as `| head` does."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 logging's name
        """Drop messages that nobody reads any more; logging calls this inside an `except`."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)


class _LevelFormatter(logging.Formatter):
    """Print information as it is, and warnings and errors with their level before them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a message."""
        text = record.getMessage()
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


class Terminated(KeyboardInterrupt):
    """Report SIGTERM, which a scheduler sends; whoever handles Ctrl-C handles it too."""


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def guard(main: Callable[[], object]) -> None:
    """Run a script's `main`; a user's mistake ends in one sentence and exit code 1.

    A defect of this project keeps its traceback, which a report needs.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    setup_logging()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except UserError as error:
        _stop(str(error))
    except Terminated:
        _stop("stopped by SIGTERM", code=143)
    except KeyboardInterrupt:
        _stop("stopped from the keyboard", code=130)
    except OSError as error:
        if error.errno not in USERS_OS_ERRORS:
            raise
        _stop(
            f"{error.strerror or error}: {error.filename or 'while writing'}; {USERS_OS_ERRORS[error.errno]}"
        )


USERS_OS_ERRORS = {
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
    """Print an error and exit; from here on SIGTERM ends the process at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print(f"error: {sentence}", file=sys.stderr)  # noqa: T201 the last word belongs on stderr, logging or not
    sys.exit(code)
