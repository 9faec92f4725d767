"""results.csv to the character, its rows over a resume, services that fail, the bar's figures."""

from __future__ import annotations

import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.files import load_yaml
from utils.training.loggers import EPOCH_COLUMNS, RUN_IDS, EpochBar, ResultsCsv, RunLoggers, read_results
from utils.training.trainer import BatchReport


def test_columns_are_right_aligned_to_twenty_with_five_digits(tmp_path: Path) -> None:
    table = ResultsCsv(tmp_path / "results.csv")
    table.append([0, 0.123456789, 2e-7, 0, 0.5, 1, 123456.7, float("nan"), 1, 2, 3, 0.1, 0.01, 0.01])
    header, row = (tmp_path / "results.csv").read_text().splitlines()
    assert header.startswith("               epoch,      train/box_loss,")
    assert header.endswith(",               x/lr2") and len(header) == 14 * 20 + 13
    assert [name.strip() for name in header.split(",")] == list(EPOCH_COLUMNS)
    assert EPOCH_COLUMNS[6:8] == ("metrics/mAP_0.5", "metrics/mAP_0.5:0.95")
    assert all(len(cell) == 20 for cell in row.split(","))
    values = [cell.strip() for cell in row.split(",")]
    assert values[1:8] == ["0.12346", "2e-07", "0", "0.5", "1", "1.2346e+05", "nan"]


