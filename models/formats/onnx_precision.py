"""Bring an ONNX graph into float16 or int8; the detection head stays float32."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from models.formats.exporter import Job, Untyped, back_to, quiet, require
from utils.errors import UserError

_WEIGHTY = frozenset({"Conv", "Gemm", "MatMul"})
PER_CHANNEL = 13  # the first operator set in which every channel may have a scale of its own


def reduce_onnx_precision(graph: Untyped, job: Job) -> Untyped:
    """Return the graph in the precision asked for; unchanged when that is float32."""
    if job.metadata.precision == "fp16":
        return _onnx_to_float16(graph)
    if job.metadata.precision == "int8":
        return _onnx_to_int8(graph, job)
    return graph


def _onnx_to_float16(graph: Untyped) -> Untyped:
    """Convert weights and arithmetic to float16.

    Images and results stay float32, so that any runtime can feed the file.

    So does the head: near 640 px neighbouring float16 numbers are half a pixel apart.
    """
    float16 = require("onnxruntime.transformers.float16", "--include onnx --half", "onnxruntime")
    onnx_model = require("onnxruntime.transformers.onnx_model", "--include onnx --half", "onnxruntime")
    _name_nodes(graph)
    _store_constants(graph)  # else the scales of a Resize are cast there and back, and OpenCV cannot read it
    with quiet():  # it speaks of every weight below float16's least number, which is 0 to any sum
        half = float16.convert_float_to_float16(graph, keep_io_types=True, node_block_list=onnx_head(graph))
    _keep_float32(half)
    onnx_model.OnnxModel.graph_topological_sort(half.graph)  # the casts were put after what they feed
    return half


def _onnx_to_int8(graph: Untyped, job: Job) -> Untyped:
    """Quantise by ONNX Runtime: convolutions with their ReLU, weights per channel.

    QuantizeLinear/DequantizeLinear pairs enclose what runs in int8 (QDQ). Other activations, sums
    and products stay float32: in int8 they cost yolov5n 0.004 of mAP50-95 and slow the file down.
    """
    if job.opset < PER_CHANNEL:
        raise UserError(f"--opset {job.opset}: int8 needs {PER_CHANNEL} or more; leave it out for 17")
    onnx = require("onnx", "--include onnx --int8")
    quantization = require("onnxruntime.quantization", "--include onnx --int8", "onnxruntime")
    shape_inference = require("onnxruntime.quantization.shape_inference", "--int8", "onnxruntime")
    _name_nodes(graph)
    with tempfile.TemporaryDirectory() as folder, quiet(job.verbose):
        plain, prepared, done = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "done"))
        onnx.save(graph, str(plain))
        # Shapes by symbols stop at free axes, and leave their working files in the user's folder when they
        # stop; what calibration needs are the tensors' types.
        shape_inference.quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        ready = onnx.load(str(prepared))
        quantization.quantize_static(
            ready,
            done,
            _Reader(job),
            quant_format=quantization.QuantFormat.QDQ,
            # With a clipping named too, a convolution's range ends where the clipping does: 0.03 of mAP50-95
            # on EfficientNet-Lite0, whose ReLU6 else cuts off most of 256 steps.
            op_types_to_quantize=["Conv", "Clip", "Relu"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=onnx_head(ready),
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )
        quantised = onnx.load(str(done))
    used = {node.domain for node in quantised.graph.node}
    imports = [entry for entry in quantised.opset_import if entry.domain in used | {""}]
    del quantised.opset_import[:]  # the optimizer declares domains of its own, which other runtimes lack
    quantised.opset_import.extend(imports)
    return quantised


class _Reader:
    """Give ONNX Runtime the calibration images batch by batch, then None."""

    def __init__(self, job: Job) -> None:
        self._batches: Iterator[Tensor] = job.calibration_batches()

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch.numpy()}


def _name_nodes(graph: Untyped) -> None:
    """Name the nodes that have no name: names say what stays float32."""
    taken = {node.name for node in graph.graph.node}
    for number, node in enumerate(graph.graph.node):
        if not node.name:
            name = f"{node.op_type}_{number}"
            node.name = name if name not in taken else f"{name}_unnamed"


def _keep_float32(graph: Untyped) -> None:
    """Join what stays float32.

    The converter casts every single result of it to float16 and back.
    """
    onnx = require("onnx", "--include onnx --half")
    casts = {node.output[0]: node for node in graph.graph.node if node.op_type == "Cast"}
    down, up = (
        {name: node for name, node in casts.items() if node.attribute[0].i == kind}
        for kind in (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT)
    )
    outputs = {value.name for value in graph.graph.output}
    joined = {name: down[node.input[0]].input[0] for name, node in up.items() if node.input[0] in down}
    for name, source in joined.items():
        if name in outputs:
            graph.graph.node.append(onnx.helper.make_node("Identity", [source], [name], f"{name}_float32"))
        graph.graph.node.remove(up[name])
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = joined.get(name, name)
    used = outputs | {name for node in graph.graph.node for name in node.input}
    for name, node in down.items():
        if name not in used:
            graph.graph.node.remove(node)


def _store_constants(graph: Untyped) -> None:
    """Turn Constant nodes into stored tensors."""
    constants = [node for node in graph.graph.node if node.op_type == "Constant"]
    for node in constants:
        values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        if values:
            tensor = graph.graph.initializer.add()
            tensor.CopyFrom(values[0])
            tensor.name = node.output[0]
            graph.graph.node.remove(node)


def onnx_head(graph: Untyped) -> list[str]:
    """Return the names of the head's nodes.

    The head runs from its 1x1 convolutions, these included, to the outputs.
    """
    makers = {name: node for node in graph.graph.node for name in node.output}

    def made(names: Iterable[str]) -> list[Untyped]:
        return [makers[name] for name in names if name in makers]

    found = back_to(
        made(value.name for value in graph.graph.output),
        lambda node: made(node.input),
        lambda node: node.op_type in _WEIGHTY,
        key=lambda node: node.name,
    )
    return list(found)
