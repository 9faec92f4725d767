"""Declare a script's options once, as a dataclass, and derive its command line.

    @dataclass(frozen=True)
    class Example(Options):
        source: str = option("data/images", help="folder of images")
        batch_size: int = option(16, help="images at a time")

    parse(Example, ["--batch-size", "4"]).batch_size    # 4
    from_keywords(Example, {"batch_size": 4}).source    # 'data/images'

Logging and the way in which a script ends are here too, because every script shares them.
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
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TextIO, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from utils.errors import UserError
from utils.files import ROOT

LOGGER = logging.getLogger("yolo")

WORKERS_HELP = "processes that load images (without it 8 of them, or none on a CPU of one or two cores)"


class Parser(argparse.ArgumentParser):
    """Parse arguments; errors are one sentence and exit code 1."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where the options are listed, then exit with 1."""
        self.exit(1, f"error: {message} (see {self.prog} --help)\n")

    def refuse(self, reason: str, *flags: str) -> None:
        """Refuse options of YOLOv5 that this script lacks, with the reason."""
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


_T = TypeVar("_T")
_Chosen = TypeVar("_Chosen", bound="Options")


@dataclass(frozen=True)
class _Given:
    """Say how an option is given where its type does not say it; see `option`."""

    help: str
    flags: tuple[str, ...]
    choices: tuple[object, ...] | None
    nargs: str | None
    const: object
    metavar: str | None
    type: Callable[[Any], object] | None  # Any: what a value may be is what it finds out


def option(
    default: _T,
    *,
    help: str = "",
    flags: Sequence[str] = (),
    choices: Iterable[object] | None = None,
    nargs: str | None = None,
    const: object = None,
    metavar: str | None = None,
    type: Callable[[Any], object] | None = None,
) -> _T:
    """Declare one option: a field of a class of `Options`.

    The field's annotation says what values it takes. `bool` is a switch, `list[int]` takes one number or
    more, `str | None` may be left open.

    Args:
        default: its value where nobody gives one; a list is copied.
        help: one line for `--help`.
        flags: further spellings beside `--name-of-the-field`.
        choices: the only values it takes.
        nargs, const, metavar: as argparse has them.
        type: makes the value of a text, and of what Python callers give; it raises ValueError or TypeError.
    """
    only = None if choices is None else tuple(choices)
    metadata = {"given": _Given(help, tuple(flags), only, nargs, const, metavar, type)}
    if isinstance(default, list):
        return cast(_T, dataclasses.field(default_factory=lambda: list(default), metadata=metadata))
    return dataclasses.field(default=default, metadata=metadata)


def _number(value: Any) -> int | float:  # Any: any number, numpy's too
    return int(value) if isinstance(value, numbers.Integral) else float(value)


# For each type of a field: what values it accepts, what makes one of it, and what it is called.
_KINDS: dict[type, tuple[Any, Callable[[Any], object], str]] = {
    bool: (bool, bool, "True or False"),
    int: (numbers.Integral, int, "a whole number"),
    float: (numbers.Real, _number, "a number"),
    str: ((str, os.PathLike), str, "text"),
    dict: (Mapping, dict, "a mapping"),
}


@dataclass(frozen=True)
class OptionSpec:
    """One option of a class: what its field and the field's annotation say.

    Attributes:
        name: the field's name.
        default: its default.
        kinds: the types that a value, or each value of a list, may have.
        is_list: whether it takes several values.
        optional: whether None is a value.
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
        """Return a value as this option holds it.

        A single value of a list option becomes a list; paths become text.

        Args:
            where: begins the sentence of an error.

        Raises:
            UserError: a value of another type, or none of the choices.
        """
        if value is None and self.optional:
            return None
        if not self.is_list:
            return self._take_one(value, where)
        if not isinstance(value, Iterable) or isinstance(value, str | os.PathLike | Mapping):
            value = [value]
        return [self._take_one(item, where) for item in value]

    def _take_one(self, value: object, where: str) -> object:
        if self.given.type is not None and value is not None:
            try:
                value = self.given.type(value)
            except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                raise UserError(f"{where}{self.name}={value!r}: {error}") from None
        for kind in self.kinds:
            accepted, make, _ = _KINDS[kind]
            if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)):
                value = make(value)
                break
        else:
            wanted = " or ".join(_KINDS[kind][2] for kind in self.kinds)
            raise UserError(f"{where}{self.name}={value!r}; it takes {wanted}{', or several' * self.is_list}")
        if self.given.choices is not None and value not in self.given.choices:
            raise UserError(f"{where}{self.name}={value!r}; it takes one of {list(self.given.choices)}")
        return value

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add this option to a command line, which keeps only what is typed."""
        names = (self.flag, *self.given.flags)
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
        """Return the help, with the default where it says something new."""
        text, default = self.given.help, self.default
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        if shown and default is not None and default is not False and "default" not in text:
            text = f"{text} (default: {shown})".lstrip()
        return text.replace("%", "%%") or None


