"""Train a grid of nets on several sets with several seeds; one table of what they reach.

    python benchmarks/accuracy.py --data-root DIR
    python benchmarks/accuracy.py --data-root DIR --rows yolov5n-coco --sets blood-cells --seeds 0 --epochs 10

The grid is a YAML (benchmarks/accuracy.yaml): rows with train.py's options, and the sets, sizes and seeds of
each. Every cell of the grid is one run of train.py in a process of its own, in a folder of its own below
--results. What is finished there is read, what was interrupted continues, and --rows, --sets, --sizes and
--seeds choose what is run. Two of these may run side by side on different cells. RESULTS/accuracy.md and
accuracy.csv hold one line for each row, set, size and number of epochs, with the mean and the standard
deviation over the seeds.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import export
import val
from models.backends import load_backend
from models.formats.onnx import onnx_obstacle
from utils.cli import Options, from_keywords, given, guard, option, specs, typed
from utils.comparison.latency import Latencies
from utils.comparison.net_folder import NetFolder, TrainingRecord, read_json, write_json
from utils.comparison.report import package_versions
from utils.comparison.table import NetRow
from utils.dataset.config import load_dataset
from utils.dataset.convert.annotated import ConvertOptions
from utils.dataset.convert.conversion import convert_dataset
from utils.dataset.images import load_images
from utils.device import describe, select_device
from utils.errors import UserError, shown
from utils.files import ROOT, atomic_text, find_file, load_yaml, save_yaml
from utils.images import load_image
from utils.letterbox import letterbox_tensor
from utils.locks import exclusive
from utils.training.hyp import load_hyp
from utils.training.options import TrainOptions, with_recipe

LOGGER = logging.getLogger("yolo.accuracy")

NOT_IN_ROWS = ("data", "imgsz", "epochs", "seed", "project", "name", "exist_ok", "resume")
ENGINES = {"onnx": ("onnx", False), "openvino_int8": ("openvino", True)}
"""Column -> format of export.py, and whether it is int8."""
SPREAD = ("map", "map_last", "map_test", "map50", "seconds", "images_per_second")
"""Figures of a cell, of which the table has the mean and the standard deviation over the seeds."""
COLUMNS = {
    "mAP50-95": ("map", "{:.3f}"),
    "last epoch": ("map_last", "{:.3f}"),
    "test split": ("map_test", "{:.3f}"),
    "mAP50": ("map50", "{:.3f}"),
    "ONNX Runtime ms": ("onnx_ms", "{:.1f}"),
    "OpenVINO int8 ms": ("openvino_int8_ms", "{:.1f}"),
    "training s": ("seconds", "{:.0f}"),
    "images/s": ("images_per_second", "{:.1f}"),
}


@dataclass(frozen=True)
class AccuracyOptions(Options):
    """Train a grid of nets on several sets with several seeds; one table of what they reach."""

    grid: str = option("benchmarks/accuracy.yaml", help="YAML of rows and sets")
    results: str = option(str(ROOT / "runs" / "accuracy"), help="folder of all runs and of the table")
    data_root: str = option("", help="folder that holds the sets which the grid converts")
    rows: list[str] = option([], help="only these rows (without it all)")
    sets: list[str] = option([], help="only these sets")
    sizes: list[int] = option([], help="only these image sizes")
    seeds: list[int] = option([], help="only these seeds")
    epochs: int | None = option(None, help="instead of the grid's, for a quick trial")
    device: str = option("", type=str, help="of training, validation and latencies")
    latency_runs: int = option(50, help="timed runs of each net and engine, at the end; 0 times nothing")

    def check(self) -> None:
        """Refuse values that cannot work."""
        self.at_least(latency_runs=0, epochs=1)


@dataclass(frozen=True)
class GridRow:
    """One row: train.py's options, changed hyperparameters, and what it is crossed with."""

    name: str
    train: Mapping[str, object]
    hyp: Mapping[str, float]
    sets: Sequence[str]
    sizes: Sequence[int]
    seeds: Sequence[int]
    epochs: int


