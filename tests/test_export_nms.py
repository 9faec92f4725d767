"""export.py --nms: files that give the detections of the .pt, and detect.py and val.py that take them."""

import copy
import importlib.util
import json
import logging
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest
import torch

import detect
import export
import val
from export import ExportError
from models.backends import load_backend
from models.export_checks.nms_agreement import compare_detections
from models.formats import onnx as onnx_format
from models.formats.metadata import parse_metadata
from models.formats.nms_options import Suppression
from models.formats.onnx_nms import PREFIX
from models.schema import SCHEMA
from models.weights.checkpoint import save_checkpoint
from models.yolo import DetectionModel
from tests.tiny_set import write_set
from utils.errors import UserError
from utils.files import ROOT
from utils.nms import NmsOptions

TINY = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30], [33, 23, 30, 61]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]],
    "head": [[[1, 2], 1, "Detect", ["nc", "anchors"]]],
}
ENDINGS = {"onnx": ".onnx", "torchscript": ".torchscript"}
if importlib.util.find_spec("openvino"):  # optional
    ENDINGS["openvino"] = "_openvino_model"
FORMATS = list(ENDINGS)
QUANTISED = ["onnx"]
if "openvino" in ENDINGS and importlib.util.find_spec("nncf"):  # optional
    QUANTISED.append("openvino")


def tiny(path, nc=2):
    torch.manual_seed(0)
    model = DetectionModel({**TINY, "nc": nc})
    model.names = {i: ("cat", "dog")[i] for i in range(nc)}
    for conv in model.detect.m:
        conv.weight.data.normal_(0, 3)  # scores over the whole of 0..1, as after training
        conv.bias.data.zero_()
    save_checkpoint(path, model, meta={})
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder of checkpoints with their files, and the results of exporting them.

    `fixed` is of 64 x 96 and batch 2, `free` of any size with figures as inputs, `single` so with one class.
    """
    folder = tmp_path_factory.mktemp("nms")
    fixed = {"imgsz": [64, 96], "batch_size": 2, "conf_thres": 0.3, "iou_thres": 0.5, "max_det": 50}
    free = {"imgsz": [64, 64], "dynamic": True, "nms_inputs": True}
    results = []
    for name, options, nc in (("fixed", fixed, 2), ("free", free, 2), ("single", free, 1)):
        weights = tiny(folder / f"{name}.pt", nc)
        results += export.run(weights=str(weights), include=FORMATS, nms=True, **options)
    (folder / "images").mkdir()
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 256, (60 + 8 * number, 90, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
    return folder, results


@pytest.fixture(scope="module")
def folder(exported):
    return exported[0]


def images(n, height=64, width=96):
    return torch.from_numpy(np.random.default_rng(n).integers(0, 256, (n, 3, height, width), np.uint8))


def assert_close(found, wanted):
    assert [len(image) for image in found] == [len(image) for image in wanted]
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def test_result_says_what_was_compared(exported):
    for result in exported[1]:
        assert result.detections > 3
        assert result.max_score_diff < 1e-4
        assert result.max_box_diff < 1e-2


def test_metadata_describe_the_nms(folder):
    entries = {p.key: p.value for p in onnx.load(folder / "fixed.onnx").metadata_props}
    assert json.loads(entries["schema"]) == SCHEMA, "a reader that knows no NMS must not take it for boxes"
    assert json.loads(entries["nms"]) == {
        "conf_thres": 0.3,
        "iou_thres": 0.5,
        "max_det": 50,
        "agnostic": False,
        "inputs": False,
    }
    assert parse_metadata(folder, entries, None).nms == Suppression(0.3, 0.5, 50)
    with pytest.raises(UserError, match="its metadata cannot be read"):
        parse_metadata(folder, {**entries, "nms": '{"conf_thres": 7}'}, None)


@pytest.mark.parametrize("kind", FORMATS)
def test_fixed_file_gives_the_checkpoints_detections(folder, kind):
    backend, checkpoint = load_backend(folder / f"fixed{ENDINGS[kind]}"), load_backend(folder / "fixed.pt")
    wanted = NmsOptions(0.3, 0.5, max_det=50)
    for n in (1, 2, 5):  # 5 are split and padded
        assert_close(backend.detections(images(n), wanted), checkpoint.detections(images(n), wanted))
    stricter = replace(wanted, conf_thres=0.6, classes=[1])
    assert_close(backend.detections(images(2), stricter), checkpoint.detections(images(2), stricter))
    backend.warmup((1, 3, 640, 640))
    with pytest.raises(UserError, match="has NMS inside and gives no decoded boxes"):
        backend.predict(images(1))
    with pytest.raises(UserError, match="labels cannot be added before it"):
        backend.detections(images(1), wanted, labels=[torch.zeros(1, 5)])
    with pytest.raises(UserError, match="--augment needs a .pt checkpoint"):
        backend.detections(images(1), wanted, augment=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_free_file_takes_any_size_and_figure(folder, kind):
    backend, checkpoint = load_backend(folder / f"free{ENDINGS[kind]}"), load_backend(folder / "free.pt")
    for wanted in (
        NmsOptions(0.3, 0.5),
        NmsOptions(0.05, 0.7),
        NmsOptions(0.5, 0.2, max_det=3),
        NmsOptions(1.0),
    ):
        for batch in (images(1), images(3, 40, 72)):
            found = backend.detections(batch, wanted)
            if kind != "openvino":  # its rounding turns nearly equal scores round: see the agreement below
                assert_close(found, checkpoint.detections(batch, wanted))
    batches = [images(1).float() / 255, images(3, 40, 72).float() / 255]
    agreement = compare_detections(checkpoint.predict, backend, batches, (1e-3, 0.5))
    assert agreement.wrong == 0 and agreement.detections > 100
    assert agreement.score < 1e-4 and agreement.box < 1e-2


def test_full_output_is_said_once(folder, caplog):
    backend = load_backend(folder / "fixed.onnx")
    backend.nms = replace(backend.nms, max_det=2)  # as if the file had been exported so
    with caplog.at_level(logging.WARNING, "yolo.backends"):
        for _ in range(2):
            backend.suppress([torch.ones(2, 6)], NmsOptions(0.3, 0.5, max_det=1000))
    assert [r.message for r in caplog.records if "gives 2 boxes of an image at most" in r.message] == [
        f"{folder / 'fixed.onnx'}: gives 2 boxes of an image at most, and an image here has as many, so some "
        "may be missing; export it again with a larger --max-det"
    ]


def spied(exporter, jobs):
    """The exporter, putting down each job that it writes a network for."""
    return replace(exporter, write=lambda job, path: jobs.append(job) or exporter.write(job, path))


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A folder with the int8 files of two copies of a checkpoint, `plain` and `nms`; the results of the
    latter; the jobs that were calibrated for these."""
    folder = tmp_path_factory.mktemp("int8")
    data = write_set(folder / "set", train=4, val=2)
    common = {"include": QUANTISED, "imgsz": [64], "batch_size": 2, "int8": True, "data": str(data)}
    export.run(weights=str(tiny(folder / "plain.pt")), **common)
    written = []
    with pytest.MonkeyPatch.context() as patch:
        for kind in QUANTISED:
            patch.setitem(export.EXPORTERS, kind, spied(export.EXPORTERS[kind], written))
        results = export.run(weights=str(tiny(folder / "nms.pt")), nms=True, **common)
    return folder, results, written


