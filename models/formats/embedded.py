"""What the formats for phones and boards share: float32 in and out however the weights are stored, one image
at a time, on the CPU; and what a file says about itself, its own check sum included."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.backends import Backend, Options
from models.exporting import Decoded, Job
from models.metadata import decode, parse_metadata
from utils.errors import UserError

DIGEST = "sha256"  # the entry that holds the check sum of what the runtime reads
PRECISION = "precision"  # the entry that says how the weights are stored


def float32_of(job: Job) -> tuple[nn.Module, Tensor]:
    """The decoded model and its example in float32; weights that were rounded to float16 stay so.

    These runtimes take float32 and convert inside where their chip has float16. The packages behind them
    also expect plain memory where the other exporters take channels_last.
    """
    model = copy.deepcopy(job.model).float().to(memory_format=torch.contiguous_format)
    return Decoded(model), job.example.float().contiguous()


def stored_as(job: Job) -> str:
    """How the file's weights are to be stored: 'fp32' or 'fp16'."""
    return "fp16" if job.opt.half else "fp32"


def describe(job: Job, content: bytes | None = None) -> dict[str, Any]:
    """What a file says about itself, as plain values that JSON and YAML keep.

    Args:
        content: what the runtime will read; its check sum goes with it.
    """
    entries = replace(job.metadata, half=False).entries()
    values = {key: decode(value) for key, value in entries.items()} | {PRECISION: stored_as(job)}
    if content is not None:
        values[DIGEST] = hashlib.sha256(content).hexdigest()
    return values


def check_digest(path: Path, raw: Mapping[str, Any], content: bytes) -> None:
    """Refuse what is not what was written: the runtimes are native code that trusts its file.

    Files of others carry no check sum and are taken as they are.
    """
    wanted = raw.get(DIGEST)
    if wanted is not None and wanted != hashlib.sha256(content).hexdigest():
        raise UserError(f"{path}: is damaged (its check sum is not the one written); export it again")


class EmbeddedBackend(Backend):
    """A fixed network on the CPU; `predict` brings larger batches to it piece by piece.

    Attributes:
        precision: how the weights are stored: 'fp32' or 'fp16'.
    """

    title = "such"

    def __init__(self, path: Path, device: torch.device, options: Options, raw: Mapping[str, Any]) -> None:
        if device.type != "cpu":
            raise UserError(f"{path}: {self.title} files run on the CPU here; use --device cpu")
        metadata = parse_metadata(path, raw, options.names)
        self.precision = str(raw.get(PRECISION, "fp32"))
        if options.half and self.precision != "fp16":
            raise UserError(
                f"{path}: was exported in {self.precision}; leave --half out or export it with --half"
            )
        if metadata.imgsz is None:
            raise UserError(f"{path}: does not say its image size; export it again")
        super().__init__(path, device, replace(metadata, dynamic=False, half=False, batch=1))