@dataclass(frozen=True)
class Cell:
    """One training."""

    row: GridRow
    data: str
    imgsz: int
    epochs: int
    seed: int

    @property
    def line(self) -> str:
        """Return the folder of the cells that differ by their seeds only, below the results."""
        return f"{self.data}/{self.row.name}-{self.imgsz}px-{self.epochs}ep"

    def __str__(self) -> str:
        return f"{self.line}/seed{self.seed}"


@dataclass(frozen=True)
class Line:
    """One line of the table: the figures of its cells by seed, and where they are."""

    name: str
    data: str
    imgsz: int
    epochs: int
    figures: Mapping[int, Mapping[str, Any]]
    folders: Mapping[int, Path]


@dataclass(frozen=True)
class Grid:
    """What the YAML says."""

    rows: Mapping[str, GridRow]
    sets: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Bench:
    """One call: the grid, the options, and the folder of the results."""

    grid: Grid
    opt: AccuracyOptions
    results: Path

    def cells(self) -> list[Cell]:
        """Return the cells that are asked for, one seed after the other."""
        opt = self.opt
        for what, asked, known in (("rows", opt.rows, self.grid.rows), ("sets", opt.sets, self.grid.sets)):
            if unknown := [name for name in asked if name not in known]:
                raise UserError(f"--{what} {unknown[0]}: not in {opt.grid}; it has {', '.join(known)}")
        cells = [
            Cell(row, data, imgsz, opt.epochs or row.epochs, seed)
            for row in self.grid.rows.values()
            for data in row.sets
            for imgsz in row.sizes
            for seed in row.seeds
            if (not opt.rows or row.name in opt.rows)
            and (not opt.sets or data in opt.sets)
            and (not opt.sizes or imgsz in opt.sizes)
            and (not opt.seeds or seed in opt.seeds)
        ]
        if not cells:
            raise UserError(f"{opt.grid}: no cell has these --rows, --sets, --sizes and --seeds")
        return sorted(cells, key=lambda cell: cell.seed)

    def data_yaml(self, name: str) -> Path:
        """Return a set's YAML; the first call converts it."""
        wanted = self.grid.sets[name]
        folder = self.results / "data" / name
        path = folder / f"{name}.yaml"
        with exclusive(self.results / "data" / f"{name}.lock", name):
            if "data" in wanted:
                path = find_file(wanted["data"], "data")
            elif not path.is_file():
                if not self.opt.data_root:
                    raise UserError(f"{name}: give --data-root, the folder that holds {wanted['voc']}")
                convert_dataset(
                    ConvertOptions(
                        Path(self.opt.data_root) / wanted["voc"],
                        folder,
                        kind="voc",
                        split=tuple(wanted.get("split", ())),
                        names=tuple(wanted["names"]),
                    )
                )
            if "train_images" in wanted:
                path = first_images(path, self.results / "data" / f"{name}.yaml", wanted["train_images"])
        return path

    def finish(self, cell: Cell) -> None:
        """Train a cell, or continue its training, and measure it, unless that is done."""
        folder, result = NetFolder(self.results / str(cell)), self.results / str(cell) / "result.json"
        source = json.dumps([cell.row.train, cell.row.hyp], sort_keys=True)
        record, done = folder.read_training(), read_json(result)
        if record and record.source != source:
            raise UserError(f"{folder.path}: was trained with other options; delete it, or rename the row")
        if done:
            LOGGER.info("%s: finished before, mAP50-95 %.3f", cell, done["map"])
            return
        if not folder.run.metrics.is_file():
            self.train(cell, folder, source)
        figures = self.measure(cell, folder)
        write_json(result, figures)
        LOGGER.info("%s: mAP50-95 %.3f in %.0f s", cell, figures["map"], figures["seconds"])

    def asked(self, cell: Cell) -> dict[str, Any]:
        """Return train.py's options of a cell; files that are a row's name are that row's best.pt."""
        asked = dict(cell.row.train)
        for name in ("teacher", "weights", "neck_weights"):
            if asked.get(name) in self.grid.rows:
                row = self.grid.rows[str(asked[name])]
                other = Cell(row, cell.data, row.sizes[0], self.opt.epochs or row.epochs, cell.seed)
                self.finish(other)
                asked[name] = str(NetFolder(self.results / str(other)).best)
        if cell.row.hyp:
            file = with_recipe(asked).get("hyp", specs(TrainOptions)["hyp"].default)
            asked["hyp"] = load_hyp(str(file)) | dict(cell.row.hyp)
        return asked | {"imgsz": cell.imgsz, "epochs": cell.epochs, "seed": cell.seed}

    def train(self, cell: Cell, folder: NetFolder, source: str) -> None:
        """Run train.py in a process of its own; training.json sums the seconds of all its calls."""
        options = self.asked(cell) | {"data": str(self.data_yaml(cell.data)), "device": self.opt.device}
        resumed = folder.read_training() is not None and folder.run.last.is_file()
        record = TrainingRecord(source, folder.seconds_before(), time.time())
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_training(record)
        if "hyp" in options and not isinstance(options["hyp"], str):
            save_yaml(folder.path / "asked-hyp.yaml", options["hyp"])
            options["hyp"] = str(folder.path / "asked-hyp.yaml")
        if resumed:
            options = {"resume": str(folder.run.last), "device": self.opt.device}
        else:
            options |= {"project": str(folder.path.parent), "name": folder.path.name, "exist_ok": True}
        words = [word for name, value in options.items() for word in specs(TrainOptions)[name].words(value)]
        LOGGER.info("%s: %s; its log is %s", cell, "continues" if resumed else "starts", folder.path)
        log = folder.path / "train.log"
        started = time.perf_counter()
        with log.open("ab") as output:
            code = wait_for([sys.executable, str(ROOT / "train.py"), *words], output)
        if code:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(f"{cell}: train.py failed: {last[-1] if last else code}; see {log}")
        seconds = record.seconds + time.perf_counter() - started
        folder.write_training(replace(record, seconds=seconds, started=None))

    def measure(self, cell: Cell, folder: NetFolder) -> dict[str, Any]:
        """Return a finished cell's figures; best.pt's on val are those of its training."""
        trained, record = read_json(folder.run.metrics), folder.read_training()
        data = load_dataset(self.data_yaml(cell.data))
        common = {"data": str(data.path), "imgsz": cell.imgsz, "device": self.opt.device}
        common |= {"project": str(folder.path), "exist_ok": True}
        last = val.run(weights=str(folder.run.last), name="val-last", **common).metrics.map
        test = None
        if "test" in data.splits:
            test = val.run(weights=str(folder.best), name="test", task="test", **common).metrics.map
        seconds, epochs = record.seconds if record else 0.0, folder.epochs()
        images = len(load_images(data, "train")) * epochs
        place = {"row": cell.row.name, "set": cell.data, "imgsz": cell.imgsz, "epochs": cell.epochs}
        figures = {"map": trained["map"], "map50": trained["map50"], "map_last": last, "map_test": test}
        cost = {"seconds": seconds, "images_per_second": images / seconds if seconds else None}
        return place | {"seed": cell.seed} | figures | cost

    def lines(self) -> list[Line]:
        """Return what is finished in the folder, also by other calls, in the grid's order of sets."""
        found: dict[tuple[str, str, int, int], list[tuple[Path, dict[str, Any]]]] = {}
        for path in sorted(self.results.glob("*/*/seed*/result.json")):
            if cell := read_json(path):
                key = (cell["row"], cell["set"], cell["imgsz"], cell["epochs"])
                found.setdefault(key, []).append((path.parent, cell))
        lines = [
            Line(*key, {c["seed"]: c for _, c in cells}, {c["seed"]: path for path, c in cells})
            for key, cells in found.items()
        ]
        order = list(self.grid.sets)
        place = {name: number for number, name in enumerate(order)}
        return sorted(
            lines, key=lambda line: (place.get(line.data, len(order)), line.epochs, -mean(line, "map"))
        )