def test_a_resumed_run_keeps_only_the_rows_before_it(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    first = ResultsCsv(path)
    for epoch in range(3):
        first.append([epoch, *range(13)])
    ResultsCsv(path, keep_below=2).append([2, *range(10, 23)])
    assert [row[:2] for row in read_results(path)] == [[0, 0], [1, 0], [2, 10]]
    ResultsCsv(path).append([0, *range(13)])
    assert len(read_results(path)) == 1


def test_blank_lines_are_stepped_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "results.csv"
    table = ResultsCsv(path)
    for epoch in range(2):
        table.append([epoch, *range(13)])
    path.write_text(path.read_text().replace("\n", "\n\n \n"))
    assert [row[0] for row in ResultsCsv(path, keep_below=5).rows] == [0, 1]
    assert not caplog.text and [p.name for p in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize(
    "damage", [b"1,abc", b"1,2,3", b"1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", b"\xff\0\xfe"]
)
def test_a_damaged_row_costs_itself_and_the_file_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    path = tmp_path / "results.csv"
    table = ResultsCsv(path)
    for epoch in range(3):
        table.append([epoch, *range(13)])
    lines = path.read_bytes().splitlines()
    lines[2] = damage
    before = b"\n".join(lines) + b"\n"
    for copies in (1, 2):
        path.write_bytes(before)
        assert [row[0] for row in read_results(path)] == [0, 2]
        ResultsCsv(path, keep_below=5).append([3, *range(13)])
        assert [row[0] for row in read_results(path)] == [0, 2, 3]
        kept = sorted(tmp_path.glob("results.damaged*.csv"))
        assert len(kept) == copies and all(copy.read_bytes() == before for copy in kept)
    assert f"{path}: line 3 is no row of 14 numbers" in caplog.text


def test_wrong_number_of_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 values for 14"):
        ResultsCsv(tmp_path / "results.csv").append([1, 2, 3])


ROW = [4, 0.25, *[float("nan")] * 9, 0.1, 0.2, 0.3]
FINITE = {"train/box_loss": 0.25, "x/lr0": 0.1, "x/lr1": 0.2, "x/lr2": 0.3}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder; services write below it, whatever this machine's settings are."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    folder = tmp_path / "shapes" / "exp"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return folder


def draw(path: Path, blue: int = 0) -> None:
    cv2.imwrite(str(path), np.full((20, 30, 3), (blue, 0, 200), np.uint8))


def test_tensorboard_holds_the_columns_without_nan_and_each_new_picture(folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    draw(folder / "of_another_run.png")
    with RunLoggers(folder, [], {}) as loggers:  # without being named, as in YOLOv5
        draw(folder / "labels.jpg")
        loggers.log_epoch(ROW)
        loggers.log_pictures(4)
        draw(folder / "results.png", blue=90)
        (folder / "results.csv").touch()
        loggers.log_pictures(5)
    events = EventAccumulator(str(folder))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(FINITE)
    scalar = events.Scalars("train/box_loss")[0]
    assert (scalar.step, scalar.value) == (4, 0.25)
    assert set(events.Tags()["images"]) == {"labels", "results"}
    (picture,) = events.Images("results")
    decoded = cv2.imdecode(np.frombuffer(picture.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert picture.step == 5 and decoded[10, 10].tolist() == [90, 0, 200]
    assert read_results(folder / "results.csv")[0][0] == 4


def test_mlflow_holds_options_figures_and_pictures_and_is_resumed(folder: Path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is optional")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (folder.parent / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database takes ten seconds to set up
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    options = {"epochs": 6, "hyp": {"lr0": 0.01}, "cfg": None}
    with RunLoggers(folder, ["mlflow"], options) as loggers:
        loggers.log_epoch(ROW)
        draw(folder / "labels.jpg")
        loggers.log_pictures(4)
        loggers.close(complete=False)
    with RunLoggers(folder, ["mlflow"], options | {"epochs": 9}, first_epoch=5) as loggers:
        loggers.log_epoch([5, *ROW[1:6], 0.5, 0.4, *ROW[8:]])
    (found,) = mlflow.MlflowClient().search_runs(
        [mlflow.MlflowClient().get_experiment_by_name("mine").experiment_id]
    )
    assert found.info.status == "FINISHED" and found.info.run_name == "exp"
    assert found.data.params == {"epochs": "6", "hyp.lr0": "0.01", "cfg": "None"}
    assert found.data.metrics == FINITE | {"metrics/mAP_0.5": 0.5, "metrics/mAP_0.5-0.95": 0.4}
    steps = [m.step for m in mlflow.MlflowClient().get_metric_history(found.info.run_id, "x/lr0")]
    assert steps == [4, 5]
    artifacts = mlflow.MlflowClient().list_artifacts(found.info.run_id)
    assert [artifact.path for artifact in artifacts] == ["labels.jpg"]


def test_wandb_holds_figures_and_pictures_offline(folder: Path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="wandb is optional")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with RunLoggers(folder, ["wandb"], {"epochs": 6}) as loggers:
        loggers.log_epoch(ROW)
        draw(folder / "labels.jpg")
        loggers.log_pictures(4)
        run_id = loggers.loggers["wandb"].run_id
    (record,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    assert run_id in record.name and load_yaml(folder / RUN_IDS) == {"wandb": run_id}
    names, end = [name.encode() for name in (*FINITE, "labels", "epochs")], time.monotonic() + 20
    while not all(name in record.read_bytes() for name in names):  # a process of wandb's own writes it
        assert time.monotonic() < end, record.read_bytes()
        time.sleep(0.1)
    assert [p.suffix for p in (folder / "wandb").glob("offline-run-*/files/media/images/*")] == [".jpg"]
    assert "wandb" not in {path.name for path in Path.cwd().iterdir()}


def test_one_that_cannot_be_started_is_one_sentence_before_the_training(folder: Path, monkeypatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is optional")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    with pytest.raises(UserError, match=r"mlflow: cannot be started \(.+\); check MLFLOW_TRACKING_URI"):
        RunLoggers(folder, ["mlflow"], {})


def test_an_address_without_a_server_is_given_up_in_seconds(folder: Path, monkeypatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is optional")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(UserError, match="--logger mlflow: cannot be started"):
        RunLoggers(folder, ["mlflow"], {})
    assert time.monotonic() - begun < 60
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


class Failing:
    """A service that is lost in the middle."""

    run_id = None

    def __init__(self) -> None:
        self.calls = 0

    def log_epoch(self, epoch, values):
        self.calls += 1
        raise ConnectionError("the server is gone\nsecond line")

    log_pictures = close = log_epoch


def test_one_that_fails_is_told_of_once_and_left_out(folder: Path, log) -> None:
    failing = Failing()
    with RunLoggers(folder, [], {}) as loggers:
        loggers.loggers["mlflow"] = failing
        for epoch in range(3):
            loggers.log_epoch([epoch, *ROW[1:]])
            draw(folder / f"{epoch}.png")
            loggers.log_pictures(epoch)
    assert failing.calls == 1 and len(read_results(folder / "results.csv")) == 3
    assert "--logger mlflow: left out from here on (the server is gone)" in log.text


def test_bar_shows_losses_instances_size_and_speed(capsys: pytest.CaptureFixture) -> None:
    bar = EpochBar(4, 100, 7, torch.device("cpu"), world_size=2)
    bar(BatchReport(0, (0.1234567, 0.02, 0.5), 31, 320, 16))
    shown = bar.bar.desc.split()
    bar.close()
    assert shown[:7] == ["5/100", "0.00G", "0.1235", "0.02", "0.5", "31", "320"]
    assert float(shown[7]) > 0 and bar.images == 32
    assert capsys.readouterr().out.split() == list(EpochBar.HEADER)
    EpochBar(4, 100, 7, torch.device("cpu"), quiet=True).close()
    assert capsys.readouterr() == ("", "")
