"""A block of the user's own, in the user's own file: train, resume, val, detect and export with it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

import compare
import detect
import export
import hubconf
import train
import val
from models import plugins, registry
from models.weights.checkpoint import load_checkpoint
from models.yolo import DetectionModel
from tests.tiny_set import TINY_MODEL, write_set
from utils.errors import UserError
from utils.files import ROOT, load_yaml, save_yaml

BLOCKS = """
import torch
from torch import nn

from models.registry import register_block


@register_block
class GatedConv(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(c1, 2 * c2, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(2 * c2)

    def forward(self, x):
        value, gate = self.bn(self.conv(x)).chunk(2, 1)
        return value * torch.sigmoid(gate)
"""


@pytest.fixture
def forget(monkeypatch):
    """Undo what a plug-in registers, as a new process would."""
    kept = dict(registry.REGISTRY)

    def undo() -> None:
        registry.REGISTRY.clear()
        registry.REGISTRY.update(kept)
        for module in plugins._loaded.values():
            sys.modules.pop(module, None)
        plugins._loaded.clear()

    yield undo
    undo()


def test_a_users_block_goes_all_the_way(tmp_path: Path, forget) -> None:
    data, blocks, cfg = write_set(tmp_path, train=8, val=4), tmp_path / "my_blocks.py", tmp_path / "mine.yaml"
    blocks.write_text(BLOCKS)
    rows = [row if row[3][0] != 24 else [-1, 1, "GatedConv", [24, 3, 2]] for row in TINY_MODEL["backbone"]]
    save_yaml(cfg, TINY_MODEL | {"backbone": rows})
    common = {"data": str(data), "imgsz": 96, "batch_size": 4, "workers": 0, "device": "cpu"}
    common |= {"project": str(tmp_path / "runs"), "plugins": [str(blocks)]}

    result = train.run(cfg=str(cfg), epochs=2, save_period=1, noplots=True, **common)
    forget()
    first = result.save_dir / "weights" / "epoch0.pt"
    with pytest.raises(UserError, match=r"uses GatedConv from a plug-in; add --plugins .*my_blocks\.py"):
        load_checkpoint(first)
    assert torch.load(first, weights_only=True)["plugins"] == {"GatedConv": str(blocks)}

    with pytest.raises(UserError, match=r"uses GatedConv from a plug-in; add --plugins .*my_blocks\.py"):
        train.run(resume=str(first))  # opt.yaml names the file, and a folder may come from a stranger
    last = train.run(resume=str(first), plugins=[str(blocks)]).last
    forget()
    assert val.run(weights=str(last), **common).seen == 4
    forget()
    detected = {"weights": str(last), "source": str(tmp_path / "images" / "val"), "imgsz": 96}
    detect.run(**detected, device="cpu", plugins=[str(blocks)], project=str(tmp_path / "runs"), name="found")
    assert len(list((tmp_path / "runs" / "found").glob("*.png"))) == 4
    forget()
    file = export.run(weights=str(last), imgsz=[96], include=["onnx"], device="cpu", plugins=[str(blocks)])[0]
    forget()
    net = cv2.dnn.readNetFromONNX(str(file.path))  # the file needs no plug-in
    net.setInput(np.zeros((1, 3, 96, 96), np.float32))
    assert net.forward().shape[2] == 7


def test_a_strangers_run_folder_runs_no_code(tmp_path: Path, forget) -> None:
    """Neither opt.yaml nor the checkpoint can name a file that --resume then runs."""
    data, trap = write_set(tmp_path, train=8, val=4), tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    options = {"imgsz": 64, "epochs": 2, "batch_size": 4, "workers": 0, "device": "cpu", "save_period": 1}
    save_yaml(tmp_path / "tiny.yaml", TINY_MODEL)
    options |= {"cfg": str(tmp_path / "tiny.yaml"), "data": str(data), "noplots": True}
    folder = train.run(project=str(tmp_path / "runs"), **options).save_dir
    saved = folder / "weights" / "epoch0.pt"
    payload = torch.load(saved, weights_only=True)
    payload["plugins"], payload["meta"]["opt"]["plugins"] = {"Conv": str(trap)}, [str(trap)]
    torch.save(payload, saved)
    for opt_yaml in (load_yaml(folder / "opt.yaml") | {"plugins": [str(trap)]}, None):
        (folder / "opt.yaml").unlink()
        if opt_yaml:
            save_yaml(folder / "opt.yaml", opt_yaml)
        train.run(resume=str(saved))
        assert not (tmp_path / "ran").exists()


UNCOUNTABLE = """
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from models.registry import register_block


@register_block
class Shy(nn.Module):
    def __init__(self, c1: int, c2: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(c2, c1))

    def forward(self, x):
        if _get_current_dispatch_mode() is not None:  # the counter's
            raise ValueError("will not be watched")
        return torch.einsum("oc,...chw->...ohw", self.weight, x)
"""


def test_a_block_that_cannot_be_counted_costs_its_gflops_alone(tmp_path: Path, forget, log) -> None:
    data, blocks, cfg = write_set(tmp_path, train=8, val=4), tmp_path / "shy.py", tmp_path / "shy.yaml"
    blocks.write_text(UNCOUNTABLE)
    head = [[-1, 1, "Shy", [16]], [[2, 4], 1, "Detect", ["nc", "anchors"]]]
    save_yaml(cfg, TINY_MODEL | {"head": head})
    common = {"data": str(data), "imgsz": 64, "batch_size": 4, "workers": 0, "device": "cpu"}
    common |= {"project": str(tmp_path / "runs"), "plugins": [str(blocks)]}

    trained = train.run(cfg=str(cfg), epochs=1, noplots=True, name="trained", **common)
    measured = val.run(weights=str(trained.best), name="measured", **common)
    found = compare.run(weights=[str(trained.best)], latency_runs=1, samples=0, **common)
    assert not found.failed
    reports = [json.loads((r.save_dir / "metrics.json").read_text()) for r in (trained, measured)]
    (row,) = found.groups[0].rows
    for values in (*reports, row.values):
        assert values.get("gflops") is None and values["parameters"] == reports[0]["parameters"] > 0
    assert row.values["torch_ms"] > 0
    warning = "no GFLOPs: layer 4, Shy, cannot be counted on one image of 64x64 px: will not be watched"
    assert warning in log.text


@pytest.mark.parametrize(
    ("line", "wrong", "words"),
    [
        (
            "nn.BatchNorm2d(2 * c2)",
            "nn.BatchNorm(2 * c2)",
            "cannot be built .*AttributeError",
        ),
        ("torch.sigmoid(gate)", "torch.sigmoid(gates)", "cannot take an input of .*NameError"),
    ],
)
def test_a_slip_in_a_plugin_is_told_with_its_row_and_its_line(
    tmp_path: Path, forget, line: str, wrong: str, words: str
) -> None:
    blocks = tmp_path / "slip.py"
    blocks.write_text(BLOCKS.replace(line, wrong))
    number = next(i for i, text in enumerate(blocks.read_text().splitlines(), 1) if wrong in text)
    plugins.load_plugins(blocks)
    rows = [[-1, 1, "GatedConv", [16, 3, 2]], *TINY_MODEL["backbone"][1:]]
    with pytest.raises(UserError, match=rf"backbone row 1 .*{words}") as caught:
        DetectionModel(TINY_MODEL | {"backbone": rows})
    assert f"slip.py, line {number}: " in str(caught.value)


def documented_example() -> tuple[str, list, dict[str, list[str]]]:
    """The worked example of the docs: the plug-in, the row that uses it, and {script: its command line}."""
    text = (ROOT / "docs" / "add-a-backbone.md").read_text(encoding="utf-8")
    rest = text[text.index("```python\n# my_blocks.py\n") :]
    fenced = re.findall(r"^```(\w+)\n(.*?)^```$", rest, re.M | re.S)[:3]
    assert [language for language, _ in fenced] == ["python", "yaml", "bash"]
    (_, blocks), (_, rows), (_, shell) = fenced
    (row,) = yaml.safe_load(rows)
    commands = {
        script: shlex.split(line) for script, line in re.findall(r"^python (\w+)\.py (.*)$", shell, re.M)
    }
    return blocks, row, commands


def test_the_documented_example_does_what_it_says(tmp_path: Path, forget, monkeypatch) -> None:
    blocks, row, commands = documented_example()
    assert list(commands) == ["train", "val", "detect", "export"]
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path, train=8, val=4).rename("my.yaml")
    Path("my_blocks.py").write_text(blocks)
    cfg = load_yaml(ROOT / "models/yolov5n.yaml")
    (at,) = [i for i, r in enumerate(cfg["backbone"]) if r[3][0] == row[3][0] and r[2] == "Conv"]
    cfg["backbone"][at] = row
    save_yaml(Path("my_model.yaml"), cfg)
    tiny = {"device": "cpu", "project": str(tmp_path / "runs"), "exist_ok": True}
    sized = tiny | {"imgsz": 64, "batch_size": 4, "workers": 0}

    given = train.given_options(commands["train"])
    last = train.run(**given, **sized, epochs=1, noplots=True).last
    forget()
    assert torch.load(last, weights_only=True)["plugins"] == {"Squeeze": str(tmp_path / "my_blocks.py")}
    with pytest.raises(UserError, match=r"uses Squeeze from a plug-in; add --plugins .*my_blocks\.py"):
        val.run(weights=str(last), data="my.yaml", **sized)
    here = {"weights": str(last)}
    assert val.run(**vars(val.parse_opt(commands["val"])) | sized | here).seen == 4
    forget()
    with pytest.raises(UserError, match=r"\(plugins=\['.*my_blocks\.py'\] from Python\)"):
        hubconf.custom(last, device="cpu", _verbose=False)
    for autoshape in (True, False):
        forget()
        model = hubconf.custom(last, autoshape, False, "cpu", plugins=["my_blocks.py"])
        assert len(model.names) == len(load_yaml(Path("my.yaml"))["names"])
    forget()
    seen = here | {"source": str(tmp_path / "images" / "val"), "imgsz": [64]}
    found = detect.run(**vars(detect.parse_opt(commands["detect"])) | tiny | seen)
    assert len(list(found.save_dir.glob("[0-9].png"))) == 4
    forget()
    (file,) = export.run(**vars(export.parse_opt(commands["export"])) | here | {"imgsz": [64]})
    assert file.path.suffix == ".onnx"
