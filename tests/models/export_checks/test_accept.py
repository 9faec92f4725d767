"""What a file has to show: int8's mAP is said beside PyTorch's, a loss is warned of and a ruin refused."""

from pathlib import Path

import pytest
import torch

from models.export_checks import accept as proof
from models.export_checks.accept import check_accuracy, check_difference, compare
from models.export_checks.int8_accuracy import Accuracy
from utils.errors import UserError


@pytest.mark.parametrize(("left", "warned"), [(0.481, False), (0.479, True)])
def test_int8_that_loses_mean_average_precision_is_warned_of(caplog, left, warned):
    with caplog.at_level("INFO", "yolo.proof"):
        check_accuracy("onnx", Accuracy(left, 0.88, 0.5, 0.9))
    assert f"mAP50-95 {left:.4f} (PyTorch 0.5000, {left - 0.5:+.4f})" in caplog.text
    assert "mAP50 0.8800 (PyTorch 0.9000, -0.0200)" in caplog.text
    assert ("int8 loses 0.021 of mAP50-95" in caplog.text) is warned
    assert any(record.levelname == "WARNING" for record in caplog.records) is warned


@pytest.mark.parametrize(
    ("left", "whole", "kept"), [(0.26, 0.5, True), (0.24, 0.5, False), (0.0, 0.01, True)]
)
def test_int8_that_loses_most_is_refused(left, whole, kept):
    """Of a network that has learned nothing there is nothing to lose."""
    if kept:
        check_accuracy("onnx", Accuracy(left, left, whole, whole))
        return
    with pytest.raises(
        UserError, match=r"int8 leaves 0\.240 of PyTorch's mAP50-95 of 0\.500, so the file was"
    ):
        check_accuracy("onnx", Accuracy(left, left, whole, whole))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_numbers_that_are_not_finite_are_refused_in_every_precision(monkeypatch, precision):
    class Broken:
        def predict(self, images):
            return torch.full((1, 4, 7), torch.nan)

    monkeypatch.setattr(proof, "load_backend", lambda path, device: Broken())
    score, box = compare(lambda images: [torch.zeros(1, 4, 7)], Path("a.onnx"), [torch.zeros(1, 3, 8, 8)])
    with pytest.raises(UserError, match="not finite"):
        check_difference("onnx", score, box, precision)
