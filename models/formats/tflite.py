"""Export to and run TFLite: one `.tflite` file, written by litert-torch.

ai-edge-litert runs it. The layout is YOLOv5's, which apps for its files expect: images (1, H, W, ch), boxes
in parts of the image's width and height, metadata in `meta.txt` of a zip archive appended to the network,
which runtimes ignore.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.formats.base import OpenOptions, damaged, register_format
from models.formats.embedded import EmbeddedBackend, check_digest, file_metadata, plain_network
from models.formats.exporter import Exporter, Job, Untyped, quiet, register_exporter, require
from models.formats.metadata import RawMetadata, carried, decode
from models.formats.tflite_precision import reduce_tflite_precision
from utils.errors import UserError

META = "meta.txt"
META_LIMIT = 1 << 20  # bytes; the names of a thousand classes are 20 kB


class ChannelsLast(nn.Module):
    """Give the decoded model images with channels last and boxes relative to the image."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        height, width = size
        self.register_buffer("size", torch.tensor([width, height] * 2, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, H, W, ch) to (N, boxes, 5 + nc)."""
        y = self.model(images.permute(0, 3, 1, 2))
        return torch.cat((y[..., :4] / self.size, y[..., 4:]), -1)


def write_tflite(job: Job, path: Path) -> None:
    """Convert, reduce the precision on request, and append the metadata."""
    litert_torch = require("litert_torch", "--include tflite", "litert-torch")
    require("ai_edge_litert", "--include tflite", "ai-edge-litert")
    model, example = plain_network(job)
    wrapped = ChannelsLast(model, (example.shape[2], example.shape[3])).eval()
    litert_torch.config.show_progress = job.verbose
    with torch.no_grad(), quiet(job.verbose):
        converted = litert_torch.convert(wrapped, (example.permute(0, 2, 3, 1).contiguous(),))
    converted.export(str(path))
    content = reduce_tflite_precision(path.read_bytes(), job)
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(META, repr(file_metadata(job, content)))


def read_tflite(path: Path) -> tuple[bytes, RawMetadata]:
    """Return the network alone and its metadata.

    They are a Python literal, in older files of ours JSON.

    Raises:
        UserError: there is no metadata after the network, or it is damaged.
    """
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            info = archive.getinfo(META)
            if info.file_size > META_LIMIT:
                raise UserError(f"{path}: has {info.file_size} bytes of metadata, which cannot be right")
            raw = decode(archive.read(info).decode("utf-8"))
            start = min(entry.header_offset for entry in archive.infolist())
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, RuntimeError, OSError):
        raw, start = None, 0
    return content[:start], carried(path, raw)


@register_format(".tflite")
class TfliteBackend(EmbeddedBackend):
    """Run a TFLite file, ours or YOLOv5's.

    Integer inputs and outputs are scaled as the file says.
    """

    title = "TFLite"

    def __init__(self, path: Path, device: torch.device, options: OpenOptions) -> None:
        require("ai_edge_litert", str(path), "ai-edge-litert")
        from ai_edge_litert.interpreter import Interpreter

        content, raw = read_tflite(path)
        check_digest(path, raw, content)
        try:
            self.network = Interpreter(model_content=content, num_threads=torch.get_num_threads())
            self.network.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise damaged(path, "a TFLite file", error) from None
        inputs, outputs = self.network.get_input_details(), self.network.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0]["shape"]) != 4:
            raise UserError(f"{path}: is not a detector as this project or YOLOv5 exports it")
        self.input, self.output = inputs[0], outputs[0]
        batch, height, width, channels = map(int, self.input["shape"])
        if batch != 1:
            raise UserError(f"{path}: takes {batch} images at once; export it for one")
        shape = {"imgsz": [height, width], "ch": channels}  # the network knows better than any note about it
        super().__init__(path, device, options, {**raw, **shape})
        self.size = torch.tensor([width, height] * 2, dtype=torch.float32)

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        array = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        self.network.set_tensor(self.input["index"], _to_stored(array, self.input))
        self.network.invoke()
        output = torch.from_numpy(_from_stored(self.network.get_tensor(self.output["index"]), self.output))
        return torch.cat((output[..., :4] * self.size, output[..., 4:]), -1)


def _to_stored(values: np.ndarray, tensor: dict[str, Untyped]) -> np.ndarray:
    """Convert floats to what the tensor stores."""
    if not np.issubdtype(tensor["dtype"], np.integer):
        return values.astype(tensor["dtype"], copy=False)
    scale, zero = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.round(values / scale + zero), limits.min, limits.max).astype(tensor["dtype"])


def _from_stored(values: np.ndarray, tensor: dict[str, Untyped]) -> np.ndarray:
    """Convert what a tensor stores to float32."""
    if not np.issubdtype(values.dtype, np.integer):
        return values.astype(np.float32, copy=False)
    scale, zero = tensor["quantization"]
    return (values.astype(np.float32) - zero) * scale


register_exporter(
    Exporter(
        "tflite", "TFLite", write_tflite, {"fp32": ".tflite", "fp16": "-fp16.tflite", "int8": "-int8.tflite"}
    )
)
