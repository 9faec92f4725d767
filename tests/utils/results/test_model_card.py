"""The card of a network: figures, exported files, names that are Markdown or HTML, and files of others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import export
from tests.tiny_checkpoint import write_checkpoint
from utils.results.model_card import MARK, ExportedFile, ModelCard, read_metrics, write_card_picture

BAD = "<script>|`[x](y)\n# z"
ROW = {"name": BAD, "precision": 0.5, "recall": 0.25, "map50": 0.75, "map": 0.125}
METRICS = {
    **dict.fromkeys(("precision", "recall", "map50", "map"), 0.5),
    "per_class": [ROW],
    "images": 8,
    "imgsz": 64,
    "parameters": 1234,
    "gflops": 0.5,
    "epochs": 3,
    "speed": {"inference": 2.0},
    "hardware": "one CPU",
    "sizes": {"small": {"objects": 4, "recall": 0.25}},
}


def card(folder: Path, *exports: ExportedFile, **changes: object) -> ModelCard:
    data = folder / "cats.yaml"
    data.write_text("licence: CC-BY-4.0\n")
    whole = {"names": {0: BAD}, "licence": "AGPL-3.0", "options": {"data": str(data), "cfg": "a/net.yaml"}}
    return ModelCard(folder / "best.pt", **(whole | {"metrics": METRICS, "exports": exports} | changes))


def test_the_card_has_figures_and_licences_and_no_foreign_markup(tmp_path):
    card(tmp_path).write()
    text = (tmp_path / "MODEL.md").read_text(encoding="utf-8")
    for line in ("| data set | cats.yaml |", "| network | net.yaml |", "| image size | 64 px |", "1,234"):
        assert line in text
    assert "2.0 ms inference (one CPU)" in text and "| all | 0.500 | 0.500 | 0.500 | 0.500 |" in text
    assert "| licence of the weights | AGPL-3.0 |" in text and "| licence of the data | CC-BY-4.0 |" in text
    name = r"&lt;script&gt;\|\`\[x\](y) # z"
    assert f"| {name} | 0.500 | 0.250 | 0.750 | 0.125 |" in text and f"| 1 classes | {name} |" in text
    assert "<script>" not in text and "| small | 4 | 0.250 |" in text and str(tmp_path) not in text
    assert "ONNX Runtime" not in text and "Exported" not in text


def test_a_card_of_somebody_else_is_kept_and_our_own_is_replaced(tmp_path, caplog):
    path = tmp_path / "MODEL.md"
    for foreign in (b"my notes\n", b"\xff\xfe", b""):
        path.write_bytes(foreign)
        card(tmp_path).write()
        assert path.read_bytes() == foreign and "is not ours and is kept" in caplog.text
    path.write_text(f"{MARK}\nold")
    card(tmp_path).write()
    assert "| all |" in path.read_text(encoding="utf-8")


def test_earlier_exports_stay_while_their_files_do(tmp_path):
    for name in ("a.onnx", "b.tflite"):
        (tmp_path / name).touch()
    card(tmp_path, ExportedFile("a.onnx", "fp32", "1"), ExportedFile("gone.pte", "fp32", "2")).write()
    card(tmp_path, ExportedFile("b.tflite", "int8", "3")).write()
    text = (tmp_path / "MODEL.md").read_text(encoding="utf-8")
    assert "| `a.onnx` | fp32 | 1 |\n| `b.tflite` | int8 | 3 |" in text and "gone" not in text
    card(tmp_path).write()  # a new training: what was exported before is of other weights
    assert "a.onnx" not in (tmp_path / "MODEL.md").read_text(encoding="utf-8")


def test_the_picture_is_ours_or_stays(tmp_path):
    drawn, target = tmp_path / "drawn.jpg", tmp_path / "card.png"
    write_card_picture(drawn, target, "nothing was drawn")
    assert not target.exists()
    cv2.imwrite(str(drawn), np.full((100, 200, 3), 90, np.uint8))
    for _ in range(2):
        write_card_picture(drawn, target, "mAP 0.5")
        with Image.open(target) as image:
            assert image.size == (720, 400)
            assert np.asarray(image)[:40].min() < 100 and np.asarray(image)[:40].max() == 255
    Image.new("RGB", (3, 3)).save(target)
    write_card_picture(drawn, target, "mAP 0.5")
    with Image.open(target) as image:
        assert image.size == (3, 3)


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_damaged_metrics_are_none(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    assert read_metrics(tmp_path / "metrics.json") == {} == read_metrics(tmp_path / "none.json")


def test_an_export_of_a_run_has_a_card_whose_python_finds_the_same_boxes(tmp_path):
    folder = tmp_path / "exp" / "weights"
    folder.mkdir(parents=True)
    weights = write_checkpoint(folder)
    export.run(weights=str(weights), include=["torchscript"], imgsz=[32])
    assert not (folder / "MODEL.md").exists()  # no run has measured it
    (tmp_path / "exp" / "metrics.json").write_text(json.dumps(METRICS))
    export.run(weights=str(weights), include=["torchscript"], imgsz=[32], nocard=True)
    assert not (folder / "MODEL.md").exists()
    (result,) = export.run(weights=str(weights), include=["onnx"], imgsz=[32])
    text = (folder / "MODEL.md").read_text(encoding="utf-8")
    assert f"| `best.onnx` | fp32 | {result.max_score_diff:.2g} in a score" in text
    cv2.imwrite(str(folder / "image.jpg"), np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    code = re.search(r"```python\n(.*?)```", text, re.S)[1].replace("0.25, 0.45", "0.0, 0.99")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) > 3 and set(done.stdout.split()[::1][:1]) <= {"0", "1"}
