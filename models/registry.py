"""Keep the table of blocks: a name in YAML rows, its class and its rules.

A block in the user's own file registers like ours and needs no edit here:

    from torch import nn
    from models.registry import register_block

    @register_block
    class MyBlock(nn.Module):
        def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1): ...

`--plugins my_blocks.py` loads it (`models/plugins.py`). The row `[-1, 1, MyBlock, [64, 3, 2]]` then builds
MyBlock(c, 64, 3, 2), where c is the number of input channels.
"""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, Unpack, overload

from torch import nn

from utils.errors import UserError

CHANNELS = ("in_out", "in", "same", "sources")
REPEATS = ("outside", "inside")
_STRIDE_NAMES = ("s", "stride")

# Any: the values have the types of the constructor's parameters; the parser compares them before a check.
Arguments = dict[str, Any]
Check = Callable[[Arguments, list[int]], str | None]
Block = TypeVar("Block", bound=nn.Module)


class Rules(TypedDict, total=False):
    """List the rules that a block can state; `BlockSpec` explains each."""

    channels: str
    scale_width: bool
    repeat: str
    joins: bool
    output: bool
    stride: str | None
    check: Check | None
    scale_also: Sequence[str]
    many: bool
    picks: bool
    reference: str | None


@dataclass(frozen=True)
class BlockSpec:
    """State how the arguments of a YAML row become the arguments of a constructor.

    Attributes:
        name: what a YAML calls the block.
        cls: the module's class.
        channels: 'in_out': the row's first argument is c2, and the constructor takes (c1, c2, *rest);
            'in': the constructor takes (c1, *row); 'same': it takes the row unchanged; 'sources': it takes
            (*row, list of the sources' channels).
        scale_width: whether c2 is multiplied by width_multiple and rounded up to a multiple of 8.
        repeat: 'outside': `number` copies in a Sequential, the first with the row's stride and channels, the
            others c2 -> c2 at stride 1; 'inside': `number` becomes the constructor's argument after c2.
        joins: whether the block takes a list of maps, like Concat, instead of one.
        output: whether it is the detector's output.
        stride: the constructor's parameter that holds the stride; None: 's' or 'stride', if there is one.
        check: (arguments by name, channels of the sources) -> what is wrong, or None.
        scale_also: further parameters of the constructor that are scaled like c2.
        source: the plug-in file that registered the block; None for ours.
        many: whether the block returns a list of maps. Rows of `picks` blocks take one map each.
        picks: whether the block takes the list of a `many` block.
        reference: the library of a row that is a whole network, which its first argument names.
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
    scale_also: Sequence[str] = ()
    source: str | None = None
    many: bool = False
    picks: bool = False
    reference: str | None = None

    @property
    def signature(self) -> inspect.Signature:
        """Return the constructor's parameters without `self`."""
        return inspect.signature(self.cls)

    # Any: an annotation is a class, a union or a generic alias, which share no type.
    @property
    def hints(self) -> dict[str, Any]:
        """Return the types of the constructor's parameters; none if its annotations cannot be read."""
        try:
            return typing.get_type_hints(self.cls.__init__)
        except (NameError, TypeError, AttributeError):
            return {}

    @property
    def given_in_front(self) -> int:
        """Count the constructor's arguments that come before those of the row."""
        return 1 if self.channels in ("in_out", "in") else 0


REGISTRY: dict[str, BlockSpec] = {}
_source: ContextVar[str | None] = ContextVar("source", default=None)


@contextlib.contextmanager
def registering_for(source: str) -> Iterator[None]:
    """Note a plug-in file as the source of all blocks that register meanwhile."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)


@overload
def register_block(cls: type[Block], name: str | None = None, **rules: Unpack[Rules]) -> type[Block]: ...
@overload
def register_block(
    cls: None = None, name: str | None = None, **rules: Unpack[Rules]
) -> Callable[[type[Block]], type[Block]]: ...
def register_block(
    cls: type[Block] | None = None, name: str | None = None, **rules: Unpack[Rules]
) -> type[Block] | Callable[[type[Block]], type[Block]]:
    """Register a block, by a call or as a decorator with or without arguments.

        @register_block
        @register_block(repeat="inside", check=my_check)
        register_block(nn.Upsample, "nn.Upsample", channels="same")

    Args:
        cls: the module's class; None for a decorator with arguments.
        name: what a YAML calls it; None: the class's own name.
        rules: see `BlockSpec`.

    Returns:
        The class unchanged, or the decorator.

    Raises:
        UserError: the name is taken by another block, or a rule is unknown or cannot work.
    """
    if cls is None:
        return lambda decorated: register_block(decorated, name, **rules)
    label = name or cls.__name__
    source = _source.get()
    if problem := _problem(cls, label, rules):
        raise UserError(f"{source}: block {label}{problem}" if source else f"block {label}{problem}")
    if rules.get("stride") is None:
        parameters = inspect.signature(cls).parameters
        rules["stride"] = next((p for p in _STRIDE_NAMES if p in parameters), None)
    rules["scale_also"] = tuple(rules.get("scale_also", ()))
    REGISTRY[label] = BlockSpec(label, cls, source=source, **rules)
    return cls


def _problem(cls: type[nn.Module], label: str, rules: Rules) -> str | None:
    """Return why a registration cannot work; None if it can.

    The text continues a sentence that begins with the block's name.
    """
    known = Rules.__annotations__
    if unknown := sorted(set(rules) - set(known)):
        return f": {unknown[0]} is no rule; use those of {', '.join(sorted(known))}"
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        return ": is no torch.nn.Module class; register the class itself"
    for rule, value, values in (
        ("channels", rules.get("channels", "in_out"), CHANNELS),
        ("repeat", rules.get("repeat", "outside"), REPEATS),
    ):
        if value not in values:
            return f": {rule}={value!r} is no rule; use one of {', '.join(values)}"
    if label in REGISTRY:
        owner = REGISTRY[label].source or "this project"
        return f": that name is taken by a block of {owner}; register it under another name"
    parameters = inspect.signature(cls).parameters
    if absent := [p for p in rules.get("scale_also", ()) if p not in parameters]:
        return f": scale_also names {absent[0]!r}, no parameter of its constructor"
    return None


def lookup(name: str) -> BlockSpec | None:
    """Return the block that a YAML names; None if there is none. 'torch.nn.X' and 'nn.X' are the same."""
    return REGISTRY.get(name.removeprefix("torch."))
