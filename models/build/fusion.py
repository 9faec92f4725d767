"""Fold BatchNorm into the convolution it directly follows, wherever the data flows that way.

Which convolution a BatchNorm follows is seen by running the network once and watching what every
convolution's result is used for: not by class name, not by attribute name. So a Sequential, a pair of
attributes and a user's own block all fold, and a BatchNorm behind a concatenation does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class _FlowRecorder(TorchFunctionMode):
    """Notes who consumes each convolution's result while a network runs.

    Results are kept alive, so an id means one tensor for the whole run.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.produced: dict[int, tuple[nn.Module, Tensor]] = {}
        self.consumers: dict[int, list[nn.Module | None]] = {}
        self.calls: dict[nn.Module, int] = {}
        self._inside: list[nn.Module] = []
        self._handles = []
        for module in model.modules():
            if isinstance(module, CONVOLUTIONS + BATCH_NORMS):
                self._handles.append(module.register_forward_pre_hook(self._enter))
                self._handles.append(module.register_forward_hook(self._leave))

    def close(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._inside.append(module)
        self.calls[module] = self.calls.get(module, 0) + 1
        for tensor in _tensors(args):
            self.note(tensor)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], result: Tensor) -> None:
        self._inside.pop()
        if isinstance(module, CONVOLUTIONS):
            self.produced[id(result)] = (module, result)

    def note(self, tensor: Tensor) -> None:
        """One use of a tensor, by the module being run or by other code."""
        if id(tensor) in self.produced:
            user = self._inside[-1] if self._inside else None
            self.consumers.setdefault(id(tensor), []).append(user)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # Inside a module the whole use was noted on entry; reading a shape or a dtype is no use.
        if not self._inside and any(True for _ in _tensors(result)):
            for tensor in _tensors((args, kwargs)):
                self.note(tensor)
        return result

    def pairs(self, outputs: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
        """(convolution, BatchNorm) that stand next to each other and are used once, for each other alone."""
        for tensor in _tensors(outputs):
            self.note(tensor)
        for key, (conv, _) in self.produced.items():
            users = self.consumers.get(key, [])
            if len(users) == 1 and isinstance(users[0], BATCH_NORMS):
                norm = users[0]
                if self.calls[conv] == 1 and self.calls[norm] == 1:
                    yield conv, norm


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def adjacent_pairs(model: nn.Module, *inputs: Any) -> list[tuple[nn.Module, nn.Module]]:
    """The (convolution, BatchNorm) pairs of a network that can be folded, found by one run in eval mode.

    Args:
        model: in eval mode.
        inputs: what its forward takes; small is enough.
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
    """Whether a subclass still computes what its weights say: torch's forward, one of ours, or padding first.

    timm has convolutions that standardise their weights on the way; folding into those would be wrong.
    """
    kind = type(module)
    owner = next(base for base in kind.__mro__ if "forward" in vars(base))
    return owner.__module__.startswith(("torch.nn.", "models.")) or kind.__name__ == "Conv2dSame"


def _holds_its_weights(module: nn.Module) -> bool:
    """Whether weight and bias are parameters themselves, and not computed at each run from others.

    Weight and spectral normalisation and pruning, as parametrizations or as hooks, take them off the module
    and work them out anew; what is folded into them would be lost.
    """
    return module._parameters.keys() >= {"weight", "bias"}


def _rest_of(norm: nn.Module) -> nn.Module | None:
    """What timm's BatchNorm with an activation inside does after normalising; None for any other class."""
    if type(norm).__name__ == "BatchNormAct2d" and isinstance(getattr(norm, "act", None), nn.Module):
        return norm.act  # its dropout, too, rests in eval mode
    return None


def _ids(module: nn.Module) -> set[int]:
    return {id(p) for p in module.parameters(recurse=False)}


def _shared_parameters(model: nn.Module) -> set[int]:
    """Parameters that more than one module holds: folding one would change the other."""
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        ids = _ids(module)
        shared |= ids & seen
        seen |= ids
    return shared


def fuse_adjacent(model: nn.Module, *inputs: Any) -> int:
    """Fold every such pair in place; identities take the BatchNorms' places. Returns how many."""
    pairs = adjacent_pairs(model, *inputs)
    for conv, norm in pairs:
        fold(conv, norm)
    _replace(model, {id(norm): _rest_of(norm) or nn.Identity() for _, norm in pairs})
    return len(pairs)


def _replace(model: nn.Module, norms: dict[int, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in norms:
                setattr(parent, name, norms[id(child)])


@torch.no_grad()
def fold(conv: nn.Module, norm: nn.Module) -> None:
    """Scale and shift a convolution as its BatchNorm in eval mode would; computed in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    weight = conv.weight
    if isinstance(conv, _TRANSPOSED):  # (c1, c2 / groups, ...): groups of inputs, each with its own outputs
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
