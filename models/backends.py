"""One `predict(images)` over a checkpoint, an ensemble of checkpoints and every exported format.

A format is a class registered for how its files' names end; `load_backend` picks it by the name. The exported
formats live in `models/formats`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.formats.base import FORMATS, Backend, Opener, OpenOptions, register_format
from models.formats.metadata import Metadata, Names
from models.weights.checkpoint import load_checkpoint
from models.yolo import DetectionModel
from utils.device import autocast
from utils.errors import UserError
from utils.files import find_file

LOGGER = logging.getLogger("yolo.backends")


def load_backend(
    weights: str | Path | Sequence[str | Path],
    device: str | torch.device = "cpu",
    *,
    half: bool = False,
    dnn: bool = False,
    names: Names | None = None,
    fuse: bool = True,
) -> Backend:
    """Open a file, or several checkpoints as an ensemble.

    Args:
        weights: `.pt` (ours or official) or an exported file or folder (`models/formats`); a list of several
            `.pt` is an ensemble.
        device: where it runs.
        half: float16; CUDA only.
        dnn: run `.onnx` with OpenCV instead of ONNX Runtime.
        names: class names for exported files that carry none.
        fuse: fold BatchNorm into the convolutions of checkpoints.

    Raises:
        UserError: unknown suffix, missing file, a mix that cannot be an ensemble, or an option the format or
            the device cannot honour.
    """
    files = [weights] if isinstance(weights, str | Path) else list(weights)
    if not files:
        raise UserError("--weights: no file given; name a .pt or an exported file")
    device = torch.device(device)
    if half and device.type != "cuda":
        raise UserError(f"--half: float16 inference needs a CUDA device, not {device.type}; leave --half out")
    options = OpenOptions(half, dnn, names, fuse)
    openers = [_opener(Path(file)) for file in files]
    if dnn and any(Path(file).suffix.lower() != ".onnx" for file in files):
        raise UserError(f"--dnn: OpenCV runs .onnx files only, not {files[0]}; leave --dnn out")
    backends = [opener(find_file(file, folder=True), device, options) for opener, file in zip(openers, files)]
    return backends[0] if len(backends) == 1 else Ensemble(backends)


def _opener(path: Path) -> Opener:
    """Return what opens a file or folder, by the ending of its own name."""
    import models.formats  # noqa: F401 registers the exported formats, which are made of what is defined here

    name = path.name.lower()
    endings = [ending for ending in FORMATS if name.endswith(ending)]
    if not endings:
        known = ", ".join(sorted(FORMATS))
        raise UserError(f"{path}: no format has a name that ends like this; give one of {known}")
    return FORMATS[max(endings, key=len)]


class ModelBackend(Backend):
    """A network in memory as a backend.

    The network is used as it is: neither copied, fused nor moved. It runs in evaluation mode, and one that is
    being trained is put back into training mode afterwards.

    Args:
        model: the network; all of it on `device`.
        device: where it runs.
        path: the file that it came from, for messages.
        half: whether its weights are float16.
        amp: reduced precision of the forward pass; None: as the weights are.
        keep_maps: keep what `raw_maps` gives.
    """

    pytorch = True

    def __init__(
        self,
        model: DetectionModel,
        device: torch.device,
        *,
        path: Path = Path("model"),
        half: bool = False,
        amp: torch.dtype | None = None,
        keep_maps: bool = False,
    ) -> None:
        metadata = Metadata(dict(model.names), int(max(model.stride)), dynamic=True, half=half, ch=model.ch)
        super().__init__(path, device, metadata)
        self.model = self._network = model
        self.amp = amp
        self.keep_maps = keep_maps
        self._maps: list[Tensor] = []

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        training = self._network.training
        if training:
            self._network.eval()
        try:
            with autocast(self.device, self.amp):
                decoded, maps = self._network(images, augment=augment)
        finally:
            if training:
                self._network.train()
        if self.keep_maps:
            self._maps = maps
        return decoded

    def raw_maps(self) -> list[Tensor]:
        """Return the raw maps of the latest batch, for the loss.

        Each is (N, na, ny, nx, 5 + nc).
        """
        return self._maps


def optimised(model: DetectionModel, device: torch.device, *, fuse: bool = True) -> DetectionModel:
    """Make a network fast for detection, in place: on the device, fused, channels_last, evaluation mode."""
    if fuse:
        model.optimise()
    return model.to(device).to(memory_format=torch.channels_last).eval()


@register_format(".pt")
class CheckpointBackend(ModelBackend):
    """A checkpoint of ours or an official one, run by PyTorch: fused, channels_last."""

    def __init__(self, path: Path, device: torch.device, options: OpenOptions) -> None:
        model = optimised(load_checkpoint(path, device).model, device, fuse=options.fuse)
        super().__init__(model.half() if options.half else model, device, path=path, half=options.half)


class Ensemble(Backend):
    """Several checkpoints whose boxes are put together before NMS."""

    pytorch = True

    def __init__(self, members: Sequence[Backend]) -> None:
        exported = [member.path for member in members if not member.pytorch]
        if exported:
            raise UserError(f"{exported[0]}: an ensemble takes .pt files only; name one exported file alone")
        first = members[0]
        for member in members[1:]:
            for does, what, own, other in (
                ("has", "classes", member.nc, first.nc),
                ("takes", "channels", member.ch, first.ch),
            ):
                if own != other:
                    raise UserError(
                        f"{member.path}: {does} {own} {what}, {first.path} {does} {other}; the models of an "
                        f"ensemble must have the same {what}"
                    )
        stride = max(member.stride for member in members)
        super().__init__(
            first.path,
            first.device,
            Metadata(first.names, stride, dynamic=True, half=first.half, ch=first.ch),
        )
        self.members = list(members)

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        return torch.cat([member._run(images, augment) for member in self.members], dim=1)


def check_channels(path: Path, ch: int, remedy: str = "") -> None:
    """Refuse a network for images of other channels than files have.

    Args:
        path: where it is from. ch: how many channels it takes.
        remedy: how the sentence ends where there is another way.

    Raises:
        UserError: how many it takes.
    """
    if ch not in (1, 3):
        raise UserError(f"{path}: takes {ch} channels; images have 3 (RGB) or 1 (grey){remedy}")
