"""Quantise an exported program to int8 for XNNPACK, with torchao's PT2E.

The detection head stays float32. This module is imported only when it is used: the observers below are
subclasses of torchao's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationConfig, QuantizationSpec
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from models.formats.embedded import CUT_OFF, activation_range
from models.formats.exporter import back_to

# The product of two steps must be one that XNNPACK can divide by, 2^-32 at least. Its quantiser's own 2^-12
# is too coarse for channels of small weights.
LEAST_STEP = 2.0**-16
ATEN = torch.ops.aten
_WEIGHTY = frozenset({ATEN.conv2d.default, ATEN.convolution.default, ATEN.linear.default})
CUTTING = {
    ATEN.silu.default: CUT_OFF["SiLU"],
    ATEN.silu_.default: CUT_OFF["SiLU"],
    ATEN.hardswish.default: CUT_OFF["Hardswish"],
    ATEN.hardswish_.default: CUT_OFF["Hardswish"],
}
# XNNPACK has these as a part of the convolution: ReLU6 as a function and as a module.
CLIPPING = frozenset({ATEN.relu6.default, ATEN.relu6_.default, ATEN.hardtanh.default, ATEN.hardtanh_.default})


class RangeObserver(MinMaxObserver):
    """Note the extremes of every calibration image.

    `activation_range` makes one range of them.
    """

    # Any: the options of the class above, which torchao leaves untyped.
    def __init__(self, bounds: tuple[float, float] = (-math.inf, math.inf), **options: Any) -> None:
        super().__init__(**options)
        self.bounds = bounds
        self.lows: list[float] = []
        self.highs: list[float] = []

    def end_image(self) -> None:
        """Start the next image.

        One range may serve several tensors of an image, so an image ends only when it is said to.
        """
        self.lows.append(self.min_val.item())
        self.highs.append(self.max_val.item())
        self.reset_min_max_vals()

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point."""
        low, high = activation_range(self.lows, self.highs, self.bounds)
        self.min_val, self.max_val = torch.tensor(low), torch.tensor(high)
        return super().calculate_qparams()


class TrunkQuantizer(XNNPACKQuantizer):
    """Choose what XNNPACK computes in int8.

    The head stays float32, and so does an attention except its linear layers.
    """

    def __init__(self) -> None:
        super().__init__()
        weights = QuantizationSpec(
            dtype=torch.int8,
            quant_min=-127,
            quant_max=127,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=LEAST_STEP),
        )
        values = _activations()
        self.set_global(QuantizationConfig(values, values, weights, None, False))

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark first what stays float32, and afterwards what follows a convolution."""
        for node in _float_nodes(model.graph):
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(_annotated=True)
        model = super().annotate(model)
        for node in model.graph.nodes:
            annotation = node.meta.get(Q_ANNOTATION_KEY)
            alone = node.target in _WEIGHTY and len(node.users) == 1
            if not alone or annotation is None or annotation.output_qspec is None:
                continue
            (user,) = node.users
            if user.target in CUTTING:
                annotation.output_qspec = _activations(CUTTING[user.target])
            elif user.target in CLIPPING:  # as XNNPACK's quantizer does with ReLU: one range, after both
                annotation.output_qspec = None
                user.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                    output_qspec=_activations(), _annotated=True
                )
        return model


def quantise_program(model: nn.Module, example: Tensor, batches: Iterable[Tensor]) -> ExportedProgram:
    """Return the model as a program in int8.

    Weights are symmetric and per channel; activations have calibrated ranges.

    Args:
        model: in eval mode.
        example: (1, ch, H, W) float32.
        batches: the calibration images, of the example's shape.
    """
    prepared = prepare_pt2e(torch.export.export(model, (example,)).module(), TrunkQuantizer())
    observers = [module for module in prepared.modules() if isinstance(module, RangeObserver)]
    for batch in batches:
        prepared(batch)
        for observer in observers:
            observer.end_image()
    return torch.export.export(convert_pt2e(prepared), (example,))


def _program_head(graph: torch.fx.Graph) -> list[Node]:
    """Return the head: from its 1x1 convolutions, these included, to the results."""
    found = back_to(
        graph.output_node().all_input_nodes,
        lambda node: node.all_input_nodes,
        lambda node: node.target in _WEIGHTY,
        key=lambda node: node,
    )
    return [node for node in found if node.op == "call_function"]


def _float_nodes(graph: torch.fx.Graph) -> list[Node]:
    """Return the head, and all of an attention except its linear layers.

    `tflite_precision.tflite_float_tensors` chooses in the same way.
    """
    return _program_head(graph) + [
        node
        for node in graph.nodes
        if node.op == "call_function" and node.target not in _WEIGHTY and not _of_maps(node)
    ]


def _of_maps(node: Node) -> bool:
    """Return whether a node reads and makes only maps (N, C, H, W).

    Constants such as weights do not count.
    """
    parts = [node, *(part for part in node.all_input_nodes if part.op != "get_attr")]
    values = [part.meta.get("val") for part in parts]
    return all(value.ndim == 4 for value in values if isinstance(value, Tensor))


def _activations(bounds: tuple[float, float] = (-math.inf, math.inf)) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=RangeObserver.with_args(bounds=bounds, eps=LEAST_STEP),
    )
