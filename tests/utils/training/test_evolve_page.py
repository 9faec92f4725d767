"""The files of a search: what is shown, what is escaped, and what mattered."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from utils.training.evolve_page import MIN_FOR_IMPORTANCE, EvolveReport

SPACE = {"lr0": FloatDistribution(0.001, 0.1, log=True), "box": FloatDistribution(0.02, 0.2)}


@pytest.fixture
def study() -> optuna.Study:
    """Twelve complete trials that depend on lr0 alone; one pruned, one failed, one queued again."""
    study = optuna.create_study(direction="maximize")
    for i in range(12):
        params = {"lr0": 0.001 + 0.008 * i, "box": 0.02 + 0.03 * (i * 5 % 6)}
        attrs = {"metrics": {"map50": 0.9, "map": i / 20}, "seconds": 1.5} | (
            {"first": True} if i == 3 else {}
        )
        study.add_trial(create_trial(value=i / 20, params=params, distributions=SPACE, user_attrs=attrs))
    for state, attrs in (
        (TrialState.PRUNED, {}),
        (TrialState.FAIL, {"error": "loss is <nan>"}),
        (TrialState.FAIL, {}),
    ):
        study.add_trial(
            create_trial(
                state=state,
                params={"lr0": 0.1, "box": 0.02},
                distributions=SPACE,
                intermediate_values={1: 0.2, 2: 0.1},
                user_attrs=attrs,
            )
        )
    return study


def report(study: optuna.Study, **changes: bool) -> EvolveReport:
    trials = study.get_trials()
    recipes = {trial.number: trial.params | {"mosaic": 0.0} for trial in trials}
    return EvolveReport(study, trials, recipes, list(SPACE), **({"noplots": True} | changes))


def test_the_page_shows_what_counts_and_escapes_it(study: optuna.Study, tmp_path: Path) -> None:
    report(study).write(tmp_path)
    page = (tmp_path / "evolve.html").read_text()
    assert page.count("<tr>") == 1 + 14 and "loss is &lt;nan&gt;" in page and "<nan>" not in page
    assert "1 pruned, 1 failed" in page and "fitness 0.15" in page
    assert not (tmp_path / "evolve.png").exists() and "<img" not in page
    rows = (tmp_path / "evolve.csv").read_text().splitlines()
    assert len(rows) == 15 and rows[0].endswith("metrics/mAP_0.5:0.95,lr0,box,mosaic")
    assert rows[13].startswith("12,pruned,2,,0.2,,,,,0.1,0.02,0.0")
    assert "lr0: 0.089\n" in (tmp_path / "hyp_evolve.yaml").read_text()


def test_what_mattered_is_told_when_there_is_enough(study: optuna.Study, tmp_path: Path) -> None:
    page = report(study)._importances()
    assert page.index("<dt>lr0</dt>") < page.index("<dt>box</dt>")
    few = optuna.create_study(direction="maximize")
    few.add_trials(study.get_trials()[: MIN_FOR_IMPORTANCE - 1])
    assert report(few)._importances() == ""


def test_the_chart_is_inside_the_page(study: optuna.Study, tmp_path: Path) -> None:
    report(study, noplots=False).write(tmp_path)
    assert (tmp_path / "evolve.png").stat().st_size > 5000
    assert 'src="data:image/png;base64,' in (tmp_path / "evolve.html").read_text()
