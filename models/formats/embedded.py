"""Share what the formats for phones and boards have in common.

They take and give float32 however the weights are stored, run one image at a time, on the CPU. A file carries
its metadata and its own check sum.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from models.formats.base import Backend, OpenOptions
from models.formats.exporter import Decoded, Job
from models.formats.metadata import RawMetadata, parse_metadata
from utils.errors import UserError
from utils.package import PROJECT

DIGEST = "sha256"  # the entry that holds the check sum of what the runtime reads

OUTSIDE = 5  # percent of the calibration images whose extremes a range may leave out, at each end
# Of what lies below, the activation makes next to nothing, so the values that go into it need no steps there:
# cut off, yolov5n's scores and boxes in int8 are a fifth nearer to float32.
CUT_OFF = {"SiLU": (-6.0, math.inf), "Hardswish": (-3.0, math.inf)}


def activation_range(
    lows: Sequence[float], highs: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float]:
    """Return the range that the 256 steps of a tensor cover.

    Args:
        lows, highs: its least and its largest value in each calibration image.
        bounds: between which values the activation after it tells one from the other.
    """
    ends = np.percentile(lows, OUTSIDE), np.percentile(highs, 100 - OUTSIDE)
    low, high = np.clip(ends, *bounds).tolist()
    return low, high


def plain_network(job: Job) -> tuple[nn.Module, Tensor]:
    """Return the decoded model and its example in row-major memory.

    The packages that write these formats expect that.
    """
    model = copy.deepcopy(job.model).to(memory_format=torch.contiguous_format)
    return Decoded(model), job.example.contiguous()


def file_metadata(job: Job, content: bytes | None = None) -> dict[str, object]:
    """Return a job's metadata as plain values.

    Args:
        content: what the runtime will read; its check sum goes with it.
    """
    digest = {} if content is None else {DIGEST: hashlib.sha256(content).hexdigest()}
    return job.metadata.values() | digest


def check_digest(path: Path, raw: RawMetadata, content: bytes) -> None:
    """Refuse a file whose content is not what was written.

    The runtimes are native code that trusts its file.

    Files of others carry no check sum and are taken as they are; it is the last entry of ours, so that one
    without it was cut off.
    """
    wanted = raw.get(DIGEST)
    if wanted is None and raw.get("author") != PROJECT:
        return
    if wanted != hashlib.sha256(content).hexdigest():
        raise UserError(f"{path}: is damaged (its check sum is not the one written); export it again")


class EmbeddedBackend(Backend):
    """Run a network of one size on the CPU.

    `predict` gives it larger batches image by image.
    """

    title: ClassVar[str]

    def __init__(self, path: Path, device: torch.device, options: OpenOptions, raw: RawMetadata) -> None:
        if device.type != "cpu":
            raise UserError(f"{path}: {self.title} files run on the CPU here; use --device cpu")
        metadata = parse_metadata(path, raw, options.names)
        if metadata.imgsz is None:
            raise UserError(f"{path}: does not say its image size; export it again")
        super().__init__(path, device, replace(metadata, dynamic=False, half=False, batch=1))
