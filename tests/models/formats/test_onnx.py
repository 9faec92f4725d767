"""ONNX: the promised names and axes, and what each runtime refuses."""

import ast
import json

import cv2
import numpy as np
import onnx
import pytest
import torch

import export
from models.formats.onnx import onnx_obstacle
from models.schema import SCHEMA_DECODED
from models.weights.checkpoint import load_checkpoint, save_checkpoint
from models.yolo import DetectionModel
from tests.tiny_checkpoint import TINY, write_checkpoint
from utils.package import PROJECT


@pytest.fixture
def weights(tmp_path):
    return write_checkpoint(tmp_path)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("simplify", [False, True])
def test_onnx_has_the_promised_names_and_axes(weights, dynamic, simplify):
    if simplify:
        pytest.importorskip("onnxslim", reason="onnxslim is optional")
    (result,) = export.run(
        weights=str(weights),
        include=["onnx"],
        imgsz=[32, 64],
        batch_size=2,
        dynamic=dynamic,
        simplify=simplify,
    )
    graph = onnx.load(result.path)
    axes = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (graph.graph.input[0], graph.graph.output[0])
    ]
    assert graph.graph.input[0].name == "images"
    assert graph.graph.output[0].name == "output0"
    assert len(graph.graph.input) == len(graph.graph.output) == 1
    if dynamic:
        assert axes == [["batch", 3, "height", "width"], ["batch", "anchors", 7]]
    else:
        assert axes == [[2, 3, 32, 64], [2, 2 * 8 * 16, 7]]
    properties = {p.key: p.value for p in graph.metadata_props}
    assert ast.literal_eval(properties["names"]) == {0: "cat", 1: "dog"}
    assert properties["author"] == PROJECT
    assert properties["task"] == "detect"
    assert json.loads(properties["schema"]) == SCHEMA_DECODED
    assert properties["stride"] == "4"
    assert json.loads(properties["imgsz"]) == [32, 64]
    assert json.loads(properties["batch"]) == 2
    assert json.loads(properties["dynamic"]) is dynamic
    assert "mean" in properties["normalisation"]
    assert graph.opset_import[0].version == 17


@pytest.mark.parametrize("dynamic", [False, True])
def test_padding_of_tensorflow_is_no_layer_of_the_file(tmp_path, dynamic):
    blocks = [[-1, 1, "MBConvBlock", [8, k, 2, 2]] for k in (3, 5)]
    model = DetectionModel({**TINY, "backbone": [[-1, 1, "stem", [8, "ReLU6"]], *blocks]})
    weights = tmp_path / "best.pt"
    save_checkpoint(weights, model, meta={})
    (result,) = export.run(weights=str(weights), include=["onnx"], imgsz=[64], dynamic=dynamic)
    assert not [node.name for node in onnx.load(result.path).graph.node if node.op_type == "Pad"]


@pytest.mark.parametrize("options", [{}, {"dynamic": True}, {"opset": 12}])
def test_opencv_alone_reads_it(weights, options):
    """What docs/export.md promises to those who have OpenCV and nothing else."""
    (result,) = export.run(weights=str(weights), include=["onnx"], imgsz=[32, 64], **options)
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    network = cv2.dnn.readNetFromONNX(str(result.path))
    network.setInput(cv2.dnn.blobFromImage(image, 1 / 255, swapRB=True))
    with torch.no_grad():
        images = torch.from_numpy(image[None, ..., ::-1].transpose(0, 3, 1, 2).copy()).float() / 255
        wanted = load_checkpoint(weights).model(images)[0]
    assert wanted[..., 4:].std() > 0.1
    torch.testing.assert_close(torch.from_numpy(network.forward()), wanted, atol=1e-3, rtol=0)


def test_onnx_can_be_had_on_the_cpu_and_says_why_not_elsewhere(monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is optional")
    assert onnx_obstacle(torch.device("cpu")) == ""
    assert onnx_obstacle(torch.device("mps")) == (
        "this ONNX Runtime does not run on mps; pip install onnxruntime-gpu, or use --device cpu"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert onnx_obstacle(torch.device("cpu")) == "pip install onnx onnxruntime"
