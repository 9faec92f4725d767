"""Search for hyperparameters with Optuna: train.py --evolve.

A study is a folder. Each trial is a run of train.py in a process of its own, with its own hyp.yaml, in
`trialN` below that folder. Several processes may work on one study, also from several machines.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from utils.cli import specs
from utils.errors import UserError, first_line
from utils.evaluation.metrics import Metrics, fitness
from utils.files import RUNS_DIR, save_yaml
from utils.locks import exclusive, is_held
from utils.package import start
from utils.training.evolve_page import EvolveReport
from utils.training.hyp import load_hyp
from utils.training.loggers import read_results
from utils.training.options import TrainOptions
from utils.training.run_folder import RUNS, RunFolder

LOGGER = logging.getLogger("yolo.evolve")

JOURNAL = "evolve.journal"
STUDY = "evolve"
SPARED_TRIALS = 4  # so many trials are complete before any is pruned
POLL_SECONDS = 0.5
STOP_SECONDS = 60.0  # for a trial to end when it is asked to, before it is killed


@dataclass(frozen=True)
class SearchRange:
    """Hold where a hyperparameter is searched, and whether on a logarithmic scale."""

    low: float
    high: float
    log: bool = False


# A hyperparameter that --hyp sets to 0 stays 0. Not here: what nothing reads (iou_t), whole numbers (anchors,
# nominal_batch), and cls_pw and obj_pw, which do what cls and obj do.
SEARCHED: dict[str, SearchRange] = {
    "lr0": SearchRange(1e-4, 0.1, log=True),
    "lrf": SearchRange(0.01, 1.0, log=True),
    "momentum": SearchRange(0.6, 0.98),
    "weight_decay": SearchRange(1e-5, 0.05, log=True),
    "warmup_epochs": SearchRange(0.0, 5.0),
    "warmup_momentum": SearchRange(0.0, 0.95),
    "warmup_bias_lr": SearchRange(1e-4, 0.2, log=True),
    "box": SearchRange(0.02, 0.2, log=True),
    "cls": SearchRange(0.1, 4.0, log=True),
    "obj": SearchRange(0.2, 4.0, log=True),
    "anchor_t": SearchRange(2.0, 8.0),
    "fl_gamma": SearchRange(0.0, 2.0),
    "hsv_h": SearchRange(0.0, 0.1),
    "hsv_s": SearchRange(0.0, 0.9),
    "hsv_v": SearchRange(0.0, 0.9),
    "degrees": SearchRange(0.0, 45.0),
    "translate": SearchRange(0.0, 0.5),
    "scale": SearchRange(0.0, 0.9),
    "shear": SearchRange(0.0, 10.0),
    "perspective": SearchRange(0.0, 0.001),
    "flipud": SearchRange(0.0, 1.0),
    "fliplr": SearchRange(0.0, 1.0),
    "mosaic": SearchRange(0.0, 1.0),
    "mixup": SearchRange(0.0, 1.0),
    "copy_paste": SearchRange(0.0, 1.0),
    "distill_head": SearchRange(0.1, 10.0, log=True),
    "distill_neck": SearchRange(0.1, 10.0, log=True),
}

# What each trial has of its own, and what never differs between trials.
_OWN = frozenset(
    {"evolve", "project", "name", "exist_ok", "hyp", "noplots", "recipe", "resume", "local_rank"}
)
# A study may be continued with other values of these: they do not change what a trial learns.
_FREE = _OWN | {"device", "workers", "cache", "logger", "plugins", "save_period"}


@dataclass(frozen=True)
class BestTrial:
    """Hold the run and the metrics of a study's best trial."""

    run: RunFolder
    metrics: Metrics


def search_space(hyp: Mapping[str, float]) -> dict[str, BaseDistribution]:
    """Return where each hyperparameter is searched.

    What is 0 in `hyp` is left out. A range is widened to hold the value in `hyp`.

    >>> space = search_space({"lr0": 0.2, "iou_t": 0.2, "mixup": 0.0})
    >>> list(space), space["lr0"].high
    (['lr0'], 0.2)
    """
    return {
        name: FloatDistribution(min(at.low, hyp[name]), max(at.high, hyp[name]), log=at.log)
        for name, at in SEARCHED.items()
        if hyp.get(name, 0.0) > 0.0
    }


