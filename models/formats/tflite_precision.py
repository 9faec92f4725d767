"""Bring a TFLite network into float16 or int8, with ai-edge-quantizer.

In int8 the detection head stays float32.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from models.formats.embedded import CUT_OFF, activation_range
from models.formats.exporter import Job, back_to, quiet, require

_WEIGHTY = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})  # where nearly all weights are


class Operation(NamedTuple):
    """Describe one operation: its TFLite kind, and the tensors it reads and makes.

    Constants such as weights are not among those it reads.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Network(NamedTuple):
    """Describe what a TFLite file computes.

    Attributes:
        operations: in the order they are run in.
        inputs, results: names of the tensors that come in and go out.
        ranks: the number of axes of each tensor that is not constant.
    """

    operations: list[Operation]
    inputs: tuple[str, ...]
    results: tuple[str, ...]
    ranks: dict[str, int]


def reduce_tflite_precision(content: bytes, job: Job) -> bytes:
    """Return the network in the precision asked for; unchanged when that is float32."""
    if job.metadata.precision == "fp16":
        return _tflite_to_float16(content, job)
    if job.metadata.precision == "int8":
        return _tflite_to_int8(content, job)
    return content


def _tflite_to_float16(content: bytes, job: Job) -> bytes:
    """Store the weights of convolutions and linear layers in float16.

    The network still computes in float32.
    """
    quantiser = require("ai_edge_quantizer", "--half --include tflite", "ai-edge-quantizer")
    from ai_edge_quantizer.quantizer import AlgorithmName

    worker = quantiser.Quantizer(bytearray(content))
    for operation in sorted(_WEIGHTY):
        worker.add_weight_only_config(
            regex=".*",
            operation_name=quantiser.qtyping.TFLOperationName(operation),
            num_bits=16,
            granularity=quantiser.qtyping.QuantGranularity.TENSORWISE,
            algorithm_key=AlgorithmName.FLOAT_CASTING,
        )
    with _silent(job.verbose):
        return bytes(worker.quantize().quantized_model)


