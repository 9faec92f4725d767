"""ONNX in float16 and int8: smaller, runs on the CPU, and the head is as it was."""

import ast
import os

import numpy as np
import onnx
import pytest
import torch

import export
from models.backends import load_backend
from models.export_checks.accept import EXPORT_TOLERANCE
from models.formats.onnx_precision import onnx_head
from tests.models.formats.small import DEPTHWISE, expected, photographs, save_small
from tests.tiny_set import write_set
from utils.errors import UserError

QUANTISED = {"QuantizeLinear", "DequantizeLinear"}


@pytest.fixture
def weights(tmp_path):
    save_small(tmp_path / "best.pt", DEPTHWISE)
    return tmp_path / "best.pt"


def stored(graph):
    """Bytes of the tensors in a graph."""
    return sum(onnx.numpy_helper.to_array(t).nbytes for t in graph.graph.initializer)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("simplify", [False, True])
def test_float16_inside_float32_outside(weights, dynamic, simplify):
    if simplify:
        pytest.importorskip("onnxslim", reason="onnxslim is optional")
    options = {"include": ["onnx"], "imgsz": [64], "dynamic": dynamic, "simplify": simplify}
    (plain,) = export.run(weights=str(weights), **options)
    before = stored(onnx.load(plain.path))
    (result,) = export.run(weights=str(weights), half=True, **options)
    assert result.path == weights.with_suffix(".onnx")
    graph = onnx.load(result.path)
    onnx.checker.check_model(graph, full_check=True)
    types = {v.type.tensor_type.elem_type for v in (*graph.graph.input, *graph.graph.output)}
    assert types == {onnx.TensorProto.FLOAT}
    assert stored(graph) < 0.7 * before
    weightings = [t for t in graph.graph.initializer if len(t.dims) == 4]
    assert sum(t.data_type == onnx.TensorProto.FLOAT16 for t in weightings) > 5
    backend = load_backend(result.path)
    assert not backend.half
    model = save_small(weights, DEPTHWISE)
    for batch in (photographs(2, 72, 40), photographs(1, 64, 64)) if dynamic else (photographs(1, 64, 64),):
        difference = (backend.predict(batch) - expected(model, batch)).abs()
        score, box = EXPORT_TOLERANCE["fp16"]
        assert 1e-6 < difference[..., 4:].max() < score
        assert difference[..., :4].max() < box


def test_far_boxes_keep_their_fraction_of_a_pixel(weights):
    """Near 1000 px float16 knows whole and half pixels only; the decoding knows more."""
    (result,) = export.run(weights=str(weights), include=["onnx"], imgsz=[64, 1056], half=True)
    x = load_backend(result.path).predict(photographs(1, 64, 1056))[0, :, 0]
    assert ((x[x > 512] * 8) % 1 != 0).any()


def test_float16_runs_in_opencv(weights):
    (result,) = export.run(weights=str(weights), include=["onnx"], imgsz=[64], half=True)
    found = load_backend(result.path, dnn=True).predict(photographs(1, 64, 64))
    torch.testing.assert_close(
        found, load_backend(result.path).predict(photographs(1, 64, 64)), atol=0.5, rtol=0
    )


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"dynamic": True}])
def test_int8_is_smaller_and_leaves_the_head_alone(weights, tmp_path, monkeypatch, options):
    data = write_set(tmp_path / "set", train=7, val=2)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    common = {"weights": str(weights), "include": ["onnx"], "imgsz": [64], **options}
    (plain,) = export.run(**common)
    (result,) = export.run(int8=True, data=str(data), calibration_images=3, **common)
    assert result.path == tmp_path / "best_int8.onnx"
    assert result.precision == "int8"
    assert 0 <= result.accuracy.map <= 1
    graph = onnx.load(result.path)
    onnx.checker.check_model(graph, full_check=True)
    assert stored(graph) < 0.6 * stored(onnx.load(plain.path))
    assert sum(node.op_type == "QuantizeLinear" for node in graph.graph.node) > 5
    kinds = {node.name: node.op_type for node in graph.graph.node}
    left_alone = [kinds[name] for name in onnx_head(graph)]
    assert left_alone.count("Conv") == 2
    assert {"Sigmoid", "Concat"} <= set(left_alone)
    assert not QUANTISED & set(left_alone)
    makers = {name: node.op_type for node in graph.graph.node for name in node.output}
    clipped = [makers[n.input[0]] for n in graph.graph.node if n.op_type in ("Clip", "Relu")]
    assert "DequantizeLinear" not in clipped, "what is clipped is quantised after the clipping, or within it"
    assert os.listdir() == [], "nothing is left in the working folder"
    properties = {p.key: p.value for p in graph.metadata_props}
    assert properties["precision"] == "int8"
    assert ast.literal_eval(properties["names"]) == {0: "cat", 1: "dog"}
    backend = load_backend(result.path)
    assert backend.fixed_batch == (None if "dynamic" in options else 2)
    assert backend.predict(photographs(3, 64, 64)).shape[0] == 3


def test_weights_are_quantised_per_channel(weights, tmp_path):
    data = write_set(tmp_path / "set", train=2, val=1)
    export.run(weights=str(weights), include=["onnx"], imgsz=[64], int8=True, data=str(data))
    graph = onnx.load(tmp_path / "best_int8.onnx")
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    int8 = [n for n in graph.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in values]
    filters = [n for n in int8 if values[n.input[0]].ndim == 4]
    assert len(filters) > 5
    for node in filters:
        assert values[node.input[0]].dtype == np.int8
        assert values[node.input[1]].shape == values[node.input[0]].shape[:1], "a scale for each channel"
        assert not values[node.input[2]].any(), "symmetric: zero is zero"


def test_operator_set_too_old_for_int8_is_a_sentence(weights, tmp_path):
    data = write_set(tmp_path / "set", train=1, val=1)
    with pytest.raises(UserError, match="--opset 12: int8 needs 13 or more"):
        export.run(weights=str(weights), include=["onnx"], imgsz=[64], int8=True, data=str(data), opset=12)


def test_int8_file_is_not_float16(weights, tmp_path):
    data = write_set(tmp_path / "set", train=2, val=1)
    (result,) = export.run(weights=str(weights), include=["onnx"], imgsz=[64], int8=True, data=str(data))
    with pytest.raises(UserError, match="--half"):
        load_backend(result.path, half=True)
