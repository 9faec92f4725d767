"""Say how a network computes while it trains: precision, memory format, and exceptions by layer."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from utils.device import amp_dtype, cpu_name
from utils.errors import UserError, shown

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}  # of a CPU; what a GPU computes in is not recorded
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_SHORT = {None: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}

if TYPE_CHECKING:
    _Conv2d = nn.Conv2d
else:
    _Conv2d = object


class _Float32(_Conv2d):
    """Convolve in float32 within reduced precision, and return that precision."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        device = input.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(input)
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return super().forward(input.float()).to(dtype)


@runtime_checkable
class SpreadsGradient(Protocol):
    """Describe a convolution of `models.layers.depthwise`, which utils cannot import.

    Attributes:
        spreads: whether it computes its gradient that way; False: the library's.
    """

    spreads: bool


@functools.cache
def _in_float32(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """Return the subclass of a class of convolutions that computes in float32."""
    return type(f"Float32{kind.__name__}", (_Float32, kind), {})


def set_layer(layer: nn.Conv2d, *, float32: bool = False, direct: bool = False) -> None:
    """Make a convolution compute as `ComputeMode` says; its state stays as it is."""
    kind = type(layer)
    ordinary = kind.__bases__[1] if issubclass(kind, _Float32) else kind
    layer.__class__ = _in_float32(ordinary) if float32 else ordinary
    if isinstance(layer, SpreadsGradient):
        layer.spreads = not direct


def convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """Yield the convolutions inside a network with their names."""
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d))


@dataclass(frozen=True)
class ComputeMode:
    """Say how a network computes.

    Attributes:
        dtype: reduced precision of the forward pass, or None.
        channels_last: memory format of images and weights; False: contiguous.
        float32: names of the convolutions that compute in float32 all the same.
        direct: names of the strided depthwise convolutions with the library's own gradient.
        machine: where it was chosen; '' if nothing was measured.
    """

    dtype: torch.dtype | None = None
    channels_last: bool = True
    float32: frozenset[str] = frozenset()
    direct: frozenset[str] = frozenset()
    machine: str = ""

    @property
    def memory_format(self) -> torch.memory_format:
        """Return the memory format of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def prepare(self, model: nn.Module, where: str = "") -> None:
        """Make a network compute so, in place; its forward pass needs `autocast` too.

        Raises:
            UserError: a named layer is no convolution of this network; `where` says who names it.
        """
        layers = dict(convolutions(model))
        if unknown := sorted((self.float32 | self.direct) - layers.keys()):
            raise UserError(
                f"{where}was measured on another network: this one has no convolution "
                f"{shown(unknown[0])}; use --amp auto, or a run of this network"
            )
        for name, layer in layers.items():
            set_layer(layer, float32=name in self.float32, direct=name in self.direct)
        model.to(memory_format=self.memory_format)

    def to_plain(self) -> dict[str, object]:
        """Return plain values, for opt.yaml and the checkpoints."""
        names = {"float32": sorted(self.float32), "direct": sorted(self.direct)}
        return asdict(self) | {"dtype": _NAMES.get(self.dtype)} | names

    @classmethod
    def from_plain(cls, data: object, where: str) -> ComputeMode:
        """Return the mode that `to_plain` described.

        Args:
            where: file and key, for the message.

        Raises:
            UserError: it does not describe one.
        """
        if not isinstance(data, Mapping) or set(data) != set(cls.__dataclass_fields__):
            raise UserError(
                f"{where}: {shown(data)} is no recorded choice of a precision, which has the keys "
                f"{', '.join(cls.__dataclass_fields__)}; restore the file, or start a new run"
            )
        good = {
            "dtype": isinstance(data["dtype"], str) and data["dtype"] in _DTYPES,
            "channels_last": isinstance(data["channels_last"], bool),
            "float32": _are_names(data["float32"]),
            "direct": _are_names(data["direct"]),
            "machine": isinstance(data["machine"], str),
        }
        for key, fits in good.items():
            if not fits:
                raise UserError(
                    f"{where}: {key}={shown(data[key])} cannot be; restore the file, or start a new run"
                )
        names = {key: frozenset(data[key]) for key in ("float32", "direct")}
        return cls(_DTYPES[data["dtype"]], data["channels_last"], **names, machine=data["machine"])

    def __str__(self) -> str:
        """Return words for a message."""
        words = _SHORT[self.dtype]
        if self.float32:
            words += f" with {len(self.float32)} convolutions in float32"
        if self.direct:
            words += f", {len(self.direct)} with the library's gradient"
        return words + (", channels_last" if self.channels_last else ", contiguous")


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def this_machine() -> str:
    """Return what a choice depends on beside the network: CPU, threads, library."""
    return f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def unmeasured_mode(device: torch.device, amp: str = "auto") -> ComputeMode:
    """Return the mode that a value of `--amp` names, without measuring 'auto'.

    Raises:
        UserError: unknown mode, or one that the device does not have.
    """
    return ComputeMode(amp_dtype(amp, device))
