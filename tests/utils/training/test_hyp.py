"""Hyperparameter files: the shipped ones are whole, and every slip gets a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.errors import UserError
from utils.files import ROOT
from utils.training.hyp import HYPERPARAMETERS, load_hyp, scale_gains

SHIPPED = sorted((ROOT / "data" / "hyps").glob("hyp.*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_files_are_complete(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hyp = load_hyp(path)
    assert not caplog.records
    assert set(HYPERPARAMETERS) - set(hyp) <= {"anchors", "nominal_batch", "distill_head", "distill_neck"}


def test_shipped_figures() -> None:
    low, voc = load_hyp("hyp.scratch-low.yaml"), load_hyp("hyp.VOC.yaml")
    assert (low["lrf"], low["cls"], low["scale"]) == (0.01, 0.5, 0.5)
    assert (voc["lr0"], voc["momentum"], voc["anchors"]) == (0.00334, 0.74832, 3.412)
    assert low == {k: b.default for k, b in HYPERPARAMETERS.items() if b.default is not None}
    assert load_hyp("hyp.scratch-high.yaml")["copy_paste"] == 0.1
    assert load_hyp("hyp.Objects365.yaml")["warmup_epochs"] == 1.33
    assert not any(load_hyp("hyp.no-augmentation.yaml")[k] for k in ("mosaic", "scale", "hsv_s", "fliplr"))


def test_missing_keys_take_the_default_and_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lr0: 0.02\n")
    hyp = load_hyp(path)
    assert hyp["lr0"] == 0.02 and hyp["momentum"] == 0.937
    assert "momentum" in caplog.text and "lr0," not in caplog.text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("mosiac: 1.0", "did you mean 'mosaic'"),
        ("lr0: 1e-3", "'1e-3', a number is needed; YAML reads 1e-3 as text"),
        ("lr0: .nan", "lr0 is nan"),
        ("lr0: true", "lr0 is True, a number"),
        ("fliplr: 1.5", "fliplr is 1.5; it must lie in 0 to 1"),
        ("box: -0.1", "box is -0.1"),
        ("momentum: [0.9]", "momentum is [0.9], a number"),
        ("nominal_batch: 12.5", "whole number"),
        ("3: 4", "unknown hyperparameter 3"),
    ],
)
def test_slips(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(line + "\n")
    with pytest.raises(UserError) as caught:
        load_hyp(path)
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_gains_scale_with_layers_classes_and_size() -> None:
    hyp = load_hyp("hyp.scratch-low.yaml")
    scaled = scale_gains(hyp, nl=4, nc=20, imgsz=320)
    assert scaled["box"] == pytest.approx(0.05 * 0.75)
    assert scaled["cls"] == pytest.approx(0.5 * 20 / 80 * 0.75)
    assert scaled["obj"] == pytest.approx(1.0 * 0.25 * 0.75)
    assert hyp["cls"] == 0.5
