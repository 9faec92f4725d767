"""export.py: files that agree with PyTorch, say what they are, and are whole or absent."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
import yaml

import export
from export import ExportError, ExportOptions, ExportResult, parse_opt
from models.backends import load_backend
from models.formats import exporter as exporting
from models.formats import onnx as onnx_format
from tests.tiny_checkpoint import write_checkpoint
from tests.tiny_set import write_set
from utils.cli import build_parser
from utils.errors import UserError
from utils.files import ROOT, save_yaml


@pytest.fixture
def weights(tmp_path):
    return write_checkpoint(tmp_path)


def files_in(folder):
    return sorted(os.listdir(folder))


def test_both_formats_agree_with_pytorch(weights):
    results = export.run(weights=str(weights), include=["torchscript", "onnx"], imgsz=[64])
    assert [r.format for r in results] == ["torchscript", "onnx"]
    for result in results:
        assert isinstance(result, ExportResult)
        assert result.path == weights.with_suffix(f".{result.format}")
        assert 0 < result.max_score_diff < 1e-4
        assert 0 < result.max_box_diff < 1e-2
        assert result.size_mb == pytest.approx(result.path.stat().st_size / 1e6)
        assert result.seconds > 0
    assert files_in(weights.parent) == ["best.onnx", "best.pt", "best.torchscript"]


def test_dynamic_file_is_checked_at_a_second_size_and_batch(weights, monkeypatch):
    shapes = []
    compare = export.compare
    monkeypatch.setattr(
        export,
        "compare",
        lambda model, path, batches: shapes.extend(b.shape for b in batches) or compare(model, path, batches),
    )
    export.run(weights=str(weights), include=["onnx"], imgsz=[32, 64], dynamic=True)
    assert [tuple(s) for s in shapes] == [(1, 3, 32, 64), (2, 3, 36, 32)]


def test_reference_is_the_model_before_fusion_and_untouched(weights, monkeypatch):
    seen = []
    compare = export.compare

    def spy(model, path, batches):
        seen.append((model.is_fused, model.training, model.detect.export))
        return compare(model, path, batches)

    monkeypatch.setattr(export, "compare", spy)
    export.run(weights=str(weights), include=["onnx", "torchscript"], imgsz=[32])
    assert seen == [(False, False, False)] * 2


@pytest.mark.parametrize(
    ("place", "amount", "sentence"),
    [
        ((..., 4), 0.01, r"by 0\.01 in a score \(allowed 0\.001\)"),
        ((..., 0), 1.0, r"and 1 px in a box \(allowed 0\.5\)"),
    ],
)
def test_file_that_differs_is_removed_and_the_other_format_still_made(
    weights, monkeypatch, place, amount, sentence
):
    honest = exporting.Decoded.forward

    def wrong(self, batch):
        output = honest(self, batch).clone()
        output[place] += amount
        return output

    def write_wrong(job, path):
        with monkeypatch.context() as patch:
            patch.setattr(exporting.Decoded, "forward", wrong)
            onnx_format.write_onnx(job, path)

    monkeypatch.setitem(export.EXPORTERS, "onnx", replace(export.EXPORTERS["onnx"], write=write_wrong))
    weights.with_suffix(".onnx").write_bytes(b"an older file")
    with pytest.raises(ExportError, match=sentence) as failure:
        export.run(weights=str(weights), include=["onnx", "torchscript"], imgsz=[32])
    assert "1 of 2 formats failed" in str(failure.value)
    assert [r.format for r in failure.value.results] == ["torchscript"]
    assert weights.with_suffix(".onnx").read_bytes() == b"an older file"
    assert files_in(weights.parent) == ["best.onnx", "best.pt", "best.torchscript"]


def test_exporter_that_stops_is_a_sentence(weights, monkeypatch):
    def broken(job, path):
        path.write_bytes(b"half a file")
        raise RuntimeError("no such operator\nand a page of graph")

    monkeypatch.setitem(export.EXPORTERS, "onnx", replace(export.EXPORTERS["onnx"], write=broken))
    with pytest.raises(
        ExportError, match=r"onnx \(its exporter stopped with RuntimeError: no such operator;"
    ):
        export.run(weights=str(weights), include=["onnx"], imgsz=[32])
    assert files_in(weights.parent) == ["best.pt"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"include": ["onnx", "saved_model"]},
            "--include saved_model: not a format of this project; available: .*onnx, .*openvino, ",
        ),
        ({"include": ["word"]}, "--include word: not a format; available: .*onnx, .*openvino, "),
        ({"half": True}, "--half: TorchScript in float16 needs a CUDA device"),
        ({"half": True, "int8": True}, "--half and --int8 exclude each other"),
        ({"int8": True}, "--int8: is calibrated on the images it is made for; add --data"),
        ({"calibration_images": 0}, "--calibration-images 0: must be at least 1"),
        ({"simplify": True}, "--simplify: concerns --include onnx and engine only; leave it out"),
        ({"opset": 13}, "--opset: concerns --include onnx and engine only"),
        ({"include": ["onnx"], "workspace": 2}, "--workspace: concerns --include engine only"),
        ({"calibration_images": 50}, "--calibration-images: only int8 is calibrated; add --int8"),
        ({"opset": 99}, "--opset 99: must be 11 to 20"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"imgsz": [32, 32, 32]}, "--imgsz 32 32 32: must be one side or height and width"),
        ({"imgsz": [0]}, "--imgsz 0"),
        ({"weights": "best.onnx"}, "only a .pt checkpoint can be exported"),
        ({"weights": "nowhere.pt"}, "nowhere.pt: no such file"),
        ({"device": "7"}, "--device 7"),
        ({"keras": True}, "run.. got keras: TensorFlow is not used here; --include tflite"),
        ({"word": True}, "unknown option 'word'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(weights, options, sentence):
    with pytest.raises(UserError, match=sentence):
        export.run(**{"weights": str(weights), **options})
    assert files_in(weights.parent) == ["best.pt"]


def test_check_image_can_come_from_the_users_data(weights, tmp_path):
    folder = tmp_path / "data" / "images" / "val"
    folder.mkdir(parents=True)
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :16] = (255, 0, 0)  # blue on the left, in BGR
    cv2.imwrite(str(folder / "a.png"), image)
    data = tmp_path / "data" / "own.yaml"
    data.write_text(
        yaml.safe_dump({"path": ".", "train": "images/val", "val": "images/val", "names": ["a", "b"]})
    )
    assert export._photograph(str(data)).name == "a.png"
    batch = export._check_batch(export._photograph(str(data)), 3, 2, (32, 32))
    assert batch.shape == (2, 3, 32, 32)
    assert batch[0, :, 0, 0].tolist() == [0, 0, 1], "RGB in 0..1"
    assert torch.equal(batch[1], batch[0].flip(2)), "every other image is mirrored"
    assert len(export.run(weights=str(weights), data=str(data), imgsz=[32])) == 1


def test_without_weights_the_newest_run_is_exported_at_its_size(weights, tmp_path, monkeypatch, log):
    data = write_set(tmp_path / "set", train=4, val=2)
    best = tmp_path / "train" / "exp" / "weights" / "best.pt"
    best.parent.mkdir(parents=True)
    best.write_bytes(weights.read_bytes())
    save_yaml(tmp_path / "train" / "exp" / "opt.yaml", {"imgsz": 32, "data": str(data)})
    monkeypatch.setattr("utils.training.run_folder.RUNS", tmp_path / "train")
    log.set_level("INFO", "yolo")
    (result,) = export.run()
    assert result.path == best.with_suffix(".torchscript")
    assert load_backend(result.path).fixed_size == (32, 32)
    assert log.records[0].getMessage() == f"no --weights given: using {best}, trained at 32 pixels"
    asked = []
    monkeypatch.setattr(export, "export", asked.append)
    export.run(int8=True, include=["onnx"])
    export.run(int8=True, data="own.yaml", include=["onnx"])
    export.run(imgsz=64)
    export.run(weights="a.pt")
    assert [opt.data for opt in asked] == [str(data), "own.yaml", "", ""], "calibrated on what it learnt"
    assert [opt.imgsz for opt in asked] == [[32], [32], [64], [640, 640]]
    assert [opt.weights for opt in asked] == [*[str(best)] * 3, "a.pt"]


def test_command_line_names_and_aliases():
    opt = parse_opt(["--img", "320", "416", "--batch", "4", "--include", "onnx", "--dynamic"])
    assert (opt.imgsz, opt.batch_size, opt.include, opt.dynamic) == ([320, 416], 4, ["onnx"], True)
    assert opt.opset is None and exporting.Job.opset == 17


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--optimize"], "--optimize: PyTorch Mobile has ended; use --include executorch"),
        (["--topk-per-class", "50"], "--topk-per-class: NMS keeps the best --max-det"),
        (["--word"], "unrecognized arguments: --word"),
    ],
)
def test_options_that_yolov5_has_and_we_have_not_say_why(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        parse_opt(arguments)
    assert stop.value.code == 1
    assert sentence in capsys.readouterr().err
    assert arguments[0] not in build_parser(ExportOptions).format_help()


def test_options_that_concern_one_of_several_formats_are_taken(weights):
    """As in `--include torchscript onnx --opset 13 --simplify`, which YOLOv5 users type."""
    pytest.importorskip("onnxslim", reason="onnxslim is optional")
    formats = ["torchscript", "onnx"]
    results = export.run(weights=str(weights), include=formats, imgsz=[32], opset=13, simplify=True)
    assert [result.format for result in results] == formats
    assert onnx.load(results[1].path).opset_import[0].version == 13


@pytest.mark.parametrize("formats", [["torchscript", "onnx"], ["onnx", "torchscript"]])
def test_a_graph_of_one_size_is_a_sentence_and_the_next_format_is_tried(weights, monkeypatch, formats):
    """A block that keeps a size in its trace fails only at the second size, inside the runtime."""
    honest = exporting.Decoded.forward

    def one_size(self, batch):
        return honest(self, batch) + torch.zeros(int(honest(self, batch).shape[1]), 1)

    monkeypatch.setattr(exporting.Decoded, "forward", one_size)
    with pytest.raises(ExportError, match="2 of 2 formats failed.*the check of the file stopped with"):
        export.run(weights=str(weights), include=formats, imgsz=[32], dynamic=True)
    assert files_in(weights.parent) == ["best.pt"]


def test_a_data_set_without_val_gives_the_check_image_too(weights, tmp_path):
    data = write_set(tmp_path / "set", train=2, val=1)
    keys = yaml.safe_load(data.read_text())
    del keys["val"]
    data.write_text(yaml.safe_dump(keys))
    assert export._photograph(str(data)).parent.name == "train"


def test_int8_fetches_a_data_set_that_is_not_there(weights, tmp_path, monkeypatch):
    """The check image is taken from what was fetched, not looked for before it."""
    order = []

    class Stop(Exception):
        pass

    def fetch(*args, **kwargs):
        order.append("fetch")
        raise Stop

    monkeypatch.setattr(export, "Quantiser", fetch)
    monkeypatch.setattr(export, "_photograph", lambda data: order.append("photograph"))
    with pytest.raises(Stop):
        export.run(weights=str(weights), include=["onnx"], int8=True, data="x.yaml", imgsz=[32])
    assert order == ["fetch"]


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--include", "saved_model"], 1)])
def test_script_exits_with_a_code_and_no_traceback(weights, arguments, code):
    command = [
        sys.executable,
        str(ROOT / "export.py"),
        "--weights",
        str(weights),
        "--imgsz",
        "32",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=weights.parent)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code:
        assert len(done.stderr.strip().splitlines()) == 1
    else:
        assert "torchscript: at most" in done.stdout
        images = torch.zeros(1, 3, 32, 32)
        wanted = load_backend(weights).predict(images)
        found = load_backend(Path(str(weights).replace(".pt", ".torchscript"))).predict(images)
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_format_without_the_precision_says_which_it_has(weights, tmp_path):
    data = write_set(tmp_path / "set", train=2, val=1)
    with pytest.raises(UserError, match="torchscript: cannot be written in int8, only in fp32, fp16"):
        export.run(weights=str(weights), int8=True, data=str(data), imgsz=[32])
    assert files_in(weights.parent) == ["best.pt", "set"]
