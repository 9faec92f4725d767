"""The training benchmark: how a process that dies is told, and the table of modes."""

from functools import partial

import pytest
import torch

from benchmarks import training
from utils.errors import UserError
from utils.training.compute_mode import ComputeMode
from utils.training.measured_mode import LayerRun, Measurement


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "^part loss: was killed by signal 9; "),
        ("import os; os._exit(3)", "^part loss: ended with exit code 3 without a word; "),
        ("print(' '); raise SystemExit('no room')", "^part loss: no room$"),
    ],
)
def test_a_part_that_dies_is_one_sentence(tmp_path, monkeypatch, code, sentence):
    script = tmp_path / "part.py"
    script.write_text(code)
    opt = training.build_parser().parse_args([])
    monkeypatch.setattr(training, "__file__", str(script))
    with pytest.raises(UserError, match=sentence):
        training.in_own_process(opt, "loss")


def test_modes_are_compared_with_what_auto_chose(monkeypatch):
    ran = []

    def stopwatch(what, call):
        """Modes differ by known factors; contiguous ones are hopeless, one is better than auto."""
        if isinstance(what, LayerRun):
            return 1e-3
        if not ran:
            call()
        ran.append(what)
        if not what.mode.channels_last:
            return 9e-3 * what.batch
        return what.batch * (2e-3 if what.mode.dtype is None else 0.8e-3 if what.mode.direct else 1e-3)

    monkeypatch.setattr(training, "Measurement", partial(Measurement, stopwatch=stopwatch))
    monkeypatch.setattr(training, "unmeasured_mode", lambda _: ComputeMode())
    monkeypatch.setattr("utils.training.measured_mode.supports_bfloat16", lambda: True)
    monkeypatch.setattr("utils.training.measured_mode.unmeasured_mode", lambda _: ComputeMode(torch.bfloat16))
    row, found = training.time_modes("yolov5-mobilenetv3-small", 64, 8, 0.0)
    assert found.mode == ComputeMode(torch.bfloat16)
    assert row == {
        "float32": "500.0",
        "float32 contiguous": "(111.1)",
        "bf16": "1000.0",
        "bf16 contiguous": "(111.1)",
        "bf16, library's gradient": "1250.0",
        "bf16, depthwise in float32": "1000.0",
        "auto": "1000.0",
        "today": "500.0",
        "auto / best": "0.80",
        "auto / today": "2.00",
    }