def _tflite_to_int8(content: bytes, job: Job) -> bytes:
    """Quantise: weights per channel, activations by calibrated ranges.

    Images, results and the head stay float32, and so does an attention except its linear layers.
    """
    quantiser = require("ai_edge_quantizer", "--int8 --include tflite", "ai-edge-quantizer")
    from ai_edge_quantizer.quantizer import AlgorithmName

    network = read_network(content)
    everything = quantiser.qtyping.TFLOperationName.ALL_SUPPORTED
    worker = quantiser.Quantizer(bytearray(content))
    worker.add_static_config(".*", everything, activation_num_bits=8, weight_num_bits=8)
    # An operation goes by the names of its results, each with a semicolon; what comes in by its own.
    names = "|".join(map(re.escape, [*network.inputs, *network.results, *tflite_float_tensors(network)]))
    worker.update_quantization_recipe(f"^(?:{names});$", everything, algorithm_key=AlgorithmName.NO_QUANTIZE)
    ranges = {
        name: {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
        for name, (low, high) in calibrate(content, network, job).items()
    }
    with _silent(job.verbose):
        return bytes(worker.quantize(ranges).quantized_model)


def read_network(content: bytes) -> Network:
    """Return the operations of a TFLite file's first, and here only, graph."""
    tools = require("ai_edge_litert.tools.flatbuffer_utils", "--int8 --include tflite", "ai-edge-litert")
    kinds = {code: kind for kind, code in vars(tools.BuiltinOperator).items() if isinstance(code, int)}
    model = tools.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    made = {*graph.inputs, *(tensor for operator in graph.operators for tensor in operator.outputs)}
    names = {index: graph.tensors[index].name.decode() for index in made}

    def named(indices: Iterable[int]) -> tuple[str, ...]:
        return tuple(names[index] for index in indices if index in made)

    operations = [
        Operation(
            kinds[model.operatorCodes[operator.opcodeIndex].builtinCode],
            named(operator.inputs),
            named(operator.outputs),
        )
        for operator in graph.operators
    ]
    ranks = {name: len(graph.tensors[index].shape) for index, name in names.items()}
    return Network(operations, named(graph.inputs), named(graph.outputs), ranks)


def tflite_head(network: Network) -> list[Operation]:
    """Return the head: from its 1x1 convolutions, these included, to the results."""
    makers = {name: operation for operation in network.operations for name in operation.outputs}
    found = back_to(
        [makers[name] for name in network.results],
        lambda operation: [makers[name] for name in operation.inputs if name in makers],
        lambda operation: operation.kind in _WEIGHTY,
        key=lambda operation: operation,
    )
    return list(found.values())


def tflite_float_tensors(network: Network) -> list[str]:
    """Return the names of the tensors that stay float32.

    They are made by the head and by an attention, except its linear layers.

    A convolution's maps have four axes. Where tensors of other numbers appear there is attention, from one
    convolution to the next: its norms and running sums have no room in 256 steps (a MobileViT's maps come out
    0.47 wrong, against 0.03 with these in float32).
    """
    free = [operation for operation in network.operations if operation.kind not in _WEIGHTY]
    beside: dict[str, list[Operation]] = {}
    for operation in free:
        for name in operation.inputs + operation.outputs:
            beside.setdefault(name, []).append(operation)
    waiting = [
        operation
        for operation in free
        if any(network.ranks[name] != 4 for name in operation.inputs + operation.outputs)
    ]
    found = {operation.outputs: operation for operation in tflite_head(network)}
    while waiting:
        operation = waiting.pop()
        if operation.outputs not in found:
            found[operation.outputs] = operation
            waiting += [other for name in operation.inputs + operation.outputs for other in beside[name]]
    return [name for outputs in found for name in outputs]


def calibrate(content: bytes, network: Network, job: Job) -> dict[str, tuple[float, float]]:
    """Return the range of every non-constant tensor over the calibration images."""
    runtime = require("ai_edge_litert.interpreter", "--int8 --include tflite", "ai-edge-litert")
    with _silent(job.verbose):  # it warns of the memory that takes
        interpreter = runtime.Interpreter(
            model_content=content,
            num_threads=torch.get_num_threads(),
            experimental_preserve_all_tensors=True,
        )
    interpreter.allocate_tensors()
    (image,) = interpreter.get_input_details()
    wanted = {
        tensor["name"]: tensor["index"]
        for tensor in interpreter.get_tensor_details()
        if tensor["name"] in network.ranks and tensor["dtype"] == np.float32
    }
    lows: dict[str, list[float]] = {name: [] for name in wanted}
    highs: dict[str, list[float]] = {name: [] for name in wanted}
    for batch in job.calibration_batches():
        interpreter.set_tensor(image["index"], batch.permute(0, 2, 3, 1).contiguous().numpy())
        interpreter.invoke()
        for name, index in wanted.items():
            values = interpreter.get_tensor(index)
            lows[name].append(values.min())
            highs[name].append(values.max())
    bounds = saturating(network)
    everything = -math.inf, math.inf
    return {name: activation_range(lows[name], highs[name], bounds.get(name, everything)) for name in wanted}


def saturating(network: Network) -> dict[str, tuple[float, float]]:
    """Return bounds for tensors that only a SiLU or Hardswish reads.

    These activations make next to nothing of low values.
    """
    readers: dict[str, list[Operation]] = {}
    for operation in network.operations:
        for name in set(operation.inputs):
            readers.setdefault(name, []).append(operation)
    found = {}
    for name, operations in readers.items():
        kinds = sorted(operation.kind for operation in operations)
        if kinds == ["HARD_SWISH"]:
            found[name] = CUT_OFF["Hardswish"]
        if kinds == ["LOGISTIC", "MUL"]:  # SiLU is x * sigmoid(x): both read x, and the product the other
            sigmoid, product = sorted(operations, key=lambda operation: operation.kind)
            if sigmoid.outputs[0] in product.inputs:
                found[name] = CUT_OFF["SiLU"]
    return found


@contextlib.contextmanager
def _silent(verbose: bool) -> Iterator[None]:
    """Hide the progress bars and reports of the quantiser, but not its errors."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet(verbose))
        if not verbose:
            for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
                stack.enter_context(redirect(io.StringIO()))
        yield
