"""Find the batch size that fits a GPU, from memory measured at small batches."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from utils.device import autocast
from utils.errors import UserError
from utils.training.trainer import single_values_refused

LOGGER = logging.getLogger("yolo.autobatch")

FALLBACK = 16
TRIED = (1, 2, 4, 8, 16)
FRACTION = 0.8
LIMIT = 1024


def choose_batch_size(
    model: nn.Module, imgsz: int, device: torch.device, amp: torch.dtype | None, fraction: float = FRACTION
) -> int:
    """Return the batch size that fills a fraction of a GPU's free memory; elsewhere 16."""
    if device.type != "cuda":
        LOGGER.info("--batch-size -1 measures GPU memory; on %s it is %d", device.type, FALLBACK)
        return FALLBACK
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0]
    sizes, used = _measure(lambda batch: _step(model, batch, imgsz, device, amp), device)
    batch = fit_batch_size(sizes, used, free * fraction)
    LOGGER.info(
        "batch size %d: about %.0f %% of %.1f GiB free on %s", batch, fraction * 100, free / 2**30, device
    )
    return batch


def fit_batch_size(sizes: list[int], used: list[float], budget: float) -> int:
    """Return the batch size that needs the budget, by a line through the measurements.

    It is below the first batch size that did not fit. A result outside 1 to 1024 is replaced by 16.

    Args:
        sizes: batch sizes that were measured, the first of TRIED.
        used: bytes of each.
        budget: bytes.

    >>> fit_batch_size([1, 2, 4, 8, 16], [3.0, 4.0, 6.0, 10.0, 18.0], budget=32.5)
    30
    """
    if len(sizes) < 2:
        return sizes[0] if sizes else 1
    slope, start = np.polyfit(sizes, used, 1)
    batch = int((budget - start) / slope) if slope > 0 else 0
    if len(sizes) < len(TRIED):
        batch = min(batch, sizes[-1])
    if not 1 <= batch <= LIMIT:
        LOGGER.warning("the batch size found, %d, is outside 1 to %d; using %d", batch, LIMIT, FALLBACK)
        return FALLBACK
    return batch


def _measure(step: Callable[[int], None], device: torch.device) -> tuple[list[int], list[float]]:
    """Measure the peak memory of a step at each batch size of TRIED that fits."""
    sizes, used = [], []
    for batch in TRIED:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            step(batch)
        except torch.cuda.OutOfMemoryError:
            break
        finally:
            torch.cuda.empty_cache()
        sizes.append(batch)
        used.append(float(torch.cuda.max_memory_reserved(device)))
    return sizes, used


def _step(model: nn.Module, batch: int, imgsz: int, device: torch.device, amp: torch.dtype | None) -> None:
    """Run forward and backward on a batch of zeros, and restore the model's statistics."""
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    images = torch.zeros(batch, 3, imgsz, imgsz, device=device)
    try:
        with autocast(device, amp), single_values_refused():
            raws = model(images.to(memory_format=torch.channels_last))
        sum(raw.float().mean() for raw in raws).backward()
    finally:
        model.zero_grad(set_to_none=True)
        for name, buffer in model.named_buffers():
            buffer.copy_(statistics[name])


def no_memory(batch_size: int, imgsz: int, device: torch.device) -> UserError:
    """Return the error for a run that does not fit into memory."""
    if batch_size == -1:
        batch, remedy = "the batch that --batch-size -1 found", "give a number"
    else:
        batch, remedy = f"--batch-size {batch_size}", "give a smaller one, or -1 to find what fits"
    return UserError(f"{batch} at {imgsz} pixels does not fit into the memory of {device}; {remedy}")
