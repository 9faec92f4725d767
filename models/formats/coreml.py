"""Export to and run CoreML.

The file is a `.mlpackage` folder, written by coremltools and run by CoreML. Metadata are its user-defined
entries.
"""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.formats.base import OpenOptions, damaged, register_format
from models.formats.embedded import EmbeddedBackend, plain_network
from models.formats.exporter import Exporter, Job, quiet, register_exporter, require
from utils.errors import UserError


def elsewhere() -> str | None:
    """Return why CoreML cannot run here; None on macOS."""
    system = platform.system()
    if system == "Darwin":
        return None
    return f"CoreML runs on macOS alone and this is {system}, so the file could not be held against PyTorch"


def write_coreml(job: Job, path: Path) -> None:
    """Convert to an ML program: input `images` (1, ch, H, W) in 0..1, output `output0`.

    It only writes, which works on Linux too; `elsewhere` keeps export.py from files it cannot check.
    """
    tools = require("coremltools", "--include coreml")
    model, example = plain_network(job)
    half = job.metadata.precision == "fp16"
    with torch.no_grad(), quiet(job.verbose):
        # Not a trace: its sizes are arrays, which coremltools 9 cannot turn into numbers with NumPy 2.4.
        graph = torch.export.export(model, (example,)).run_decompositions({})
        program = tools.convert(
            graph,
            inputs=[tools.TensorType("images", shape=tuple(example.shape), dtype=np.float32)],
            outputs=[tools.TensorType("output0", dtype=np.float32)],
            convert_to="mlprogram",
            compute_precision=tools.precision.FLOAT16 if half else tools.precision.FLOAT32,
            minimum_deployment_target=tools.target.iOS16,  # the first with float16 programs throughout
            skip_model_load=True,
        )
    entries = job.metadata.entries()
    program.author = entries["author"]
    program.user_defined_metadata.update(entries)
    program.save(str(path))


@register_format(".mlpackage")
class CoremlBackend(EmbeddedBackend):
    """Run an exported CoreML package.

    Float32 files run on the CPU, which alone keeps float32.
    """

    title = "CoreML"

    def __init__(self, path: Path, device: torch.device, options: OpenOptions) -> None:
        if reason := elsewhere():
            raise UserError(f"{path}: {reason}; export the checkpoint to ONNX or OpenVINO for this machine")
        tools = require("coremltools", str(path))
        try:
            described = tools.models.MLModel(str(path), skip_model_load=True)
            super().__init__(path, device, options, dict(described.user_defined_metadata))
            units = tools.ComputeUnit.CPU_ONLY if self.precision == "fp32" else tools.ComputeUnit.ALL
            self.network = tools.models.MLModel(str(path), compute_units=units)
        except (RuntimeError, ValueError, OSError) as error:
            raise damaged(path, "a CoreML package", error) from None

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        output = self.network.predict({"images": np.ascontiguousarray(images.numpy())})["output0"]
        return torch.from_numpy(np.asarray(output, np.float32))


register_exporter(
    Exporter(
        "coreml", "CoreML", write_coreml, {"fp32": ".mlpackage", "fp16": ".mlpackage"}, unavailable=elsewhere
    )
)
