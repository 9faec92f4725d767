"""An ONNX graph in float16 or int8; the detection head stays float32 in both."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from models.exporting import Job, quiet, require

WEIGHTY = frozenset({"Conv", "Gemm", "MatMul"})


def reduce_precision(graph: Any, job: Job) -> Any:
    """The graph in the precision that the job asks for; itself when that is float32."""
    if job.metadata.precision == "fp16":
        return to_float16(graph)
    if job.metadata.precision == "int8":
        return to_int8(graph, job)
    return graph


def to_float16(graph: Any) -> Any:
    """Weights and arithmetic in float16; images and results stay float32, so that any runtime can feed it.

    So does the head: near 640 px neighbouring float16 numbers are half a pixel apart.
    """
    float16 = require("onnxruntime.transformers.float16", "--include onnx --half", "onnxruntime")
    onnx_model = require("onnxruntime.transformers.onnx_model", "--include onnx --half", "onnxruntime")
    _name_nodes(graph)
    with quiet():  # it speaks of every weight below float16's least number, which is 0 to any sum
        half = float16.convert_float_to_float16(graph, keep_io_types=True, node_block_list=head(graph))
    onnx_model.OnnxModel.graph_topological_sort(half.graph)  # the casts were put behind what they feed
    return half


def to_int8(graph: Any, job: Job) -> Any:
    """Post-training quantisation by ONNX Runtime: convolutions, weights symmetric and per channel.

    QuantizeLinear/DequantizeLinear pairs stand around what is to run in int8 (QDQ). Activations, sums and
    products between the convolutions stay float32: in int8 they cost yolov5n 0.004 of mAP50-95 and make the
    file slower, not faster.
    """
    onnx = require("onnx", "--include onnx --int8")
    quantization = require("onnxruntime.quantization", "--include onnx --int8", "onnxruntime")
    shape_inference = require("onnxruntime.quantization.shape_inference", "--int8", "onnxruntime")
    _name_nodes(graph)
    with tempfile.TemporaryDirectory() as folder, quiet(job.opt.verbose):
        plain, prepared, done = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "done"))
        onnx.save(graph, str(plain))
        shape_inference.quant_pre_process(plain, prepared)
        ready = onnx.load(str(prepared))
        quantization.quantize_static(
            ready,
            done,
            _Reader(job),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=head(ready),
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )
        return onnx.load(str(done))


class _Reader:
    """Gives ONNX Runtime the calibration images one batch after another, then None."""

    def __init__(self, job: Job) -> None:
        self._batches: Iterator[Any] = job.calibration()

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch.numpy()}


def _name_nodes(graph: Any) -> None:
    """Names for nodes that have none: what is left alone is told by its name."""
    taken = {node.name for node in graph.graph.node}
    for number, node in enumerate(graph.graph.node):
        if not node.name:
            name = f"{node.op_type}_{number}"
            node.name = name if name not in taken else f"{name}_unnamed"


def head(graph: Any) -> list[str]:
    """Names of the nodes of the head: from its 1x1 convolutions, these included, to the outputs.

    The convolutions are a hundredth of the arithmetic, and in int8 they alone cost 0.01 of mAP50-95.
    """
    makers = {name: node for node in graph.graph.node for name in node.output}
    waiting, names = [value.name for value in graph.graph.output], {}
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.name in names:
            continue
        names[node.name] = None
        if node.op_type not in WEIGHTY:
            waiting += node.input
    return list(names)
