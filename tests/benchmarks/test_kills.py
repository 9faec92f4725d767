"""benchmarks/kills.py with a dozen kills: each run is resumed and equals one that was never killed."""

from pathlib import Path

from benchmarks.kills import EARLY, Trials


def test_a_dozen_kills_leave_no_trace(tmp_path: Path) -> None:
    trials = Trials(tmp_path, epochs=2, seed=0)
    ends = trials.run(kills=4, writes=0)
    for number, write in enumerate(
        (0, 2, 5, 11, 14, 21, 26, 30), start=4
    ):  # weights, tables, the first and last
        ends[trials.trial(number, write)] += 1
    assert ends["equal"] >= 12 and set(ends) <= {"equal", EARLY}, ends
