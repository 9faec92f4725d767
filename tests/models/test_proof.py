"""What a file has to show: int8's mAP is said beside PyTorch's, and a loss is warned of."""

import pytest

from models.proof import report_accuracy
from models.quantiser import Accuracy


@pytest.mark.parametrize(("left", "warned"), [(0.481, False), (0.479, True)])
def test_int8_that_loses_mean_average_precision_is_warned_of(caplog, left, warned):
    with caplog.at_level("INFO", "yolo.proof"):
        report_accuracy("onnx", Accuracy(left, 0.88, 0.5, 0.9))
    assert f"mAP50-95 {left:.4f} (PyTorch 0.5000, {left - 0.5:+.4f})" in caplog.text
    assert "mAP50 0.8800 (PyTorch 0.9000, -0.0200)" in caplog.text
    assert ("int8 loses 0.021 of mAP50-95" in caplog.text) is warned
    assert any(record.levelname == "WARNING" for record in caplog.records) is warned
