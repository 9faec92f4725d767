"""Networks small enough to convert in seconds, saved as checkpoints, and images to feed them."""

from pathlib import Path

import torch

import export
from models.backends import load_backend
from models.formats.exporter import network_input
from models.weights.checkpoint import save_checkpoint
from models.yolo import DetectionModel
from tests.tiny_set import write_set

NAMES = {0: "cat", 1: "dog"}
SIZE = (64, 96)
# Every kind of operation the families have.
SMALL = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30], [33, 23, 30, 61]],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "backbone": [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "MV2Block", [8, 2, 2]],
        [-1, 1, "MobileViTAttention", [8, 12, 1, 3, 2, 24]],
    ],
    "head": [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [[5, 3], 1, "Detect", ["nc", "anchors"]],
    ],
}
# Strides of 8 and 4, expansions and depthwise layers: what makes quantisation hard.
DEPTHWISE = {
    **SMALL,
    "anchors": [[12, 12, 20, 20], [28, 28, 44, 44]],
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "InvertedResidual", [16, 2, 6]],
        [-1, 1, "InvertedResidual", [24, 2, 6]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 1], 1, "Concat", [1]],
        [[4, 2], 1, "Detect", ["nc", "anchors"]],
    ],
}
# Wide enough for the weights to be most of a file.
WIDE = {**DEPTHWISE, "width_multiple": 8.0}
PLAIN = {**SMALL, "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]], [-1, 1, "C3", [8]]]}


def save_small(path: Path, cfg: dict = SMALL) -> DetectionModel:
    """The network as a checkpoint; its scores lie over the whole of 0..1, as after training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DetectionModel(cfg)
        for name, buffer in model.named_buffers():
            if "running_var" in name:
                buffer.uniform_(0.5, 2)
    model.eval()
    with torch.no_grad():
        for head, raw in zip(model.detect.m, model(photographs(1) / 255)[1]):
            head.weight.mul_(2 / (raw - raw.mean((0, 2, 3), keepdim=True)).std())
            head.bias.sub_(raw.mean((0, 2, 3)).flatten())
    model.names = dict(NAMES)
    save_checkpoint(path, model, meta={})
    return model


def in_int8(folder: Path, name: str) -> tuple:
    """A wide network in int8 and float32: both results, the model, and images to hold them against."""
    model = save_small(folder / "best.pt", WIDE)
    data = write_set(folder / "set", train=8, val=3)
    common = {"weights": str(folder / "best.pt"), "include": [name], "imgsz": [64]}
    (plain,) = export.run(**common)
    (result,) = export.run(**common, int8=True, data=str(data), calibration_images=6)
    paths = sorted((folder / "set/images/val").iterdir())
    images = torch.stack([(network_input(path, (64, 64), 3) * 255).round().byte() for path in paths])
    return result, plain, model, images


def assert_int8(result, plain, model: DetectionModel, images: torch.Tensor, name: str) -> None:
    """A third of the size, outputs near PyTorch's, and what the file says of itself."""
    assert result.path == plain.path.with_name(name)
    assert result.precision == "int8"
    assert 0 <= result.accuracy.map <= 1
    assert result.path.stat().st_size < 0.35 * plain.path.stat().st_size
    backend = load_backend(result.path)
    assert (backend.precision, backend.names, backend.fixed_size) == ("int8", NAMES, (64, 64))
    difference = (backend.predict(images) - expected(model, images)).abs()
    assert 1e-4 < difference[..., 4:].mean() < 0.02
    assert difference[..., :4].mean() < 2


def photographs(n: int, height: int = SIZE[0], width: int = SIZE[1]) -> torch.Tensor:
    """(n, 3, height, width) uint8 noise, the same for the same n and size."""
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def expected(model: DetectionModel, images: torch.Tensor) -> torch.Tensor:
    """What PyTorch gives."""
    with torch.no_grad():
        return model(images.float() / 255)[0]


def assert_close(found: torch.Tensor, wanted: torch.Tensor, score: float, box: float) -> None:
    """Scores and boxes (pixels) within their limits, and scores that differ from each other at all."""
    assert found.shape == wanted.shape
    assert wanted[..., 4:].max() - wanted[..., 4:].min() > 0.5
    assert (found - wanted)[..., 4:].abs().max() < score
    assert (found - wanted)[..., :4].abs().max() < box
