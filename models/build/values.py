"""Compare a YAML value with the annotation of a constructor's parameter."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any

from torch import nn

_Hint = Any  # Any: an annotation can be a class, a union or an alias, which share no type
_UNIONS = (typing.Union, types.UnionType)


def accepts(value: object, hint: _Hint) -> bool:
    """Return whether a value is of the kind that an annotation states.

    An annotation that is not known here accepts every value.

    >>> accepts([3, 5], tuple[int, ...]), accepts(True, int)
    (True, False)
    """
    origin: object = typing.get_origin(hint)
    if origin in _UNIONS:
        return any(accepts(value, option) for option in typing.get_args(hint))
    if hint is None or hint is type(None):
        return value is None
    if hint is bool or hint is str:
        return isinstance(value, hint)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return _accepts_items(value, typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, nn.Module):
        return isinstance(value, nn.Module)
    return True


def _accepts_items(value: object, kinds: tuple[_Hint, ...]) -> bool:
    """Return whether a list fits tuple[int, ...], tuple[int, int] or Sequence[float]."""
    if not isinstance(value, list | tuple):
        return False
    if not kinds:
        return True
    if len(kinds) == 1 or (len(kinds) == 2 and kinds[1] is Ellipsis):
        return all(accepts(item, kinds[0]) for item in value)
    return len(value) == len(kinds) and all(accepts(item, kind) for item, kind in zip(value, kinds))


def kind_of(value: object) -> str:
    """Return a value's kind in a user's words."""
    names = {bool: "true/false", int: "number", float: "number", str: "text", list: "list", dict: "mapping"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def readable_hint(hint: _Hint) -> str:
    """Return an annotation in a user's words.

    >>> readable_hint(int | None)
    'a whole number or None'
    """
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    if hint in names:
        return names[hint]
    origin: object = typing.get_origin(hint)
    if origin in _UNIONS:
        return " or ".join(readable_hint(h) for h in typing.get_args(hint) if h is not nn.Module)
    return "a list" if origin in (tuple, list) else getattr(hint, "__name__", str(hint))
