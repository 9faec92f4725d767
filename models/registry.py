"""How a block states its needs: one table from the name in a YAML row to a class and its rules.

A block of the user's own, in the user's own file, registers in the same way as ours and needs no edit here:

    from models.registry import register_block

    @register_block
    class MyBlock(nn.Module):
        def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1): ...

and is loaded by `--plugins my_blocks.py`. The row `[-1, 1, MyBlock, [64, 3, 2]]` then builds
MyBlock(c, 64, 3, 2), where c is the channels that come in.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from utils.errors import UserError

CHANNELS = ("in_out", "in", "same", "sources")
REPEATS = ("outside", "inside")
_STRIDE_NAMES = ("s", "stride")

Check = Callable[[dict[str, Any], list[int]], "str | None"]


@dataclass(frozen=True)
class BlockSpec:
    """How the arguments of a YAML row become the arguments of a constructor.

    Attributes:
        name: what a YAML calls it.
        cls: the module's class.
        channels: 'in_out': the row's first argument is c2, and the constructor takes (c1, c2, *rest);
            'in': it takes (c1, *row); 'same': it takes the row as it is; 'sources': it takes (*row, list of
            the sources' channels).
        scale_width: whether c2 is multiplied by width_multiple and rounded up to a multiple of 8.
        scale_also: further parameters of the constructor that are widths and are scaled in the same way.
        repeat: 'outside': `number` copies in a Sequential, the first with the row's stride and channels, the
            others c2 -> c2 at stride 1; 'inside': `number` becomes the constructor's argument after c2.
        joins: whether it takes a list of maps (Concat) rather than one.
        output: whether it is the detector's output; decided here and never by a channel number.
        stride: the constructor's parameter that holds the stride; None: 's' or 'stride' if it has one.
        check: (arguments by name, channels of the sources) -> what is wrong, or None.
        source: the plug-in file that registered it, None for ours.
        many: whether it gives a list of maps, of which rows of `picks` blocks take one each.
        picks: whether it takes the list of maps of a `many` block.
        reference: for a row that is another library's network, named by its first argument: which library.
    """

    name: str
    cls: type[nn.Module]
    channels: str = "in_out"
    scale_width: bool = True
    repeat: str = "outside"
    joins: bool = False
    output: bool = False
    stride: str | None = None
    check: Check | None = None
    scale_also: tuple[str, ...] = ()
    source: str | None = None
    many: bool = False
    picks: bool = False
    reference: str | None = None

    @property
    def signature(self) -> inspect.Signature:
        """The constructor's parameters without `self`."""
        return inspect.signature(self.cls)

    @property
    def hints(self) -> dict[str, Any]:
        """Types of the constructor's parameters; empty when its annotations cannot be read."""
        try:
            return typing.get_type_hints(self.cls.__init__)
        except (NameError, TypeError, AttributeError):
            return {}

    @property
    def given_in_front(self) -> int:
        """How many constructor arguments come before those of the row."""
        return 1 if self.channels in ("in_out", "in") else 0


_RULES = {field.name for field in dataclasses.fields(BlockSpec)} - {"name", "cls", "source"}
REGISTRY: dict[str, BlockSpec] = {}
_loaded: dict[Path, str] = {}
_loading: list[str] = []


def register_block(cls: type[nn.Module] | None = None, name: str | None = None, **rules: Any) -> Any:
    """Register a block, as a call or as a decorator with or without arguments.

    Args:
        cls: the module's class; None when used as a decorator with arguments.
        name: what a YAML calls it; the class's own name when absent.
        rules: fields of `BlockSpec` other than name, cls and source.

    Raises:
        UserError: the name is taken by another block, or a rule is not one of those known.
    """
    if cls is None:
        return lambda decorated: register_block(decorated, name, **rules)
    label = name or cls.__name__
    where = _loading[-1] if _loading else None
    prefix = f"{where}: block {label}" if where else f"block {label}"
    unknown = sorted(set(rules) - _RULES)
    if unknown:
        raise UserError(f"{prefix}: {unknown[0]} is no rule; use those of {', '.join(sorted(_RULES))}")
    _check_rules(cls, label, rules.get("channels", "in_out"), rules.get("repeat", "outside"), where)
    parameters = inspect.signature(cls).parameters
    absent = [p for p in rules.get("scale_also", ()) if p not in parameters]
    if absent:
        raise UserError(f"{prefix}: scale_also names {absent[0]!r}, no parameter of its constructor")
    if rules.get("stride") is None:
        rules["stride"] = next((p for p in _STRIDE_NAMES if p in parameters), None)
    rules["scale_also"] = tuple(rules.get("scale_also", ()))
    REGISTRY[label] = BlockSpec(label, cls, source=where, **rules)
    return cls


def _check_rules(cls: type, label: str, channels: str, repeat: str, where: str | None) -> None:
    """Refuse a registration that could not work."""
    prefix = f"{where}: block {label}" if where else f"block {label}"
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise UserError(f"{prefix}: is no torch.nn.Module class; register the class itself")
    if channels not in CHANNELS:
        raise UserError(f"{prefix}: channels={channels!r} is no rule; use one of {', '.join(CHANNELS)}")
    if repeat not in REPEATS:
        raise UserError(f"{prefix}: repeat={repeat!r} is no rule; use one of {', '.join(REPEATS)}")
    if label in REGISTRY:
        owner = REGISTRY[label].source or "this project"
        raise UserError(f"{prefix}: that name is taken by a block of {owner}; register it under another name")


def lookup(name: str) -> BlockSpec | None:
    """The block a YAML names; 'torch.nn.X' and 'nn.X' are one. None when there is none."""
    return REGISTRY.get(name.removeprefix("torch."))


def load_plugins(paths: str | Path | Iterable[str | Path]) -> list[str]:
    """Run the user's own files so that their blocks register; a file loaded before is not run again.

    This is the one place where code the user names is run; no YAML or checkpoint can reach it.

    Returns:
        The files' absolute paths, in order.
    Raises:
        UserError: a missing file, or one whose code fails (with its line).
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    return [_load_plugin(Path(path)) for path in paths or []]


def _load_plugin(path: Path) -> str:
    """Run one plug-in file under a module name of its own."""
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"--plugins {path}: no such Python file; give the path of a .py file that registers blocks"
        )
    path = path.resolve()
    if path in _loaded:
        return str(path)
    before = set(REGISTRY)
    module_name = f"yolo_plugin_{path.stem}_{len(_loaded)}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    _loading.append(str(path))
    try:
        spec.loader.exec_module(module)
    except UserError:
        _forget(module_name, before)
        raise
    except Exception as error:  # noqa: BLE001 whatever the user's own code raises is told with its line
        _forget(module_name, before)
        raise UserError(f"--plugins {path}, {blame(error, path)}") from error
    finally:
        _loading.pop()
    _loaded[path] = module_name
    return str(path)


def _forget(module_name: str, names_before: set[str]) -> None:
    """Undo a plug-in that failed half-way, so that mending it and loading again works."""
    sys.modules.pop(module_name, None)
    for name in set(REGISTRY) - names_before:
        del REGISTRY[name]


def _line_of(error: Exception, path: Path) -> int | str:
    """The deepest line of that file on the way to an error."""
    if isinstance(error, SyntaxError) and error.lineno:
        return error.lineno
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    return lines[-1] if lines else "?"


def blame(error: Exception, path: Path) -> str:
    """An exception of a plug-in file's code as half a sentence: the line it comes from, and what it says."""
    text = str(error).strip().splitlines()
    return f"line {_line_of(error, path)}: {type(error).__name__}: {text[0] if text else 'no message'}"


def plugins_of(names: Sequence[str]) -> list[str]:
    """The plug-in files that the named blocks come from."""
    return sorted({spec.source for name in names if (spec := lookup(name)) and spec.source})
