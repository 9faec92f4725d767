"""benchmarks/formats.py: a row for every format and precision, with figures or with the reason."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import formats
from models.formats import exporter as exporting
from models.plugins import load_plugins
from models.weights.checkpoint import save_checkpoint
from models.yolo import DetectionModel
from tests.tiny_set import NAMES, TINY_MODEL, write_set
from utils.errors import UserError
from utils.files import ROOT


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    model = DetectionModel(TINY_MODEL)
    model.names = dict(enumerate(NAMES))
    save_checkpoint(tmp_path / "best.pt", model, meta={})
    return tmp_path / "best.pt"


@pytest.fixture
def options(weights, tmp_path):
    data = write_set(tmp_path / "set", train=2, val=2)
    return {
        "weights": [str(weights)],
        "data": str(data),
        "imgsz": 64,
        "rounds": 2,
        "repeats": 2,
        "threads": 1,
        "project": str(tmp_path / "runs"),
    }


def test_table_has_figures_or_a_reason(options, weights, tmp_path, capsys):
    before = torch.get_num_threads()
    weights.with_suffix(".onnx").write_bytes(b"the user's own")
    ((path, rows),) = formats.run(**options, include=["onnx", "torchscript"], half=True).items()
    assert path == str(weights)
    named = {(row.format, row.precision): row for row in rows}
    assert list(named) == [
        ("PyTorch", "fp32"),
        ("ONNX", "fp32"),
        ("ONNX", "fp16"),
        ("TorchScript", "fp32"),
        ("TorchScript", "fp16"),
    ]
    absent = named.pop(("TorchScript", "fp16"))
    assert absent.note.startswith("--half: TorchScript in float16 needs a CUDA device")
    assert absent.map is absent.size_mb is absent.median_ms is None
    for row in named.values():
        assert row.note == ""
        assert row.size_mb > 0
        assert 0 < row.median_ms <= row.p95_ms
        assert abs(row.map_diff) < 0.02
    assert named["ONNX", "fp32"].score_diff < 1e-3
    assert named["ONNX", "fp16"].size_mb < named["ONNX", "fp32"].size_mb
    assert torch.get_num_threads() == before
    assert weights.with_suffix(".onnx").read_bytes() == b"the user's own"
    printed = capsys.readouterr().out
    assert "| ONNX | fp16 |" in printed
    assert "1 threads" in printed
    folder = tmp_path / "runs/exp/best"
    assert sorted(os.listdir(folder / "onnx-fp16")) == ["best.onnx"]
    saved = list(csv.DictReader((folder / "formats.csv").open()))
    assert [(row["format"], row["precision"]) for row in saved] == [(r.format, r.precision) for r in rows]
    assert float(saved[1]["median_ms"]) == rows[1].median_ms


def test_export_only_and_pytorch_only(options, weights):
    options["weights"] *= 2
    (rows,) = formats.run(**options, include=["torchscript"], test=True).values()
    assert rows[1].size_mb > 0
    assert rows[1].map is rows[1].median_ms is None
    (rows,) = formats.run(**options, pt_only=True).values()
    assert [row.format for row in rows] == ["PyTorch"]
    assert rows[0].median_ms > 0


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"hard_fail": True, "include": ["torchscript"], "half": True, "test": True}, "needs a CUDA device"),
        ({"hard_fail": "0.99", "pt_only": True}, "--hard-fail 0.99: PyTorch fp32 reaches mAP50-95 0"),
        ({"hard_fail": "much"}, "--hard-fail much: give nothing or a number"),
        ({"include": ["word"]}, "--include word: not a format; available: "),
        ({"rounds": 0}, "--rounds 0: must be at least 1"),
    ],
)
def test_hard_failures_and_mistakes_are_sentences(options, changed, sentence):
    with pytest.raises(UserError, match=sentence):
        formats.run(**{**options, **changed})


def test_a_hard_failure_comes_after_the_table(options, monkeypatch, capsys):
    with pytest.raises(UserError, match="--hard-fail 0.99"):
        formats.run(**{**options, "hard_fail": "0.99", "pt_only": True})
    assert "| PyTorch | fp32 |" in capsys.readouterr().out
    assert list(Path(options["project"]).rglob("formats.csv"))


def test_hard_failures_are_not_for_what_the_platform_cannot_have(options, monkeypatch):
    """Without --include; CoreML and TensorRT files are not made here, nor float16 TorchScript."""

    def make(opt, name, weights, folder, row):
        able = exporting.EXPORTERS[name]
        if able.unavailable() or row.precision not in able.endings or row.precision in able.cuda_only:
            raise UserError("not here")
        if name == failing:
            raise UserError("its converter stopped")
        return weights

    monkeypatch.setattr(formats, "_make", make)
    asked = {**options, "include": [], "half": True, "int8": True, "test": True, "hard_fail": True}
    failing = ""
    assert len(formats.run(**asked)) == 1
    failing = "onnx"
    with pytest.raises(UserError, match="--hard-fail: ONNX fp32: its converter stopped"):
        formats.run(**asked)


def test_a_network_with_a_block_of_the_users_own(options, tmp_path):
    plugin = tmp_path / "own.py"
    plugin.write_text(
        "from torch import nn\nfrom models.registry import register_block\n\n\n@register_block\n"
        "class OwnForFormats(nn.Conv2d):\n"
        "    def __init__(self, c1, c2):\n        super().__init__(c1, c2, 1)\n"
    )
    load_plugins(plugin)
    rows = [[-1, 1, "OwnForFormats", [8]], *TINY_MODEL["backbone"][:3]]
    model = DetectionModel(TINY_MODEL | {"backbone": rows})
    model.names = dict(enumerate(NAMES))
    save_checkpoint(tmp_path / "own.pt", model, meta={})
    code = (
        "import sys; from benchmarks import formats; formats.run(weights=sys.argv[1], plugins=[sys.argv[2]], "
    )
    code += (
        "data=sys.argv[3], imgsz=64, include='torchscript', test=True, project=sys.argv[4], hard_fail=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "own.pt", plugin, options["data"], tmp_path / "runs"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )  # a process of its own, which does not know the block yet
    assert done.returncode == 0, done.stderr[-1000:]
    assert "| TorchScript | fp32 |" in done.stdout


def test_reason_is_one_line_of_a_table():
    row = formats.Row("X", "fp32", note="a | b\nc")
    assert formats.markdown([row]).splitlines()[-1].endswith("| a / b c |")


def test_every_format_is_asked_for_by_default(options, monkeypatch):
    asked = []

    def refuse(opt, name, *rest):
        asked.append(name)
        raise UserError("not here")

    monkeypatch.setattr(formats, "_make", refuse)
    (rows,) = formats.run(**options).values()
    assert asked == list(exporting.EXPORTERS)
    assert {row.note for row in rows[1:]} == {"not here"}
