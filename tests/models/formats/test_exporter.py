"""What every exporter is given, what it can do, and the walk from a graph's results to its head."""

import warnings
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from models.formats.exporter import (
    EXPORTERS,
    Decoded,
    Exporter,
    Job,
    back_to,
    in_half,
    network_input,
    quiet,
    register_exporter,
    require,
)
from models.formats.metadata import Metadata
from models.formats.nms_options import Suppression
from tests.models.formats.small import PLAIN, SIZE, save_small
from utils.errors import UserError

CPU = torch.device("cpu")


def nothing(job, path):
    """Write nothing."""


def test_why_a_file_cannot_be_made():
    exporter = Exporter(
        "word", "Word", nothing, {"fp32": ".word", "fp16": ".word"}, cuda_only=frozenset({"fp16"})
    )
    assert exporter.obstacle("fp32", CPU) is None
    assert exporter.obstacle("fp16", torch.device("cuda")) is None
    assert exporter.obstacle("fp16", CPU) == (
        "--half: Word in float16 needs a CUDA device; add --device 0 or leave --half out"
    )
    assert exporter.obstacle("int8", CPU) == ("--include word: cannot be written in int8, only in fp32, fp16")
    assert replace(exporter, unavailable=lambda: "no paper").obstacle("fp32", CPU) == "no paper"


def test_an_exporter_is_registered_by_its_name(monkeypatch):
    exporter = Exporter("word", "Word", nothing, {"fp32": ".word"})
    monkeypatch.setitem(EXPORTERS, "word", None)
    assert register_exporter(exporter) is exporter
    assert EXPORTERS["word"] is exporter


def test_nms_and_images_that_a_job_has_not_are_not_given():
    job = Job(None, torch.zeros(1, 3, 8, 8), Metadata({0: "a"}, 8))
    with pytest.raises(ValueError, match="no NMS"):
        _ = job.nms
    with pytest.raises(ValueError, match="no images to calibrate with"):
        job.calibration_batches()
    nms = Suppression(max_det=7)
    full = replace(job, metadata=replace(job.metadata, nms=nms), calibration=lambda: iter([job.example]))
    assert full.nms is nms
    assert next(full.calibration_batches()) is job.example


def test_the_walk_stops_at_the_ends_and_takes_each_node_once():
    inputs = {"boxes": ["left", "right"], "left": ["trunk"], "right": ["sum"], "sum": ["left", "trunk"]}
    found = back_to(["boxes"], lambda node: inputs.get(node, []), lambda node: node == "left", key=str.upper)
    assert found == {"BOXES": "boxes", "LEFT": "left", "RIGHT": "right", "SUM": "sum", "TRUNK": "trunk"}
    ends = {"left", "sum"}
    found = back_to(["boxes"], lambda node: inputs.get(node, []), ends.__contains__, key=str.upper)
    assert set(found.values()) == {"boxes", "left", "right", "sum"}


def test_half_is_a_copy(tmp_path):
    model = save_small(tmp_path / "best.pt", PLAIN)
    job = Job(model, torch.zeros(1, 3, *SIZE), Metadata({0: "a"}, 8))
    half = in_half(job)
    assert half.example.dtype == next(half.model.parameters()).dtype == torch.float16
    assert half.metadata.half and not job.metadata.half
    assert job.example.dtype == next(model.parameters()).dtype == torch.float32


def test_the_decoded_model_is_in_eval_mode(tmp_path):
    model = save_small(tmp_path / "best.pt", PLAIN).train()
    assert not any(module.training for module in Decoded(model).modules())


def test_an_image_file_becomes_the_networks_input(tmp_path):
    image = np.zeros((32, 64, 3), np.uint8)
    image[..., 0] = 255  # blue, in BGR
    cv2.imwrite(str(tmp_path / "a.png"), image)
    tensor = network_input(tmp_path / "a.png", (64, 64), 3)
    assert tensor.shape == (3, 64, 64)
    assert tensor[:, 32, 32].tolist() == [0, 0, 1], "RGB in 0..1"
    torch.testing.assert_close(tensor[:, 0, 0], torch.full((3,), 114 / 255))


def test_warnings_are_hidden_unless_asked_for():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn("tracing is old", stacklevel=1)
        assert not caught
        with quiet(verbose=True):
            warnings.warn("tracing is old", stacklevel=1)
        assert [str(warning.message) for warning in caught] == ["tracing is old"]


def test_a_package_that_is_absent_is_named_with_its_remedy():
    assert require("numpy", "--include word") is np
    for package in ("no_such_package", "no_such_package.part"):
        with pytest.raises(UserError, match="--include word: needs the package no-such; pip install no-such"):
            require(package, "--include word", "no-such")
