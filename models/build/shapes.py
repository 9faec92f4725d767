"""Infer each row's arguments, channels and stride before a weight exists."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.build.rows import LARGEST_NUMBER, Row, RowError
from models.build.values import accepts, kind_of, readable_hint
from models.layers.activations import Activation, activation_factory
from models.plugins import blame
from models.registry import Arguments
from utils.errors import UserError, first_line, shown
from utils.files import YamlMapping
from utils.profiling import count_parameters

_PROBE = 512  # pixels per side of the image that shapes are inferred with: strides up to 512
_MOST_VALUES = 1 << 26  # of the weights and maps of a block that cannot be tried on the meta device
_MOST_INSIDE = 100  # copies that one block makes inside itself, and anchors of a level
_COUNTS = frozenset({"n", "layers", "depth"})

# Parameters of constructors that must be above 0.
_POSITIVE = {
    *("c2", "k", "s", "g", "d", "n", "e", "heads", "layers", "gain", "stride", "expand", "out_channels"),
    *("kernel_size", "groups", "dilation", "dim", "depth", "kernel", "patch", "mlp_dim", "mid"),
}
# What our own and torch's constructors and forwards raise for arguments that cannot work.
_CANNOT = (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError, LookupError)


def infer_shapes(rows: list[Row], cfg: YamlMapping, ch: int, source: str) -> None:
    """Complete the arguments of every row and fill its channels, stride and parameters.

    Each row is built and run once without weights.

    Args:
        rows: those of `read_rows`; changed in place.
        cfg: the YAML. ch: channels of the image. source: what to call the YAML in messages.

    Raises:
        UserError: a row that cannot be built or cannot take what its sources give.
    """
    for row in rows:
        try:
            _infer_shape(row, rows, cfg, ch)
        except RowError as error:
            raise UserError(f"{source}: {row.place}: {error}") from None


def _infer_shape(row: Row, rows: list[Row], cfg: YamlMapping, ch: int) -> None:
    """Complete one row; the rows before it are complete."""
    shapes = [rows[s].shape if s >= 0 else (1, ch, _PROBE, _PROBE) for s in row.sources]
    _check_lists(row, rows)
    if row.spec.picks:
        shapes = rows[row.sources[0]].maps
    _check_sizes(row, rows, shapes)
    if row.spec.output:
        _complete_output(row, [rows[s].stride for s in row.sources], cfg)
    _complete_args(row, [shape[1] for shape in shapes], cfg)
    if row.spec.output:
        row.params = count_parameters(_build_alone(row, "meta"))
    else:
        _run_alone(row, shapes)


def _check_lists(row: Row, rows: list[Row]) -> None:
    """Check that Index rows, and no others, read a row of several maps."""
    for s in row.sources:
        name, maps = (rows[s].name, len(rows[s].maps)) if s >= 0 else ("the image", 0)
        if maps and not row.spec.picks:
            raise RowError(f"layer {s}, {name}, gives {maps} maps; take one by a row [{s}, 1, Index, [0]]")
        if row.spec.picks and not maps:
            raise RowError(f"layer {s}, {name}, gives one map, expected a row of several such as Timm")


def _check_sizes(row: Row, rows: list[Row], shapes: Sequence[tuple[int, ...]]) -> None:
    """Check that maps to be joined have one size; the output takes any."""
    if row.spec.output or row.spec.picks or len({shape[2:] for shape in shapes}) == 1:
        return
    strides = dict.fromkeys(f"layer {s} has stride {rows[s].stride:g}" for s in row.sources)
    found = ", ".join(list(strides)[:10])
    raise RowError(f"cannot join maps of different strides: {found}; expected one stride for all")


def _complete_args(row: Row, channels: list[int], cfg: YamlMapping) -> None:
    """Turn the row's arguments into the constructor's.

    Widths are scaled; input channels come in front; repeats inside a block come after its width.
    """
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
    row.args = [_scaled_width(arg, cfg) if i in widths else arg for i, arg in enumerate(args)]
    bound = _bind(row, len(given))
    problem = spec.check(bound, channels) if spec.check else None
    if problem:
        raise RowError(problem)


def _scaled_width(width: int, cfg: YamlMapping) -> int:
    """Multiply a width by width_multiple and round it up to a multiple of channel_multiple (8)."""
    divisor: int = cfg.get("channel_multiple", 8)
    return math.ceil(width * cfg.get("width_multiple", 1.0) / divisor) * divisor


def _bind(row: Row, given: int) -> Arguments:
    """Return the arguments by the constructor's names, after a check of their number and kinds.

    Args:
        row: with the constructor's arguments. given: how many of them the YAML wrote, for the message.
    """
    signature, hints = row.spec.signature, row.spec.hints
    try:
        bound = signature.bind(*row.args)
    except TypeError:
        found = f"{given} argument{'' if given == 1 else 's'}"
        raise RowError(f"found {found}; expected {_expected(row)}") from None
    for name, value in bound.arguments.items():
        if name in hints and not accepts(value, hints[name]):
            raise RowError(
                f"{name} is {kind_of(value)} {shown(value)}, "
                f"expected {readable_hint(hints[name])}: {_expected(row)}"
            )
        _check_value(name, value, hints.get(name))
    bound.apply_defaults()
    return dict(bound.arguments)


# Any: of a kind that `accepts` has checked.
def _check_value(name: str, value: Any, hint: object) -> None:
    """Check that an activation is known and that sizes are above 0."""
    if hint is Activation and isinstance(value, str):
        try:
            activation_factory(value)
        except ValueError as error:
            raise RowError(str(error)) from None
    if name in _COUNTS and accepts(value, int) and value > _MOST_INSIDE:
        raise RowError(f"{name} is {value}, expected at most {_MOST_INSIDE} copies inside a block")
    values = value if isinstance(value, tuple | list) else [value]
    if name in _POSITIVE and any(accepts(v, float) and v <= 0 for v in values):
        raise RowError(f"{name} is {shown(value)}, expected a number above 0")


def _expected(row: Row) -> str:
    """Describe the arguments of a row: the constructor's parameters without those that we fill in."""
    spec = row.spec
    parameters = list(spec.signature.parameters.values())[spec.given_in_front :]
    if spec.channels == "in_out" and spec.repeat == "inside":
        del parameters[1]
    if spec.channels == "sources":
        del parameters[-1]
    words = [
        p.name if p.default is inspect.Parameter.empty else f"{p.name}={p.default!r}" for p in parameters
    ]
    return f"[{', '.join(words)}]"


