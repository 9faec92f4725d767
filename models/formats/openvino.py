"""Export to and run OpenVINO: a folder `<stem>_openvino_model`.

It holds the network (.xml, .bin), `metadata.yaml` and the same as `<stem>.yaml`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.formats.base import Backend, OpenOptions, damaged, register_format
from models.formats.exporter import (
    Decoded,
    Exporter,
    Job,
    Untyped,
    back_to,
    quiet,
    register_exporter,
    require,
)
from models.formats.metadata import parse_metadata
from models.formats.nms_graph import INPUTS
from models.formats.onnx_nms import openvino_core, with_nms_in_openvino
from utils.errors import UserError
from utils.files import load_yaml, save_yaml

ENDING = "_openvino_model"
_METADATA = "metadata.yaml"
_WEIGHTY = frozenset({"Convolution", "GroupConvolution", "MatMul"})


def write_openvino(job: Job, path: Path) -> None:
    """Convert the traced model: input `images`, output `output0`; int8 by NNCF."""
    openvino = require("openvino", "--include openvino")
    n, ch, height, width = job.example.shape
    shape = [-1, ch, -1, -1] if job.metadata.dynamic else [n, ch, height, width]
    with torch.no_grad(), quiet(job.verbose):
        # Straight from PyTorch: as exact as by way of ONNX, and no other package takes part.
        script = torch.jit.trace(Decoded(job.model), job.example, check_trace=False, strict=False)
        network = openvino.convert_model(
            script, example_input=job.example, input=("images", openvino.PartialShape(shape))
        )
    network.outputs[0].get_tensor().set_names({"output0"})
    if job.metadata.precision == "int8":
        network = quantise_openvino(network, job)
    _save(network, job, path, compress=job.metadata.precision == "fp16")


def add_openvino_nms(job: Job, folder: Path, path: Path) -> None:
    """Add NMS to a written network; outputs and further inputs are those of `nms_graph`."""
    network = openvino_core().read_model(_network_file(folder))
    _save(with_nms_in_openvino(network, job), job, path, compress=False)  # what may be float16 is by now


def _save(network: Untyped, job: Job, path: Path, *, compress: bool) -> None:
    """Write a network and its metadata; `compress` stores the weights in float16."""
    openvino = require("openvino", "--include openvino")
    path.mkdir(parents=True)
    stem = path.name.removesuffix(ENDING).removesuffix("_int8")
    openvino.save_model(network, path / f"{stem}.xml", compress_to_fp16=compress)
    for name in (_METADATA, f"{stem}.yaml"):  # YOLOv5 reads stride and names from the second
        save_yaml(path / name, job.metadata.values())


def quantise_openvino(network: Untyped, job: Job) -> Untyped:
    """Quantise with NNCF: weights per channel; the head stays float32."""
    nncf = require("nncf", "--include openvino --int8")
    logging.getLogger("nncf").setLevel(logging.INFO if job.verbose else logging.ERROR)
    batches = [batch.numpy() for batch in job.calibration_batches()]
    # The ranges that hold every value seen: the default's averaged ones cost yolov5n 0.005 more of mAP50-95.
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
    return nncf.quantize(
        network,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,  # activations such as SiLU are not symmetric
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(names=openvino_head(network), validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges),
    )


def openvino_head(network: Untyped) -> list[str]:
    """Return the names of the head's operations.

    The head runs from its 1x1 convolutions, these included, to the outputs.
    """
    found = back_to(
        network.get_results(),
        lambda node: [value.get_source_output().get_node() for value in node.inputs()],
        lambda node: node.get_type_name() in _WEIGHTY,
        key=lambda node: node.get_friendly_name(),
    )
    others = ("Constant", "Result", "Parameter")
    return [name for name, node in found.items() if node.get_type_name() not in others]


@register_format(ENDING, ".xml")
class OpenVinoBackend(Backend):
    """Run an exported OpenVINO folder, or the .xml in it, on the CPU."""

    def __init__(self, path: Path, device: torch.device, options: OpenOptions) -> None:
        require("openvino", str(path))
        if device.type != "cpu":
            raise UserError(
                f"{path}: OpenVINO files run on the CPU here, not on {device.type}; use --device cpu"
            )
        xml = _network_file(path)
        official = xml.with_suffix(".yaml")  # where YOLOv5 keeps stride and names
        beside = next((file for file in (xml.with_name(_METADATA), official) if file.is_file()), None)
        metadata = parse_metadata(path, load_yaml(beside) if beside else {}, options.names)
        metadata.half = False  # float16 is how the weights are stored; images stay float32
        try:
            network = openvino_core().read_model(xml)
        except RuntimeError as error:
            raise damaged(path, "an OpenVINO network", error) from None
        shape = network.inputs[0].get_partial_shape()
        metadata.dynamic = shape.is_dynamic
        if not metadata.dynamic:  # the graph knows better than any note about it
            metadata.batch, _, *size = (int(side.get_length()) for side in shape)
            metadata.imgsz = (size[0], size[1])
        super().__init__(path, device, metadata)
        self.request = _compile(network).create_infer_request()

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        return self._outputs({"images": images})[0]

    def _run_nms(self, images: Tensor, figures: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        typed = {name: figure.to(INPUTS[name]) for name, figure in figures.items()}
        rows, counts = self._outputs({"images": images, **typed})
        return rows, counts

    def _outputs(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        # Shared both ways: by itself the request copies the images in and the results out, megabytes each.
        results = self.request.infer(
            {name: tensor.contiguous().numpy() for name, tensor in feeds.items()},
            share_inputs=True,
            share_outputs=True,
        )
        # Copies: the request's own memory is written over by the next call.
        return [torch.from_numpy(results[number].copy()) for number in range(len(results))]


def _compile(network: Untyped) -> Untyped:
    """Compile for one image after another, with PyTorch's number of threads."""
    # On a CPU with bfloat16 OpenVINO computes in that by itself: up to 0.1 off in a score and 15 px in a box,
    # where these files promise to be equal to PyTorch. In int8 files it is the head that stays float32, and
    # bfloat16 there makes nothing faster.
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return openvino_core().compile_model(network, "CPU", settings)


def _network_file(path: Path) -> Path:
    """Return the .xml itself, or the only one in a folder."""
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.xml"))
    if len(found) != 1:
        what = "no .xml" if not found else f"{len(found)} .xml files"
        raise UserError(f"{path}: holds {what} where an exported folder has one; export it again")
    return found[0]


register_exporter(
    Exporter(
        "openvino",
        "OpenVINO",
        write_openvino,
        {"fp32": ENDING, "fp16": ENDING, "int8": f"_int8{ENDING}"},
        frozenset({"batch", "dynamic"}),
        add_nms=add_openvino_nms,
    )
)
