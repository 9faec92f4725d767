"""Train one epoch; if the loss is not finite, find the first bad layer."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.dataset.detection_dataset import Batch
from utils.device import autocast
from utils.errors import UserError
from utils.training.compute_mode import ComputeMode
from utils.training.distillation import Distillation
from utils.training.ema import ModelEMA
from utils.training.freeze import FrozenLayers
from utils.training.loss import LossFunction
from utils.training.optim import LRSchedule

MAX_GRADIENT_NORM = 10.0


@dataclass
class BatchReport:
    """Hold an epoch's mean losses (box, obj, cls) so far, and the last batch's facts."""

    batch: int
    losses: tuple[float, float, float]
    instances: int
    size: int
    images: int


@dataclass
class EpochResult:
    """Hold an epoch's mean losses (box, obj, cls), this process's images, and seconds."""

    losses: tuple[float, float, float]
    images: int
    seconds: float


@dataclass
class Trainer:
    """Train a model epoch by epoch, and hold everything that a training step changes.

    Args:
        model: the detector, on its device, prepared by `mode`.
        loss: (raw maps, targets) -> (loss, items), such as DetectionLoss.
        mode: precision and memory format.
        ema: the running average; None on every process but the main one.
        frozen: the rows that do not learn, or None.
        distillation: what the model learns from a teacher, or None.
        multi_scale: draw each batch's size from 0.5 to 1.5 times `imgsz`, a multiple of `stride`.
        parallel: the DistributedDataParallel wrapper around `model`, if there is one.
        world_size: processes that average their gradients; the loss is multiplied by it.

    Attributes:
        scaler: keeps float16 gradients in range; disabled in any other precision.
        parameters: those of the optimizer.
        iteration: the batch being trained, counted over the whole run from 0; -1 before the first.
        last_step: the iteration of the last optimizer step.
    """

    model: nn.Module
    loss: LossFunction
    optimizer: torch.optim.Optimizer
    schedule: LRSchedule
    device: torch.device
    mode: ComputeMode = field(default_factory=ComputeMode)
    ema: ModelEMA | None = None
    frozen: FrozenLayers | None = None
    distillation: Distillation | None = None
    imgsz: int = 640
    stride: int = 32
    multi_scale: bool = False
    seed: int = 0
    parallel: nn.Module | None = None
    rank: int = 0
    world_size: int = 1
    scaler: torch.amp.GradScaler = field(init=False)
    parameters: list[nn.Parameter] = field(init=False)
    iteration: int = field(default=-1, init=False)
    last_step: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        fp16 = self.mode.dtype is torch.float16 and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def train_epoch(
        self, loader: Iterable[Batch], epoch: int, on_batch: Callable[[BatchReport], None] | None = None
    ) -> EpochResult:
        """Train one epoch.

        Gradients of an incomplete step at the end of the epoch are kept for the next epoch.

        Raises:
            UserError: the loss or a gradient is not finite; the sentence names epoch, batch and layer.
        """
        torch.manual_seed(epoch_seed(self.seed, epoch, self.rank))
        if self.frozen is not None:
            self.frozen.train_rest()
        else:
            self.model.train()
        started, images_seen, batches = time.perf_counter(), 0, 0
        totals = np.zeros(3)
        for batch, (images, targets, _, _) in enumerate(loader):
            inputs = self._resize(self.prepare(images), epoch, batch)
            totals += self._step(inputs, targets.to(self.device, non_blocking=True), epoch, batch)
            images_seen += len(images)
            batches += 1
            if on_batch is not None:
                size = max(inputs.shape[2:])
                on_batch(BatchReport(batch, tuple(totals / batches), len(targets), size, len(images)))
        return EpochResult(tuple(totals / max(batches, 1)), images_seen, time.perf_counter() - started)

    def prepare(self, images: Tensor) -> Tensor:
        """Convert a uint8 batch (N, 3, H, W) to float 0..1 on the device."""
        images = images.to(self.device, memory_format=self.mode.memory_format, non_blocking=True)
        return images.float().div_(255)

    def _resize(self, images: Tensor, epoch: int, batch: int) -> Tensor:
        """Resize the batch at random with multi_scale.

        The size depends on (seed, epoch, batch) only, so it is the same on all ranks.
        """
        if not self.multi_scale:
            return images
        rng = np.random.default_rng((self.seed, epoch, batch))
        low, high = self.imgsz // 2 // self.stride, int(self.imgsz * 1.5) // self.stride
        scale = int(rng.integers(max(low, 1), high + 1)) * self.stride / max(images.shape[2:])
        if scale == 1:
            return images
        size = [math.ceil(side * scale / self.stride) * self.stride for side in images.shape[2:]]
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False)

    def _step(self, images: Tensor, targets: Tensor, epoch: int, batch: int) -> np.ndarray:
        """Run forward, backward and, after enough batches, the optimizer; return the loss items (3,)."""
        iteration = self.iteration = epoch * self.schedule.batches + batch
        accumulate = self.schedule.apply(self.optimizer, iteration, epoch)
        with autocast(self.device, self.mode.dtype), single_values_refused():
            network = self.parallel or self.model
            raws, taught = self.distillation(network, images) if self.distillation else (network(images), 0.0)
        loss, items = self.loss(raws, targets)
        loss, values = loss + taught, items.cpu().numpy()
        if not np.isfinite(values).all() or not torch.isfinite(loss):
            raise self._went_bad(images, epoch, batch)
        self.scaler.scale(loss * self.world_size).backward()
        if iteration - self.last_step >= accumulate:
            self._update(epoch, batch)
            self.last_step = iteration
        return values

    def _update(self, epoch: int, batch: int) -> None:
        """Make one optimizer step on clipped gradients, and update the average."""
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise self._stop(epoch, batch, f"the gradient of {_bad_gradient(self.model)} is not finite")
        nn.utils.clip_grads_with_norm_(self.parameters, MAX_GRADIENT_NORM, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()

    def _went_bad(self, images: Tensor, epoch: int, batch: int) -> UserError:
        """Return the error for a loss that is not finite, with the first bad layer."""
        with autocast(self.device, self.mode.dtype):
            place = first_bad_layer(self.model, images)
        return self._stop(epoch, batch, f"the loss is not finite; {place}")

    def _stop(self, epoch: int, batch: int, what: str) -> UserError:
        """Return the error that ends the training at a batch."""
        where = f"epoch {epoch + 1}/{self.schedule.epochs}, batch {batch + 1}/{self.schedule.batches}"
        return UserError(
            f"{where}: {what}; the checkpoints keep the state of the last good epoch, "
            "lower lr0 or train with --amp off"
        )

    def state_dict(self, epochs: int) -> dict[str, object]:
        """Return all that a later process needs to continue after `epochs` complete epochs.

        That includes the gradients of an incomplete step, unless an epoch was interrupted: that epoch is
        trained again, and starts as after a step.
        """
        pending = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        end = epochs * self.schedule.batches - 1
        broken_off = self.iteration > end
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "gradients": {} if broken_off else pending,
            "last_step": end if broken_off else self.last_step,
            "epochs": epochs,
            "batches": self.schedule.batches,
            "updates": self.ema.updates if self.ema else 0,
        }

    def count_as_trained(self, epochs: int, updates: int) -> None:
        """Continue a finished run, which has no saved state, after `epochs` epochs.

        Args:
            updates: steps of the average so far.
        """
        self.last_step = epochs * self.schedule.batches - 1
        if self.ema is not None:
            self.ema.updates = updates

    # Any: values of a checkpoint.
    def load_state_dict(self, state: dict[str, Any], average: dict[str, Tensor] | None = None) -> None:
        """Continue from `state_dict()`; `average` is the EMA model's state.

        Raises:
            UserError: the optimizer of the state has other groups of parameters.
        """
        batches = self.schedule.batches
        saved_batches = state.get("batches", batches)  # older checkpoints do not say
        had, has = (
            [len(group["params"]) for group in optimizer["param_groups"]]
            for optimizer in (state["optimizer"], self.optimizer.state_dict())
        )
        if had != has:  # which norms decay has changed once
            raise UserError(
                f"the checkpoint's optimizer has groups of {had} parameters, this version's {has}, so its "
                "run cannot be resumed; start a new one with the checkpoint as --weights"
            )
        waiting = state["epochs"] * saved_batches - 1 - state["last_step"]  # batches since the last step
        # Below 0: an older checkpoint of an interrupted epoch, or of more batches per epoch than now.
        gradients = state["gradients"] if waiting >= 0 else {}
        self.last_step = state["epochs"] * batches - 1 - max(waiting, 0)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        for name, parameter in self.model.named_parameters():
            gradient = gradients.get(name)
            if gradient is not None:
                # In the parameter's own memory format, which a fused optimizer needs.
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
        if self.ema is not None and average is not None:
            self.ema.load(average, state["updates"])


@contextlib.contextmanager
def single_values_refused() -> Iterator[None]:
    """Make a sentence of BatchNorm's error at a single value per channel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "a BatchNorm layer gets a single value per channel, from one image and a map of one pixel; train "
            "with --batch-size 2 or more, two images or more, or a larger --imgsz"
        ) from None


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Return a seed for torch's generator, which dropout and the like use.

    >>> epoch_seed(0, 1) == epoch_seed(0, 1), epoch_seed(0, 1) == epoch_seed(0, 2)
    (True, False)
    """
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])


@torch.no_grad()
def first_bad_layer(model: nn.Module, images: Tensor) -> str:
    """Run the batch again, and name the first layer with values that are not finite.

    No buffer changes, and no other process takes part.
    """
    found: list[str] = []
    leaves = [(n, m) for n, m in model.named_modules() if n and not list(m.children())]
    bad_weights = {n for n, m in leaves if not all(_finite(value) for value in m.state_dict().values())}

    def look(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if found:
                return
            if name in bad_weights:
                found.append(
                    f"the first layer that went bad is {name} ({type(module).__name__}): its weights"
                )
            elif not _finite(output):
                found.append(f"the first layer that went bad is {name} ({type(module).__name__}): its output")

        return hook

    handles = [module.register_forward_hook(look(name, module)) for name, module in leaves]
    try:
        with _alone(model):
            output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    where = (
        "the raw maps"
        if not _finite(output)
        else "no layer's output, only the loss itself (look at the labels)"
    )
    return f"what went bad is {where}"


@contextlib.contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers in training use the statistics of this batch, and store nothing.

    A SyncBatchNorm would wait for the other processes, which do not run this. In eval mode without stored
    statistics it uses the batch's own, and waits for nobody.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.training, norm.running_mean, norm.running_var = False, None, None
    try:
        yield
    finally:
        for norm, (mean, variance) in zip(norms, kept):
            norm.training, norm.running_mean, norm.running_var = True, mean, variance


def _finite(value: object) -> bool:
    """Return whether all floats of a tensor, or of a list of tensors, are finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    return all(_finite(item) for item in value) if isinstance(value, list | tuple) else True


def _bad_gradient(model: nn.Module) -> str:
    """Return the first parameter in backward's order whose gradient is not finite."""
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    return bad[-1] if bad else "the whole model (its norm overflows)"
