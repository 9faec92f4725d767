"""ExecuTorch: PyTorch's boxes from a program that says what it is; others are refused in a sentence."""

import copy
import json

import pytest
import torch

import export
from models.backends import load_backend
from models.formats.executorch import _METADATA
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

pytest.importorskip("executorch.runtime", reason="executorch is optional and large")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(file, the model it came from)."""
    weights = tmp_path_factory.mktemp("executorch") / "best.pt"
    model = save_small(weights, PLAIN)
    (result,) = export.run(weights=str(weights), include=["executorch"], imgsz=SIZE)
    assert result.path == weights.with_suffix(".pte")
    return result.path, model


def test_it_gives_the_models_boxes_for_any_batch(exported):
    path, model = exported
    backend = load_backend(path)
    first = backend.predict(photographs(1))
    kept = first.clone()
    assert_close(backend.predict(photographs(3)), expected(model, photographs(3)), 1e-4, 1e-2)
    assert_close(first, expected(model, photographs(1)), 1e-4, 1e-2)
    assert torch.equal(first, kept), "a later run must not write into an earlier result"
    assert (backend.names, backend.stride, backend.fixed_size) == (NAMES, 8, SIZE)
    assert backend.precision == "fp32"


def test_another_number_of_threads_leaves_an_open_program_its_own(exported):
    before = torch.get_num_threads()
    first = load_backend(exported[0])
    wanted = first.predict(photographs(1))
    try:
        torch.set_num_threads(before + 1)
        second = load_backend(exported[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(second.predict(photographs(1)), wanted)
    assert torch.equal(first.predict(photographs(1)), wanted)


def test_half_is_refused(exported):
    weights = exported[0].with_suffix(".pt")
    with pytest.raises(UserError, match="cannot be written in fp16, only in fp32, int8"):
        export.run(weights=str(weights), include=["executorch"], imgsz=SIZE, half=True)


@pytest.mark.parametrize("part", [0, 0.1, 0.5])
def test_a_damaged_file_is_a_sentence(exported, tmp_path, part):
    content = exported[0].read_bytes()
    (tmp_path / "a.pte").write_bytes(content[: int(len(content) * part)])
    with pytest.raises(UserError, match=r"a\.pte: is not an ExecuTorch file or is damaged"):
        load_backend(tmp_path / "a.pte")


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [(None, "carries no metadata"), ({"names": ["a"], "schema": SCHEMA + 1}, "by a later version")],
)
def test_programs_without_metadata_or_of_later_schemas_are_refused(tmp_path, entries, sentence):
    from executorch.exir import to_edge_transform_and_lower

    methods = None
    if entries is not None:
        text = bytearray(json.dumps(entries).encode())
        methods = {_METADATA: torch.frombuffer(text, dtype=torch.uint8)}
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
    with (tmp_path / "a.pte").open("wb") as file:
        to_edge_transform_and_lower(program, constant_methods=methods).to_executorch().write_to_file(file)
    with pytest.raises(UserError, match=sentence):
        load_backend(tmp_path / "a.pte")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """(int8 file's result, the float32 file's, the model, images to hold them against)."""
    pytest.importorskip("torchao", reason="torchao comes with executorch")
    return in_int8(tmp_path_factory.mktemp("int8"), "executorch")


def test_int8_is_a_third_of_float32_and_near_pytorch(quantised):
    assert_int8(*quantised, "best_int8.pte")


def test_int8_weights_are_in_the_file_per_channel_and_those_of_the_head_in_float32(quantised):
    """As bytes, the weights of each output channel of a 1x1 convolution one after the other."""
    result, _, model, _ = quantised
    content = result.path.read_bytes()
    fused = copy.deepcopy(model).fuse()
    pointwise = [m for m in fused.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (1, 1)]
    heads = [module for module in pointwise if module in list(fused.detect.m)]
    assert (len(pointwise), len(heads)) == (6, 2)
    for module in pointwise:
        rows = module.weight.detach().flatten(1)
        steps = (rows / (rows.abs().amax(1, keepdim=True) / 127)).round().to(torch.int8)
        floats = [row.numpy().tobytes() in content for row in rows]
        integers = [row.numpy().tobytes() in content for row in steps]
        if module in heads:
            assert all(floats) and not any(integers)
        else:  # a step that lies half way may be rounded otherwise
            assert not any(floats) and sum(integers) > 0.9 * len(integers)


def test_int8_without_data_is_refused(quantised):
    weights = quantised[0].path.with_name("best.pt")
    with pytest.raises(UserError, match="--int8: is calibrated on the images it is made for; add --data"):
        export.run(weights=str(weights), include=["executorch"], imgsz=[64], int8=True)
