"""Read the rows of a model YAML and check their form."""

from __future__ import annotations

import difflib
import functools
import logging
from dataclasses import dataclass, field
from typing import Any

from models.build.values import accepts, kind_of
from models.layers.activations import activation_factory
from models.registry import REGISTRY, BlockSpec, lookup
from utils.dataset.config import MOST_CLASSES
from utils.errors import UserError, shown
from utils.files import YamlMapping

LOGGER = logging.getLogger("yolo.models")

# What is above these is a typing error, and would take minutes or gigabytes to build.
MOST_LAYERS = 150  # rows, and copies of one row or of all rows together
MOST_ENTRIES = 1000  # of a list in a row
LARGEST_NUMBER = 65_536  # of channels, or of any other number in a row
LARGEST_MULTIPLE = 100  # depth_multiple and width_multiple
KEYS = (
    *("nc", "depth_multiple", "width_multiple", "channel_multiple", "anchors", "backbone", "head", "ch"),
    *("activation", "inplace", "mean", "std", "pretrained"),
)
_REMEDY = {
    "nc": "write 'nc: 80' (the number of classes)",
    "anchors": "write one list of w,h pairs in pixels per detection level, or a number of anchors",
    "backbone": "it lists the rows [from, number, module, args]",
    "head": "it lists the rows after the backbone and ends with Detect",
}


@dataclass
class Row:
    """One row of the YAML and the layer that it builds.

    `read_rows` makes it; `infer_shapes` then completes `args` and fills the last five attributes.

    Attributes:
        index: number of the layer, counted from 0 through backbone and head.
        section, section_row: 'backbone' or 'head', and the row's number in it, counted from 1.
        from_: the YAML's `from` as written. sources: the layers it means (-1: the image).
        number: copies after depth_multiple. name: the block. spec: its rules.
        args: the arguments, of any kind that a YAML has: first the row's, then the constructor's.
        out_channels, stride: of the output; both 0 for the detector's output. Of a row that gives several
            maps: of the last; `maps` has the shapes of all.
        params: parameters of the layer. shape: of the output for an image of the size that is tried.
    """

    index: int
    section: str
    section_row: int
    from_: int | list[int]
    sources: tuple[int, ...]
    number: int
    name: str
    spec: BlockSpec = field(repr=False)
    args: list[Any]  # Any: what a YAML's list can hold
    out_channels: int = 0
    stride: float = 0
    params: int = 0
    shape: tuple[int, ...] = field(default=(), repr=False)
    maps: list[tuple[int, ...]] = field(default_factory=list, repr=False)

    @property
    def place(self) -> str:
        """Return where the row is, in the words of an error."""
        return _place(self.section, self.section_row, self.index, self.name)


def _place(section: str, section_row: int, index: int, name: str) -> str:
    """Return a row's section, number, layer and block."""
    return f"{section} row {section_row} (layer {index}{f', {name}' if name else ''})"


class RowError(Exception):
    """Say what is wrong with a row: what was found and what was expected.

    The caller adds the file and the row.
    """


def check_keys(cfg: YamlMapping, source: str) -> None:
    """Check everything of a model's YAML but its rows.

    Raises:
        UserError: a key that is missing, misspelt or of the wrong kind.
    """
    for key in [key for key in cfg if key not in KEYS]:
        close = difflib.get_close_matches(str(key).strip().lower(), KEYS, 1, 0.8)
        if close:
            raise UserError(f"{source}: key {shown(key)} is not known; did you mean {close[0]!r}?")
        _warn_unknown(source, str(key))
    for key, remedy in _REMEDY.items():
        if cfg.get(key) is None and (key != "anchors" or _reads_anchors(cfg)):
            raise UserError(f"{source}: key '{key}' is missing; {remedy}")
    for key in ("backbone", "head"):
        if not isinstance(cfg[key], list) or not cfg[key]:
            raise UserError(f"{source}: '{key}' is {kind_of(cfg[key])}, expected a list of rows")
    for key, most in (("nc", MOST_CLASSES), ("ch", LARGEST_NUMBER), ("channel_multiple", LARGEST_NUMBER)):
        if key in cfg and not (accepts(cfg[key], int) and 0 < cfg[key] <= most):
            raise UserError(
                f"{source}: {key}: {shown(cfg[key])} is not a whole number above 0 and up to {most}"
            )
    for key in ("depth_multiple", "width_multiple"):
        if key in cfg and not (accepts(cfg[key], float) and 0 < cfg[key] <= LARGEST_MULTIPLE):
            raise UserError(
                f"{source}: {key}: {shown(cfg[key])} is not a number above 0 and up to {LARGEST_MULTIPLE}"
            )
    activation = cfg.get("activation")
    if activation is not None and not isinstance(activation, str):
        raise UserError(f"{source}: activation: {shown(activation)} is no name such as 'ReLU6'")
    try:
        activation_factory(activation or "SiLU")
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


def _reads_anchors(cfg: YamlMapping) -> bool:
    """Return whether a row of the head has the YAML's anchors as an argument."""
    rows = cfg.get("head")
    rows = [row for row in rows if isinstance(row, list) and row] if isinstance(rows, list) else []
    return any(isinstance(row[-1], list) and "anchors" in row[-1] for row in rows)