def first_images(source: Path, target: Path, count: int) -> Path:
    """Write a dataset YAML with `count` of the training images, always the same; returns it."""
    data = load_dataset(source)
    images = load_images(data, "train")
    order = sorted(images.path(index) for index in range(len(images)))
    chosen = sorted(order[i] for i in np.random.default_rng(0).permutation(len(order))[:count])
    listed = target.with_suffix(".txt")
    atomic_text(listed, "".join(f"{Path(path).resolve()}\n" for path in chosen))
    splits = {split: [str(place) for place in places] for split, places in data.splits.items()}
    save_yaml(target, {**splits, "train": str(listed.resolve()), "names": dict(data.names)})
    return target


def wait_for(command: list[str], output: io.BufferedWriter) -> int:
    """Run a command; when this process is stopped, the command is, and saves what it has."""
    with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise


def read_grid(path: Path) -> Grid:
    """Read and check the YAML of a grid."""
    content = load_yaml(path)
    sets, common = content.get("sets", {}), content.get("all_rows", {})
    rows = {}
    for name, row in content.get("rows", {}).items():
        where = f"{path}: {name}: "
        values = {"hyp": {}, **common, **row}
        if unknown := sorted(set(values) - {"train", "hyp", "sets", "sizes", "seeds", "epochs"}):
            raise UserError(f"{where}unknown key {shown(unknown[0])}")
        train = typed(TrainOptions, {**common.get("train", {}), **row.get("train", {})}, where)
        if wrong := [key for key in NOT_IN_ROWS if key in train]:
            raise UserError(f"{where}{wrong[0]} is no option of a row; see sets, sizes, seeds and epochs")
        if missing := [key for key in ("sets", "sizes", "seeds", "epochs") if key not in values]:
            raise UserError(f"{where}{missing[0]} is missing, here and in all_rows")
        if unknown := [data for data in values["sets"] if data not in sets]:
            raise UserError(f"{where}{shown(unknown[0])} is none of the sets {', '.join(sets)}")
        rows[name] = GridRow(name, **(values | {"train": train}))
    return Grid(rows, sets)


