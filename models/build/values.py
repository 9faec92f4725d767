"""Say whether a YAML value is of the kind that an annotation states."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any

from torch import nn


def accepts(value: Any, hint: Any) -> bool:
    """Whether a YAML value is of the kind an annotation states; annotations not known here accept all."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(accepts(value, option) for option in typing.get_args(hint))
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
        return all(accepts(item, kinds[0]) for item in value)
    return len(value) == len(kinds) and all(accepts(item, kind) for item, kind in zip(value, kinds))


def kind_of(value: Any) -> str:
    """A value's kind in a user's words."""
    names = {bool: "true/false", int: "number", float: "number", str: "text", list: "list", dict: "mapping"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def readable_hint(hint: Any) -> str:
    """An annotation in a user's words."""
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(readable_hint(h) for h in typing.get_args(hint) if h is not nn.Module)
    if typing.get_origin(hint) in (tuple, list):
        return "a list"
    return getattr(hint, "__name__", str(hint))
