"""Change weights: parameter groups, optimizer, schedule, average, early stopping, frozen rows."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from utils.errors import UserError
from utils.training.hyp import NOMINAL_BATCH

LOGGER = logging.getLogger("yolo.train")

OPTIMIZERS = ("SGD", "Adam", "AdamW")
MIN_WARMUP_ITERATIONS = 100
MIN_STEPS_PER_EPOCH = 10
# The order that results.csv's x/lr0, x/lr1, x/lr2 follow.
BIASES, WEIGHTS, NORMS = range(3)
_NORMS = tuple(kind for name, kind in vars(nn).items() if "Norm" in name and isinstance(kind, type))
BACKBONE = "backbone"  # the section of a model's rows that may learn at a rate of its own


def param_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Split parameters into biases, other weights and norm weights.

    Only the other weights decay. A parameter that several modules share is in one group, once; if it is a
    bias or a norm's weight in any of them, it does not decay.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    >>> [len(group) for group in param_groups(model)]
    [2, 1, 1]
    """
    found: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            group = BIASES if name.endswith("bias") else NORMS if _normalises(module, parameter) else WEIGHTS
            found[parameter] = min(group, found.get(parameter, WEIGHTS), key=(BIASES, NORMS, WEIGHTS).index)

    def members(wanted: int) -> list[nn.Parameter]:
        return [parameter for parameter, group in found.items() if group == wanted]

    return members(BIASES), members(WEIGHTS), members(NORMS)


def _normalises(module: nn.Module, parameter: nn.Parameter) -> bool:
    """Return whether a module's own parameter is a norm's weight.

    torch.nn's norms and their subclasses (timm's BatchNormAct2d, LayerNorm2d) are known by their type.
    Others, such as timm's RmsNorm and EvoNorm2dS0, are known by "Norm" in their name and one value per
    channel; the weight of a normalised convolution has more.
    """
    named = any("Norm" in kind.__name__ for kind in type(module).__mro__)
    return isinstance(module, _NORMS) or (named and parameter.ndim == 1)


def accumulation(batch_size: int, nominal_batch: float = NOMINAL_BATCH) -> int:
    """Return the batches per optimizer step, so that a step sees about `nominal_batch` images.

    >>> accumulation(16), accumulation(24), accumulation(128)
    (4, 3, 1)
    """
    return max(round(nominal_batch / batch_size), 1)


