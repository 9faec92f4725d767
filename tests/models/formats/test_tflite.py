"""TFLite: PyTorch's boxes in YOLOv5's layout, metadata after the network, damaged files refused."""

import ast
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch

import export
from models.backends import load_backend
from models.formats.tflite import META, ChannelsLast, read_tflite
from models.schema import SCHEMA
from tests.models.formats.small import (
    NAMES,
    PLAIN,
    SIZE,
    assert_close,
    assert_int8,
    expected,
    in_int8,
    photographs,
    save_small,
)
from utils.errors import UserError


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exported(request, tmp_path_factory):
    """(file, the model it came from, precision); networks of plain convolutions convert fastest."""
    pytest.importorskip("litert_torch", reason="litert-torch is optional and large")
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is optional")
    weights = tmp_path_factory.mktemp("tflite") / "best.pt"
    model = save_small(weights, PLAIN)
    half = request.param == "fp16"
    (result,) = export.run(weights=str(weights), include=["tflite"], imgsz=SIZE, half=half)
    assert result.path.name == ("best-fp16.tflite" if half else "best.tflite")
    return result.path, model, request.param


def test_it_gives_the_models_boxes_for_any_batch(exported):
    path, model, precision = exported
    backend = load_backend(path)
    limits = (1e-4, 1e-2) if precision == "fp32" else (2e-2, 4)
    for n in (1, 3):
        assert_close(backend.predict(photographs(n)), expected(model, photographs(n)), *limits)
    assert (backend.names, backend.stride, backend.fixed_size) == (NAMES, 8, SIZE)
    assert backend.precision == precision
    with pytest.raises(UserError, match="takes images of 64x96"):
        backend.predict(torch.zeros(1, 3, 96, 64))


def test_it_has_yolov5s_layout_and_says_what_it_is(exported):
    path, _, precision = exported
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(model_path=str(path))  # the whole file: what lies behind the network hurts nobody
    assert network.get_input_details()[0]["shape"].tolist() == [1, *SIZE, 3]
    with zipfile.ZipFile(path) as archive:
        raw = ast.literal_eval(archive.read(META).decode())
    assert raw["names"] == {0: "cat", 1: "dog"}
    assert (raw["task"], raw["schema"], raw["precision"], raw["stride"]) == ("detect", 1, precision, 8)


def test_damage_and_later_schemas_are_sentences(exported, tmp_path):
    path = shutil.copy(exported[0], tmp_path / "best.tflite")
    network, raw = read_tflite(path)
    path.write_bytes(network[:-1] + bytes([network[-1] ^ 1]) + exported[0].read_bytes()[len(network) :])
    with pytest.raises(UserError, match="is damaged"):
        load_backend(path)
    path.write_bytes(network)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(META, json.dumps({**raw, "schema": SCHEMA + 1}))
    with pytest.raises(UserError, match="was exported by a later version"):
        load_backend(path)


@pytest.mark.parametrize("content", [b"", b"rubbish" * 50])
def test_files_without_metadata_are_a_sentence(tmp_path, content):
    (tmp_path / "a.tflite").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tflite: carries no metadata"):
        read_tflite(tmp_path / "a.tflite")


def test_metadata_of_yolov5_is_read_and_a_huge_one_is_not(tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(b"the network")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(META, str({"stride": 32, "names": {0: "it's"}}))
    assert read_tflite(path) == (b"the network", {"stride": 32, "names": {0: "it's"}})
    path.write_bytes(b"")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(META, "0" * (1 << 21))
    with pytest.raises(UserError, match="2097152 bytes of metadata"):
        read_tflite(path)


def test_boxes_are_parts_of_the_image_and_channels_come_last():
    rows = torch.tensor([[[96.0, 64.0, 48.0, 32.0, 0.5, 0.25]]])
    seen = []
    wrapped = ChannelsLast(lambda images: seen.append(images) or rows, SIZE)
    images = torch.rand(1, *SIZE, 3)
    assert wrapped(images).tolist() == [[[1.0, 1.0, 0.5, 0.5, 0.5, 0.25]]]
    assert np.array_equal(seen[0][0, 2], images[0, ..., 2])


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """(int8 file's result, the float32 file's, the model, images to hold them against)."""
    pytest.importorskip("litert_torch", reason="litert-torch is optional and large")
    pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is optional")
    return in_int8(tmp_path_factory.mktemp("int8"), "tflite")


def tensors(path):
    """Of every operation its kind and, as `Interpreter` tells them, the tensors it reads and makes."""
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(model_content=read_tflite(path)[0])
    details = {tensor["index"]: tensor for tensor in network.get_tensor_details()}
    return [
        (op["op_name"], [details[i] for i in op["inputs"] if i >= 0], [details[i] for i in op["outputs"]])
        for op in network._get_ops_details()
    ]


def test_int8_is_a_third_of_float32_and_near_pytorch(quantised):
    assert_int8(*quantised, "best-int8.tflite")


def test_int8_weights_are_symmetric_per_channel_and_the_head_is_float32(quantised):
    operations = tensors(quantised[0].path)
    convolutions = [inputs for kind, inputs, _ in operations if kind in ("CONV_2D", "DEPTHWISE_CONV_2D")]
    types = [[tensor["dtype"] for tensor in inputs] for inputs in convolutions]
    assert types.count([np.float32] * 3) == 2, "the head's, one for each level"
    inner = [inputs for inputs, kinds in zip(convolutions, types) if kinds[0] != np.float32]
    assert len(inner) == 7
    for image, weights, bias in inner:
        assert (image["dtype"], weights["dtype"], bias["dtype"]) == (np.int8, np.int8, np.int32)
        parameters = weights["quantization_parameters"]
        assert len(parameters["scales"]) == bias["shape"][0], "a scale for each channel"
        assert not parameters["zero_points"].any(), "symmetric: zero is zero"
    assert operations[0][1][0]["dtype"] == np.float32, "images stay as they are"
    assert operations[-1][2][0]["dtype"] == np.float32, "results too"
    floats = {kind for kind, _, (made, *_) in operations if made["dtype"] == np.float32}
    assert {"LOGISTIC", "MUL", "CONCATENATION", "DEQUANTIZE"} <= floats


def test_int8_without_data_is_refused(quantised):
    weights = quantised[0].path.with_name("best.pt")
    with pytest.raises(UserError, match="--int8: is calibrated on the images it is made for; add --data"):
        export.run(weights=str(weights), include=["tflite"], imgsz=[64], int8=True)
