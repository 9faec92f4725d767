"""TFLite: PyTorch's boxes in YOLOv5's layout, metadata behind the network, damaged files refused."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from small import NAMES, PLAIN, SIZE, assert_close, expected, photographs, save_small

import export
from models.backends import load_backend
from models.formats.tflite import META, ChannelsLast, read_tflite
from models.metadata import SCHEMA
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
        raw = json.loads(archive.read(META))
    assert raw["names"] == {"0": "cat", "1": "dog"}
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
