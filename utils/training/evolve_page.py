"""Write what a search has found: hyp_evolve.yaml, evolve.csv, evolve.png and a page, evolve.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from pathlib import Path

import optuna
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from utils.files import atomic_text, atomic_write
from utils.pages import html_facts, html_image, html_page, html_sortable, html_tiles

MIN_FOR_IMPORTANCE = 10  # complete trials; with fewer the shares say nothing
INK = "#0b6b4f"
_METRICS = {
    "metrics/precision": "precision",
    "metrics/recall": "recall",
    "metrics/mAP_0.5": "map50",
    "metrics/mAP_0.5:0.95": "map",
}
_NOTE = (
    "The best of many trials was chosen on the val images by one seed, so its figure there is a little too "
    "good. Train it and the recipe of --hyp with other seeds before you trust the difference."
)


@dataclass(frozen=True)
class EvolveReport:
    """Hold a study for its files; at least one trial is complete.

    Attributes:
        trials: all of the study, by number.
        recipes: the whole hyperparameters of each trial, by its number.
        searched: the names of the hyperparameters that were searched.
        noplots: whether nothing is drawn.
    """

    study: optuna.Study
    trials: Sequence[FrozenTrial]
    recipes: Mapping[int, Mapping[str, float]]
    searched: Sequence[str]
    noplots: bool

    def write(self, folder: Path) -> None:
        """Write all files, each whole or not at all."""
        best, count = self.study.best_trial, len(self.shown)
        head = f"# Found by train.py --evolve: trial {best.number} of {count}, fitness {best.value:.5f}"
        recipe = yaml.safe_dump(dict(self.recipes[best.number]), sort_keys=False)
        atomic_text(folder / "hyp_evolve.yaml", f"{head}\n{recipe}")
        atomic_text(folder / "evolve.csv", self._csv())
        chart = ""
        if not self.noplots:
            self._draw(folder / "evolve.png")
            picture = html_image((folder / "evolve.png").read_bytes(), "png", "fitness of each trial")
            chart = f'<section class="chart"><h2>Best so far</h2>{picture}</section>'
        body = self._tiles() + chart + self._table() + self._importances()
        atomic_text(folder / "evolve.html", html_page(f"Search {folder.name}", body))

    @property
    def shown(self) -> list[FrozenTrial]:
        """Return the trials that count: not those that were queued again or wait."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        return [trial for trial in self.trials if trial.state in ended or "error" in trial.user_attrs]

    def _csv(self) -> str:
        """Return evolve.csv: one row per trial."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["trial", "state", "epochs", "seconds", "fitness", *_METRICS, *self.recipes[0]])
        for trial in self.shown:
            metrics = trial.user_attrs.get("metrics", {})
            rows.writerow(
                [trial.number, _state(trial), len(trial.intermediate_values), trial.user_attrs.get("seconds")]
                + [_number(_fitness(trial)), *(_number(metrics.get(name)) for name in _METRICS.values())]
                + list(self.recipes[trial.number].values())
            )
        return text.getvalue()

    def _draw(self, path: Path) -> None:
        """Draw each trial's fitness, and the best so far."""
        figure = Figure(figsize=(10, 4), layout="constrained")
        axis = figure.subplots()
        axis.set(xlabel="trial", ylabel="fitness")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(color="0.92", linewidth=0.8)
        for state, ink in ((TrialState.PRUNED, "0.7"), (TrialState.COMPLETE, INK)):
            points = [(t.number, _fitness(t) or 0.0) for t in self.shown if t.state == state]
            axis.scatter(
                [x for x, _ in points], [y for _, y in points], s=24, color=ink, label=state.name.lower()
            )
        done = [trial for trial in self.shown if trial.state == TrialState.COMPLETE]
        best = list(accumulate((_fitness(trial) or 0.0 for trial in done), max))
        axis.step([trial.number for trial in done], best, where="post", color=INK, alpha=0.6, label="best")
        axis.legend(frameon=False, fontsize=9)
        atomic_write(path, lambda file: figure.savefig(file, dpi=120, format="png"))

    def _tiles(self) -> str:
        """Return the figures that matter, in tiles."""
        first = next((trial for trial in self.shown if "first" in trial.user_attrs), None)
        best, states = self.study.best_trial, [trial.state for trial in self.shown]
        counts = ", ".join(
            f"{states.count(state)} {word}"
            for state, word in ((TrialState.PRUNED, "pruned"), (TrialState.FAIL, "failed"))
        )
        given = f"fitness {_number(_fitness(first))}" if first else ""
        tiles = [
            ("best", f"trial {best.number}", f"fitness {_number(best.value)}"),
            ("recipe of --hyp", f"trial {first.number}" if first else "under way", given),
            ("trials", str(len(states)), counts),
        ]
        return f'{html_tiles(tiles)}<p class="sub">{escape(_NOTE)}</p>'

    def _table(self) -> str:
        """Return the sortable table of all trials."""
        heads = ["trial", "state", "epochs", "seconds", "fitness", "mAP50-95", "mAP50", *self.searched]
        cells = "".join(
            f'<th class="{"" if head == "state" else "num"}"><button>{escape(head)}</button></th>'
            for head in heads
        )
        rows = "\n".join(self._row(trial) for trial in self.shown)
        return (
            f'<section><h2>Trials</h2><p class="sub">Fitness is 0.1 mAP50 + 0.9 mAP50-95 of best.pt on the '
            "val images; of a pruned trial, the highest until then.</p>"
            f"{html_sortable(cells, rows)}</section>"
        )

    def _row(self, trial: FrozenTrial) -> str:
        metrics = trial.user_attrs.get("metrics", {})
        error = trial.user_attrs.get("error")
        note = f"<small>{escape(str(error))}</small>" if error else ""
        numbers = [len(trial.intermediate_values), trial.user_attrs.get("seconds"), _fitness(trial)]
        numbers += [metrics.get("map"), metrics.get("map50")]
        numbers += [self.recipes[trial.number][name] for name in self.searched]
        kind = "num best" if trial.number == self.study.best_trial.number else "num"
        cells = "".join(_cell(number, kind) for number in numbers)
        return f'<tr>{_cell(trial.number, kind)}<td class="wrap">{_state(trial)}{note}</td>{cells}</tr>'

    def _importances(self) -> str:
        """Return each hyperparameter's share of what the complete trials differ by."""
        done = {trial.value for trial in self.shown if trial.state == TrialState.COMPLETE}
        if len(done) < MIN_FOR_IMPORTANCE:
            return ""
        judge = optuna.importance.PedAnovaImportanceEvaluator()
        shares = optuna.importance.get_param_importances(self.study, evaluator=judge)
        facts = html_facts({name: f"{share:.0%}" for name, share in shares.items()})
        return (
            '<section><h2>What mattered</h2><p class="sub">The share of each hyperparameter in what tells '
            f"the best tenth of the complete trials from the rest (PED-ANOVA).</p>{facts}</section>"
        )


def _state(trial: FrozenTrial) -> str:
    return "failed" if trial.state == TrialState.FAIL else trial.state.name.lower()


def _fitness(trial: FrozenTrial) -> float | None:
    """Return a trial's fitness; of a pruned one, the highest until then."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    return max(trial.intermediate_values.values(), default=None)


def _number(value: float | None) -> str:
    """Return a number of five digits, or nothing for None."""
    return "" if value is None else f"{value:.5g}"


def _cell(value: float | None, kind: str) -> str:
    text = _number(value)
    return f'<td class="{kind}" data-value="{text}">{text}</td>'
