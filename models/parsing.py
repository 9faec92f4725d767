"""From a model YAML to layers: every row checked, its shapes inferred without weights, only then built."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.activations import Activation, activation_factory, default_activation
from models.registry import REGISTRY, BlockSpec, blame, lookup
from utils.errors import UserError

LOGGER = logging.getLogger("yolo.models")

PROBE = 512  # pixels per side of the image that the rows' shapes are inferred with: strides up to 512
MOST_REPEATS = 1000  # beyond it a slip of the pen would build for minutes
KEYS = (
    "nc",
    "depth_multiple",
    "width_multiple",
    "channel_multiple",
    "anchors",
    "backbone",
    "head",
    "ch",
    "activation",
    "inplace",
    "mean",
    "std",
    "pretrained",
)
_POSITIVE = frozenset({"c2", "k", "s", "g", "d", "n", "e", "heads", "layers", "gain", "stride", "expand"})
_POSITIVE |= {"out_channels", "kernel_size", "groups", "dilation"}
_POSITIVE |= {"dim", "depth", "kernel", "patch", "mlp_dim", "mid"}


@dataclass
class Row:
    """One row of the YAML, understood: what it builds and what comes out.

    Attributes:
        index: number of the layer, counted from 0 through backbone and head.
        section, section_row: 'backbone' or 'head', and the row's number in it, counted from 1.
        from_: the YAML's `from` as written. sources: the layers it means (-1: the image).
        number: copies after depth_multiple. name: the block. args: constructor arguments.
        out_channels, stride: of the output; both 0 for the detector's output. Of a row that gives several
            maps: of the last; `maps` has the shapes of all.
        params: parameters of the layer.
    """

    index: int
    section: str
    section_row: int
    from_: int | list[int]
    number: int
    name: str
    args: list[Any]
    sources: tuple[int, ...] = ()
    out_channels: int = 0
    stride: float = 0
    params: int = 0
    spec: BlockSpec = field(default=None, repr=False)
    shape: tuple[int, ...] = field(default=(), repr=False)
    maps: list[tuple[int, ...]] = field(default_factory=list, repr=False)


class RowError(Exception):
    """What is wrong with a row, as found and expected; `parse_model` says where."""


def parse_model(
    cfg: dict[str, Any], ch: int = 3, source: str = "model YAML"
) -> tuple[nn.Sequential, list[Row]]:
    """Check a model's YAML row by row, then build its layers on torch's default device.

    Args:
        cfg: the YAML as a dict; `nc` and `anchors` must be in it.
        ch: channels of the input image.
        source: what to call it in messages.
    Returns:
        The layers and a `Row` for each.
    Raises:
        UserError: one sentence with file, section, row, what was found and what was expected.
    """
    check_keys(cfg, source)
    rows = _read_rows(cfg, source)
    with default_activation(cfg.get("activation")):
        _infer(rows, cfg, ch, source)
        layers = nn.Sequential(*(_build(row) for row in rows))
    return layers, rows


def check_keys(cfg: dict[str, Any], source: str) -> None:
    """Check everything of a model's YAML but its rows.

    Raises:
        UserError: a key that is missing, misspelt or of the wrong kind.
    """
    for key in [key for key in cfg if key not in KEYS]:
        close = difflib.get_close_matches(str(key).strip().lower(), KEYS, 1, 0.8)
        if close:
            raise UserError(f"{source}: key {key!r} is not known; did you mean {close[0]!r}?")
        _warn_unknown(source, str(key))
    for key in ("nc", "anchors", "backbone", "head"):
        if cfg.get(key) is None:
            raise UserError(f"{source}: key '{key}' is missing; {_REMEDY[key]}")
    for key in ("backbone", "head"):
        if not isinstance(cfg[key], list) or not cfg[key]:
            raise UserError(f"{source}: '{key}' is {_kind(cfg[key])}, expected a list of rows")
    for key in ("nc", "ch", "channel_multiple"):
        if key in cfg and not (_accepts(cfg[key], int) and cfg[key] > 0):
            raise UserError(f"{source}: {key}: {cfg[key]!r} is not a whole number above 0")
    for key in ("depth_multiple", "width_multiple"):
        if key in cfg and not (_accepts(cfg[key], float) and 0 < cfg[key] < math.inf):
            raise UserError(f"{source}: {key}: {cfg[key]!r} is not a number above 0")
    activation = cfg.get("activation")
    if activation is not None and not isinstance(activation, str):
        raise UserError(f"{source}: activation: {activation!r} is no name such as 'ReLU6'")
    try:
        activation_factory(activation or "SiLU")
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


@functools.cache  # a training builds its YAML twice: first to look at it, then with the data's classes
def _warn_unknown(source: str, key: str) -> None:
    LOGGER.warning("%s: key %r is not known and does nothing; known are %s", source, key, ", ".join(KEYS))


_REMEDY = {
    "nc": "write 'nc: 80' (the number of classes)",
    "anchors": "write one list of w,h pairs in pixels per detection level, or a number of anchors",
    "backbone": "it lists the rows [from, number, module, args]",
    "head": "it lists the rows after the backbone and ends with Detect",
}


def _read_rows(cfg: dict[str, Any], source: str) -> list[Row]:
    """The rows' form: four entries of the right kinds, a known block, sources in range."""
    rows: list[Row] = []
    for section in ("backbone", "head"):
        for number, raw in enumerate(cfg[section], 1):
            row = Row(len(rows), section, number, -1, 1, "", [])
            try:
                _read_row(row, raw, cfg)
            except RowError as error:
                raise _located(row, source, error) from None
            rows.append(row)
    outputs = [row for row in rows if row.spec.output]
    last = rows[-1]
    if not outputs:
        raise _located(
            last, source, f"the last row is {last.name} and no row is Detect; end the head with a Detect row"
        )
    if outputs[0] is not last:
        raise _located(
            outputs[0], source, f"{outputs[0].name} stands before other rows; it must be the one last row"
        )
    return rows