def fitting_nominal_batch(images: int, batch_size: int) -> int:
    """Return the images per optimizer step: 64, or fewer for a small data set.

    With 64 images per step, a few hundred images give under 200 steps in 60 epochs, and the average (EMA)
    hardly moves. So an epoch has at least 10 steps, if it has 10 batches.

    >>> fitting_nominal_batch(5000, 8), fitting_nominal_batch(200, 8)
    (64, 16)
    """
    affordable = max(images // (batch_size * MIN_STEPS_PER_EPOCH), 1)
    return NOMINAL_BATCH if affordable >= accumulation(batch_size) else batch_size * affordable


def add_nominal_batch(hyp: dict[str, float], images: int, batch_size: int) -> dict[str, float]:
    """Return hyperparameters with `nominal_batch`, fitted to the data set if the recipe leaves it out.

    Args:
        images: of the training set.
        batch_size: images per batch over all processes.
    """
    if "nominal_batch" in hyp:
        return dict(hyp)
    fitting = fitting_nominal_batch(images, batch_size)
    if fitting < NOMINAL_BATCH and fitting < images:
        LOGGER.info(
            "%d images are few: an optimizer step after every %d instead of %d of them "
            "(nominal_batch: %d in the --hyp file keeps YOLOv5's)",
            *(images, fitting, NOMINAL_BATCH, NOMINAL_BATCH),
        )
    return hyp | {"nominal_batch": fitting}


def backbone_rows(model: nn.Module) -> list[int]:
    """Return the numbers of a DetectionModel's backbone rows."""
    rows: Any = model.rows  # Any: utils cannot import DetectionModel, which declares them
    return [row.index for row in rows if row.section == BACKBONE]


def row_layers(model: nn.Module) -> list[nn.Module]:
    """Return a DetectionModel's layers, one per row."""
    return list(model.get_submodule("model").children())


# Any: torch types a parameter group so.
def _scaled_groups(model: nn.Module, scale: float | None) -> list[dict[str, Any]]:
    """Return the groups of `param_groups`; with a scale, the backbone has three of its own."""
    groups = param_groups(model)
    if scale is None:
        return [{"params": group} for group in groups]
    layers = row_layers(model)
    inside = {id(p) for number in backbone_rows(model) for p in layers[number].parameters()}
    rest = [{"params": [p for p in group if id(p) not in inside]} for group in groups]
    own = [{"params": [p for p in group if id(p) in inside], "lr_scale": scale} for group in groups]
    return rest + own


def build_optimizer(
    model: nn.Module, name: str, hyp: Mapping[str, float], batch_size: int, backbone_lr: float | None = None
) -> torch.optim.Optimizer:
    """Build SGD with Nesterov momentum, Adam or AdamW over the groups of `param_groups`.

    Weight decay is scaled to the images that one step really uses.

    Args:
        name: one of OPTIMIZERS.
        batch_size: images per batch over all processes.
        backbone_lr: initial rate of the backbone's rows, whose groups follow the others; None for lr0.
            Schedule and warm-up keep its ratio to lr0.

    Raises:
        UserError: an optimizer that is not offered.
    """
    scale = None if backbone_lr is None else backbone_lr / hyp["lr0"]
    nominal = hyp.get("nominal_batch", NOMINAL_BATCH)
    decay = hyp["weight_decay"] * batch_size * accumulation(batch_size, nominal) / nominal
    arguments = _scaled_groups(model, scale)
    for number, group in enumerate(arguments):
        group["weight_decay"] = decay if number % 3 == WEIGHTS else 0.0
    device = next(model.parameters()).device.type
    if name == "SGD":
        momentum, fused = hyp["momentum"], _fused(torch.optim.SGD, device)
        return torch.optim.SGD(arguments, hyp["lr0"], momentum, nesterov=momentum > 0, **fused)
    kinds = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
    if name not in kinds:
        raise UserError(f"--optimizer {name}: not offered; use one of {', '.join(OPTIMIZERS)}")
    kind = kinds[name]
    return kind(arguments, lr=hyp["lr0"], betas=(hyp["momentum"], 0.999), **_fused(kind, device))


def _fused(kind: type[torch.optim.Optimizer], device: str) -> dict[str, bool]:
    """Return the argument for the optimizer's fused form, if torch has it for this device."""
    offered = "fused" in inspect.signature(kind).parameters and device in ("cpu", "cuda")
    return {"fused": True} if offered else {}


@dataclass
class LRSchedule:
    """Set rates, momentum and accumulation of every iteration.

    A warm-up is followed by a linear or cosine decay.

    Args:
        epochs: length of the whole schedule.
        batches: iterations per epoch.
        batch_size: images per iteration, over all processes.
        warm_up: False for a run that continues a finished one.
    """

    hyp: dict[str, float]
    epochs: int
    batches: int
    batch_size: int
    cosine: bool = False
    warm_up: bool = True

    @property
    def warmup_iterations(self) -> int:
        """Return the iterations of warm-up: `warmup_epochs`, at least 100; -1 without any."""
        if not self.warm_up:
            return -1
        return max(round(self.hyp["warmup_epochs"] * self.batches), MIN_WARMUP_ITERATIONS)

    def factor(self, epoch: int) -> float:
        """Return the factor of lr0 in `epoch` (from 0): from 1 down to lrf."""
        lrf = self.hyp["lrf"]
        if self.cosine:
            return (1 - math.cos(math.pi * epoch / self.epochs)) / 2 * (lrf - 1) + 1
        return (1 - epoch / self.epochs) * (1 - lrf) + lrf

    def apply(self, optimizer: torch.optim.Optimizer, iteration: int, epoch: int) -> int:
        """Set rates and momentum for an iteration; return the batches per step."""
        target = self.hyp["lr0"] * self.factor(epoch)
        accumulate = accumulation(self.batch_size, self.hyp.get("nominal_batch", NOMINAL_BATCH))
        warmup = self.warmup_iterations
        share = min(iteration / warmup, 1.0) if warmup > 0 else 1.0
        for number, group in enumerate(optimizer.param_groups):
            start = self.hyp["warmup_bias_lr"] if number % 3 == BIASES else 0.0
            group["lr"] = (start * (1 - share) + target * share) * group.get("lr_scale", 1.0)
            if "momentum" in group:
                first = self.hyp["warmup_momentum"] if self.warm_up else self.hyp["momentum"]
                group["momentum"] = first * (1 - share) + self.hyp["momentum"] * share
        if iteration <= warmup:
            nominal = self.hyp.get("nominal_batch", NOMINAL_BATCH)
            accumulate = max(round(1 + (nominal / self.batch_size - 1) * share), 1)
        return accumulate