def test_int8_is_measured_before_nms_and_calibrated_once(quantised):
    folder, results, written = quantised
    assert [r.path.name for r in results] == [f"nms_int8{ENDINGS[kind]}" for kind in QUANTISED]
    for result in results:
        assert result.precision == "int8"
        assert 0 <= result.accuracy.map <= 1
        assert result.detections > 500, "calibration images count too"
        assert result.max_score_diff > 1e-4, "of the network in int8, not of its NMS"
    assert [job.metadata.nms for job in written] == [None] * len(QUANTISED)
    assert not list(folder.glob(".*")), "nothing is left of the network without NMS"


@pytest.mark.parametrize("kind", QUANTISED)
def test_int8_file_gives_what_nms_makes_of_its_own_boxes(quantised, kind):
    folder = quantised[0]
    backend, plain = (load_backend(folder / f"{name}_int8{ENDINGS[kind]}") for name in ("nms", "plain"))
    assert (backend.precision, backend.nms) == ("int8", Suppression())
    wanted = Suppression().usual()
    batch = images(3, 64, 64)
    found = backend.detections(batch, wanted)
    assert sum(map(len, found)) > 100
    assert_close(found, wanted.suppress(plain.predict(batch)))
    checkpoint = load_backend(folder / "nms.pt").detections(batch, wanted)
    assert any(len(a) != len(b) or (a - b).abs().max() > 1e-3 for a, b in zip(found, checkpoint))


