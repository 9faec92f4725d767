"""Teach a network by a trained one that sees the same images: `--teacher`.

At the logits, what the teacher finds counts as much as the teacher is sure that an object is there (Mehta and
Ozturk 2018, "Object detection at 200 FPS", section 3.2). At the maps that the head reads, each channel of a
map is compared by its pattern alone, whatever its scale (Cao et al. 2022, "PKD", section 3.2).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.boxes import complete_iou
from utils.errors import UserError, shown
from utils.files import find_file
from utils.training.loss import DetectionLoss, DetectLayer
from utils.training.optim import row_layers

LOGGER = logging.getLogger("yolo.train")

GAINS = {"distill_head": 1.0, "distill_neck": 0.0}
"""The gains of both parts where the hyperparameters leave them out: the best trial of docs/accuracy.md."""
SURE = 0.05  # the least objectness at which the teacher's box and class count


class Teachable(Protocol):
    """Describe what a network and its teacher must have in common: classes and head."""

    names: dict[int, str]

    @property
    def detect(self) -> DetectLayer:
        """Return the head."""


class Distillation:
    """Compute what a network still has to learn of its teacher.

    Args:
        teacher: a DetectionModel on the device, in evaluation mode; its head is put into training mode, in
            which it gives raw maps.
        model: the network that learns, without wrapper.
        loss: of its labels, whose gains and balance the logits' part has too.

    Attributes:
        parts: the last batch's parts (4,) box, obj, cls, neck, with their gains, detached.
    """

    def __init__(self, teacher: nn.Module, model: nn.Module, loss: DetectionLoss) -> None:
        self.teacher = teacher.requires_grad_(False)
        self.loss = loss
        self._heads = [row_layers(network)[-1] for network in (teacher, model)]
        self._heads[0].train()
        self.parts = torch.zeros(4)

    def __call__(self, network: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Run the network and its teacher on a batch.

        Args:
            network: the one that learns, or its DistributedDataParallel wrapper.
            images: (N, 3, H, W) float.

        Returns:
            The network's raw maps, and the loss times the batch size (scalar, float32).
        """
        with _read_by(self._heads[1]) as own_maps:
            raws = network(images)
        with torch.no_grad(), _read_by(self._heads[0]) as maps:
            wanted = self.teacher(images)
        with torch.autocast(images.device.type, enabled=False):
            parts = [*self.at_logits(raws, wanted), self.at_maps(own_maps, maps)]
            self.parts = torch.stack(parts).detach()
            return raws, sum(parts, start=raws[0].new_zeros(())) * images.shape[0]

    def at_logits(self, raws: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses of boxes, objectness and classes; 0 where both say the same.

        Args:
            raws, wanted: per level (N, na, ny, nx, 5 + nc), of the network and of its teacher.
        """
        hyp, detect, nc = self.loss.hyp, self.loss.detect, self.loss.detect.nc
        gain = hyp["distill_head"]
        box = cls = obj = total = raws[0].new_zeros((), dtype=torch.float32)
        for level, (raw, want) in enumerate(zip(raws, wanted)):
            own, theirs = raw.float(), want.float()
            sure = theirs[..., 4].sigmoid()
            obj = obj + _divergence(own[..., 4], theirs[..., 4]).mean() * self.loss.balance[level]
            image, anchor, y, x = (sure > SURE).nonzero(as_tuple=True)
            weight = sure[image, anchor, y, x]
            own, theirs = own[image, anchor, y, x], theirs[image, anchor, y, x]
            shapes = detect.anchors[level].float()[anchor]
            box = box + (1.0 - complete_iou(_boxes(own, shapes), _boxes(theirs, shapes))) @ weight
            if nc > 1:
                cls = cls + _divergence(own[:, 5:], theirs[:, 5:]).mean(1) @ weight
            total = total + weight.sum()
        if self.loss.mean_counts:  # of all processes, each of which has a share of the batch
            total = total.new_tensor(self.loss.mean_counts([float(total)], total.device)[0])
        share = gain * detect.nl / total.clamp(min=1.0)
        return box * share * hyp["box"], obj * gain * hyp["obj"], cls * share * hyp["cls"]

    def at_maps(self, own: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Return 1 minus the correlation of channels with the teacher's.

        It is the mean over the maps of equal shape; 0 without any.

        Args:
            own, wanted: per level (N, C, ny, nx).
        """
        gain = self.loss.hyp["distill_neck"]
        pairs = [(a, b) for a, b in zip(own, wanted) if a.shape == b.shape]
        if not gain or not pairs:
            return own[0].new_zeros((), dtype=torch.float32)
        return torch.stack([(_pattern(a) - _pattern(b)).square().mean() for a, b in pairs]).mean() * gain / 2


def _divergence(own: Tensor, wanted: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of each logit's probability from the wanted one's."""
    probability = wanted.sigmoid()
    cross = F.binary_cross_entropy_with_logits(own, probability, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(wanted, probability, reduction="none")


def _boxes(rows: Tensor, anchors: Tensor) -> Tensor:
    """Return the boxes (K, 4) of rows of logits, xywh in cells relative to theirs."""
    xy, wh = rows[:, :4].sigmoid().mul(2).split(2, 1)
    return torch.cat((xy - 0.5, wh * wh * anchors), 1)


def _pattern(maps: Tensor) -> Tensor:
    """Return maps (N, C, ny, nx) with mean 0 and variance 1 in each channel."""
    maps = maps.float()
    variance, mean = torch.var_mean(maps, (2, 3), correction=0, keepdim=True)
    return (maps - mean) * (variance + 1e-6).rsqrt()


@contextlib.contextmanager
def _read_by(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the maps that a head reads inside the block."""
    maps: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[list[Tensor]]) -> None:
        maps.extend(inputs[0])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield maps
    finally:
        handle.remove()


def fitted_gains(hyp: Mapping[str, float], teacher: str) -> dict[str, float]:
    """Return hyperparameters with the gains of a teacher; without one, warn of any."""
    if teacher:
        return GAINS | dict(hyp)
    if idle := sorted(set(GAINS) & set(hyp)):
        LOGGER.warning("hyperparameters: without --teacher, %s does nothing", " and ".join(idle))
    return dict(hyp)


def check_teacher(path: str, teacher: Teachable, model: Teachable) -> None:
    """Check that a network can learn from a teacher.

    Args:
        path: the teacher's file, for the message.
        teacher, model: the networks.

    Raises:
        UserError: other classes, another kind of head, or other levels.
    """
    theirs, own = teacher.names, model.names
    if theirs != own:
        number = next((i for i in own if theirs.get(i) != own[i]), len(own))
        raise UserError(
            f"--teacher {path}: has {len(theirs)} classes, the data set {len(own)}, and class {number} is "
            f"{shown(theirs.get(number))} there and {shown(own.get(number))} here; give one of these classes"
        )
    heads = (teacher.detect, model.detect)
    kinds = [type(head).__name__ for head in heads]
    if kinds[0] != kinds[1] or not hasattr(heads[0], "anchors"):
        raise UserError(
            f"--teacher {path}: its head is {kinds[0]}, the network's {kinds[1]}; both must be Detect"
        )
    levels = [_levels(head) for head in heads]
    if levels[0] != levels[1]:
        raise UserError(
            f"--teacher {path}: predicts at {levels[0]}, the network at {levels[1]}; give a teacher with the "
            "same levels and number of anchors"
        )


def _levels(head: DetectLayer) -> str:
    """Return the strides of a head and its anchors per level in words."""
    return f"strides {', '.join(f'{s:g}' for s in head.stride.tolist())} with {head.na} anchors each"


def teacher_hash(path: str | Path) -> str:
    """Return the SHA-256 of a teacher's file."""
    with find_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_same_teacher(checkpoint: Path, saved: object, teacher: str) -> None:
    """Check that a resumed run goes on with its own teacher.

    Args:
        checkpoint: of the run, for the message.
        saved: the teacher's hash in the run's options; None for a run without a teacher.
        teacher: the file, '' for none.

    Raises:
        UserError: another file, or one where there was none.
    """
    if bool(saved) != bool(teacher):
        raise UserError(
            f"--resume {checkpoint}: its run has {'a' if saved else 'no'} teacher; leave --teacher as it "
            "was, or start a new run"
        )
    if teacher and teacher_hash(teacher) != saved:
        raise UserError(
            f"--resume {checkpoint}: {teacher} is not the file that was its teacher; give that one with "
            "--teacher, or start a new run"
        )
