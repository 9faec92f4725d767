"""Teach a backbone, together with its adapters, the maps that a neck was trained on.

The neck's own network sees the same augmented images, without labels, and its backbone's maps are the targets
(Romero et al. 2015, "FitNets", section 2.2, at every map that the neck reads).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.weights.align import row_maps, shares_text
from models.weights.checkpoint import load_checkpoint
from models.weights.neck import NeckMatch, match_necks
from models.yolo import DetectionModel
from utils.dataset.loader import Loader
from utils.device import autocast, seeded

LOGGER = logging.getLogger("yolo.models")

_RATE = 0.002  # the highest of the one-cycle schedule
_DECAY = 1e-4
_MOST_NORM = 5.0  # of the gradient


@dataclass
class ImitationReport:
    """Hold how near the backbone comes to the source's maps.

    Attributes:
        unexplained: {stride: share of the maps' variance left unexplained in the last epoch}.
        epochs: over the images. seconds: the time they took.
    """

    unexplained: dict[int, float]
    epochs: int
    seconds: float

    def __str__(self) -> str:
        """Return one line for the log."""
        return (
            f"backbone and adapters taught the maps in {self.epochs} epochs of augmented images, "
            f"{self.seconds:.0f} s; variance left unexplained: {shares_text(self.unexplained)}"
        )


def imitate_maps(
    model: DetectionModel,
    weights: str | Path,
    loader: Loader,
    epochs: int,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> ImitationReport:
    """Train a backbone and its adapters on another network's maps, in place.

    Args:
        model: with the neck of `weights`, its adapters aligned (`models.weights.align`). It is moved to
            `device`.
        weights: that network's checkpoint.
        loader: of augmented images; labels are not read.
        epochs: over the loader.
        dtype: of mixed precision; None: float32. float16, which would need scaled gradients, is not used.
        seed: of layers that draw random numbers, such as DropConnect.
    """
    started = time.perf_counter()
    source = load_checkpoint(weights, device).model.eval()
    match = match_necks(model, source)
    training = model.training
    model.to(device).to(memory_format=torch.channels_last).train()
    dtype = None if dtype is torch.float16 else dtype
    parameters = _learning(model, match)
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=epochs * len(loader))
    errors = _Errors(model, match)
    with seeded(seed):
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            errors.begin()
            for images, _, _, _ in loader:
                batch = images.to(device, memory_format=torch.channels_last).float().div_(255)
                with autocast(device, dtype):
                    with torch.no_grad():
                        wanted = row_maps(source, batch, set(match.joints.values()))
                    found = row_maps(model, batch, set(match.joints))
                optimizer.zero_grad()
                errors(found, wanted).backward()
                nn.utils.clip_grad_norm_(parameters, _MOST_NORM)
                optimizer.step()
                schedule.step()
            LOGGER.info(
                "--align-epochs: epoch %d of %d: variance left unexplained %s",
                *(epoch + 1, epochs, shares_text(errors.shares())),
            )
    model.train(training)
    return ImitationReport(errors.shares(), epochs, time.perf_counter() - started)


def _learning(model: DetectionModel, match: NeckMatch) -> list[nn.Parameter]:
    """Return the parameters of the backbone and the adapters."""
    rows = {row.index for row in model.rows if row.section == "backbone"}
    rows |= {row for chain in match.adapters.values() for row in chain}
    return [p for row in sorted(rows) for p in model.model[row].parameters()]


class _Errors:
    """Compute the squared error of maps as a share of their variance.

    It is also averaged over an epoch. The variance of each is a running average, so that a batch of plain
    images weighs little.
    """

    def __init__(self, model: DetectionModel, match: NeckMatch) -> None:
        self._strides = {joint: int(model.rows[joint].stride) for joint in match.joints}
        self._joints = dict(sorted(match.joints.items(), key=lambda pair: self._strides[pair[0]]))
        self._variances: dict[int, Tensor] = {}
        self._sums: dict[int, float] = {}
        self._batches = 0

    def begin(self) -> None:
        """Begin an epoch."""
        self._sums, self._batches = dict.fromkeys(self._joints, 0.0), 0

    def __call__(self, found: dict[int, Tensor], wanted: dict[int, Tensor]) -> Tensor:
        """Return the sum of the errors (scalar, float32) by joint and its partner."""
        parts = []
        for joint, partner in self._joints.items():
            target = wanted[partner].float()
            variance = target.var((0, 2, 3)).mean().clamp(min=1e-12)
            self._variances[joint] = variance.lerp(self._variances.get(joint, variance), 0.95)
            parts.append((found[joint].float() - target).square().mean() / self._variances[joint])
            self._sums[joint] += float(parts[-1].detach())
        self._batches += 1
        return torch.stack(parts).sum()

    def shares(self) -> dict[int, float]:
        """Return {stride: the epoch's mean share of variance left unexplained}."""
        return {self._strides[joint]: total / self._batches for joint, total in self._sums.items()}