def test_nms_behind_int8_stays_float32(quantised):
    graph = onnx.load(quantised[0] / "nms_int8.onnx").graph
    inside = [node for node in graph.node if node.name.startswith(PREFIX)]
    assert {"TopK", "NonMaxSuppression"} <= {node.op_type for node in inside}
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in inside}
    assert {value.name: value.type.tensor_type.elem_type for value in graph.output} == {
        "output0": onnx.TensorProto.FLOAT,
        "counts": onnx.TensorProto.INT64,
    }


@pytest.mark.parametrize("kind", QUANTISED)
def test_detect_and_val_take_int8_with_nms(quantised, caplog, tmp_path, kind):
    folder = quantised[0]
    name = f"_int8{ENDINGS[kind]}"
    common = {"project": str(tmp_path), "imgsz": 64}
    source = str(folder / "set" / "images" / "val")
    found, wanted = (
        detect.run(weights=str(folder / f"{file}{name}"), source=source, nosave=True, **common).detections
        for file in ("nms", "plain")
    )
    assert sum(len(d.boxes) for d in found) > 10
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
    with caplog.at_level(logging.WARNING, "yolo.backends"):
        val.run(weights=str(folder / f"nms{name}"), data=str(folder / "set/shapes.yaml"), workers=0, **common)
    assert "the confidence threshold is 0.25, not 0.001" in caplog.text
    assert "mAP is not comparable" in caplog.text


def test_torchscript_has_no_int8_with_nms_either(quantised):
    options = {"imgsz": [64], "int8": True, "nms": True, "data": str(quantised[0] / "set/shapes.yaml")}
    with pytest.raises(ExportError, match="torchscript: cannot be written in int8, only in fp32, fp16"):
        export.run(weights=str(quantised[0] / "nms.pt"), include=["torchscript"], **options)


def detected(folder, weights, **options):
    options = {"imgsz": 64, "nosave": True, "project": str(folder / "runs"), "exist_ok": True, **options}
    return detect.run(weights=str(folder / weights), source=str(folder / "images"), **options)


@pytest.mark.parametrize("kind", FORMATS)
def test_detect_finds_what_the_checkpoint_finds(folder, kind):
    wanted = detected(folder, "free.pt", conf_thres=0.3, iou_thres=0.5)
    found = detected(folder, f"free{ENDINGS[kind]}", conf_thres=0.3, iou_thres=0.5)
    assert sum(len(d.boxes) for d in wanted.detections) > 20
    assert set(found.speed) == {"preprocess", "inference", "nms"}
    for one, other in zip(found.detections, wanted.detections, strict=True):
        assert one.boxes.shape == other.boxes.shape
        np.testing.assert_allclose(one.boxes[:, :4], other.boxes[:, :4], atol=1)  # rounded to whole pixels
        np.testing.assert_allclose(one.boxes[:, 4:], other.boxes[:, 4:], atol=1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"conf_thres": 0.1, "iou_thres": 0.5}, "--conf-thres 0.1 cannot be had; give 0.3 or more"),
        ({"conf_thres": 0.5}, "IoU threshold 0.5, not 0.45; give --iou-thres 0.5"),
        ({"conf_thres": 0.5, "iou_thres": 0.5, "agnostic_nms": True}, "keeps classes apart"),
        ({"conf_thres": 0.5, "iou_thres": 0.5, "dnn": True}, "has NMS inside, which OpenCV does not run"),
    ],
)
def test_detect_refuses_what_the_file_cannot_do(folder, options, sentence):
    with pytest.raises(UserError, match=sentence):
        detected(folder, "fixed.onnx", name="none", **options)
    assert not (folder / "runs" / "none").exists()