def _complete_output(row: Row, strides: list[float], cfg: YamlMapping) -> None:
    """Check the output's nc and strides, and write its anchors as pixels per level."""
    for source, stride in zip(row.sources, strides):
        if stride != int(stride):
            raise RowError(f"layer {source} has stride {stride:g}, expected a whole number")
    for i, name in enumerate(list(row.spec.signature.parameters)[: len(row.args)]):
        if name == "nc" and row.args[i] != cfg["nc"]:
            raise RowError(
                f"its nc is {shown(row.args[i])} but the model's is {shown(cfg['nc'])}; write nc there"
            )
        if name == "anchors":
            row.args[i] = pixel_anchors(row.args[i], strides)


# Any: a number or lists, which it checks itself.
def pixel_anchors(anchors: Any, strides: Sequence[float]) -> list[list[float]]:
    """Return anchors as one flat list w, h, w, h, ... per level, in pixels.

    A number means so many anchors per level, which training fits to the data. Until then they are squares
    of 2 to 4 strides.

    Raises:
        RowError: not so many lists as levels, an odd number of values, unequal lengths, a value not above 0.

    >>> pixel_anchors(1, [8, 16])
    [[16.0, 16.0], [32.0, 32.0]]
    """
    levels = len(strides)
    if accepts(anchors, float):
        count = round(anchors) if anchors <= _MOST_INSIDE else 0
        if count < 1:
            raise RowError(
                f"anchors is {shown(anchors)}, expected at least one per level and at most {_MOST_INSIDE}"
            )
        return [[s * 2 ** (1 + i / count) for i in range(count) for _ in range(2)] for s in strides]
    if not isinstance(anchors, list | tuple) or not all(isinstance(level, list | tuple) for level in anchors):
        raise RowError(f"anchors is {shown(anchors)}, expected one list of w,h pairs per level or a number")
    if len(anchors) != levels:
        raise RowError(
            f"found {len(anchors)} lists of anchors for {levels} levels in `from`, expected {levels}"
        )
    for number, level in enumerate(anchors, 1):
        if (
            not level
            or len(level) % 2
            or not all(accepts(v, float) and 0 < v <= LARGEST_NUMBER for v in level)
        ):
            raise RowError(
                f"anchors, list {number}, is {shown(level)}, expected pairs w,h of numbers above 0 and up to "
                f"{LARGEST_NUMBER}"
            )
        if len(level) != len(anchors[0]):
            raise RowError(
                f"anchors, list {number}, has {len(level)} values, expected {len(anchors[0])} as in list 1"
            )
    return [list(map(float, level)) for level in anchors]