def evolve(opt: TrainOptions, name: str, script: Path) -> BestTrial:
    """Run trials until the study has `opt.evolve` of them, and return the best.

    Args:
        name: of the study's folder below `opt.project`.
        script: train.py.

    Raises:
        UserError: another study is in the folder, or the recipe of --hyp cannot be trained.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    project = RUNS_DIR / "evolve" if opt.project == str(RUNS) else Path(opt.project)
    search = Search(opt, load_hyp(opt.hyp), project / name, script)
    while search.run_next():
        pass
    return search.best()


class Search:
    """Run the trials of a study, one at a time.

    Args:
        opt: options of each trial.
        hyp: the recipe of the first trial.
        folder: of the study; made when it is missing.
        script: train.py.
    """

    def __init__(self, opt: TrainOptions, hyp: Mapping[str, float], folder: Path, script: Path) -> None:
        self.opt, self.hyp, self.folder, self.script = opt, hyp, folder, script
        self.space = search_space(hyp)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL).is_file():
            raise UserError(f"{folder}: holds no search ({JOURNAL}), but other files; choose another --name")
        folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self.study = self._open()

    def run_next(self) -> bool:
        """Run one trial; return False when the study has all of them."""
        with contextlib.ExitStack() as until_ended:
            with self._alone():
                self._requeue_dead()
                if self._counted() >= (self.opt.evolve or 0):
                    return False
                trial = self._ask()
                until_ended.enter_context(exclusive(self._lock(trial.number), f"trial {trial.number}"))
            self._run(trial)
        with self._alone():
            self._tidy()
        return True

    def best(self) -> BestTrial:
        """Return the best trial.

        Raises:
            UserError: no trial is complete.
        """
        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            raise UserError(f"{self.folder}: no trial is complete; see the train.log in each trial's folder")
        trial = self.study.best_trial
        LOGGER.info(
            "the best of %d trials is trial %d, fitness %.4f (--hyp's own recipe: %s); use it with --hyp %s",
            *(self._counted(), trial.number, trial.value, self._first_fitness()),
            self.folder / "hyp_evolve.yaml",
        )
        return BestTrial(RunFolder(self._place(trial.number)), Metrics(**trial.user_attrs["metrics"]))

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep the other processes of this study out."""
        return exclusive(self.folder / "evolve.lock", str(self.folder), pause=0.05)

    def _place(self, number: int) -> Path:
        return self.folder / f"trial{number}"

    def _lock(self, number: int) -> Path:
        """Return the file that the process of a running trial holds locked."""
        return self.folder / f"trial{number}.lock"

    def _open(self) -> optuna.Study:
        """Open or begin the study, whose journal holds one JSON object per line."""
        path = str(self.folder / JOURNAL)
        try:
            storage = optuna.storages.JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))
            pruner = optuna.pruners.MedianPruner(SPARED_TRIALS, n_warmup_steps=max(self.opt.epochs // 5, 1))
            study = optuna.create_study(
                study_name=STUDY, storage=storage, direction="maximize", load_if_exists=True, pruner=pruner
            )
            begun = study.user_attrs
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            raise UserError(
                f"{path}: is no readable journal ({first_line(error)}); move it away to begin a new search"
            ) from None
        now = json.loads(json.dumps(self._settings()))
        if not begun:
            for key, value in now.items():
                study.set_user_attr(key, value)
            study.enqueue_trial({name: self.hyp[name] for name in self.space}, {"first": True})
        for key in sorted(begun.keys() | now.keys()) if begun else ():
            if begun.get(key) != now.get(key):
                raise UserError(
                    f"{self.folder}: this search was begun with another {key}, so its trials cannot be "
                    "compared with new ones; give the same options as before, or another --name"
                )
        return study

    def _settings(self) -> dict[str, object]:
        """Return the options that all trials share, as typed, and the first recipe."""
        known = specs(TrainOptions)
        told = {spec.flag: getattr(self.opt, name) for name, spec in known.items() if name not in _FREE}
        return told | {"--hyp": dict(self.hyp)}

    def _requeue_dead(self) -> None:
        """Queue the trials again whose process has died or was stopped."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not is_held(self._lock(trial.number)):
                LOGGER.info("trial %d was stopped before its end; it starts again", trial.number)
                self._requeue(trial)

    def _requeue(self, trial: FrozenTrial) -> None:
        """Fail a trial, and queue its hyperparameters as a new one."""
        self.study.tell(trial.number, state=TrialState.FAIL)
        asked = trial.system_attrs.get("fixed_params", {}) | trial.params
        first = {"first": True} if "first" in trial.user_attrs else {}
        self.study.enqueue_trial(asked, first)
        # The killed process may have left its trial running, which now ends when it saves.
        shutil.rmtree(self._place(trial.number), ignore_errors=True)

    def _counted(self) -> int:
        """Return the trials that are complete, pruned, running or failed by themselves."""
        counted = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = self.study.get_trials(deepcopy=False)
        return sum(trial.state in counted or "error" in trial.user_attrs for trial in trials)

    def _ask(self) -> Trial:
        """Return the next trial: queued, or sampled with a seed of its own.

        So a continued study samples what it would have sampled without the stop.
        """
        number = len(self.study.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence([self.opt.seed, number]).generate_state(1)[0])
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        return self.study.ask(self.space)

    def _trial_hyp(self, params: Mapping[str, float]) -> dict[str, float]:
        """Return a trial's whole recipe, sampled values rounded to five digits."""
        return {
            name: value if params.get(name, value) == value else float(f"{params[name]:.5g}")
            for name, value in self.hyp.items()
        }

    def _run(self, trial: Trial) -> None:
        """Train a trial to its end, and tell the study how it ended."""
        started, place = time.time(), RunFolder(self._place(trial.number))
        place.path.mkdir(exist_ok=True)
        save_yaml(place.hyp, self._trial_hyp(trial.params))
        with self._process(place) as process:
            pruned = self._follow(process, trial, place)
        trial.set_user_attr("seconds", round(time.time() - started, 1))
        if pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif process.returncode == 0 and place.metrics.is_file():
            report = json.loads(place.metrics.read_text(encoding="utf-8"))
            metrics = {name: report[name] for name in ("precision", "recall", "map50", "map")}
            trial.set_user_attr("metrics", metrics)
            self.study.tell(trial, fitness(Metrics(**metrics)))
        else:
            self._fail(trial, _last_error(place.path / "train.log", process.returncode))
        self._log(trial)

    def _fail(self, trial: Trial, sentence: str) -> None:
        """Fail a trial; stop the search if it is the user's own recipe."""
        if "first" not in trial.user_attrs:
            trial.set_user_attr("error", sentence)
            self.study.tell(trial, state=TrialState.FAIL)
            return
        with self._alone():
            log = self._place(trial.number) / "train.log"
            kept = log.rename(self.folder / "first.log")
            self._requeue(self.study.get_trials()[trial.number])
        raise UserError(
            f"--evolve: the first trial, the recipe of --hyp, has failed: {sentence} (its log: {kept})"
        )

    @contextlib.contextmanager
    def _process(self, place: RunFolder) -> Iterator[subprocess.Popen[bytes]]:
        """Start a trial's process, and end it with the block."""
        words = [
            word
            for name, spec in specs(TrainOptions).items()
            if name not in _OWN and getattr(self.opt, name) != spec.default
            for word in spec.words(getattr(self.opt, name))
        ]
        own = ["--hyp", str(place.hyp), "--project", str(self.folder), "--name", place.path.name]
        command = [*start(self.script), *words, *own, "--exist-ok", "--noplots"]
        with (place.path / "train.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TQDM_MININTERVAL": "60"},  # progress bars do not fill the log
            )
            try:
                yield process
            finally:
                _stop(process)

    def _follow(self, process: subprocess.Popen[bytes], trial: Trial, place: RunFolder) -> bool:
        """Report each epoch's fitness until the process ends; return whether the trial is pruned."""
        told = 0
        while True:
            ended = process.poll() is not None  # asked before the last rows are read
            for row in read_results(place.results)[told:]:
                told += 1
                value = fitness(Metrics(map50=row[6], map=row[7]))
                if math.isnan(value):  # --noval
                    continue
                trial.report(value, step=told)
                if told < self.opt.epochs and trial.should_prune():
                    return True
            if ended:
                return False
            time.sleep(POLL_SECONDS)

    def _log(self, trial: Trial) -> None:
        """Say how a trial ended."""
        done = self.study.get_trials(deepcopy=False)[trial.number]
        values = done.intermediate_values
        how = {
            TrialState.COMPLETE: f"fitness {done.value or 0.0:.4f}",
            TrialState.PRUNED: f"pruned after epoch {max(values, default=0)}",
            TrialState.FAIL: f"failed: {done.user_attrs.get('error', '')}",
        }[done.state]
        LOGGER.info(
            "trial %d (%d of %d): %s, %.0f s; --hyp's own recipe %s",
            *(trial.number, self._counted(), self.opt.evolve, how, done.user_attrs["seconds"]),
            self._first_fitness(),
        )

    def _first_fitness(self) -> str:
        """Return the fitness of the user's own recipe for a message."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if "first" in trial.user_attrs:
                return f"{trial.value:.4f}"
        return "not trained yet"

    def _tidy(self) -> None:
        """Write the study's files, and keep the weights of the best trial only."""
        trials = self.study.get_trials()
        if not any(trial.state == TrialState.COMPLETE for trial in trials):
            return
        best = self.study.best_trial.number
        for trial in trials:
            if trial.state.is_finished() and trial.number != best:
                shutil.rmtree(RunFolder(self._place(trial.number)).last.parent, ignore_errors=True)
        recipes = {trial.number: self._trial_hyp(trial.params) for trial in trials}
        EvolveReport(self.study, trials, recipes, list(self.space), self.opt.noplots).write(self.folder)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that is still running, and wait for its end."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_error(log: Path, code: int) -> str:
    """Return the sentence that a failed run has ended with."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if told:
        return told[-1]
    return f"it was ended by signal {-code}" if code < 0 else f"exit code {code}, {last[:200]}"