def test_val_measures_what_the_checkpoint_has(folder, tmp_path):
    """One class, where several labels for a box make no difference."""
    data = write_set(tmp_path, train=1, val=5)
    results = []
    for name in ("single.pt", "single.onnx"):
        results.append(
            val.run(
                weights=str(folder / name),
                data=str(data),
                imgsz=96,
                batch_size=2,
                single_cls=True,
                workers=0,
                save_json=True,
                project=str(tmp_path / name),
            )
        )
    rows = [
        json.loads((result.save_dir / "single_predictions.json").read_text(encoding="utf-8"))
        for result in results
    ]
    assert len(rows[0]) == len(rows[1]) > 100
    for one, other in zip(*rows):
        assert one["image_id"] == other["image_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)
    assert results[0].metrics.map == pytest.approx(results[1].metrics.map, abs=1e-6)


def test_val_says_what_is_not_comparable(folder, tmp_path, caplog):
    export.run(weights=str(folder / "fixed.pt"), include=["torchscript"], imgsz=[64], nms=True)
    data = write_set(tmp_path, train=1, val=2)
    with caplog.at_level(logging.WARNING, "yolo.backends"):
        val.run(
            weights=str(folder / "fixed.torchscript"),
            data=str(data),
            imgsz=64,
            workers=0,
            project=str(tmp_path / "runs"),
        )
    (message,) = [r.message for r in caplog.records if r.name == "yolo.backends"]
    assert "the confidence threshold is 0.25, not 0.001, the IoU threshold is 0.45, not 0.6" in message
    assert "mAP is not comparable" in message


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"conf_thres": 0.3}, "--conf-thres: says how NMS works in the file; add --nms"),
        ({"iou_thres": 0.3}, "--iou-thres: says"),
        ({"max_det": 10}, "--max-det: says"),
        ({"agnostic_nms": True}, "--agnostic-nms: says"),
        ({"nms_inputs": True}, "--nms-inputs: says"),
        ({"nms": True, "conf_thres": 1.5}, "--conf-thres 1.5: must lie between 0 and 1"),
        ({"nms": True, "iou_thres": -1}, "--iou-thres -1: must lie between 0 and 1"),
        ({"nms": True, "max_det": 0}, "--max-det 0: must be at least 1"),
    ],
)
def test_options_without_meaning_are_refused(tmp_path, options, sentence):
    weights = tiny(tmp_path / "best.pt")
    with pytest.raises(UserError, match=sentence):
        export.run(weights=str(weights), imgsz=[32], **options)
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_format_without_nms_refuses(tmp_path, monkeypatch):
    plain = replace(export.EXPORTERS["onnx"], add_nms=None)
    monkeypatch.setitem(export.EXPORTERS, "onnx", plain)
    with pytest.raises(ExportError, match="--include onnx: ONNX files cannot have --nms"):
        export.run(weights=str(tiny(tmp_path / "best.pt")), imgsz=[32], include=["onnx"], nms=True)


@pytest.mark.parametrize("int8", [False, True])
def test_file_whose_nms_differs_is_removed(tmp_path, monkeypatch, int8):
    honest = onnx_format.with_nms

    def looser(graph, job):
        nms = replace(job.metadata.nms, iou_thres=0.9)
        return honest(graph, replace(job, metadata=replace(job.metadata, nms=nms)))

    monkeypatch.setattr(onnx_format, "with_nms", looser)
    with pytest.raises(ExportError, match="detections are not what NMS makes of its boxes"):
        export.run(
            weights=str(tiny(tmp_path / "best.pt")),
            imgsz=[64],
            include=["onnx"],
            nms=True,
            int8=int8,
            data=str(write_set(tmp_path / "set", train=1, val=1)) if int8 else "",
        )
    assert not list(tmp_path.glob("*.onnx")) and not list(tmp_path.glob("*.part"))


def test_network_that_differs_is_refused_before_nms(tmp_path, monkeypatch):
    def write_wrong(job, path):
        model = copy.deepcopy(job.model)
        model.detect.m[0].bias.data += 0.1
        onnx_format.write_onnx(replace(job, model=model), path)

    monkeypatch.setitem(export.EXPORTERS, "onnx", replace(export.EXPORTERS["onnx"], write=write_wrong))
    with pytest.raises(ExportError, match="differs from PyTorch by"):
        export.run(weights=str(tiny(tmp_path / "best.pt")), imgsz=[64], include=["onnx"], nms=True)
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_command_line_alias():
    assert export.parse_opt(["--nms", "--topk-all", "40"]).max_det == 40


def test_documented_snippet_runs(tmp_path):
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    start = text.index("import ast, cv2, numpy")
    (tmp_path / "snippet.py").write_text(text[start : text.index("```", start)])
    export.run(weights=str(tiny(tmp_path / "best.pt")), imgsz=[64, 96], include=["onnx"], nms=True)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), image)
    (tmp_path / "photo.png").rename(tmp_path / "photo.jpg")  # the pixels as they are
    done = subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    batch = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))[None]
    checkpoint = load_backend(tmp_path / "best.pt")
    (wanted,) = checkpoint.detections(batch, NmsOptions())
    printed = done.stdout.splitlines()
    assert len(printed) == len(wanted) > 3
    for line, row in zip(printed, wanted):
        name, confidence, *corners = line.split()
        assert name == checkpoint.names[int(row[5])]
        assert float(confidence) == pytest.approx(row[4].item(), abs=2e-3)
        assert [float(c) for c in corners] == pytest.approx(row[:4].tolist(), abs=0.1)
