"""Export to and run TorchScript: the traced network in a `.torchscript` file.

Metadata are its extra file `config.txt`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from models.formats.base import Backend, OpenOptions, check_precision, damaged, register_format
from models.formats.exporter import Decoded, Exporter, Job, in_half, quiet, register_exporter
from models.formats.metadata import RawMetadata, decode, parse_metadata
from models.formats.nms_graph import Suppressed, figure_tensors
from utils.errors import UserError


def write_torchscript(job: Job, path: Path) -> None:
    """Trace the model; metadata go into the extra file `config.txt` as JSON."""
    if job.metadata.precision == "fp16":
        job = in_half(job)
    _trace(Decoded(job.model), [job.example], job, path)


def add_torchscript_nms(job: Job, network: Path, path: Path) -> None:
    """Add NMS to a written network, in libtorch's own operators.

    The file needs nothing else.
    """
    if job.metadata.precision == "fp16":
        job = in_half(job)
    device, nms = job.example.device, job.nms
    figures = [figure.to(device) for figure in figure_tensors(nms).values()]
    with quiet(job.verbose):
        script = torch.jit.load(str(network), map_location=device)
    _trace(Suppressed(script, nms), [job.example, *figures], job, path)


def _trace(module: nn.Module, inputs: list[Tensor], job: Job, path: Path) -> None:
    """Write a module as it runs on these inputs, with the job's metadata."""
    text = json.dumps(job.metadata.values())
    with torch.no_grad(), quiet(job.verbose):
        script = torch.jit.trace(module, tuple(inputs), check_trace=False, strict=False)
    script.save(str(path), _extra_files={"config.txt": text})


@register_format(".torchscript")
class TorchScriptBackend(Backend):
    """Run an exported TorchScript file; its metadata are `config.txt` (JSON)."""

    def __init__(self, path: Path, device: torch.device, options: OpenOptions) -> None:
        extra = {"config.txt": ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls the format old; files of it are in use
                self.network = torch.jit.load(str(path), map_location=device, _extra_files=extra).eval()
        except Exception as error:  # noqa: BLE001 torch has many ways to say that bytes are damaged
            raise damaged(path, "a TorchScript file", error) from None
        metadata = parse_metadata(path, _json_object(extra["config.txt"]), options.names)
        if metadata.device not in (None, device.type):  # tracing wrote the device into the graph
            raise UserError(
                f"{path}: was exported for {metadata.device} and cannot run on {device.type}; "
                "export it again with the --device it is to run on"
            )
        super().__init__(path, device, metadata)
        check_precision(path, self.half, options.half, device)

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        output = self.network(images)
        return output if isinstance(output, Tensor) else output[0]

    def _run_nms(self, images: Tensor, figures: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.network(images, *(figure.to(self.device) for figure in figures.values()))


def _json_object(text: str | bytes) -> RawMetadata:
    """Return the object in a JSON text, empty when it is not one."""
    value = decode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)
    return value if isinstance(value, dict) else {}


register_exporter(
    Exporter(
        "torchscript",
        "TorchScript",
        write_torchscript,
        {"fp32": ".torchscript", "fp16": ".torchscript"},
        frozenset({"batch", "dynamic"}),
        cuda_only=frozenset({"fp16"}),  # on a CPU it runs, but slower than float32 and further off
        add_nms=add_torchscript_nms,
    )
)
