"""The final validation: what a run that ended in it lacks, --resume makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import train
from tests.test_train import TIMED, options
from utils.errors import UserError
from utils.training_run import validation


def test_a_run_ended_in_its_final_validation_is_finished_by_resume(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    log.set_level("INFO", "yolo")
    whole = train.run(**options(folder, tmp_path, noplots=False))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(validation, "save_metrics", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        train.run(**options(folder, tmp_path, noplots=False, name="broken"))
    broken = tmp_path / "broken"
    for path in (broken / "results.png", *broken.glob("*_curve.png")):
        path.unlink()
    result = train.run(resume=str(broken / "weights" / "last.pt"))
    assert "all 2 epochs are trained; validating the best" in log.text
    assert result.best == broken / "weights" / "best.pt" and result.metrics.map == whole.metrics.map
    reports = [json.loads((path / "metrics.json").read_text()) for path in (whole.save_dir, broken)]
    assert all(a == b for (k, a), b in zip(reports[0].items(), reports[1].values()) if not TIMED.match(k))
    html = (broken / "report.html").read_text(encoding="utf-8")
    assert "broken: best.pt on shapes.yaml" in html and "2 epochs, 24 images" in html
    assert html.index("How it learnt") < html.index("Classes") and (whole.save_dir / "report.html").is_file()
    card = broken / "weights" / "MODEL.md"
    assert f"{result.metrics.map:.3f}" in card.read_text(encoding="utf-8")
    assert card.with_name("card.png").is_file()
    files = [{p.name for p in run.iterdir() if "tfevents" not in p.name} for run in (broken, whole.save_dir)]
    assert files[0] == files[1]
    with pytest.raises(UserError, match="has finished its 2 epochs"):
        train.run(resume=str(broken / "weights" / "last.pt"))
