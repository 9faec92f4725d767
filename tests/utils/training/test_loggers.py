"""results.csv to the character, its rows over a resume, and the progress bar's figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from utils.training.loggers import EPOCH_COLUMNS, EpochBar, ResultsCsv, TensorBoard, read_results
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


def test_tensorboard_holds_the_columns_without_nan(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    board.scalars([4, 0.25, *[float("nan")] * 9, 0.1, 0.2, 0.3])
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/box_loss", "x/lr0", "x/lr1", "x/lr2"}
    scalar = events.Scalars("train/box_loss")[0]
    assert (scalar.step, scalar.value) == (4, 0.25)


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
