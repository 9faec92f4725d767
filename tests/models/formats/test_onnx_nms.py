"""NMS joined to ONNX and OpenVINO networks: both runtimes find what non_max_suppression finds."""

from argparse import Namespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from models.formats.exporter import Job
from models.formats.metadata import Metadata
from models.formats.nms_graph import INPUTS, figure_tensors
from models.formats.nms_options import Suppression
from models.formats.onnx_nms import nms_graph, openvino_core, with_nms, with_nms_in_openvino
from tests.models.decoded_rows import assert_same, rows
from utils.nms import NmsOptions

CASES = [(0.3, 0.45, 12), (0.0, 0.6, 12), (0.05, 0.45, 5), (0.3, 0.0, 12), (0.3, 1.0, 12), (1.0, 0.5, 1)]


def job(nms, nc=3, opset=17):
    """What the joining functions look at."""
    metadata = Metadata({i: str(i) for i in range(nc)}, 8, nms=nms)
    return Job(Namespace(nc=nc), None, metadata, opset=opset)


def network(nc=3, shape=("batch", "anchors")):
    """An ONNX network that gives its input back; one of its names is one that the NMS graph has too."""
    size = [*shape, 5 + nc]
    nodes = [
        onnx.helper.make_node("Identity", ["images"], ["scores"], name="/Gather"),
        onnx.helper.make_node("Identity", ["scores"], ["output0"]),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "twice",
        [value("images", onnx.TensorProto.FLOAT, size)],
        [value("output0", onnx.TensorProto.FLOAT, size)],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def in_onnxruntime(graph):
    onnx.checker.check_model(graph, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
    return lambda feeds: [torch.from_numpy(array) for array in session.run(None, feeds)]


def in_openvino(graph, its_job):
    pytest.importorskip("openvino", reason="OpenVINO is optional")
    core = openvino_core()
    joined = with_nms_in_openvino(core.read_model(graph.SerializeToString()), its_job)
    compiled = core.compile_model(joined, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = ("output0", "counts")
    inputs = list(INPUTS) if its_job.metadata.nms.inputs else []
    assert [value.get_names() for value in joined.inputs] == [{name} for name in ("images", *inputs)]
    return lambda feeds: [torch.from_numpy(np.array(compiled(feeds)[name])) for name in names]


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def runners(request):
    """By (agnostic, inputs), the joined graph ready to run."""
    made = {}
    for agnostic in (False, True):
        for inputs in (False, True):
            its_job = job(Suppression(0.3, 0.45, 12, agnostic, inputs))
            openvino = request.param == "openvino"
            made[agnostic, inputs] = (
                in_openvino(network(), its_job) if openvino else in_onnxruntime(with_nms(network(), its_job))
            )
    return made


@pytest.mark.parametrize("agnostic", [False, True])
def test_equals_non_max_suppression_with_the_figures_inside(runners, agnostic):
    for seed in range(8):
        decoded = rows(seed, images=1 + seed % 3, boxes=20 + 30 * seed)
        wanted = NmsOptions(0.3, 0.45, agnostic=agnostic, max_det=12).suppress(decoded)
        assert_same(runners[agnostic, False]({"images": decoded.numpy()}), wanted, 12)


@pytest.mark.parametrize(("conf", "iou", "most"), CASES)
def test_equals_non_max_suppression_with_the_figures_as_inputs(runners, conf, iou, most):
    nms = Suppression(max_det=12, inputs=True)
    wanted = NmsOptions(conf, iou, max_det=most)
    figures = {name: t.to(INPUTS[name]).numpy() for name, t in figure_tensors(nms, wanted).items()}
    for seed in range(3):
        decoded = rows(seed)
        decoded[1, :, 4] *= seed > 0  # once an image in which there is nothing
        decoded[0, 5, 0], decoded[0, 6, 2] = torch.inf, torch.nan
        found = runners[False, True]({"images": decoded.numpy(), **figures})
        assert_same(found, wanted.suppress(decoded), 12)


def test_nothing_in_any_image(runners):
    decoded = rows(0) * 0
    assert_same(runners[False, False]({"images": decoded.numpy()}), [torch.zeros(0, 6)] * 2, 12)


def test_axes_and_names_of_the_joined_file():
    graph = with_nms(network(shape=(2, 60)), job(Suppression(max_det=12, inputs=True))).graph
    axes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    assert axes == {
        "images": [2, 60, 8],
        "conf_thres": [],
        "iou_thres": [],
        "max_det": [],
        "output0": [2, 12, 6],
        "counts": [2],
    }
    assert sum(node.op_type == "NonMaxSuppression" for node in graph.node) == 1


@pytest.mark.parametrize("opset", [11, 13, 20])
def test_every_opset_that_export_writes(opset):
    its_job = job(Suppression(0.3, 0.45, 12), opset=opset)
    run = in_onnxruntime(onnx.load_from_string(nms_graph(its_job)))
    decoded = rows(5)
    assert_same(run({"decoded": decoded.numpy()}), NmsOptions(0.3, 0.45, max_det=12).suppress(decoded), 12)
