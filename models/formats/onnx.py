"""Export to ONNX by tracing; run by ONNX Runtime or OpenCV.

Metadata are the model's properties.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from models.formats.base import Backend, OpenOptions, check_precision, damaged, register_format
from models.formats.exporter import Decoded, Exporter, Job, Untyped, quiet, register_exporter, require
from models.formats.metadata import Metadata, parse_metadata
from models.formats.nms_graph import INPUTS
from models.formats.onnx_nms import with_nms
from models.formats.onnx_precision import reduce_onnx_precision
from utils.errors import UserError

OPSET = 17  # the default: ONNX Runtime, OpenVINO and TensorRT of the last years read it
OPSETS = range(11, 21)  # what the tracing exporter writes; below 11 it has no Resize as the networks need it


def check_opset(opset: int) -> None:
    """Refuse an operator set that cannot be written."""
    if opset not in OPSETS:
        raise UserError(
            f"--opset {opset}: must be {OPSETS[0]} to {OPSETS[-1]}; {OPSET} runs nearly everywhere"
        )


def write_onnx(job: Job, path: Path) -> None:
    """Trace to ONNX: input `images`, output `output0`.

    The graph is checked by onnx.checker and simplified on request.
    """
    onnx = require("onnx", "--include onnx")
    axes = {"images": {0: "batch", 2: "height", 3: "width"}, "output0": {0: "batch", 1: "anchors"}}
    with torch.no_grad(), quiet(job.verbose):
        # The tracing exporter, not the torch.export one: it names the free axes, keeps the opset asked for
        # and takes a tenth of the time; both give the same figures.
        torch.onnx.export(
            Decoded(job.model),
            (job.example,),
            str(path),
            dynamo=False,
            verbose=job.verbose,
            opset_version=job.opset,
            input_names=["images"],
            output_names=["output0"],
            dynamic_axes=axes if job.metadata.dynamic else None,
        )
    graph = onnx.load(str(path))
    if job.simplify:
        graph = require("onnxslim", "--simplify").slim(graph)
    graph = reduce_onnx_precision(graph, job)
    last = graph.graph.output[0].type.tensor_type.shape.dim[2]
    last.dim_value = 5 + job.model.nc  # the tracer loses this one with free axes
    _save(graph, job, path)


def add_onnx_nms(job: Job, network: Path, path: Path) -> None:
    """Add NMS to a written network; outputs and further inputs are those of `nms_graph`."""
    onnx = require("onnx", "--include onnx --nms")
    _save(with_nms(onnx.load(str(network)), job), job, path)


def _save(graph: Untyped, job: Job, path: Path) -> None:
    """Write a graph together with the job's metadata."""
    onnx = require("onnx", "--include onnx")
    onnx.helper.set_model_props(graph, job.metadata.entries())
    graph.producer_name = job.metadata.entries()["author"]
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(path))


@register_format(".onnx")
def open_onnx(path: Path, device: torch.device, options: OpenOptions) -> Backend:
    """Open an exported ONNX file with ONNX Runtime or, on request, with OpenCV."""
    return (OpenCvBackend if options.dnn else OnnxBackend)(path, device, options)


class OnnxBackend(Backend):
    """Run an ONNX file with ONNX Runtime; its metadata are the model's properties."""

    def __init__(self, path: Path, device: torch.device, options: OpenOptions) -> None:
        runtime = require("onnxruntime", str(path))
        self.session = _open_session(runtime, path, device)
        metadata = _read_metadata(self.session, path, options)
        super().__init__(path, device, metadata)
        if self.half or metadata.precision != "fp16":  # else float16 inside alone: any device runs it
            check_precision(path, self.half, options.half, device)
        self.input = self.session.get_inputs()[0].name

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        return self._outputs({self.input: images})[0]

    def _run_nms(self, images: Tensor, figures: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        typed = {name: figure.to(INPUTS[name]) for name, figure in figures.items()}
        rows, counts = self._outputs({self.input: images, **typed})
        return rows, counts

    def _outputs(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        arrays = {name: tensor.cpu().contiguous().numpy() for name, tensor in feeds.items()}
        return [torch.from_numpy(array).to(self.device) for array in self.session.run(None, arrays)]


def onnx_obstacle(device: torch.device) -> str:
    """Return why ONNX cannot be exported and run on a device; '' when it can."""
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


def _open_session(runtime: ModuleType, path: Path, device: torch.device) -> Untyped:
    """Open an ONNX Runtime session with PyTorch's device and number of threads."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
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
    except (
        Fail,
        InvalidArgument,
        InvalidGraph,
        InvalidProtobuf,
        Unsupported,
        RuntimeError,
        ValueError,
    ) as error:
        raise damaged(path, "an ONNX file", error) from None


class OpenCvBackend(Backend):
    """Run an ONNX file with OpenCV's own network module on the CPU."""

    def __init__(self, path: Path, device: torch.device, options: OpenOptions) -> None:
        import cv2

        if device.type != "cpu":
            raise UserError(f"{path}: --dnn runs on the CPU only; use --device cpu or leave --dnn out")
        session = _open_session(require("onnxruntime", str(path)), path, torch.device("cpu"))
        metadata = _read_metadata(session, path, options)
        if metadata.half:
            raise UserError(f"{path}: is in float16, which OpenCV does not run; export it without --half")
        if metadata.nms is not None:
            raise UserError(f"{path}: has NMS inside, which OpenCV does not run; leave --dnn out")
        super().__init__(path, device, metadata)
        try:
            self.network = cv2.dnn.readNetFromONNX(str(path))
        except cv2.error as error:
            raise UserError(f"{path}: OpenCV cannot read it ({error.err}); leave --dnn out") from None

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        self.network.setInput(np.ascontiguousarray(images.numpy()))
        return torch.from_numpy(np.array(self.network.forward()))


def _read_metadata(session: Untyped, path: Path, options: OpenOptions) -> Metadata:
    """Read the file's metadata; shapes and types come from the graph itself."""
    try:
        entries, first = session.get_modelmeta().custom_metadata_map, session.get_inputs()[0]
        batch, channels, height, width = first.shape
    except (LookupError, ValueError, RuntimeError) as error:
        raise damaged(path, "a detector's ONNX file", error) from None
    metadata = parse_metadata(path, entries, options.names)
    if isinstance(channels, int):
        metadata.ch = channels
    metadata.dynamic = metadata.dynamic or not all(isinstance(n, int) for n in (batch, height, width))
    if not metadata.dynamic:
        metadata.batch, metadata.imgsz = batch, (height, width)
    metadata.half = first.type == "tensor(float16)"
    return metadata


register_exporter(
    Exporter(
        "onnx",
        "ONNX",
        write_onnx,
        {"fp32": ".onnx", "fp16": ".onnx", "int8": "_int8.onnx"},
        frozenset({"batch", "dynamic", "simplify", "opset"}),
        add_nms=add_onnx_nms,
    )
)
