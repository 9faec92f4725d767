"""Fold each BatchNorm into the convolution that it directly follows.

The network runs once, and what uses each convolution's result is recorded. Names of classes and attributes
do not matter: a Sequential, a pair of attributes and a user's own block all fold, and a BatchNorm after a
concatenation does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from utils.package import MODULE_PREFIX

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _FlowRecorder(TorchFunctionMode):
    """Record which modules use each convolution's result while a network runs.

    Results are kept alive, so that an id means one tensor for the whole run.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.produced: dict[int, tuple[_ConvNd, Tensor]] = {}
        self.consumers: dict[int, list[nn.Module | None]] = {}
        self.calls: dict[nn.Module, int] = {}
        self._inside: list[nn.Module] = []
        self._handles = []
        for module in model.modules():
            if isinstance(module, _ConvNd | _BatchNorm):
                self._handles.append(module.register_forward_pre_hook(self._enter))
                self._handles.append(module.register_forward_hook(self._leave))

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: tuple[object, ...]) -> None:
        self._inside.append(module)
        self.calls[module] = self.calls.get(module, 0) + 1
        for tensor in _tensors(args):
            self.note(tensor)

    def _leave(self, module: nn.Module, args: tuple[object, ...], result: Tensor) -> None:
        self._inside.pop()
        if isinstance(module, _ConvNd):
            self.produced[id(result)] = (module, result)

    def note(self, tensor: Tensor) -> None:
        """Record one use of a tensor, by the module that runs or by other code."""
        if id(tensor) in self.produced:
            user = self._inside[-1] if self._inside else None
            self.consumers.setdefault(id(tensor), []).append(user)

    # Any: torch calls it with whatever function runs and whatever that function takes.
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # A convolution or BatchNorm was recorded on entry; reading a shape or a dtype is no use.
        if not self._inside and any(True for _ in _tensors(result)):
            for tensor in _tensors((args, kwargs)):
                self.note(tensor)
        return result

    def pairs(self, outputs: object) -> Iterator[tuple[_ConvNd, _BatchNorm]]:
        """Yield (convolution, BatchNorm) where only the BatchNorm uses the result, and each ran once."""
        for tensor in _tensors(outputs):
            self.note(tensor)
        for key, (conv, _) in self.produced.items():
            users = self.consumers.get(key, [])
            norm = users[0] if len(users) == 1 else None
            if isinstance(norm, _BATCH_NORMS) and self.calls[conv] == self.calls[norm] == 1:
                yield conv, norm


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield all tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def adjacent_pairs(model: nn.Module, *inputs: object) -> list[tuple[_ConvNd, _BatchNorm]]:
    """Return the pairs (convolution, BatchNorm) of a network that can be folded.

    Args:
        model: in eval mode.
        inputs: what its forward takes for the one run; a small image is enough.
    """
    recorder = _FlowRecorder(model)
    try:
        with torch.no_grad(), recorder:
            outputs = model(*inputs)
    finally:
        recorder.close()
    shared = _shared_parameters(model)
    return [
        (conv, norm)
        for conv, norm in recorder.pairs(outputs)
        if norm.running_mean is not None and not norm.training and not (_ids(conv) | _ids(norm)) & shared
        if _is_plain(conv) and (_is_plain(norm) or _rest_of(norm) is not None)
        if _holds_its_weights(conv) and _holds_its_weights(norm)
    ]


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module's forward is torch's or ours, or only pads first.

    timm has convolutions that standardise their weights in forward; folding into those would be wrong.
    """
    kind = type(module)
    owner = next(base for base in kind.__mro__ if "forward" in vars(base))
    return (
        owner.__module__.startswith(("torch.nn.", f"{MODULE_PREFIX}models.")) or kind.__name__ == "Conv2dSame"
    )


def _holds_its_weights(module: nn.Module) -> bool:
    """Return whether weight and bias are parameters themselves.

    Weight and spectral normalisation and pruning compute them from other parameters at each run, which would
    overwrite what is folded.
    """
    return module._parameters.keys() >= {"weight", "bias"}


def _rest_of(norm: nn.Module) -> nn.Module | None:
    """Return the activation inside timm's BatchNormAct2d; None for any other class."""
    act = getattr(norm, "act", None) if type(norm).__name__ == "BatchNormAct2d" else None
    return act if isinstance(act, nn.Module) else None  # its dropout does nothing in eval mode


def _ids(module: nn.Module) -> set[int]:
    """Return the ids of a module's own parameters."""
    return {id(p) for p in module.parameters(recurse=False)}


def _shared_parameters(model: nn.Module) -> set[int]:
    """Return the ids of parameters that several modules hold: folding one would change the other."""
    holders = Counter(i for module in model.modules() for i in _ids(module))
    return {i for i, count in holders.items() if count > 1}


def fuse_adjacent(model: nn.Module, *inputs: object) -> int:
    """Fold every pair of `adjacent_pairs` in place, and replace the BatchNorms by identities.

    Returns:
        How many pairs were folded.
    """
    pairs = adjacent_pairs(model, *inputs)
    for conv, norm in pairs:
        fold(conv, norm)
    rest: dict[nn.Module, nn.Module] = {norm: _rest_of(norm) or nn.Identity() for _, norm in pairs}
    replace_modules(model, lambda module: rest.get(module))
    return len(pairs)


def replace_modules(model: nn.Module, other: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put `other(module)` in a module's place, where it is not None.

    It is asked for each module below the model.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            new = other(child)
            if new is not None:
                setattr(parent, name, new)


@torch.no_grad()
def fold(conv: _ConvNd, norm: _BatchNorm) -> None:
    """Scale and shift a convolution as its BatchNorm in eval mode would; computed in float64.

    Raises:
        ValueError: the BatchNorm keeps no running statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a BatchNorm without running statistics cannot be folded")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    weight = conv.weight
    if isinstance(
        conv, _ConvTransposeNd
    ):  # (c1, c2 / groups, ...): groups of inputs, each with its own outputs
        per_group = scale.view(conv.groups, 1, -1).expand(-1, conv.in_channels // conv.groups, -1)
        factors = per_group.reshape(conv.in_channels, -1)
    else:  # (c2, c1 / groups, ...)
        factors = scale.view(-1, 1)
    factors = factors.view(*factors.shape, *[1] * (weight.ndim - 2))
    memory = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
    kept = memory if weight.is_contiguous(memory_format=memory) else torch.contiguous_format
    fused = (weight.double() * factors).to(weight.dtype).contiguous(memory_format=kept)
    conv.weight = nn.Parameter(fused, requires_grad=weight.requires_grad)
    conv.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)
