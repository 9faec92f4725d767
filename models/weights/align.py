"""Teach the adapters under a neck to give the maps that it was trained on.

The neck's own network sees the same images, without labels, and its backbone's maps are the targets. Both
backbones run once; their maps are kept, and the adapters alone learn from them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.weights.checkpoint import load_checkpoint
from models.weights.neck import NeckMatch, match_necks
from models.yolo import DetectionModel
from utils.dataset.image_cache import free_memory
from utils.errors import UserError
from utils.images import load_image
from utils.letterbox import letterbox_tensor

LOGGER = logging.getLogger("yolo.models")

PASSES = 30
_LEAST_STEPS = 300  # of the optimizer, for a few images
_BATCH = 16  # images, and as many mirror images
_RATE = 0.02  # the highest of the one-cycle schedule
_MOST_BYTES = 2 << 30  # of kept maps
_SHARE = 0.25  # of the free memory that they may take
_LARGEST = 65_504.0  # what float16, in which they are kept, can hold


@dataclass
class AlignmentReport:
    """Hold how near the adapters come to the source's maps.

    Attributes:
        unexplained: {stride: share of the maps' variance left unexplained}.
        images: how many were looked at, mirror images not counted. seconds: the time it took.
    """

    unexplained: dict[int, float]
    images: int
    seconds: float

    def __str__(self) -> str:
        """Return one line for the log."""
        return (
            f"adapters aligned on {self.images} images and their mirror images in {self.seconds:.0f} s; "
            f"variance left unexplained: {shares_text(self.unexplained)}"
        )


def shares_text(unexplained: Mapping[int, float]) -> str:
    """Return shares of variance by stride, for a line of the log.

    >>> shares_text({8: 0.25, 16: 0.5})
    '0.250 at stride 8, 0.500 at stride 16'
    """
    return ", ".join(f"{share:.3f} at stride {stride}" for stride, share in unexplained.items())


@dataclass
class _Maps:
    """Hold what one adapter is given and is to give.

    Each is a list of maps in float16, one per image.
    """

    given: list[Tensor]
    wanted: list[Tensor]


def align_adapters(
    model: DetectionModel,
    weights: str | Path,
    paths: Sequence[str],
    imgsz: int,
    *,
    device: torch.device,
    seed: int = 0,
) -> AlignmentReport:
    """Train a model's adapters on the maps of its neck's own network, in place.

    Args:
        model: with the neck of `weights` (`models.weights.neck.load_neck`). It is moved to `device`.
        weights: that network's checkpoint.
        paths: images; labels are not read. Of too many for the memory a part is taken.
        imgsz: pixels per side, a multiple of the stride; images are letterboxed.
        seed: of the images' order and choice.

    Raises:
        UserError: no image can be read, or a joint of backbone and neck has no row of its own to learn.
    """
    started = time.perf_counter()
    source = load_checkpoint(weights, device).model
    model.to(device)
    match = match_necks(model, source)
    _check_joints(model, source, match, weights)
    generator = torch.Generator().manual_seed(seed)
    chosen = _affordable(model, match, paths, imgsz, generator)
    training = model.training
    model.eval()
    maps, images = _collect(model, source, match, chosen, imgsz, device)
    unexplained = {}
    for joint, chain in sorted(match.adapters.items(), key=lambda item: model.rows[item[0]].stride):
        adapter = nn.Sequential(*(model.model[row] for row in chain))
        unexplained[int(model.rows[joint].stride)] = _fit(adapter, maps.pop(joint), device, generator)
    model.train(training)
    return AlignmentReport(unexplained, images, time.perf_counter() - started)


def _check_joints(
    model: DetectionModel, source: DetectionModel, match: NeckMatch, weights: str | Path
) -> None:
    """Refuse joints that have no adapter, or maps of another shape."""
    for joint, other in match.joints.items():
        row, theirs = model.rows[joint], source.rows[other]
        if joint not in match.adapters or (row.out_channels, row.stride) != (
            theirs.out_channels,
            theirs.stride,
        ):
            raise UserError(
                f"--align: {model.source}: {row.place} is where the neck of {weights} ends; it must be a row "
                f"of the head that reads the backbone alone, such as [{max(row.sources)}, 1, Conv, "
                f"[{theirs.out_channels}, 1, 1]]"
            )


def _affordable(
    model: DetectionModel, match: NeckMatch, paths: Sequence[str], imgsz: int, generator: torch.Generator
) -> list[str]:
    """Return as many images, in their order, as have room for their maps in memory."""
    values = 0
    for joint, chain in match.adapters.items():
        first, last = model.rows[model.rows[chain[0]].sources[0]], model.rows[joint]
        for row in (first, last):
            values += row.out_channels * round(imgsz / row.stride) ** 2
    each = values * 2 * torch.finfo(torch.float16).bits // 8  # an image and its mirror image
    free = free_memory()
    most = max(int(_MOST_BYTES if free is None else min(_MOST_BYTES, free * _SHARE)) // each, 1)
    if len(paths) <= most:
        return list(paths)
    LOGGER.info("--align: %d of %d images, whose maps fit into memory, are used", most, len(paths))
    picked = torch.randperm(len(paths), generator=generator)[:most].sort().values
    return [paths[i] for i in picked.tolist()]


@torch.no_grad()
def _collect(
    model: DetectionModel,
    source: DetectionModel,
    match: NeckMatch,
    paths: Sequence[str],
    imgsz: int,
    device: torch.device,
) -> tuple[dict[int, _Maps], int]:
    """Run both backbones once, and return the maps by joint and the number of images."""
    inputs = {joint: model.rows[chain[0]].sources[0] for joint, chain in match.adapters.items()}
    maps = {joint: _Maps([], []) for joint in inputs}
    count = 0
    for batch in _batches(paths, imgsz, device):
        count += len(batch) // 2
        given = row_maps(model, batch, set(inputs.values()))
        wanted = row_maps(source, batch, set(match.joints.values()))
        for joint, kept in maps.items():
            kept.given += _compact(given[inputs[joint]])
            kept.wanted += _compact(wanted[match.joints[joint]])
    if not count:
        raise UserError(f"--align: none of the {len(paths)} images can be read; give a folder of photographs")
    return maps, count


def _compact(maps: Tensor) -> list[Tensor]:
    """Return maps one by one on the CPU in float16."""
    return list(maps.clamp(-_LARGEST, _LARGEST).half().cpu())


def _batches(paths: Sequence[str], imgsz: int, device: torch.device) -> Iterator[Tensor]:
    """Yield letterboxed images and their mirror images (2n, 3, imgsz, imgsz) in 0..1."""
    images: list[Tensor] = []
    for number, path in enumerate(paths, 1):
        try:
            images.append(letterbox_tensor(load_image(path), imgsz))
        except UserError as error:
            LOGGER.warning("--align: left out: %s", error)
        if images and (len(images) == _BATCH or number == len(paths)):
            batch = torch.cat(images).to(device)
            yield torch.cat((batch, batch.flip(3)))
            images = []


def row_maps(model: DetectionModel, images: Tensor, wanted: set[int]) -> dict[int, Tensor]:
    """Return the results of some rows for images (N, 3, H, W) in 0..1.

    Only the rows that these need are run.
    """
    needed = set(wanted)
    for row in reversed(model.rows):
        if row.index in needed:
            needed.update(row.sources)
    maps: dict[int, Tensor] = {-1: model._prepare(images)}
    for row, layer in zip(model.rows, model.model):
        if row.index in needed:
            inputs = [maps[s] for s in row.sources]
            maps[row.index] = layer(inputs if row.spec.joins else inputs[0])
    return {index: maps[index] for index in wanted}


def _fit(adapter: nn.Module, maps: _Maps, device: torch.device, generator: torch.Generator) -> float:
    """Train one adapter on its maps, and return the share of variance left unexplained."""
    variance = _variance(maps.wanted)
    count, size = len(maps.given), min(2 * _BATCH, len(maps.given))
    steps = count // size  # of whole batches: BatchNorm cannot learn from one map of one pixel
    passes = max(PASSES, -(-_LEAST_STEPS // steps))
    optimizer = torch.optim.Adam(adapter.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=passes * steps)
    adapter.train()
    for _ in range(passes):
        for picked in torch.randperm(count, generator=generator)[: steps * size].split(size):
            loss = _error(adapter, maps, picked, device) / variance
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    whole = torch.arange(count).split(size)
    with torch.no_grad():
        _measure_norms(adapter, [_stacked(maps.given, part, device) for part in whole[:steps]])
        adapter.eval()
        errors = [float(_error(adapter, maps, part, device)) * len(part) for part in whole]
    return sum(errors) / count / variance


def _measure_norms(adapter: nn.Module, batches: Sequence[Tensor]) -> None:
    """Set the running statistics of BatchNorms to those of the final weights."""
    norms = [module for module in adapter.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    for batch in batches:
        adapter(batch)
    for norm, momentum in zip(norms, kept):
        norm.momentum = momentum


def _error(adapter: nn.Module, maps: _Maps, picked: Tensor, device: torch.device) -> Tensor:
    """Return the mean squared error of an adapter on some of the maps."""
    return nn.functional.mse_loss(
        adapter(_stacked(maps.given, picked, device)), _stacked(maps.wanted, picked, device)
    )


def _stacked(maps: Sequence[Tensor], picked: Tensor, device: torch.device) -> Tensor:
    """Return some of the kept maps as a batch in float32."""
    return torch.stack([maps[i] for i in picked.tolist()]).to(device).float()


def _variance(maps: Sequence[Tensor]) -> float:
    """Return the variance of maps around the mean of each channel."""
    total = torch.zeros(maps[0].shape[0], dtype=torch.float64)
    square = torch.zeros_like(total)
    for values in maps:
        exact = values.double()
        total += exact.mean((1, 2))
        square += exact.square().mean((1, 2))
    spread = square / len(maps) - (total / len(maps)).square()
    return max(float(spread.mean()), 1e-12)