@dataclass(frozen=True)
class Options:
    """Hold a script's options: typed fields made by `option`, checked when made.

    A subclass is a frozen dataclass too. The first line of its docstring describes the script in `--help`.
    Values are brought to their fields' types first, then `check` refuses what cannot work.

    Attributes:
        REFUSED: options of YOLOv5 that the script does not have, as typed, and for each the reason.
    """

    REFUSED: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        self._follow(**{name: spec.take(getattr(self, name)) for name, spec in specs(type(self)).items()})
        self.check()

    def check(self) -> None:
        """Refuse values and combinations that cannot work.

        Raises:
            UserError: which option, its value, and what it may be.
        """

    def _follow(self, **values: object) -> None:
        """Set options that follow from others. Only for `__post_init__`: an object made does not change."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def at_least(self, **least: float) -> None:
        """Refuse an option that is below its least value.

        Raises:
            UserError: which option, its value, and the least one.
        """
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {low}")


@dataclass(frozen=True)
class RunOptions(Options):
    """The options of every script that runs a model and writes a folder."""

    project: str = option(str(ROOT / "runs"), help="folder of the runs")
    name: str = option("exp", type=str, help="folder of this run")
    exist_ok: bool = option(False, help="write into the folder although it exists")
    half: bool = option(False, help="float16 inference (CUDA)")
    dnn: bool = option(False, help="run .onnx files with OpenCV")
    plugins: list[str] = option([], metavar="FILE", help="Python files with blocks of your own")


def specs(options_class: type[Options]) -> Mapping[str, OptionSpec]:
    """Return the options of a class by name, its own first."""
    hints = get_type_hints(options_class)
    fields = {field.name: field for field in dataclasses.fields(options_class)}
    declared = (name for base in options_class.__mro__ for name in inspect.get_annotations(base))
    names = dict.fromkeys(name for name in declared if name in fields)
    return types.MappingProxyType({name: _spec(fields[name], hints[name]) for name in names})


def _spec(field: dataclasses.Field[object], hint: object) -> OptionSpec:
    """What a field and its annotation say."""
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
    """The types of a union, or the one type."""
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


def build_parser(options_class: type[Options]) -> Parser:
    """Derive the command line of a class of options. It returns what is typed and no defaults."""
    parser = Parser(description=(options_class.__doc__ or "").partition("\n")[0])
    for spec in specs(options_class).values():
        spec.add_to(parser)
    for flag, reason in options_class.REFUSED.items():
        parser.refuse(reason, flag)
    return parser


def given(options_class: type[Options], argv: Sequence[str] | None = None) -> dict[str, object]:
    """Return only what a command line says, by the options' names.

    Args:
        argv: the arguments; None for the process's own.
    """
    return vars(build_parser(options_class).parse_args(argv))


def parse(options_class: type[_Chosen], argv: Sequence[str] | None = None) -> _Chosen:
    """Return the options that a command line gives, with all defaults.

    Raises:
        UserError: a value or a combination that cannot work.
    """
    return options_class(**given(options_class, argv))


def from_keywords(
    options_class: type[_Chosen], options: Mapping[str, object], where: str = "run() got "
) -> _Chosen:
    """Return the options that a Python caller gives as keywords, with all defaults.

    Args:
        where: begins the sentence of an error: who gives these options.

    Raises:
        UserError: an option the script does not have, a value of another type, or one that cannot work.
    """
    return options_class(**typed(options_class, options, where))


def typed(options_class: type[Options], options: Mapping[str, object], where: str) -> dict[str, object]:
    """Return options by name with values of their types.

    Args:
        where: begins the sentence of an error: who gives these options.

    Raises:
        UserError: an option that the class does not have, a value of another type, or none of the choices.
    """
    known = specs(options_class)
    refused = {flag.lstrip("-").replace("-", "_"): reason for flag, reason in options_class.REFUSED.items()}
    for name in options:
        if name in refused:
            raise UserError(f"{where}{name}: {refused[name]}")
    if unknown := sorted(str(name) for name in options if name not in known):
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the options are {', '.join(sorted(known))}"
        raise UserError(f"{where}the unknown option {unknown[0]!r}; {hint}")
    return {name: known[name].take(value, where) for name, value in options.items()}


def setup_logging(verbose: bool = True) -> None:
    """Send this project's messages, plain, to standard output; quiet processes (other ranks) only errors."""
    if not LOGGER.handlers:
        handler = _Output(sys.stdout)
        handler.setFormatter(_LevelFormatter())
        LOGGER.addHandler(handler)
        LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO if verbose else logging.ERROR)


class _Output(logging.StreamHandler[TextIO]):
    """Write to standard output, and continue silently when its reader has gone."""

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
    """Run a script's `main`; user errors end in one sentence and exit code 1.

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
