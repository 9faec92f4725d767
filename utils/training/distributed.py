"""Let several processes, which torchrun starts, train one model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.device import is_main, local_rank, world_size
from utils.errors import UserError

_T = TypeVar("_T")

TIMEOUT = timedelta(hours=3)  # the others wait while the main process scans a large data set


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the run's process group, and leave it at the end.

    The backend is NCCL on CUDA, else Gloo. A process that trains alone joins no group.
    """
    if world_size() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    nccl = device.type == "cuda" and dist.is_nccl_available()
    dist.init_process_group("nccl" if nccl else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let the main process run the block first; the other processes run it afterwards.

    So a data set is scanned and cached once. If the main process fails, the launcher ends the others, which
    wait here.
    """
    if world_size() > 1 and not is_main():
        dist.barrier()
    yield
    if world_size() > 1 and is_main():
        dist.barrier()


def from_main(make: Callable[[], _T]) -> _T:
    """Call a function on the main process alone, and return its value on every process."""
    if world_size() == 1:
        return make()
    box = [make() if is_main() else None]
    dist.broadcast_object_list(box, src=0)
    return cast("_T", box[0])


def synchronise_norms(model: nn.Module) -> None:
    """Replace each BatchNorm inside a model by one over the images of all processes.

    Their state is kept.

    Raises:
        UserError: a BatchNorm subclass that computes more, which PyTorch's SyncBatchNorm would leave out.
    """
    kinds = {type(m): name for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    own = {kind: name for kind, name in kinds.items() if not kind.__module__.startswith("torch.nn.")}
    if not own:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif all(kind.__module__.startswith("timm.") for kind in own):
        # It keeps the activation inside timm's norms.
        from timm.layers.norm_act import convert_sync_batchnorm

        convert_sync_batchnorm(model)
    else:
        kind, name = next(iter(own.items()))
        raise UserError(
            f"--sync-bn: {name} is a {kind.__name__}, which has no synchronised form; leave it out"
        )


def parallelise(model: nn.Module, device: torch.device) -> nn.Module | None:
    """Return the model's DistributedDataParallel wrapper, or None when this process trains alone."""
    if world_size() == 1:
        return None
    ids = [device.index if device.index is not None else local_rank()] if device.type == "cuda" else None
    # DDP expects a gradient of every parameter, unless it is told to look for idle ones.
    idle = bool(idle_parameters(model))
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=idle)


def idle_parameters(model: nn.Module) -> list[str]:
    """Return the names of the trainable parameters that no output depends on.

    timm's HRNet has some, and a user's own block may. The model itself does not change: a copy gets two
    empty images whose sides are two strides.
    """
    copy = deepcopy(model).train()
    wanted = {name: p for name, p in copy.named_parameters() if p.requires_grad}
    if not wanted:
        return []
    device = next(copy.parameters()).device
    stride: Tensor = model.stride  # type: ignore[assignment]  # DetectionModel's, which utils cannot import
    side = 2 * int(stride.max())
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        total = sum(raw.float().sum() for raw in copy(torch.zeros(2, 3, side, side, device=device)))
        gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return [name for name, gradient in zip(wanted, gradients) if gradient is None]
