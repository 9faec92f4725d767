"""One `predict(images)` over a checkpoint, an ensemble of checkpoints and every exported format.

A format is a class registered for the suffixes of its files; `load_backend` picks it by the file's suffix.
"""

from __future__ import annotations

import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from models.checkpoint import load_checkpoint
from models.metadata import Metadata, Names, decode, parse_metadata
from models.yolo import LUMA, DetectionModel
from utils.errors import UserError
from utils.files import find_file


@dataclass(frozen=True)
class Options:
    """What `load_backend` was asked for, handed to the format's class."""

    half: bool = False
    dnn: bool = False
    names: Names | None = None
    fuse: bool = True


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


class Backend(ABC):
    """A network ready to run, whatever file it came from.

    Attributes:
        names: class names by index.
        stride: the largest stride: image sides are multiples of it.
        pytorch: whether it runs a DetectionModel itself (not an exported file).
        fixed_size: the only (height, width) it takes; None when free.
        fixed_batch: the only batch size the file takes; None when free. `predict` pads and splits to it, so a
            caller may pass any batch; passing this one is fastest.
        model: the DetectionModel of a single `.pt`; None for exported files and ensembles.
    """

    pytorch: ClassVar[bool] = False

    def __init__(self, path: Path, device: torch.device, metadata: Metadata) -> None:
        self.path = path
        self.device = device
        self.names = metadata.names
        self.stride = metadata.stride
        self.half = metadata.half
        self.ch = metadata.ch
        self.fixed_size = None if metadata.dynamic else metadata.imgsz
        self.fixed_batch = None if metadata.dynamic else metadata.batch
        self.model: DetectionModel | None = None

    @property
    def nc(self) -> int:
        """How many classes it tells apart."""
        return len(self.names)

    @property
    def rect_ok(self) -> bool:
        """Whether images may be letterboxed to a rectangle of their own instead of the exported size."""
        return self.fixed_size is None

    def predict(self, images: Tensor, augment: bool = False) -> Tensor:
        """Run the network.

        Args:
            images: (N, ch, H, W) RGB, uint8 or floating in 0..1, on any device.
            augment: test-time augmentation; checkpoints only.

        Returns:
            (N, boxes, 5 + nc) float32 on `device`: xywh in pixels, objectness, class scores.

        Raises:
            UserError: a size the file cannot take, or augmentation asked of an exported file.
        """
        if augment and not self.pytorch:
            raise UserError(f"{self.path}: --augment needs a .pt checkpoint, an exported file cannot do it")
        size = (images.shape[-2], images.shape[-1])
        if self.fixed_size is not None and size != self.fixed_size:
            raise UserError(
                f"{self.path}: takes images of {_by(self.fixed_size)} (height x width), not {_by(size)}; "
                f"give --imgsz {self.fixed_size[0]} {self.fixed_size[1]} or export with --dynamic"
            )
        inputs = self._prepare(images)
        with torch.no_grad():
            output = self._in_batches(inputs, augment).float()
        if output.shape[-1] != 5 + self.nc:
            raise UserError(
                f"{self.path}: gives {output.shape[-1] - 5} classes, but there are {self.nc} names for them; "
                "give --data with the dataset it was trained on"
            )
        return output

    def _prepare(self, images: Tensor) -> Tensor:
        """Images on the device, floating in 0..1, in the network's precision and number of channels."""
        images = images.to(self.device, non_blocking=True)
        scale = images.dtype == torch.uint8
        images = images.to(torch.float16 if self.half else torch.float32)
        if scale:
            images = images / 255
        if self.ch == 1 and images.shape[1] == 3:
            images = (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        return images

    def _in_batches(self, images: Tensor, augment: bool) -> Tensor:
        """Run in pieces of `fixed_batch`, the last padded with zeros; all at once when the batch is free."""
        size = self.fixed_batch
        if size is None or len(images) == size:
            return self._run(images, augment)
        outputs = []
        for piece in images.split(size):
            short = size - len(piece)
            padded = torch.cat([piece, piece.new_zeros(short, *piece.shape[1:])]) if short else piece
            outputs.append(self._run(padded, augment)[: len(piece)])
        return torch.cat(outputs)

    @abstractmethod
    def _run(self, images: Tensor, augment: bool) -> Tensor:
        """The network on floating images (N, ch, H, W) of the right size, batch and precision."""

    def warmup(self, shape: tuple[int, int, int, int]) -> None:
        """Run once on zeros of `shape` (N, ch, H, W), so that the first timed call pays for no set-up."""
        height, width = self.fixed_size or shape[2:]
        self.predict(torch.zeros((*shape[:2], height, width), device=self.device))


Opener = Callable[[Path, torch.device, Options], Backend]
FORMATS: dict[str, Opener] = {}


def register_format(*suffixes: str) -> Callable[[Opener], Opener]:
    """Register what opens the files of these suffixes (lower-case, with the dot)."""

    def register(opener: Opener) -> Opener:
        FORMATS.update(dict.fromkeys(suffixes, opener))
        return opener

    return register


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
        weights: `.pt` (ours or official), `.torchscript` or `.onnx`; a list of several `.pt` is an ensemble.
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
        raise UserError("--weights: no file given; name a .pt, .torchscript or .onnx file")
    device = torch.device(device)
    if half and device.type != "cuda":
        raise UserError(f"--half: float16 inference needs a CUDA device, not {device.type}; leave --half out")
    options = Options(half, dnn, names, fuse)
    openers = [_opener(Path(file)) for file in files]
    if dnn and any(Path(file).suffix.lower() != ".onnx" for file in files):
        raise UserError(f"--dnn: OpenCV runs .onnx files only, not {files[0]}; leave --dnn out")
    backends = [opener(find_file(file), device, options) for opener, file in zip(openers, files)]
    return backends[0] if len(backends) == 1 else Ensemble(backends)


def _opener(path: Path) -> Opener:
    """What opens a file, by its own suffix; the folders above it do not matter."""
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(sorted(FORMATS))
        raise UserError(f"{path}: no format has the suffix {path.suffix!r}; give one of {known}") from None


@register_format(".pt")
class CheckpointBackend(Backend):
    """A checkpoint of ours or an official one, run by PyTorch: fused, channels_last."""

    pytorch = True

    def __init__(self, path: Path, device: torch.device, options: Options) -> None:
        model = load_checkpoint(path, device).model
        metadata = Metadata(
            dict(model.names), int(max(model.stride)), dynamic=True, half=options.half, ch=model.ch
        )
        super().__init__(path, device, metadata)
        if options.fuse:
            model.fuse()
        self.model = model.half() if options.half else model
        self.model.to(memory_format=torch.channels_last).eval()

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        return self.model(images.contiguous(memory_format=torch.channels_last), augment=augment)[0]


class Ensemble(Backend):
    """Several checkpoints whose boxes are put together before NMS."""

    pytorch = True

    def __init__(self, members: Sequence[Backend]) -> None:
        exported = [member.path for member in members if not member.pytorch]
        if exported:
            raise UserError(f"{exported[0]}: an ensemble takes .pt files only; name one exported file alone")
        first = members[0]
        for member in members[1:]:
            if member.nc != first.nc:
                raise UserError(
                    f"{member.path}: has {member.nc} classes, {first.path} has {first.nc}; the models of an "
                    "ensemble must have been trained on the same classes"
                )
        stride = max(member.stride for member in members)
        super().__init__(
            first.path, first.device, Metadata(first.names, stride, dynamic=True, half=first.half)
        )
        self.members = list(members)

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        return torch.cat([member._run(images, augment) for member in self.members], dim=1)


@register_format(".torchscript")
class TorchScriptBackend(Backend):
    """An exported TorchScript file; its metadata is the extra file `config.txt` (JSON)."""

    def __init__(self, path: Path, device: torch.device, options: Options) -> None:
        extra = {"config.txt": ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls the format old; files of it are about
                self.network = torch.jit.load(str(path), map_location=device, _extra_files=extra).eval()
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{path}: is not a TorchScript file or is damaged ({reason[:100]})") from None
        metadata = parse_metadata(path, _json_object(extra["config.txt"]), options.names)
        if metadata.device not in (None, device.type):  # tracing wrote the device into the graph
            raise UserError(
                f"{path}: was exported for {metadata.device} and cannot run on {device.type}; "
                "export it again with the --device it is to run on"
            )
        super().__init__(path, device, metadata)
        _check_precision(path, self.half, options.half, device)

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        output = self.network(images)
        return output if isinstance(output, Tensor) else output[0]


def _json_object(text: str | bytes) -> dict[str, Any]:
    """The object in a JSON text, empty when it is not one."""
    value = decode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)
    return value if isinstance(value, dict) else {}


def _check_precision(path: Path, exported_half: bool, wanted_half: bool, device: torch.device) -> None:
    """Refuse a precision the file was not exported in, and float16 files where there is no CUDA."""
    if wanted_half and not exported_half:
        raise UserError(f"{path}: was exported in float32; leave --half out or export it with --half")
    if exported_half and device.type != "cuda":
        raise UserError(f"{path}: is in float16, which needs a CUDA device; export it without --half")


@register_format(".onnx")
def open_onnx(path: Path, device: torch.device, options: Options) -> Backend:
    """An exported ONNX file, run by ONNX Runtime or, on request, by OpenCV."""
    return (OpenCvBackend if options.dnn else OnnxBackend)(path, device, options)


class OnnxBackend(Backend):
    """An ONNX file run by ONNX Runtime; its metadata are the model's properties."""

    def __init__(self, path: Path, device: torch.device, options: Options) -> None:
        runtime = _import_onnxruntime(path)
        self.session = _open_session(runtime, path, device)
        metadata = parse_metadata(path, self.session.get_modelmeta().custom_metadata_map, options.names)
        first = self.session.get_inputs()[0]
        batch, _, height, width = first.shape
        metadata.dynamic = metadata.dynamic or not all(isinstance(n, int) for n in (batch, height, width))
        if not metadata.dynamic:  # the graph knows better than any note about it
            metadata.batch, metadata.imgsz = batch, (height, width)
        metadata.half = first.type == "tensor(float16)"
        super().__init__(path, device, metadata)
        _check_precision(path, self.half, options.half, device)
        self.input = first.name

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        (output, *_) = self.session.run(None, {self.input: np.ascontiguousarray(images.cpu().numpy())})
        return torch.from_numpy(output).to(self.device)


def onnx_obstacle(device: torch.device) -> str:
    """Why nothing can be exported to ONNX and run by ONNX Runtime on a device; '' when it can."""
    absent = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if absent:
        return f"pip install {' '.join(absent)}"
    if device.type == "cpu":
        return ""
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    if device.type == "cuda" and "CUDAExecutionProvider" in providers:
        return ""
    return (
        f"this ONNX Runtime does not run on {device.type}; pip install onnxruntime-gpu, or use --device cpu"
    )


def _import_onnxruntime(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            f"{path}: needs ONNX Runtime; pip install onnxruntime, or add --dnn for OpenCV"
        ) from None
    return onnxruntime


def _open_session(runtime: Any, path: Path, device: torch.device) -> Any:
    """An ONNX Runtime session on the device, with as many threads as PyTorch was given."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in runtime.get_available_providers():
            raise UserError(
                f"{path}: this ONNX Runtime has no CUDA; pip install onnxruntime-gpu or use --device cpu"
            )
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    elif device.type != "cpu":
        raise UserError(f"{path}: ONNX Runtime does not run on {device.type} here; use --device cpu")
    from onnxruntime.capi.onnxruntime_pybind11_state import (
        Fail,
        InvalidArgument,
        InvalidGraph,
        InvalidProtobuf,
    )
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as Unsupported

    try:
        return runtime.InferenceSession(str(path), options, providers=providers)
    except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, Unsupported) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: is not an ONNX file or is damaged ({reason[:120]})") from None


class OpenCvBackend(Backend):
    """An ONNX file run by OpenCV's own network module on the CPU."""

    def __init__(self, path: Path, device: torch.device, options: Options) -> None:
        import cv2

        if device.type != "cpu":
            raise UserError(f"{path}: --dnn runs on the CPU only; use --device cpu or leave --dnn out")
        metadata = parse_metadata(path, read_onnx_properties(path), options.names)
        if metadata.half:
            raise UserError(f"{path}: is in float16, which OpenCV does not run; export it without --half")
        super().__init__(path, device, metadata)
        try:
            self.network = cv2.dnn.readNetFromONNX(str(path))
        except cv2.error as error:
            raise UserError(f"{path}: OpenCV cannot read it ({error.err}); leave --dnn out") from None

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        self.network.setInput(np.ascontiguousarray(images.numpy()))
        return torch.from_numpy(np.array(self.network.forward()))


def read_onnx_properties(path: Path) -> dict[str, str]:
    """The metadata properties of an ONNX file.

    Raises:
        UserError: not an ONNX file, or ONNX Runtime is not installed.
    """
    session = _open_session(_import_onnxruntime(path), path, torch.device("cpu"))
    return dict(session.get_modelmeta().custom_metadata_map)
