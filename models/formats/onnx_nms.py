"""Write NMS as an ONNX graph and join it to a network.

The network is ONNX's or OpenVINO's. Joined last, NMS stays float32 and exact whatever the network's
precision.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from torch import nn

from models.formats.exporter import Job, Untyped, quiet, require
from models.formats.nms_graph import INPUTS, OUTPUTS, Suppressed, figure_tensors

PREFIX = "nms/"  # before the name of everything inside, which might be in the network too


def nms_graph(job: Job, *, openvino: bool = False) -> bytes:
    """Return the job's NMS as an ONNX file.

    Its input is `decoded` (N, boxes, 5 + nc) and, where they are inputs, the figures of `INPUTS`; its outputs
    are `output0` and `counts`. All sizes are free.
    """
    require("onnx", "--nms in an ONNX or OpenVINO file")  # torch writes by its means
    nms = job.nms
    figures = {name: figure.to(INPUTS[name]) for name, figure in figure_tensors(nms).items()}
    with tempfile.TemporaryDirectory(prefix="nms.") as folder, torch.no_grad(), quiet(job.verbose):
        file = Path(folder) / "nms.onnx"
        torch.onnx.export(
            Suppressed(nn.Identity(), nms, openvino=openvino),
            (torch.rand(2, 8, 5 + job.model.nc), *figures.values()),
            str(file),
            dynamo=False,
            opset_version=job.opset,
            input_names=["decoded", *figures],
            output_names=list(OUTPUTS),
            dynamic_axes={"decoded": {0: "batch", 1: "anchors"}} | {name: {0: "batch"} for name in OUTPUTS},
        )
        return file.read_bytes()


def with_nms(graph: Untyped, job: Job) -> Untyped:
    """Return an ONNX network followed by the job's NMS, as one graph.

    The network has the output `output0` (N, boxes, 5 + nc).
    """
    onnx = require("onnx", "--include onnx --nms")
    nms = onnx.load_from_string(nms_graph(job))
    onnx.compose.add_prefix(nms, PREFIX, rename_inputs=False, rename_outputs=False, inplace=True)
    decoded = graph.graph.output[0].name
    _rename(graph.graph, decoded, "decoded")
    batch = graph.graph.output[0].type.tensor_type.shape.dim[0]
    for output in nms.graph.output:
        output.type.tensor_type.shape.dim[0].CopyFrom(batch)
    rows = nms.graph.output[0].type.tensor_type.shape.dim
    rows[1].dim_value, rows[2].dim_value = job.nms.max_det, 6  # lost with the free axes
    graph.graph.node.extend(nms.graph.node)
    graph.graph.initializer.extend(nms.graph.initializer)
    graph.graph.input.extend(value for value in nms.graph.input if value.name in INPUTS)
    del graph.graph.output[:]
    graph.graph.output.extend(nms.graph.output)
    return graph


def _rename(graph: Untyped, name: str, new: str) -> None:
    """Rename a tensor wherever it is made or used."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if each == name else each for each in names]
    for value in [*graph.output, *graph.value_info]:
        if value.name == name:
            value.name = new


@functools.cache
def openvino_core() -> Untyped:
    """Return the one openvino.Core of this process.

    Each core sets a signal stack for the thread. Of several that go in another order than they came, one
    leaves the thread with a stack that is freed, and the next signal ends the process.
    """
    return require("openvino", "an OpenVINO file").Core()


def with_nms_in_openvino(network: Untyped, job: Job) -> Untyped:
    """Return an openvino.Model followed by the job's NMS, as one model.

    The network has one output (N, boxes, 5 + nc).

    Saving must not compress it to float16, which would move the thresholds and, because of what NMS does with
    sizes, leave the weights as they are: compress the network before.
    """
    openvino = require("openvino", "--include openvino --nms")
    nms = openvino_core().read_model(nms_graph(job, openvino=True))
    decoded, *figures = nms.get_parameters()
    decoded.output(0).replace(network.get_results()[0].input_value(0))
    for figure, name in zip(figures, INPUTS):
        figure.output(0).get_tensor().set_names({name})  # and no other, from an operator that fell away
    outputs = [result.input_value(0) for result in nms.get_results()]
    for output, name in zip(outputs, OUTPUTS):
        output.get_tensor().set_names({name})
    return openvino.Model(outputs, [*network.get_parameters(), *figures], "detector")
