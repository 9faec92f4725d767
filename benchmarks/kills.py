"""Kill trainings with SIGKILL at random moments and inside writes, resume them, and compare with a whole run.

    python benchmarks/kills.py --kills 150 --writes 60

Each trial trains a tiny network for some epochs in a forked process, kills it, sometimes kills the resumed
run too, resumes until it ends, and compares weights, running averages, results.csv and metrics.json (but for
times) bit for bit. --kills draws moments uniformly from the length of a run; --writes kills before or after
the flush and the rename of a file, one place after another.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tqdm import tqdm

import train
from models.weights.checkpoint import load_checkpoint
from tests.tiny_set import be_silent, tensors, write_model, write_set
from utils.cli import Parser, guard
from utils.files import save_yaml

TIMED = re.compile("ms|seconds|speed")
EARLY = "ended before the kill"
STUCK = 120.0  # seconds after which a trial counts as hanging


def options(folder: Path, project: Path, epochs: int) -> dict[str, object]:
    """Return the options of every run: all that is random is on, gradients stay over between epochs."""
    return {
        "cfg": str(folder / "tiny.yaml"),
        "data": str(folder / "shapes.yaml"),
        "hyp": str(folder / "hyp.yaml"),
        "project": str(project),
        "imgsz": 64,
        "epochs": epochs,
        "batch_size": 8,
        "workers": 0,
        "device": "cpu",
        "multi_scale": True,
        "image_weights": True,
        "save_period": 1,
        "noplots": True,
    }


def start(work: Callable[[], object], die_at_write: int = -1) -> ForkProcess:
    """Run `work` in a forked process, which kills itself at a write if that is asked for."""

    def child() -> None:
        be_silent()
        tqdm.set_lock(threading.RLock())  # forked processes share tqdm's own, and a killed one may hold it
        if die_at_write >= 0:
            _die_at(die_at_write)
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def _die_at(number: int) -> None:
    """Kill this process at one of its writes: four places for each file."""
    count = [0]

    def watched(name: str) -> None:
        original = getattr(os, name)

        def call(*args: object) -> object:
            for before in (True, False):
                if count[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                count[0] += 1
                if before:
                    result = original(*args)
            return result

        setattr(os, name, call)

    watched("fsync")
    watched("replace")


def finish(folder: Path, project: Path, epochs: int) -> None:
    """Resume a killed run, or start it again where it has saved nothing yet."""
    last = project / "exp" / "weights" / "last.pt"
    if last.is_file():
        train.run(resume=str(last))
    else:
        train.run(**options(folder, project, epochs), exist_ok=True)


def differences(whole: Path, resumed: Path, epochs: int) -> list[str]:
    """Return what of a resumed run differs from the whole one."""
    found = []
    names = ["best", "last", *(f"epoch{i}" for i in range(epochs))]
    for name in names:
        a, b = (load_checkpoint(run / "weights" / f"{name}.pt") for run in (whole, resumed))
        pairs = list(zip(tensors(a.training), tensors(b.training)))
        pairs += zip(a.model.state_dict().values(), b.model.state_dict().values())
        if not all(torch.equal(x, y) for x, y in pairs) or a.meta["updates"] != b.meta["updates"]:
            found.append(f"{name}.pt")
    if (whole / "results.csv").read_bytes() != (resumed / "results.csv").read_bytes():
        found.append("results.csv")
    a, b = (json.loads((run / "metrics.json").read_text()) for run in (whole, resumed))
    if any(a[key] != b[key] for key in a if not TIMED.match(key)):
        found.append("metrics.json")
    found += [f"{path.name} is left" for path in resumed.rglob(".*")]
    return found


class Trials:
    """Kill and resume runs of one set, and count how they end."""

    def __init__(self, folder: Path, epochs: int, seed: int) -> None:
        self.folder, self.epochs = folder, epochs
        self.rng = np.random.default_rng(seed)
        self.ends: Counter[str] = Counter()
        write_set(folder)
        write_model(folder)
        save_yaml(folder / "hyp.yaml", {"nominal_batch": 64, "warmup_epochs": 1.0})
        for project in ("first", "whole"):  # the first verifies the images, which takes longer
            begun = time.perf_counter()
            self._wait(start(lambda name=project: train.run(**options(folder, folder / name, epochs))))
            self.seconds = time.perf_counter() - begun
        self.whole = folder / "whole" / "exp"

    def _wait(self, process: ForkProcess, seconds: float = STUCK) -> int | None:
        """Wait for a process, kill it after some seconds, and return its exit code."""
        process.join(seconds)
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
        return process.exitcode

    def trial(self, number: int, write: int = -1) -> str:
        """Run, kill and resume once; return how it ended, in words."""
        project = self.folder / f"killed{number}"
        moment = STUCK if write >= 0 else float(self.rng.uniform(0, 1.05 * self.seconds))
        first = start(lambda: train.run(**options(self.folder, project, self.epochs)), write)
        if self._wait(first, moment) == 0:
            return EARLY
        if self.rng.random() < 0.3:  # the resumed run is killed as well
            again = start(lambda: finish(self.folder, project, self.epochs))
            self._wait(again, float(self.rng.uniform(0, self.seconds)))
        if not (project / "exp" / "metrics.json").is_file():
            code = self._wait(start(lambda: finish(self.folder, project, self.epochs)))
            if code != 0:
                return f"resumed run ended with code {code}"
        different = differences(self.whole, project / "exp", self.epochs)
        return f"differs: {', '.join(different)}" if different else "equal"

    def run(self, kills: int, writes: int) -> Counter[str]:
        """Make all trials, and return how many ended in which way; only real kills count."""
        plan = [(-1, kills), *((write, 1) for write in range(writes))]
        number = 0
        for write, wanted in plan:
            done = tried = 0
            while done < wanted and tried < 3 * wanted:
                end = self.trial(number, write)
                self.ends[end] += 1
                number, tried, done = number + 1, tried + 1, done + (end != EARLY)
                if end not in ("equal", EARLY):
                    print(f"trial {number}, write {write}: {end}", flush=True)
                if write >= 0 and end == EARLY:  # a run has fewer writes
                    return self.ends
        return self.ends


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=150, help="kills at random moments")
    parser.add_argument("--writes", type=int, default=60, help="kills at writes: the first so many places")
    parser.add_argument("--epochs", type=int, default=3, help="length of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    return parser


def main() -> None:
    """Print how many trials ended equal, and what the others were."""
    opt = build_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder), opt.epochs, opt.seed)
        print(f"a whole run takes {trials.seconds:.1f} s", flush=True)
        ends = trials.run(opt.kills, opt.writes)
    for end, count in ends.most_common():
        print(f"{count:5d}  {end}")


if __name__ == "__main__":
    guard(main)
