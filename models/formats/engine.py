"""Export to and run TensorRT: a `.engine` file built from ONNX for this GPU.

The file: 4 bytes with a length (little-endian), so many bytes of JSON about the network, and TensorRT's plan.
Its API is that of TensorRT 10 and 11: tensors by name, types from the graph (strong typing).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from models.formats.base import Backend, OpenOptions, check_precision, register_format
from models.formats.embedded import check_digest, file_metadata
from models.formats.exporter import Exporter, Job, register_exporter, require
from models.formats.metadata import RawMetadata, carried, decode, parse_metadata
from models.formats.onnx import write_onnx
from utils.errors import UserError

LENGTH = 4  # bytes of the header's length
HEADER_LIMIT = 1 << 20  # bytes; the names of a thousand classes are 20 kB


def no_gpu() -> str | None:
    """Return why TensorRT cannot run here; None when there is a CUDA device."""
    if torch.cuda.is_available():
        return None
    return "TensorRT builds and runs a file on an NVIDIA GPU, and PyTorch finds no CUDA device here"


def write_engine(job: Job, path: Path) -> None:
    """Export to ONNX in the precision asked for, then build TensorRT's plan from it.

    With --dynamic the plan is for 1 to the batch asked for and for sides from the stride to one stride above
    the longer side asked for: val.py pads rectangles by up to that.
    """
    trt = require("tensorrt", "--include engine")
    if job.example.device.type != "cuda":
        raise UserError("TensorRT builds on the GPU it is for; add --device 0")
    logger = trt.Logger(trt.Logger.VERBOSE if job.verbose else trt.Logger.ERROR)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # TensorRT 11 knows no other
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    with tempfile.TemporaryDirectory(prefix="tensorrt.") as folder:
        write_onnx(job, Path(folder) / "model.onnx")
        if not parser.parse((Path(folder) / "model.onnx").read_bytes()):
            raise UserError(f"TensorRT cannot read the ONNX graph ({parser.get_error(0).desc()[:200]})")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(job.workspace * (1 << 30)))
    config.clear_flag(trt.BuilderFlag.TF32)  # it keeps 10 bits, too few to equal PyTorch
    if job.metadata.dynamic:
        profile = builder.create_optimization_profile()
        profile.set_shape("images", *profile_shapes(job))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UserError("TensorRT could not build a plan; add --verbose to see why, or change --workspace")
    content = bytes(plan)
    header = json.dumps(file_metadata(job, content)).encode("utf-8")
    path.write_bytes(len(header).to_bytes(LENGTH, "little") + header + content)


def profile_shapes(job: Job) -> tuple[tuple[int, ...], ...]:
    """Return the least, usual and greatest shapes (N, ch, H, W) of a dynamic plan."""
    batch, channels, height, width = job.example.shape
    stride = job.metadata.stride
    most = max(height, width) + stride
    return (1, channels, stride, stride), (batch, channels, height, width), (batch, channels, most, most)


def read_engine(path: Path) -> tuple[RawMetadata, bytes]:
    """Return what the file says about itself, and TensorRT's plan.

    Raises:
        UserError: there is no such header: the file is damaged or of another maker.
    """
    content = path.read_bytes()
    length = int.from_bytes(content[:LENGTH], "little")
    end = LENGTH + length if length <= HEADER_LIMIT else 0
    return carried(path, decode(content[LENGTH:end].decode("utf-8", "replace"))), content[end:]


@register_format(".engine")
class EngineBackend(Backend):
    """Run an exported TensorRT plan on the GPU it was built for."""

    def __init__(self, path: Path, device: torch.device, options: OpenOptions) -> None:
        raw, plan = read_engine(path)
        metadata = parse_metadata(path, raw, options.names)
        check_digest(path, raw, plan)
        if reason := no_gpu():
            raise UserError(f"{path}: {reason}; export the checkpoint to ONNX or OpenVINO for this machine")
        if device.type != "cuda":
            raise UserError(f"{path}: TensorRT runs on the GPU; use --device 0")
        check_precision(path, metadata.precision == "fp16", options.half, device)
        trt = require("tensorrt", str(path))
        super().__init__(path, device, metadata)
        self.logger = trt.Logger(trt.Logger.ERROR)
        with torch.cuda.device(device):
            self.engine = trt.Runtime(self.logger).deserialize_cuda_engine(plan)
            if self.engine is None:
                raise UserError(
                    f"{path}: this GPU or this TensorRT is not the one it was built for; export it again here"
                )
            self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        modes = [self.engine.get_tensor_mode(name) for name in names]
        if sorted(mode == trt.TensorIOMode.INPUT for mode in modes) != [False, True]:
            raise UserError(f"{path}: is not a detector as this project exports it; export it again")
        self.input, self.output = sorted(names, key=lambda n: modes[names.index(n)] != trt.TensorIOMode.INPUT)
        self.limits = None
        if metadata.dynamic:
            least, _, most = self.engine.get_tensor_profile_shape(self.input, 0)
            self.limits = (tuple(least), tuple(most))

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        most = len(images) if self.limits is None else self.limits[1][0]
        return torch.cat([self._run_piece(piece.contiguous()) for piece in images.split(most)])

    def _run_piece(self, images: Tensor) -> Tensor:
        """Run a batch that the plan takes, on the device's current stream."""
        if not self.context.set_input_shape(self.input, tuple(images.shape)):
            least, most = self.limits or (images.shape, images.shape)
            raise UserError(
                f"{self.path}: takes images from {least[2]}x{least[3]} to {most[2]}x{most[3]}, not "
                f"{images.shape[2]}x{images.shape[3]}; give another --imgsz or export it with this one"
            )
        shape = tuple(self.context.get_tensor_shape(self.output))
        output = torch.empty(shape, dtype=torch.float32, device=self.device)
        self.context.set_tensor_address(self.input, images.data_ptr())
        self.context.set_tensor_address(self.output, output.data_ptr())
        stream = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device):
            if not self.context.execute_async_v3(stream.cuda_stream):
                raise UserError(f"{self.path}: TensorRT could not run it; export it again on this machine")
        stream.synchronize()  # TensorRT reads the images by their address, of which PyTorch knows nothing
        return output


register_exporter(
    Exporter(
        "engine",
        "TensorRT",
        write_engine,
        {"fp32": ".engine", "fp16": ".engine"},
        frozenset({"batch", "dynamic", "simplify", "opset", "workspace"}),
        unavailable=no_gpu,
    )
)
