"""Give each row its arguments, channels and stride before a weight exists."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.build.rows import Row, RowError, row_error
from models.build.values import accepts, kind_of, readable_hint
from models.layers.activations import Activation, activation_factory
from models.registry import blame
from utils.errors import UserError

PROBE = 512  # pixels per side of the image that the rows' shapes are inferred with: strides up to 512

_POSITIVE = frozenset({"c2", "k", "s", "g", "d", "n", "e", "heads", "layers", "gain", "stride", "expand"})

_POSITIVE |= {"out_channels", "kernel_size", "groups", "dilation"}

_POSITIVE |= {"dim", "depth", "kernel", "patch", "mlp_dim", "mid"}


def infer_shapes(rows: list[Row], cfg: dict[str, Any], ch: int, source: str) -> None:
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
            raise row_error(row, source, error) from None


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
        if not given or not accepts(given[0], int) or given[0] < 1:
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
    widths = [i for i, name in enumerate(names) if name in spec.scale_also and accepts(args[i], int)]
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
        if name in hints and not accepts(value, hints[name]):
            raise RowError(
                f"{name} is {kind_of(value)} {value!r}, "
                f"expected {readable_hint(hints[name])}: {_expected(row)}"
            )
        if hints.get(name) is Activation and isinstance(value, str):
            try:
                activation_factory(value)
            except ValueError as error:
                raise RowError(str(error)) from None
        least = value if isinstance(value, tuple | list) else [value]
        if name in _POSITIVE and any(accepts(v, float) and v <= 0 for v in least):
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
    if accepts(anchors, float):
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
        if not level or len(level) % 2 or not all(accepts(v, float) and v > 0 for v in level):
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
            return build_layer(row).eval()
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


def build_layer(row: Row) -> nn.Module:
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
