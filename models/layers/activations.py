"""Name activations, and keep the one that a model's blocks use by default."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from torch import nn

from utils.errors import shown

Activation = bool | str | nn.Module | None

ACTIVATIONS: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        nn.ELU,
        nn.GELU,
        nn.Hardsigmoid,
        nn.Hardswish,
        nn.Identity,
        nn.LeakyReLU,
        nn.Mish,
        nn.PReLU,
        nn.ReLU,
        nn.ReLU6,
        nn.SELU,
        nn.SiLU,
        nn.Sigmoid,
        nn.Softplus,
        nn.Tanh,
    )
}
_WITHOUT_INPLACE = (nn.GELU, nn.Identity, nn.PReLU, nn.Sigmoid, nn.Softplus, nn.Tanh)
_ACTIVATION_TEXT = re.compile(r"(?:torch\.)?(?:nn\.)?(\w+)(?:\(([^()]*)\))?")


def activation_factory(text: str) -> Callable[[], nn.Module]:
    """Return what makes the activation that a YAML names, in place where possible.

    Names are such as 'ReLU6', 'nn.SiLU()' and 'nn.LeakyReLU(0.1)'.

    The text is looked up, never evaluated: a name of `ACTIVATIONS` and, in brackets, numbers only.

    Raises:
        ValueError: a name that is not in the table, or an argument that is no number.
    """
    match = _ACTIVATION_TEXT.fullmatch(text.strip())
    if match is None or match[1] not in ACTIVATIONS:
        raise ValueError(f"unknown activation {shown(text)}; use one of {', '.join(ACTIVATIONS)}")
    cls = ACTIVATIONS[match[1]]
    words = [word.strip() for word in (match[2] or "").split(",")]
    try:
        numbers = [float(word) for word in words if word and word not in ("inplace=True", "inplace=False")]
        options = {} if issubclass(cls, _WITHOUT_INPLACE) else {"inplace": True}
        cls(*numbers, **options)
    except (TypeError, ValueError):
        raise ValueError(
            f"activation {shown(text)}: its arguments must be numbers that {cls.__name__} takes"
        ) from None
    return lambda: cls(*numbers, **options)


_default_activation: ContextVar[Callable[[], nn.Module]] = ContextVar(
    "default_activation", default=lambda: nn.SiLU(inplace=True)
)


@contextlib.contextmanager
def default_activation(text: str | None) -> Iterator[None]:
    """Set the default activation of the blocks of the model being built.

    None is SiLU.

    Held in a context variable, so neither another model nor another thread sees it.
    """
    factory = activation_factory(text or "SiLU")
    token = _default_activation.set(factory)
    try:
        yield
    finally:
        _default_activation.reset(token)


def make_activation(act: Activation) -> nn.Module:
    """Return the activation module for a block's `act`.

    True is the model's default, False or None is none, and text is a name.
    """
    if isinstance(act, nn.Module):
        return act
    if isinstance(act, str):
        return activation_factory(act)()
    return _default_activation.get()() if act else nn.Identity()
