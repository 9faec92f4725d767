"""Metadata: what is written is read again; what no network can have is refused."""

import ast
import json

import pytest

from models.formats.metadata import Metadata, decode, index_names, parse_metadata
from models.formats.nms_options import Suppression
from models.schema import SCHEMA, SCHEMA_DECODED
from utils.errors import UserError

NAMES = {"names": json.dumps({"0": "a", "1": "b"})}


def test_metadata_survives_its_own_writing(tmp_path):
    written = Metadata({0: "a", 1: 'b"\n'}, 32, (64, 96), 2, dynamic=True, half=True, ch=1, device="cpu")
    assert parse_metadata(tmp_path, written.entries(), None) == written


@pytest.mark.parametrize("written", [{0: "it's", 1: "b"}, {"0": "it's", "1": "b"}])
@pytest.mark.parametrize("as_text", [repr, json.dumps])
def test_names_are_read_however_they_were_written(tmp_path, written, as_text):
    """JSON as in our older files, literals as in YOLOv5's and in ours."""
    assert parse_metadata(tmp_path, {"names": as_text(written)}, None).names == {0: "it's", 1: "b"}


def test_text_is_what_yolov5s_readers_evaluate():
    entries = Metadata({0: "it's", 1: "b"}, 32, (64, 96)).entries()
    assert ast.literal_eval(entries["names"])[0] == "it's"
    assert int(entries["stride"]) == 32
    assert all(isinstance(value, str) for value in entries.values())


def test_the_licence_of_weights_of_others_is_carried_under_the_usual_name(tmp_path):
    written = Metadata({0: "a"}, 32, licence="AGPL-3.0")
    assert written.entries()["license"] == "AGPL-3.0"
    assert parse_metadata(tmp_path, written.entries(), None) == written
    assert "license" not in Metadata({0: "a"}, 32).entries()


def test_files_of_yolov8_are_refused_as_what_they_are(tmp_path):
    with pytest.raises(UserError, match="exported by the package ultralytics .*train a network here"):
        parse_metadata(tmp_path, {**NAMES, "author": "Ultralytics", "task": "detect"}, None)


def test_index_names_sorts_by_number():
    assert list(index_names({"10": "k", "9": "j"})) == [9, 10]
    assert index_names(("a", "b")) == {0: "a", 1: "b"}


def test_nms_survives_too_and_needs_a_later_schema(tmp_path):
    plain = Metadata({0: "a"}, 32)
    written = Metadata({0: "a"}, 32, nms=Suppression(0.1, 0.6, max_det=7, agnostic=True, inputs=True))
    assert parse_metadata(tmp_path, written.entries(), None) == written
    assert json.loads(plain.entries()["schema"]) == SCHEMA_DECODED < SCHEMA
    assert json.loads(written.entries()["schema"]) == SCHEMA
    assert "nms" not in plain.entries()


def test_size_batch_and_channels_are_taken_from_the_shape(tmp_path):
    found = parse_metadata(tmp_path, {**NAMES, "shape": "[2, 1, 64, 96]"}, None)
    assert (found.batch, found.ch, found.imgsz, found.stride) == (2, 1, (64, 96), 32)


def test_a_file_that_takes_float16_has_float16_weights(tmp_path):
    assert parse_metadata(tmp_path, {**NAMES, "half": "true"}, None).precision == "fp16"
    assert parse_metadata(tmp_path, NAMES, None).precision == "fp32"


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({**NAMES, "precision": "fp8"}, "its metadata cannot be read .precision 'fp8'"),
        ({**NAMES, "stride": "8192"}, "its metadata cannot be read .stride 8192"),
        ({**NAMES, "batch": "-1"}, "its metadata cannot be read .batch -1"),
        ({**NAMES, "batch": "1e308"}, "its metadata cannot be read .batch 1e[+]308"),
        ({**NAMES, "imgsz": "[64, 1000000000]"}, "its metadata cannot be read .side 1000000000"),
        ({**NAMES, "nms": '{"conf_thres": 2}'}, "confidence threshold of NMS must lie in 0..1, not 2"),
        ({}, "carries no class names"),
    ],
)
def test_entries_that_cannot_be_are_refused(tmp_path, entries, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_metadata(tmp_path / "a.onnx", entries, None)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("[1, 2]", [1, 2]),
        ("{0: 'a'}", {0: "a"}),
        ("true", True),
        ("cpu", "cpu"),
        (3, 3),
        ("(" * 500, "(" * 500),
    ],
)
def test_text_is_json_a_literal_or_itself(value, wanted):
    assert decode(value) == wanted
