"""OpenVINO folders: equal to PyTorch, int8 where it may be, and a sentence for what cannot be opened."""

import importlib.util
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

import export
from models.backends import load_backend
from models.export_checks.accept import EXPORT_TOLERANCE
from models.formats import openvino as openvino_format
from models.formats.onnx_nms import openvino_core
from models.schema import SCHEMA
from tests.models.formats.small import DEPTHWISE, expected, photographs, save_small
from tests.tiny_set import write_set
from utils.errors import UserError
from utils.files import ROOT, path_size
from utils.package import PROJECT

pytest.importorskip("openvino", reason="openvino is optional")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The model, and its folders: free size, fixed size and batch, float16."""
    folder = tmp_path_factory.mktemp("openvino")
    model = save_small(folder / "free.pt", DEPTHWISE)
    for name, options in {
        "free": {"dynamic": True},
        "fixed": {"batch_size": 2},
        "half": {"half": True},
    }.items():
        shutil.copy(folder / "free.pt", folder / f"{name}.pt") if name != "free" else None
        export.run(weights=str(folder / f"{name}.pt"), include=["openvino"], imgsz=[64, 96], **options)
    return folder, model


@pytest.mark.parametrize("name", ["free", "fixed"])
def test_float32_gives_the_models_boxes(files, name):
    folder, model = files
    backend = load_backend(folder / f"{name}_openvino_model")
    assert backend.names == {0: "cat", 1: "dog"}
    assert backend.rect_ok is (name == "free")
    assert (backend.fixed_size, backend.fixed_batch) == ((None, None) if backend.rect_ok else ((64, 96), 2))
    for n in (1, 2, 5):
        batch = photographs(n, 64, 96)
        found, wanted = backend.predict(batch), expected(model, batch)
        torch.testing.assert_close(found[..., 4:], wanted[..., 4:], atol=1e-3, rtol=0)
        torch.testing.assert_close(found[..., :4], wanted[..., :4], atol=0.5, rtol=0)
    kept = backend.predict(photographs(1, 64, 96))
    before = kept.clone()
    backend.predict(photographs(2, 64, 96))
    assert torch.equal(kept, before), "a result does not change with the next call"


def test_free_folder_takes_other_sizes(files):
    folder, model = files
    backend = load_backend(folder / "free_openvino_model" / "free.xml")
    for height, width in ((40, 72), (128, 32)):
        batch = photographs(3, height, width)
        torch.testing.assert_close(backend.predict(batch), expected(model, batch), atol=1e-2, rtol=0)


def test_float16_halves_the_weights_and_keeps_its_tolerance(files):
    folder, model = files
    backend = load_backend(folder / "half_openvino_model")
    assert not backend.half, "images stay float32"
    difference = (backend.predict(photographs(1, 64, 96)) - expected(model, photographs(1, 64, 96))).abs()
    score, box = EXPORT_TOLERANCE["fp16"]
    assert 0 < difference[..., 4:].max() < score
    assert difference[..., :4].max() < box
    sizes = {
        name: (folder / f"{name}_openvino_model/{name}.bin").stat().st_size for name in ("half", "fixed")
    }
    assert sizes["half"] < 0.65 * sizes["fixed"]
    with pytest.raises(UserError, match="--half"):  # the CPU has no float16 inference, whatever the file
        load_backend(folder / "half_openvino_model", half=True)


def test_float16_halves_the_weights_with_nms_too(tmp_path):
    save_small(tmp_path / "best.pt", DEPTHWISE)
    sizes = []
    for half in (False, True):
        (result,) = export.run(
            weights=str(tmp_path / "best.pt"), include=["openvino"], imgsz=[64], half=half, nms=True
        )
        sizes.append(path_size(result.path / "best.bin"))
    assert sizes[1] < 0.65 * sizes[0]


def test_metadata_are_readable_text(files):
    folder, _ = files
    for name in ("metadata.yaml", "half.yaml"):  # of YOLOv8's readers and of YOLOv5's
        raw = yaml.safe_load((folder / "half_openvino_model" / name).read_text())
        assert raw["author"] == PROJECT
        assert raw["precision"] == "fp16"
        assert raw["imgsz"] == [64, 96]
        assert (raw["stride"], raw["names"]) == (8, {0: "cat", 1: "dog"})
        assert "mean" in raw["normalisation"]


@pytest.fixture
def copy(files, tmp_path):
    """A folder of its own to damage."""
    return shutil.copytree(files[0] / "free_openvino_model", tmp_path / "free_openvino_model")


def test_later_schema_is_refused(copy):
    raw = yaml.safe_load((copy / "metadata.yaml").read_text())
    (copy / "metadata.yaml").write_text(yaml.safe_dump({**raw, "schema": str(SCHEMA + 1)}))
    with pytest.raises(UserError, match="was exported by a later version"):
        load_backend(copy)


def test_official_folder_has_its_metadata_in_a_yaml_of_the_networks_name(copy):
    (copy / "metadata.yaml").unlink()
    stem = next(copy.glob("*.xml")).stem
    (copy / f"{stem}.yaml").write_text("stride: 16\nnames:\n  0: square\n  1: disc\n")
    backend = load_backend(copy)
    assert (backend.stride, backend.names) == (16, {0: "square", 1: "disc"})


def test_folder_without_metadata_needs_names_and_keeps_its_free_size(copy):
    (copy / "metadata.yaml").unlink()
    (copy / "free.yaml").unlink()
    with pytest.raises(UserError, match="free_openvino_model: carries no class names"):
        load_backend(copy)
    assert load_backend(copy, names=["a", "b"]).rect_ok


@pytest.mark.parametrize("content", ["", "rubbish", "<net name='x'/>"])
def test_damaged_network_is_a_sentence(copy, content):
    (copy / "free.xml").write_text(content)
    with pytest.raises(UserError, match="is not an OpenVINO network or is damaged") as failure:
        load_backend(copy)
    assert "\n" not in str(failure.value)


def test_missing_weights_are_a_sentence(copy):
    (copy / "free.bin").write_bytes(b"")
    with pytest.raises(UserError, match="is not an OpenVINO network or is damaged"):
        load_backend(copy)


@pytest.mark.parametrize(("names", "sentence"), [((), "no .xml"), (("a.xml", "b.xml"), "2 .xml files")])
def test_folder_has_one_network(tmp_path, names, sentence):
    folder = tmp_path / "x_openvino_model"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    with pytest.raises(UserError, match=f"holds {sentence} where an exported folder has one"):
        load_backend(folder)


def test_a_signal_after_files_were_closed_harms_nothing(files):
    """Two cores that went in the order they came left a freed signal stack, and the next signal was fatal."""
    folder = str(files[0] / "free_openvino_model")
    code = (
        "import gc, signal\n"
        "from models.backends import load_backend\n"
        f"a, b = load_backend({folder!r}), load_backend({folder!r})\n"
        "del a; gc.collect(); del b; gc.collect()\n"
        "signal.signal(signal.SIGINT, lambda *_: print('handled'))\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.parametrize("package", ["openvino", "nncf"])
def test_missing_package_is_a_sentence(tmp_path, monkeypatch, package):
    pytest.importorskip("nncf", reason="nncf is optional")
    save_small(tmp_path / "best.pt", DEPTHWISE)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest)
    )
    data = write_set(tmp_path / "set", train=2, val=1)
    with pytest.raises(UserError, match=f"needs the package {package}; pip install {package}"):
        export.run(
            weights=str(tmp_path / "best.pt"), include=["openvino"], int8=True, data=str(data), imgsz=[64]
        )


def test_int8_is_smaller_and_leaves_the_head_alone(tmp_path):
    pytest.importorskip("nncf", reason="nncf is optional")
    model = save_small(tmp_path / "best.pt", DEPTHWISE)
    data = write_set(tmp_path / "set", train=6, val=2)
    (result,) = export.run(
        weights=str(tmp_path / "best.pt"),
        include=["openvino"],
        int8=True,
        data=str(data),
        imgsz=[64],
        calibration_images=4,
    )
    assert result.path == tmp_path / "best_int8_openvino_model"
    assert result.precision == "int8"
    assert 0 <= result.accuracy.map <= 1
    assert result.max_score_diff > 1e-4, "int8 is not float32"
    (plain,) = export.run(weights=str(tmp_path / "best.pt"), include=["openvino"], imgsz=[64])
    assert path_size(result.path / "best.bin") < 0.5 * path_size(plain.path / "best.bin")
    network = openvino_core().read_model(result.path / "best.xml")
    kinds = {node.get_friendly_name(): node.get_type_name() for node in network.get_ordered_ops()}
    assert list(kinds.values()).count("FakeQuantize") > 5
    head = [kinds[name] for name in openvino_format.openvino_head(network)]
    assert head.count("Convolution") == len(model.detect.m) == 2
    assert {"Sigmoid", "Concat"} <= set(head)
    assert "FakeQuantize" not in head
    backend = load_backend(result.path)
    assert backend.names == model.names
    assert backend.predict(photographs(1, 64, 64)).shape == expected(model, photographs(1, 64, 64)).shape