def mean(line: Line, key: str) -> float:
    """Return the mean of a figure over the seeds; nan where a seed lacks it."""
    values = [cell.get(key) for cell in line.figures.values()]
    return statistics.fmean(values) if all(value is not None for value in values) else float("nan")


def deviation(line: Line, key: str) -> float:
    """Return the standard deviation of a figure over the seeds; nan for one seed."""
    values = [cell.get(key) for cell in line.figures.values()]
    usable = len(values) > 1 and all(value is not None for value in values)
    return statistics.stdev(values) if usable else float("nan")


def exported(line: Line, engine: str, data: Path, device: str) -> Path | None:
    """Return the file of a line's first seed for an engine, exported once; None if it cannot be."""
    folder = NetFolder(line.folders[min(line.folders)])
    known = read_json(folder.path / "exports.json")
    if known.get(engine) and Path(known[engine]).exists():
        return Path(known[engine])
    name, int8 = ENGINES[engine]
    options = {"weights": str(folder.best), "imgsz": [line.imgsz], "data": str(data), "device": device}
    try:
        (result,) = export.run(include=[name], int8=int8, **options)
    except UserError as error:
        LOGGER.warning("%s %s: no %s: %s", line.data, line.name, engine, error)
        return None
    write_json(folder.path / "exports.json", known | {engine: str(result.path)})
    return result.path


def latencies(bench: Bench, lines: Sequence[Line]) -> dict[tuple[str, int], dict[str, float]]:
    """Return the ms of each row and size, on the first set that has it, interleaved over all."""
    opt, device = bench.opt, select_device(bench.opt.device)
    first = {(line.name, line.imgsz): line for line in reversed(lines)}
    if not opt.latency_runs or onnx_obstacle(device):
        return {}
    rows, calls, files = [], {}, {}
    for (name, imgsz), line in first.items():
        data = bench.data_yaml(line.data)
        image = load_image(load_images(load_dataset(data), "val").path(0))
        batch, key = letterbox_tensor(image, imgsz).to(device), f"{name}-{imgsz}"
        paths = {engine: exported(line, engine, data, opt.device) for engine in ENGINES}
        opened = {engine: load_backend(path, device) for engine, path in paths.items() if path}
        calls[key] = {engine: partial(backend.predict, batch) for engine, backend in opened.items()}
        files[key] = {engine: path.stat().st_mtime_ns for engine, path in paths.items() if path}
        rows.append(NetRow(key, name))
    conditions = {"hardware": describe(device), "versions": package_versions(), "files": files}
    Latencies(bench.results / "latency.json", conditions, opt.latency_runs, device).fill_in(rows, calls)
    return {place: row.values for place, row in zip(first, rows)}