def _build_alone(row: Row, device: str) -> nn.Module:
    """Build a row's layer; what its constructor refuses becomes the row's error."""
    try:
        with torch.device(device):
            return build_layer(row).eval()
    except UserError as error:  # a block's own sentence
        raise RowError(str(error)) from None
    except _failures(row) as error:
        raise RowError(f"cannot be built with {shown(row.args)}: {_why(row, error)}") from None


def _run_alone(row: Row, shapes: Sequence[tuple[int, ...]]) -> None:
    """Infer a row's output shape, parameters and stride from the shapes of its sources."""
    layer = _build_alone(row, "meta")
    result = _result_without_weights(layer, row, shapes)
    if row.spec.many:
        row.maps = [tuple(m.shape) for m in result]
        result = result[-1]
    if not isinstance(result, Tensor) or result.ndim != 4 or 0 in result.shape:
        raise RowError("gives no map (N, C, H, W), which every row but the last must")
    down, across = _PROBE / result.shape[2], _PROBE / result.shape[3]
    if down != across:
        raise RowError(f"has stride {down:g} down but {across:g} across, expected one stride")
    row.shape, row.out_channels, row.stride = tuple(result.shape), result.shape[1], down
    row.params = count_parameters(layer)


# Any: a user's block may return anything.
def _result_without_weights(layer: nn.Module, row: Row, shapes: Sequence[tuple[int, ...]]) -> Any:
    """Run a row without memory or arithmetic.

    A batch of 0 images needs neither, but a convolution copies its weight: not for large rows. Where a row
    cannot take it, the meta device does it; its first use imports torch._dynamo and sympy, which takes more
    than a second. A block whose code asks for a tensor's values runs once on the CPU.
    """
    # Others' code may not expect a batch of no image.
    if not (row.spec.source or row.spec.reference) and count_parameters(layer) <= _MOST_VALUES:
        with contextlib.suppress(Exception):  # the meta device says what is wrong
            return _forward_of_no_image(layer, row, shapes)
    try:
        try:
            return _forward(layer, row, shapes, "meta")
        except RuntimeError as error:
            if "meta" not in str(error):
                raise
            if count_parameters(layer) + sum(map(math.prod, shapes)) > _MOST_VALUES:
                raise RowError("is too large to be tried; use fewer channels") from None
            with torch.random.fork_rng(devices=[]):
                return _forward(_build_alone(row, "cpu"), row, shapes, "cpu")
    except _failures(row) as error:
        inputs = " and ".join("x".join(map(str, shape[1:])) for shape in shapes)
        raise RowError(
            f"cannot take an input of {inputs} with {shown(row.args)}: {_why(row, error)}"
        ) from None


def _forward_of_no_image(layer: nn.Module, row: Row, shapes: Sequence[tuple[int, ...]]) -> Tensor:
    """Run a row on a batch of 0 images, all weights being one zero.

    Raises:
        ValueError: the result does not tell the shape for one image.
    """
    light = copy.deepcopy(layer)._apply(
        lambda t: torch.zeros((), dtype=t.dtype, device="cpu").expand(t.shape)
    )
    result = _forward(light, row, [(0, *shape[1:]) for shape in shapes], "cpu")
    if not isinstance(result, Tensor) or result.ndim != 4 or len(result) > 0:
        raise ValueError("no map for a batch of 0 images")
    return result.new_zeros(()).expand(1, *result.shape[1:])


# Any: see above.
def _forward(layer: nn.Module, row: Row, shapes: Sequence[tuple[int, ...]], device: str) -> Any:
    """Run a row on maps of zeros."""
    maps = [torch.zeros(shape, device=device) for shape in shapes]
    with torch.no_grad():
        return layer(maps if row.spec.joins or row.spec.picks else maps[0])


def _failures(row: Row) -> type[Exception] | tuple[type[Exception], ...]:
    """Return the exceptions that are the row's fault; a plug-in can raise any."""
    return Exception if row.spec.source else _CANNOT


def _why(row: Row, error: Exception) -> str:
    """Return what a block's error says, for a plug-in's block with file and line."""
    source = row.spec.source
    return f"{source}, {blame(error, Path(source))}" if source else first_line(error)


def build_layer(row: Row) -> nn.Module:
    """Build a row's layer; `number` copies unless the block repeats inside."""
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
