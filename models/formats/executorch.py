"""Export to and run ExecuTorch: one `.pte` file for XNNPACK on the CPU.

The file's method `metadata` gives JSON as bytes.
"""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import torch
from torch import Tensor

from models.formats.base import OpenOptions, damaged, register_format
from models.formats.embedded import EmbeddedBackend, file_metadata, plain_network
from models.formats.exporter import Exporter, Job, Untyped, quiet, register_exporter, require
from models.formats.metadata import RawMetadata, carried, decode

FORWARD, _METADATA = "forward", "metadata"
_OPEN: weakref.WeakSet[EmbeddedBackend] = weakref.WeakSet()  # programs that hold on to the pool of threads


def write_executorch(job: Job, path: Path) -> None:
    """Export with torch.export and lower the program to XNNPACK.

    ExecuTorch's portable operators do what XNNPACK cannot.
    """
    exir = require("executorch.exir", "--include executorch", "executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    model, example = plain_network(job)
    text = json.dumps(file_metadata(job)).encode("utf-8")
    with torch.no_grad(), quiet(job.verbose):
        if job.metadata.precision == "int8":
            require("torchao.quantization.pt2e", "--int8 --include executorch", "torchao")
            from models.formats.executorch_int8 import quantise_program

            program = quantise_program(model, example, job.calibration_batches())
        else:
            program = torch.export.export(model, (example,))
        edge = exir.to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackPartitioner()],
            constant_methods={_METADATA: torch.frombuffer(bytearray(text), dtype=torch.uint8)},
        )
    with path.open("wb") as file:
        edge.to_executorch().write_to_file(file)


@register_format(".pte")
class ExecutorchBackend(EmbeddedBackend):
    """Run an exported ExecuTorch program."""

    title = "ExecuTorch"

    def __init__(self, path: Path, device: torch.device, options: OpenOptions) -> None:
        runtime = require("executorch.runtime", str(path), "executorch")
        _set_threads(torch.get_num_threads())
        try:
            self.program = runtime.Runtime.get().load_program(
                path, verification=runtime.Verification.InternalConsistency
            )
            raw = _read_metadata(path, self.program)
            self.network = self.program.load_method(FORWARD)
        except RuntimeError as error:
            raise damaged(path, "an ExecuTorch file", error) from None
        super().__init__(path, device, options, raw)
        _OPEN.add(self)

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        (output, *_) = self.network.execute([images.contiguous()])
        return output.clone()  # the program's own memory, which the next run overwrites


def _read_metadata(path: Path, program: Untyped) -> RawMetadata:
    """Return what the program's method `metadata` gives."""
    raw = None
    if _METADATA in program.method_names and FORWARD in program.method_names:
        (stored,) = program.load_method(_METADATA).execute([])
        if isinstance(stored, Tensor):
            raw = decode(bytes(stored.numpy()).decode("utf-8", "replace"))
    return carried(path, raw)


def _set_threads(number: int) -> None:
    """Set XNNPACK's number of threads to PyTorch's; its pool belongs to the process.

    A loaded program keeps using the pool it started with and crashes without it. So the pool stays while a
    program is open.
    """
    from executorch.extension.pybindings import portable_lib

    if not _OPEN and portable_lib._threadpool_get_thread_count() != number:  # the only name it has in Python
        portable_lib._unsafe_reset_threadpool(number)


register_exporter(
    Exporter("executorch", "ExecuTorch", write_executorch, {"fp32": ".pte", "int8": "_int8.pte"}),
)