def cells_of(line: Line, times: Mapping[str, float]) -> Iterator[str]:
    """Yield the texts of a line's figures."""
    for key, form in COLUMNS.values():
        value, spread = (mean(line, key), deviation(line, key)) if key in SPREAD else (times.get(key), np.nan)
        if value is None or np.isnan(value):
            yield ""
        else:
            yield form.format(value) + ("" if np.isnan(spread) else f" ± {form.format(spread)}")


def to_text(lines: Sequence[Line], times: Callable[[Line], Mapping[str, float]]) -> str:
    """Return the table in Markdown."""
    head = ["set", "row", "px", "epochs", "seeds", *COLUMNS]
    text = [f"| {' | '.join(head)} |", f"|---|---|{'---:|' * (len(head) - 2)}"]
    for line in lines:
        seeds = " ".join(map(str, sorted(line.figures)))
        place = [line.data, line.name, str(line.imgsz), str(line.epochs), seeds]
        text.append(f"| {' | '.join([*place, *cells_of(line, times(line))])} |")
    return "\n".join(text) + "\n"


def to_table(lines: Sequence[Line], times: Callable[[Line], Mapping[str, float]]) -> str:
    """Return the table as CSV: unrounded means, deviations, and mAP50-95 of each seed."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    engines = [f"{engine}_ms" for engine in ENGINES]
    spread = [name for key in SPREAD for name in (key, f"{key}_sd")]
    writer.writerow(["set", "row", "imgsz", "epochs", "seeds", *spread, *engines, "map_of_each_seed"])
    for line in lines:
        seeds = sorted(line.figures)
        figures = [f for key in SPREAD for f in (mean(line, key), deviation(line, key))]
        ms = [times(line).get(name, np.nan) for name in engines]
        each = " ".join(repr(line.figures[seed]["map"]) for seed in seeds)
        written = ["" if np.isnan(value) else repr(float(value)) for value in [*figures, *ms]]
        place = [line.data, line.name, line.imgsz, line.epochs, " ".join(map(str, seeds))]
        writer.writerow([*place, *written, each])
    return buffer.getvalue()


def write_table(bench: Bench, found: Mapping[tuple[str, int], Mapping[str, float]]) -> str:
    """Write accuracy.md and accuracy.csv with all that is finished; returns the first."""
    lines = bench.lines()

    def times(line: Line) -> Mapping[str, float]:
        return found.get((line.name, line.imgsz), {})

    text = to_text(lines, times)
    atomic_text(bench.results / "accuracy.csv", to_table(lines, times))
    hardware = describe(select_device(bench.opt.device))
    versions = ", ".join(f"{name} {number}" for name, number in package_versions().items())
    atomic_text(bench.results / "accuracy.md", f"{text}\n{hardware}; {versions}\n")
    return text


def run(**options: object) -> str:
    """Run the cells that are asked for and write the table, which is returned.

    Raises:
        UserError: an option or the grid is wrong, or cells failed; the others are finished then.
    """
    opt = from_keywords(AccuracyOptions, options)
    bench = Bench(read_grid(find_file(opt.grid)), opt, Path(opt.results).resolve())
    cells, failed = bench.cells(), []
    for number, cell in enumerate(cells, 1):
        LOGGER.info("cell %d of %d: %s", number, len(cells), cell)
        try:
            bench.finish(cell)
        except UserError as error:
            LOGGER.error("%s", error)
            failed.append(str(cell))
        write_table(bench, {})
    lines = bench.lines()
    text = write_table(bench, latencies(bench, lines) if lines else {})
    print(f"\n{text}\n{bench.results / 'accuracy.md'}")
    if failed:
        raise UserError(f"{len(failed)} of {len(cells)} cells failed: {', '.join(failed)}; see above")
    return text


def main() -> None:
    """Run what the command line asks for."""
    run(**given(AccuracyOptions))


if __name__ == "__main__":
    guard(main)
