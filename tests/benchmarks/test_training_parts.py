"""The training benchmark's processes: how one that dies is told."""

import pytest

from benchmarks import training
from utils.errors import UserError


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
