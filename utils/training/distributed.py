"""Let several processes, which torchrun starts, train one model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from utils.device import is_main, local_rank, world_size
from utils.errors import UserError

_T = TypeVar("_T")

TIMEOUT = timedelta(hours=3)  # the others wait while the main process scans a large data set
_LOST = ("closed by peer", "reset by peer", "broken pipe", "connection refused", "gloo", "nccl", "timed out")


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


def from_all(value: _T) -> list[_T]:
    """Return the values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[_T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return cast("list[_T]", values)


def mean_over_ranks(values: Sequence[float], weight: float = 1.0) -> tuple[float, ...]:
    """Return the mean of each value over all processes.

    Args:
        weight: how much this process's values count, such as its number of batches.
    """
    if world_size() == 1:
        return tuple(values)
    shares = from_all((weight, tuple(values)))
    total = sum(share for share, _ in shares)
    return tuple(sum(w * v[i] for w, v in shares if w) / total for i in range(len(values)))


def mean_counts(counts: Sequence[float], device: torch.device) -> list[float]:
    """Return the mean of each count over all processes.

    Every process must call it equally often.
    """
    if world_size() == 1:
        return [float(count) for count in counts]
    total = torch.tensor(counts, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(count) for count in total / world_size()]


def in_order(mine: Iterable[_T], batch: int) -> Iterator[_T]:
    """Yield the items of all processes, in the order of one, on the main process.

    The other processes yield none.

    Args:
        mine: this process's items; of each batch of all it has every world_size()-th.
        batch: items per batch over all processes.
    """
    if world_size() == 1:
        yield from mine
        return
    shares: list[list[_T]] | None = [[] for _ in range(world_size())] if is_main() else None
    dist.gather_object(list(mine), shares)
    if shares is not None:
        rest = [iter(share) for share in shares]
        for number in range(sum(map(len, shares))):
            yield next(rest[number % batch % world_size()])


def broadcast_state(model: nn.Module) -> None:
    """Give every process the weights and statistics of the main process's model."""
    if world_size() > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, src=0)


@contextlib.contextmanager
def shared_file(path: Path) -> Iterator[Path]:
    """Give the other processes a temporary copy of the main process's file.

    They may run on another machine, which does not see the file.
    """
    if world_size() == 1:
        yield path
        return
    data = from_main(path.read_bytes)
    if is_main():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(data)
        yield copy


def has_lost_another(error: BaseException) -> bool:
    """Return whether an error means that another process of this run has ended."""
    if world_size() == 1:
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(words in text for words in _LOST)


class GroupBatchNorm(nn.BatchNorm2d):
    """Normalise by the statistics of the images of all processes, on a CPU too.

    PyTorch's SyncBatchNorm computes the same, but on GPUs only.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised maps (N, C, H, W)."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        values = input.float()
        totals = all_reduce(torch.cat((values.sum((0, 2, 3)), values.new_tensor([len(input)]))))
        count = float(totals[-1]) * input.shape[2] * input.shape[3]
        mean = totals[:-1] / count
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                seen = cast("Tensor", self.num_batches_tracked).add_(1)  # it comes with the two
                share = 1.0 / float(seen) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean), share)
                unbiased = variance * (count / max(count - 1, 1))
                self.running_var.lerp_(unbiased.to(self.running_var), share)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        result = centred * scale[:, None, None]
        if self.affine:
            result = result + self.bias[:, None, None]
        return result.to(input.dtype)


def synchronise_norms(model: nn.Module, device: torch.device) -> None:
    """Replace each BatchNorm inside a model by one over the images of all processes.

    Their state is kept.

    Raises:
        UserError: a BatchNorm subclass that computes more, which the synchronised one would leave out.
    """
    kinds = {type(m): name for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    own = {kind: name for kind, name in kinds.items() if not kind.__module__.startswith("torch.nn.")}
    cuda = device.type == "cuda"
    if not own and cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif not own:
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = GroupBatchNorm  # the state stays, and so do all references to it
    elif cuda and all(kind.__module__.startswith("timm.") for kind in own):
        # It keeps the activation inside timm's norms.
        from timm.layers.norm_act import convert_sync_batchnorm

        convert_sync_batchnorm(model)
    else:
        kind, name = next(iter(own.items()))
        raise UserError(
            f"--sync-bn: {name} is a {kind.__name__}, which has no synchronised form on {device.type}; "
            "leave it out"
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
