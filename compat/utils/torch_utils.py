"""Offer devices and times as YOLOv5's `utils.torch_utils` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import torch

from utils import device as ours
from utils.errors import UserError

_Function = TypeVar("_Function", bound=Callable[..., object])


def select_device(device: str | torch.device = "", batch_size: int = 0, newline: bool = True) -> torch.device:
    """Return the device that a text such as 'cpu', '0' or 'cuda:1' names.

    '' is CUDA if there is any.

    `batch_size` and `newline` change nothing: several GPUs need one process each, and nothing is printed.
    """
    return ours.select_device(str(device))


def time_sync() -> float:
    """Return the time in seconds, after the GPU has finished."""
    ours.synchronize(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return time.time()


time_synchronized = time_sync  # its name until YOLOv5 6.0


def load_classifier(name: str = "resnet101", n: int = 2) -> NoReturn:
    """Refuse to load a second network, which YOLOv5's own scripts leave off."""
    raise UserError(
        f"load_classifier: {name} is not offered, as boxes are not classified again; leave it out"
    )


def smart_inference_mode() -> Callable[[_Function], _Function]:
    """Return a decorator that runs a function without gradients."""
    return torch.inference_mode()