def _located(row: Row, source: str, what: object) -> UserError:
    """The sentence: file, section, row, then what was found and expected."""
    name = f", {row.name}" if row.name else ""
    return UserError(f"{source}: {row.section} row {row.section_row} (layer {row.index}{name}): {what}")


def _read_row(row: Row, raw: Any, cfg: dict[str, Any]) -> None:
    """Fill a row from [from, number, module, args]."""
    if not isinstance(raw, list) or len(raw) != 4:
        raise RowError(f"found {raw!r}, expected four entries [from, number, module, [args]]")
    from_, number, name, args = raw
    if not isinstance(name, str):
        raise RowError(f"module is {_kind(name)} {name!r}, expected the name of a block")
    row.name = name
    spec = lookup(name)
    if spec is None:
        close = difflib.get_close_matches(name, REGISTRY, 3, 0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "expected a block of models/common.py"
        raise RowError(f"unknown block {name!r}; {hint} (your own blocks are loaded by --plugins FILE)")
    if not _accepts(number, int) or number < 1:
        raise RowError(f"number is {number!r}, expected a whole number of repeats from 1")
    if not isinstance(args, list):
        raise RowError(f"args is {_kind(args)} {args!r}, expected a list such as [64, 3, 2]")
    row.spec, row.from_, row.args = spec, from_, [_literal(arg, cfg) for arg in args]
    row.number = max(round(number * cfg.get("depth_multiple", 1.0)), 1) if number > 1 else 1
    if row.number > MOST_REPEATS:
        raise RowError(f"repeats {row.number} times after depth_multiple, expected at most {MOST_REPEATS}")
    row.sources = _sources(row.index, from_, spec)


def _literal(value: Any, cfg: dict[str, Any]) -> Any:
    """An argument as a value: 'nc', 'anchors', 'None', 'True' and 'False' are names, all else is itself."""
    names = {"nc": cfg["nc"], "anchors": cfg["anchors"], "None": None, "True": True, "False": False}
    if isinstance(value, list):
        return [_literal(item, cfg) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _sources(index: int, from_: Any, spec: BlockSpec) -> tuple[int, ...]:
    """The layers a `from` means, as absolute numbers (-1: the image, for layer 0 only)."""
    wanted = from_ if isinstance(from_, list) else [from_]
    if not wanted or not all(_accepts(f, int) for f in wanted):
        raise RowError(
            f"from is {from_!r}, expected a layer's number, -1 for the row before, or a list of them"
        )
    if spec.joins != isinstance(from_, list):
        expected = "a list of layers" if spec.joins else "one layer"
        raise RowError(f"from is {from_!r}, expected {expected}, which is what {spec.name} takes")
    sources = tuple(f if f >= 0 else index + f for f in wanted)
    for f, absolute in zip(wanted, sources):
        if absolute >= index or absolute < (-1 if index == 0 else 0):
            allowed = f"-{index} to {index - 1}" if index else "-1 (the image)"
            raise RowError(f"from {f} is out of range, expected {allowed}: a layer above this row")
    return sources


def _infer(rows: list[Row], cfg: dict[str, Any], ch: int, source: str) -> None:
    """Give every row its constructor arguments, output channels and stride, running it without weights."""
    for row in rows:
        shapes = [rows[s].shape if s >= 0 else (1, ch, PROBE, PROBE) for s in row.sources]
        try:
            _check_lists(row, rows)
            if row.spec.picks:
                shapes = rows[row.sources[0]].maps
            _check_sizes(row, rows, shapes)
            if row.spec.output:
                _complete_output(row, [rows[s].stride for s in row.sources], cfg)
            _complete_args(row, [shape[1] for shape in shapes], cfg)
            if row.spec.output:
                row.params = _count(_dry_build(row, "meta"))
            else:
                _dry_run(row, shapes)
        except RowError as error:
            raise _located(row, source, error) from None


def _check_lists(row: Row, rows: list[Row]) -> None:
    """A row that gives several maps is read by Index rows alone, and they read nothing else."""
    for s in row.sources:
        name, maps = (rows[s].name, len(rows[s].maps)) if s >= 0 else ("the image", 0)
        if maps and not row.spec.picks:
            raise RowError(f"layer {s}, {name}, gives {maps} maps; take one by a row [{s}, 1, Index, [0]]")
        if row.spec.picks and not maps:
            raise RowError(f"layer {s}, {name}, gives one map, expected a row of several such as Timm")


def _check_sizes(row: Row, rows: list[Row], shapes: Sequence[tuple[int, ...]]) -> None:
    """All maps a row joins must have one size; the detector's output takes them as they come."""
    if row.spec.output or row.spec.picks or len({shape[2:] for shape in shapes}) == 1:
        return
    found = ", ".join(f"layer {s} has stride {rows[s].stride:g}" for s in row.sources)
    raise RowError(f"cannot join maps of different strides: {found}; expected one stride for all")


def _complete_args(row: Row, channels: list[int], cfg: dict[str, Any]) -> None:
    """Turn the row's arguments into the constructor's: width scaled, channels in front, repeats inside."""
    spec, given = row.spec, list(row.args)
    args = given
    if spec.channels == "in_out":
        if not given or not _accepts(given[0], int) or given[0] < 1:
            found = repr(given[0]) if given else "no argument"
            raise RowError(f"found {found} as the first argument, expected the number of output channels")
        c2 = _scaled_width(given[0], cfg) if spec.scale_width else given[0]
        inside = [row.number] if spec.repeat == "inside" else []
        args = [channels[0], c2, *inside, *given[1:]]
    elif spec.channels == "in":
        args = [channels[0], *given]
    elif spec.channels == "sources":
        args = [*given, channels]
    names = list(spec.signature.parameters)[: len(args)]
    widths = [i for i, name in enumerate(names) if name in spec.scale_also and _accepts(args[i], int)]
    args = [_scaled_width(arg, cfg) if i in widths else arg for i, arg in enumerate(args)]
    row.args = args
    bound = _bind(row, args, len(args) - len(given))
    problem = spec.check(bound, channels) if spec.check else None
    if problem:
        raise RowError(problem)


def _scaled_width(width: int, cfg: dict[str, Any]) -> int:
    """A width times width_multiple, rounded up to a multiple of 8 or of the YAML's channel_multiple."""
    divisor = cfg.get("channel_multiple", 8)
    return math.ceil(width * cfg.get("width_multiple", 1.0) / divisor) * divisor


def _bind(row: Row, args: list[Any], added: int) -> dict[str, Any]:
    """The arguments by the constructor's names, their number and kinds checked."""
    signature, hints = row.spec.signature, row.spec.hints
    try:
        bound = signature.bind(*args)
    except TypeError:
        raise RowError(f"found {_arguments(row, args, added)}; expected {_expected(row)}") from None
    for name, value in bound.arguments.items():
        if name in hints and not _accepts(value, hints[name]):
            raise RowError(
                f"{name} is {_kind(value)} {value!r}, expected {_readable(hints[name])}: {_expected(row)}"
            )
        if hints.get(name) is Activation and isinstance(value, str):
            try:
                activation_factory(value)
            except ValueError as error:
                raise RowError(str(error)) from None
        least = value if isinstance(value, tuple | list) else [value]
        if name in _POSITIVE and any(_accepts(v, float) and v <= 0 for v in least):
            raise RowError(f"{name} is {value!r}, expected a number above 0")
    bound.apply_defaults()
    return dict(bound.arguments)


def _arguments(row: Row, args: list[Any], added: int) -> str:
    count = len(args) - added
    return f"{count} argument{'' if count == 1 else 's'}"


def _expected(row: Row) -> str:
    """The row's own arguments in words: the constructor's parameters less those put in for it."""
    parameters = list(row.spec.signature.parameters.values())
    hidden = 2 if row.spec.channels == "in_out" and row.spec.repeat == "inside" else 0
    parameters = parameters[row.spec.given_in_front :]
    if hidden:
        parameters = [parameters[0], *parameters[2:]]
    if row.spec.channels == "sources":
        parameters = parameters[:-1]
    words = [
        p.name if p.default is inspect.Parameter.empty else f"{p.name}={p.default!r}" for p in parameters
    ]
    return f"[{', '.join(words)}]"


def _complete_output(row: Row, strides: list[float], cfg: dict[str, Any]) -> None:
    """The detector's output: its nc and anchors are the model's, one level for each source, strides whole."""
    for source, stride in zip(row.sources, strides):
        if stride != int(stride):
            raise RowError(f"layer {source} has stride {stride:g}, expected a whole number")
    for i, name in enumerate(list(row.spec.signature.parameters)[: len(row.args)]):
        if name == "nc" and row.args[i] != cfg["nc"]:
            raise RowError(f"its nc is {row.args[i]!r} but the model's is {cfg['nc']!r}; write nc there")
        if name == "anchors":
            row.args[i] = pixel_anchors(row.args[i], strides)


def pixel_anchors(anchors: Any, strides: Sequence[float]) -> list[list[float]]:
    """Anchors as one flat list w, h, w, h, ... per level, in pixels.

    A number means so many per level, to be fitted to the data: squares from 2 to under 4 strides till then.

    Raises:
        RowError: not so many lists as levels, an odd number of values, unequal lengths, a value not above 0.
    """
    levels = len(strides)
    if _accepts(anchors, float):
        count = round(anchors)
        if count < 1:
            raise RowError(f"anchors is {anchors!r}, expected at least one per level")
        return [[s * 2 ** (1 + i / count) for i in range(count) for _ in range(2)] for s in strides]
    if not isinstance(anchors, list | tuple) or not all(isinstance(level, list | tuple) for level in anchors):
        raise RowError(f"anchors is {anchors!r}, expected one list of w,h pairs per level or a number")
    if len(anchors) != levels:
        raise RowError(
            f"found {len(anchors)} lists of anchors for {levels} levels in `from`, expected {levels}"
        )
    for number, level in enumerate(anchors, 1):
        if not level or len(level) % 2 or not all(_accepts(v, float) and v > 0 for v in level):
            raise RowError(f"anchors, list {number}, is {level!r}, expected pairs w,h of numbers above 0")
        if len(level) != len(anchors[0]):
            raise RowError(
                f"anchors, list {number}, has {len(level)} values, expected {len(anchors[0])} as in list 1"
            )
    return [list(map(float, level)) for level in anchors]


_CANNOT = (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError, LookupError)


def _dry_build(row: Row, device: str) -> nn.Module:
    """Build a row to look at it; what its constructor refuses becomes the row's error."""
    try:
        with torch.device(device):
            return _build(row).eval()
    except UserError as error:  # a block's own sentence
        raise RowError(str(error)) from None
    except _failures(row) as error:
        raise RowError(f"cannot be built with {row.args}: {_why(row, error)}") from None


def _dry_run(row: Row, shapes: Sequence[tuple[int, ...]]) -> None:
    """Infer a row's output shape, parameters and stride from those of its sources.

    Without memory or arithmetic; a block that needs real numbers to run gets them once.
    """
    layer = _dry_build(row, "meta")
    try:
        try:
            y = _run(layer, row, shapes, "meta")
        except RuntimeError as error:
            if "meta" not in str(error):  # a true mistake; otherwise the block asks for a tensor's values
                raise
            with torch.random.fork_rng(devices=[]):
                y = _run(_dry_build(row, "cpu"), row, shapes, "cpu")
    except _failures(row) as error:
        inputs = " and ".join("x".join(map(str, shape[1:])) for shape in shapes)
        raise RowError(f"cannot take an input of {inputs} with {row.args}: {_why(row, error)}") from None
    if row.spec.many:
        row.maps = [tuple(m.shape) for m in y]
        y = y[-1]
    if not isinstance(y, torch.Tensor) or y.ndim != 4 or 0 in y.shape:
        raise RowError("gives no map (N, C, H, W), which every row but the last must")
    down, across = PROBE / y.shape[2], PROBE / y.shape[3]
    if down != across:
        raise RowError(f"has stride {down:g} down but {across:g} across, expected one stride")
    row.shape, row.out_channels, row.stride = tuple(y.shape), y.shape[1], down
    row.params = _count(layer)


def _run(layer: nn.Module, row: Row, shapes: Sequence[tuple[int, ...]], device: str) -> Any:
    """One forward of a row on empty maps."""
    maps = [torch.zeros(shape, device=device) for shape in shapes]
    with torch.no_grad():
        return layer(maps if row.spec.joins or row.spec.picks else maps[0])


def _failures(row: Row) -> type[Exception] | tuple[type[Exception], ...]:
    """What a row's block may raise without it being a defect of ours: in a plug-in's code, anything."""
    return Exception if row.spec.source else _CANNOT


def _why(row: Row, error: Exception) -> str:
    """What a block's error says; of a plug-in's block also where in its file it comes from."""
    source = row.spec.source
    return f"{source}, {blame(error, Path(source))}" if source else _first_line(error)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _count(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters())


def _build(row: Row) -> nn.Module:
    """The layer of a row; `number` copies in a Sequential unless the block repeats inside."""
    spec, args = row.spec, row.args
    if row.number == 1 or spec.repeat == "inside":
        return spec.cls(*args)
    rest = list(args)
    if spec.channels == "in_out":
        rest[0] = args[1]
        names = list(spec.signature.parameters)
        at = names.index(spec.stride) if spec.stride in names else len(args)
        if at < len(args):
            rest[at] = 1
    return nn.Sequential(*(spec.cls(*(args if i == 0 else rest)) for i in range(row.number)))


def _accepts(value: Any, hint: Any) -> bool:
    """Whether a YAML value is of the kind an annotation states; annotations not known here accept all."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(value, option) for option in typing.get_args(hint))
    if hint is None or hint is type(None):
        return value is None
    if hint is bool or hint is str:
        return isinstance(value, hint)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if origin in (tuple, list) or hint in (tuple, list) or _is_sequence(origin or hint):
        return _accepts_items(value, typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, nn.Module):
        return isinstance(value, nn.Module)
    return True


def _is_sequence(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Sequence) and kind is not str


def _accepts_items(value: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether a YAML list fits tuple[int, ...], tuple[int, int] or Sequence[float]."""
    if not isinstance(value, list | tuple):
        return False
    if not kinds:
        return True
    if len(kinds) == 1 or (len(kinds) == 2 and kinds[1] is Ellipsis):
        return all(_accepts(item, kinds[0]) for item in value)
    return len(value) == len(kinds) and all(_accepts(item, kind) for item, kind in zip(value, kinds))


def _kind(value: Any) -> str:
    """A value's kind in a user's words."""
    names = {bool: "true/false", int: "number", float: "number", str: "text", list: "list", dict: "mapping"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def _readable(hint: Any) -> str:
    """An annotation in a user's words."""
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_readable(h) for h in typing.get_args(hint) if h is not nn.Module)
    if typing.get_origin(hint) in (tuple, list):
        return "a list"
    return getattr(hint, "__name__", str(hint))
