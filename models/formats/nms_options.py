"""Describe the NMS inside an exported file and what it can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from utils.nms import NmsOptions


@dataclass(frozen=True)
class Suppression:
    """Describe the non-maximum suppression inside a file.

    Attributes:
        conf_thres: candidates need a confidence above it.
        iou_thres: of two boxes that overlap more, the less confident one goes.
        max_det: rows of the output, so the most detections of an image.
        agnostic: boxes suppress each other across classes too.
        inputs: whether the three figures are inputs of the graph; those here are then their usual values, and
            max_det remains the highest.
    """

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 300
    agnostic: bool = False
    inputs: bool = False

    def __post_init__(self) -> None:
        for name, value in (("confidence", self.conf_thres), ("IoU", self.iou_thres)):
            if not 0 <= value <= 1:
                raise ValueError(f"the {name} threshold of NMS must lie in 0..1, not {value}")
        if self.max_det < 1:
            raise ValueError(f"NMS must leave 1 detection or more, not {self.max_det}")

    def usual(self) -> NmsOptions:
        """Return what it does when nothing else is asked for."""
        return NmsOptions(self.conf_thres, self.iou_thres, agnostic=self.agnostic, max_det=self.max_det)

    def figures(self, wanted: NmsOptions) -> dict[str, float]:
        """Return the graph's inputs by name; empty where it has none."""
        if not self.inputs:
            return {}
        return {
            "conf_thres": wanted.conf_thres,
            "iou_thres": wanted.iou_thres,
            "max_det": min(wanted.max_det, self.max_det),
        }

    def refusal(self, wanted: NmsOptions, nc: int) -> str | None:
        """Return why it cannot do what is wanted, with the remedy; None when it can.

        A higher confidence is no obstacle: whether a box stays depends on better-scored ones only, so what is
        left above the higher threshold is what NMS with that threshold gives.
        """
        again = "or export again with --nms-inputs or other thresholds"
        if not self.inputs and wanted.conf_thres < self.conf_thres:
            return (
                f"its NMS dropped what is not above confidence {self.conf_thres:g}, so --conf-thres "
                f"{wanted.conf_thres:g} cannot be had; give {self.conf_thres:g} or more, {again}"
            )
        if not self.inputs and wanted.iou_thres != self.iou_thres:
            return (
                f"its NMS has the IoU threshold {self.iou_thres:g}, not {wanted.iou_thres:g}; "
                f"give --iou-thres {self.iou_thres:g} {again}"
            )
        if wanted.agnostic and not self.agnostic and nc > 1:
            return "its NMS keeps classes apart; leave --agnostic-nms out or export again with it"
        if wanted.multi_label and nc > 1:
            return "its NMS gives a box one class; several need the .pt or an export without --nms"
        return None

    def note(self, wanted: NmsOptions, nc: int) -> str | None:
        """Return what it does in another way than `wanted` may expect; None for nothing."""
        if not self.agnostic or wanted.agnostic or nc == 1:
            return None
        if wanted.classes is not None:
            return "lets boxes of all classes suppress each other, also those that --classes leaves out"
        return "lets boxes of different classes suppress each other, as it was exported"

    def nearest(self, wanted: NmsOptions, nc: int) -> NmsOptions:
        """Return the options nearest to `wanted` that it can do."""
        near = replace(wanted, max_det=min(wanted.max_det, self.max_det))
        if nc > 1:
            near = replace(near, multi_label=False, agnostic=self.agnostic)
        if not self.inputs:
            near = replace(near, conf_thres=max(wanted.conf_thres, self.conf_thres), iou_thres=self.iou_thres)
        return near

    def narrow(self, found: Tensor, wanted: NmsOptions) -> Tensor:
        """Return those of an image's detections (n, 6) that are wanted."""
        stays = found[:, 4] > wanted.conf_thres
        if wanted.classes is not None:
            stays &= torch.isin(found[:, 5], found.new_tensor(list(wanted.classes)))
        return found[stays][: wanted.max_det]

    def full(self, inferred: Sequence[Tensor], wanted: NmsOptions) -> bool:
        """Return whether an image has as many detections as fit.

        Such an image may have lost some.
        """
        asked = wanted.max_det > self.max_det or wanted.classes is not None
        return asked and any(len(found) == self.max_det for found in inferred)


def changes(wanted: NmsOptions, near: NmsOptions) -> str:
    """Return in words how two sets of options differ; empty when they do not."""
    parts = [
        f"{what} is {getattr(near, name):g}, not {getattr(wanted, name):g}"
        for name, what in (
            ("conf_thres", "the confidence threshold"),
            ("iou_thres", "the IoU threshold"),
            ("max_det", "the most detections of an image"),
        )
        if getattr(near, name) != getattr(wanted, name)
    ]
    if wanted.multi_label and not near.multi_label:
        parts.append("a box has its best class only")
    if wanted.agnostic != near.agnostic:
        parts.append("classes suppress each other" if near.agnostic else "classes are kept apart")
    return ", ".join(parts)
