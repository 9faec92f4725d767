"""The output of each layer for each image, as pictures and arrays (`detect.py --visualize`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from utils.files import atomic_write
from utils.results.result_files import write_image

MAX_CHANNELS = 32  # pictures per layer, as in YOLOv5 up to 7.0; the array holds all channels
_COLUMNS = 8
_GAP = 2  # white pixels between the pictures


class FeatureRecorder:
    """Keeps the feature maps (N,C,H,W) of every layer of a Sequential while it is entered.

    Layers whose output is no map of at least 2x2 cells (a head's tuple, a pooled vector) are left out.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        self._layers = layers
        self._handles: list[RemovableHandle] = []
        self.maps: dict[str, np.ndarray] = {}

    def __enter__(self) -> FeatureRecorder:
        for index, layer in enumerate(self._layers):
            name = f"layer{index:02d}_{type(layer).__name__}"
            self._handles.append(layer.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def record(module: nn.Module, inputs: object, output: object) -> None:
            if not isinstance(output, Tensor) or output.ndim != 4 or min(output.shape[2:]) < 2:
                return
            # The first pass counts: test-time augmentation runs the layers again on scaled images.
            if name not in self.maps:
                self.maps[name] = output.detach().float().cpu().numpy()

        return record

    def save(self, folder: Path, index: int) -> list[Path]:
        """Write the maps of the batch's image `index`, and return the PNG paths.

        Each layer gives `<layer>.png` and `.npy`.
        """
        paths = []
        for name, batch in self.maps.items():
            features = batch[index]
            png = folder / f"{name}.png"
            write_image(png, feature_grid(features))
            atomic_write(png.with_suffix(".npy"), partial(np.save, arr=features))
            paths.append(png)
        return paths

    def clear(self) -> None:
        """Forget the last batch, so that the next one is kept."""
        self.maps.clear()


def feature_grid(features: np.ndarray) -> np.ndarray:
    """Return up to MAX_CHANNELS channels of a map (C, H, W) as one BGR image.

    Each channel is scaled to its own range.
    """
    channels = features[:MAX_CHANNELS]
    count, height, width = channels.shape
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    grid = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for index, channel in enumerate(channels):
        low, high = float(channel.min()), float(channel.max())
        scaled = (channel - low) / max(high - low, 1e-12) * 255
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        picture = cv2.applyColorMap(np.nan_to_num(scaled).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
        grid[top : top + height, left : left + width] = picture
    return grid
