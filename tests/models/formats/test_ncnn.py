"""ncnn: a folder that gives PyTorch's boxes, says what it is, and is refused when it is not whole."""

import shutil

import pytest
import torch
import yaml

import export
from models.backends import load_backend
from models.formats.ncnn import foreign_layers
from models.schema import SCHEMA
from tests.models.formats.small import NAMES, SIZE, assert_close, expected, photographs, save_small
from utils.errors import UserError

pytest.importorskip("ncnn", reason="ncnn is optional")
pytest.importorskip("pnnx", reason="pnnx is optional")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of ncnn, the model it came from)."""
    weights = tmp_path_factory.mktemp("ncnn") / "best.pt"
    model = save_small(weights)
    (result,) = export.run(weights=str(weights), include=["ncnn"], imgsz=SIZE)
    assert result.path == weights.with_name("best_ncnn_model")
    assert 0 < result.max_score_diff < 1e-4
    assert 0 < result.max_box_diff < 1e-2
    assert sorted(p.name for p in weights.parent.iterdir()) == ["best.pt", "best_ncnn_model"]
    return result.path, model


@pytest.fixture
def copied(exported, tmp_path):
    """A copy to damage."""
    return shutil.copytree(exported[0], tmp_path / "best_ncnn_model")


def test_it_gives_the_models_boxes_for_any_batch(exported):
    path, model = exported
    backend = load_backend(path)
    for n in (1, 3):
        assert_close(backend.predict(photographs(n)), expected(model, photographs(n)), 1e-4, 1e-2)
    assert (backend.names, backend.stride, backend.fixed_size) == (NAMES, 8, SIZE)
    with pytest.raises(UserError, match="takes images of 64x96"):
        backend.predict(torch.zeros(1, 3, 96, 64))


def test_it_says_what_it_is(exported):
    raw = yaml.safe_load((exported[0] / "metadata.yaml").read_text(encoding="utf-8"))
    assert raw["names"] == {0: "cat", 1: "dog"}
    assert (raw["task"], raw["schema"], raw["precision"]) == ("detect", 1, "fp32")
    assert (raw["imgsz"], raw["stride"]) == (list(SIZE), 8)
    assert "mean" in raw["normalisation"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dynamic": True}, "ncnn files cannot have --dynamic"),
        ({"batch_size": 2}, "ncnn files cannot have --batch-size above 1"),
        ({"simplify": True}, "--simplify: concerns --include onnx"),
        ({"opset": 13}, "--opset: concerns --include onnx"),
    ],
)
def test_what_it_cannot_have_is_refused(exported, options, sentence):
    weights = exported[0].with_name("best.pt")
    with pytest.raises(UserError, match=sentence):
        export.run(weights=str(weights), include=["ncnn"], imgsz=SIZE, **options)


@pytest.mark.parametrize("name", ["model.ncnn.param", "model.ncnn.bin", "metadata.yaml"])
def test_a_folder_that_is_not_whole_is_a_sentence(copied, name):
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is damaged|its metadata cannot be read"):
        load_backend(copied)
    (copied / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing\)"):
        load_backend(copied)


def test_a_later_schema_is_refused(copied):
    raw = yaml.safe_load((copied / "metadata.yaml").read_text(encoding="utf-8"))
    (copied / "metadata.yaml").write_text(yaml.safe_dump({**raw, "schema": SCHEMA + 1}), encoding="utf-8")
    with pytest.raises(UserError, match="was exported by a later version"):
        load_backend(copied)


def test_files_of_others_need_no_check_sum_but_must_be_ncnns(copied):
    raw = yaml.safe_load((copied / "metadata.yaml").read_text(encoding="utf-8"))
    del raw["sha256"], raw["author"]
    (copied / "metadata.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert load_backend(copied).predict(photographs(1)).shape[-1] == 7
    (copied / "model.ncnn.param").write_text("a model of another kind\n", encoding="utf-8")
    with pytest.raises(UserError, match="is not an ncnn model of ours or is damaged"):
        load_backend(copied)


def test_float16_weights_are_half_the_size(exported, tmp_path):
    shutil.copy(exported[0].with_name("best.pt"), tmp_path / "half.pt")
    (result,) = export.run(weights=str(tmp_path / "half.pt"), include=["ncnn"], imgsz=SIZE, half=True)
    sizes = [(path / "model.ncnn.bin").stat().st_size for path in (exported[0], result.path)]
    assert sizes[1] < 0.7 * sizes[0]
    backend = load_backend(result.path)
    assert backend.precision == "fp16"
    assert_close(backend.predict(photographs(2)), expected(exported[1], photographs(2)), 2e-2, 4)


def test_layers_that_stayed_torchs_are_named(tmp_path):
    (tmp_path / "p").write_text("7767517\n2 2\nInput in0 0 1 in0\nTensor.reshape r 1 1 in0 out0\n")
    assert foreign_layers(tmp_path / "p") == ["Tensor.reshape"]