@functools.cache  # a training builds its YAML twice: first to check it, then with the data's classes
def _warn_unknown(source: str, key: str) -> None:
    LOGGER.warning("%s: key %r is not known and does nothing; known are %s", source, key, ", ".join(KEYS))


def read_rows(cfg: YamlMapping, source: str) -> list[Row]:
    """Read the rows of backbone and head.

    Args:
        cfg: a YAML that `check_keys` has accepted.
        source: what to call it in messages.

    Raises:
        UserError: a row without four entries of the right kinds, an unknown block, a source out of range, or
            no `Detect` as the last row.
    """
    rows: list[Row] = []
    if len(cfg["backbone"]) + len(cfg["head"]) > MOST_LAYERS:
        raise UserError(f"{source}: backbone and head have more than {MOST_LAYERS} rows; write fewer")
    for section in ("backbone", "head"):
        for number, raw in enumerate(cfg[section], 1):
            try:
                rows.append(_read_row(section, number, len(rows), raw, cfg))
            except RowError as error:
                name = raw[2] if isinstance(raw, list) and len(raw) == 4 and isinstance(raw[2], str) else ""
                place = _place(section, number, len(rows), name)
                raise UserError(f"{source}: {place}: {error}") from None
    if (repeats := sum(row.number for row in rows)) > MOST_LAYERS:
        raise UserError(
            f"{source}: its rows repeat {repeats} times together, expected at most {MOST_LAYERS}; lower "
            "their numbers or depth_multiple"
        )
    last, output = rows[-1], next((row for row in rows if row.spec.output), None)
    if output is None:
        raise UserError(
            f"{source}: {last.place}: the last row is {last.name} and no row is Detect; "
            "end the head with a Detect row"
        )
    if output is not last:
        raise UserError(
            f"{source}: {output.place}: {output.name} is not the last row; move it to the end of the head"
        )
    return rows


def _read_row(section: str, section_row: int, index: int, raw: object, cfg: YamlMapping) -> Row:
    """Read one row [from, number, module, args]."""
    if not isinstance(raw, list) or len(raw) != 4:
        raise RowError(f"found {shown(raw)}, expected four entries [from, number, module, [args]]")
    from_, number, name, args = raw
    if not isinstance(name, str):
        raise RowError(f"module is {kind_of(name)} {shown(name)}, expected the name of a block")
    spec = lookup(name)
    if spec is None:
        close = difflib.get_close_matches(name, REGISTRY, 3, 0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "expected a block of models/common.py"
        raise RowError(f"unknown block {shown(name)}; {hint} (your own blocks are loaded by --plugins FILE)")
    if not accepts(number, int) or number < 1 or number.bit_length() > 64:
        raise RowError(f"number is {shown(number)}, expected a whole number of repeats from 1")
    if spec.output and number > 1:
        raise RowError(f"number is {number}, expected 1 for the output of the model")
    if not isinstance(args, list):
        raise RowError(f"args is {kind_of(args)} {shown(args)}, expected a list such as [64, 3, 2]")
    repeats = max(round(number * cfg.get("depth_multiple", 1.0)), 1) if number > 1 else 1
    if repeats > MOST_LAYERS:
        raise RowError(f"repeats {repeats} times after depth_multiple, expected at most {MOST_LAYERS}")
    sources = _sources(index, from_, spec)
    values = [_literal(arg, cfg) for arg in args]
    return Row(index, section, section_row, from_, sources, repeats, name, spec, values)


def _literal(value: object, cfg: YamlMapping) -> object:
    """Return an argument's value.

    'nc', 'anchors', 'None', 'True' and 'False' are names of values; any other text is itself.
    """
    names = {"nc": cfg["nc"], "anchors": cfg.get("anchors"), "None": None, "True": True, "False": False}
    if isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
        raise RowError(f"args has {shown(value)}, expected numbers up to {LARGEST_NUMBER}")
    if isinstance(value, list):
        if len(value) > MOST_ENTRIES:
            raise RowError(f"args has a list of {len(value)} entries, expected at most {MOST_ENTRIES}")
        return [_literal(item, cfg) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _sources(index: int, from_: int | list[int], spec: BlockSpec) -> tuple[int, ...]:
    """Return the numbers of the layers that a `from` means (-1: the image)."""
    wanted = from_ if isinstance(from_, list) else [from_]
    if not 0 < len(wanted) <= MOST_ENTRIES or not all(accepts(f, int) for f in wanted):
        raise RowError(
            f"from is {shown(from_)}, expected a layer's number, -1 for the row before, or a list of them"
        )
    if spec.joins != isinstance(from_, list):
        expected = "a list of layers" if spec.joins else "one layer"
        raise RowError(f"from is {shown(from_)}, expected {expected}, which is what {spec.name} takes")
    sources = tuple(f if f >= 0 else index + f for f in wanted)
    for f, absolute in zip(wanted, sources):
        if absolute >= index or absolute < (-1 if index == 0 else 0):
            allowed = f"-{index} to {index - 1}" if index else "-1 (the image)"
            raise RowError(f"from {shown(f)} is out of range, expected {allowed}: a layer above this row")
    return sources
