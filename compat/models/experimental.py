"""Open files as modules: YOLOv5's `attempt_load`, `DetectMultiBackend` and `AutoShape`.

The last two are also found in `models.common`, where YOLOv5 has them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models.backends import ModelBackend, load_backend, optimised
from models.hub import HubModel
from models.weights.checkpoint import load_checkpoint
from models.weights.releases import fetch_missing
from models.yolo import DetectionModel
from utils.dataset.config import load_dataset
from utils.errors import UserError
from utils.results.feature_maps import FeatureRecorder

Weights = str | Path | Sequence[str | Path]


def _files(weights: Weights) -> list[str | Path]:
    """Return the files of `weights`, after fetching official ones that are missing."""
    files = [weights] if isinstance(weights, str | Path) else list(weights)
    fetch_missing(*files)
    return files


class Ensemble(nn.ModuleList):
    """Several networks whose boxes are put together before NMS."""

    def __init__(self, models: Sequence[DetectionModel]) -> None:
        super().__init__(models)
        self.names = models[0].names
        self.stride = max((model.stride for model in models), key=lambda stride: float(stride.max()))

    def forward(self, x: Tensor, augment: bool = False) -> tuple[Tensor, None]:
        """Return the decoded boxes (N, boxes, 5 + nc) of all networks, and no maps."""
        return torch.cat([model(x, augment=augment)[0] for model in self], 1), None


def attempt_load(
    weights: Weights,
    device: str | torch.device | None = None,
    inplace: bool = True,
    fuse: bool = True,
    map_location: str | torch.device | None = None,
) -> DetectionModel | Ensemble:
    """Load a checkpoint for detection, or several as an ensemble.

    Args:
        weights: `.pt` files, ours or official.
        device: where it runs; `map_location` is its name in older scripts. None: the CPU.
        inplace: as in YOLOv5, changes no result; the networks here have one way to compute.
        fuse: fold BatchNorm into the convolutions.

    Returns:
        float32, in evaluation mode, without gradients. Called on (N, 3, h, w) it gives the decoded boxes
        (N, boxes, 5 + nc) first, then the raw maps.
    """
    place = torch.device(device or map_location or "cpu")
    models = [optimised(load_checkpoint(file).model, place, fuse=fuse) for file in _files(weights)]
    for model in models:
        model.requires_grad_(False)
    return models[0] if len(models) == 1 else Ensemble(models)


class DetectMultiBackend(HubModel):
    """Open any file that detect.py opens, and return its decoded boxes.

    Attributes:
        jit, onnx, engine: whether it is TorchScript, ONNX or TensorRT; `pt` and `fp16` are as in `HubModel`.
        device: where it runs.
    """

    def __init__(
        self,
        weights: Weights = "yolov5s.pt",
        device: str | torch.device = "cpu",
        dnn: bool = False,
        data: str | Path | None = None,
        fp16: bool = False,
        fuse: bool = True,
    ) -> None:
        files = _files(weights)
        ending = str(files[0]).lower()
        # As in YOLOv5, the YAML is read for files without names only: it may be missing beside a checkpoint.
        names = load_dataset(data, fetch=False).names if data and not ending.endswith(".pt") else None
        super().__init__(load_backend(files, device, half=fp16, dnn=dnn, names=names, fuse=fuse))
        if isinstance(self.backend, ModelBackend):
            self.backend.keep_maps = True
        self.jit, self.onnx, self.engine = (ending.endswith(x) for x in (".torchscript", ".onnx", ".engine"))

    @property
    def device(self) -> torch.device:
        """Return where it runs."""
        return self.backend.device

    def warmup(self, imgsz: tuple[int, int, int, int] = (1, 3, 640, 640), half: bool = False) -> None:
        """Run once on an empty batch (N, 3, h, w).

        `half`, of YOLOv5 6.1, changes nothing: the precision is that of loading.
        """
        self.backend.warmup(imgsz)

    @torch.no_grad()
    def forward(  # type: ignore[override]  # YOLOv5's arguments
        self, im: Tensor, augment: bool = False, visualize: bool | str | Path = False
    ) -> Tensor | list[Tensor | list[Tensor] | None]:
        """Run the network on RGB images (N, 3, h, w) in 0..1.

        Args:
            im: the images.
            augment: test-time augmentation; checkpoints only.
            visualize: a folder for every layer's feature maps of the first image; one checkpoint only.

        Returns:
            Decoded boxes (N, boxes, 5 + nc); of a checkpoint a list of these and the raw maps.
        """
        if visualize and self.model is None:
            raise UserError(f"{self.backend.path}: visualize needs a single .pt checkpoint; leave it out")
        recorder = FeatureRecorder(self.model.model) if visualize and self.model is not None else None
        with recorder or contextlib.nullcontext():
            boxes = self.backend.predict(im, augment)
        if recorder is not None:
            recorder.save(Path(str(visualize)), 0)
        maps = self.backend.raw_maps() if isinstance(self.backend, ModelBackend) else None
        return [boxes, maps] if self.pt else boxes


class AutoShape(HubModel):
    """Detect in images of any form and size, with the network of either loader above.

    Args:
        model: what `DetectMultiBackend` or `attempt_load` gave.
        verbose: as in YOLOv5; nothing is printed here.
    """

    __module__ = HubModel.__module__

    def __init__(self, model: DetectMultiBackend | DetectionModel, verbose: bool = True) -> None:
        if isinstance(model, DetectionModel):
            super().__init__(ModelBackend(model.eval(), next(model.parameters()).device))
        else:
            super().__init__(model.backend)
