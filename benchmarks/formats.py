"""A checkpoint in every format: size, mAP, difference to PyTorch and latency (YOLOv5's benchmarks.py).

    python benchmarks/formats.py --weights best.pt --data my.yaml --imgsz 640 --threads 2 --half --int8

exports to every format in float32, with --half and --int8 in those precisions too, each into a folder of its
own below runs/formats, validates each file with val.py, times all of them in turn on one image, and prints a
Markdown table; the same rows go into formats.csv. A format that cannot be made here says why in its row.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import export
import val
from models.backends import load_backend
from models.export_checks.int8_accuracy import measure
from models.formats.base import Backend
from models.formats.exporter import EXPORTERS
from models.formats.metadata import PRECISIONS
from models.plugins import load_plugins
from utils.cli import Options, from_keywords, given, guard, option
from utils.dataset.config import load_dataset
from utils.device import describe, select_device, tune_allocator, versions
from utils.errors import UserError
from utils.files import ROOT, atomic_text, find_file, increment_dir
from utils.profiling import interleaved

PYTORCH = "PyTorch"


@dataclass
class Row:
    """One file; figures that were not taken are None.

    Attributes:
        format: the format's title.
        precision: 'fp32', 'fp16' or 'int8'.
        size_mb: MB (10^6 bytes).
        map: mAP50-95 on the val images.
        map_diff: the same less PyTorch's.
        score_diff, box_diff: largest differences to PyTorch on the check image, in pixels for boxes.
        median_ms, p95_ms: milliseconds an image.
        note: why there is no file.
    """

    format: str
    precision: str
    size_mb: float | None = None
    map: float | None = None
    map_diff: float | None = None
    score_diff: float | None = None
    box_diff: float | None = None
    median_ms: float | None = None
    p95_ms: float | None = None
    note: str = ""


@dataclass(frozen=True)
class FormatsOptions(Options):
    """Export a checkpoint to every format, and put accuracy, size and speed of the files side by side."""

    weights: list[str] = option(["yolov5s.pt"], help="checkpoints (.pt), a table for each")
    imgsz: int = option(640, flags=("--img", "--img-size"), help="side of the square images, in pixels")
    batch_size: int = option(1, help="images a batch, in the files and in the timing")
    data: str = option("data/coco128.yaml", help="dataset YAML")
    device: str = option("cpu", type=str, help="cpu, or 0 for the first GPU")
    include: list[str] = option([], help=f"formats; all by default: {', '.join(EXPORTERS)}")
    half: bool = option(False, help="float16 files too")
    int8: bool = option(False, help="int8 files too")
    test: bool = option(False, help="export only: no mAP, no timing")
    pt_only: bool = option(False, help="PyTorch alone")
    hard_fail: bool | float | str = option(
        False,
        nargs="?",
        const=True,
        help="fail when a format of this platform cannot be made; a number: also below this mAP50-95",
    )
    threads: int = option(torch.get_num_threads(), help="threads of every runtime")
    rounds: int = option(5, help="rounds of timing; in each every file has its turn")
    repeats: int = option(20, help="timed calls of a file in a round")
    plugins: list[str] = option([], help="Python files that register your own blocks")
    project: str = option(str(ROOT / "runs/formats"), help="folder of the runs")
    name: str = option("exp", type=str, help="folder of this run")

    def check(self) -> None:
        """Refuse what cannot work."""
        self.at_least(batch_size=1, imgsz=1, threads=1, rounds=1, repeats=1)
        absent = [name for name in self.include if name not in EXPORTERS]
        if absent:
            raise UserError(f"--include {' '.join(absent)}: not a format; available: {', '.join(EXPORTERS)}")
        _floor(self.hard_fail)


def run(**options: Any) -> dict[str, list[Row]]:
    """Benchmark; options as on the command line, with underscores.

    Returns:
        For each checkpoint the rows of its table, PyTorch first.

    Raises:
        UserError: an option that cannot be honoured, or with --hard-fail what went wrong.
    """
    opt = from_keywords(FormatsOptions, options)
    floor = _floor(opt.hard_fail)
    load_plugins(opt.plugins)
    weights = [find_file(w) for w in opt.weights]
    before = torch.get_num_threads()
    torch.set_num_threads(opt.threads)
    try:
        folder = increment_dir(opt.project, opt.name)
        tables = {str(path): _table(opt, path, increment_dir(folder, path.stem), floor) for path in weights}
    finally:
        torch.set_num_threads(before)
    return tables


def _floor(value: bool | str | float) -> float | None:
    """What --hard-fail says: None when it is absent, else the least mAP50-95."""
    if value is False:
        return None
    try:
        return 0.0 if value is True else float(value)
    except ValueError:
        raise UserError(f"--hard-fail {value}: give nothing or a number, the least mAP50-95") from None


def _table(opt: FormatsOptions, weights: Path, folder: Path, floor: float | None) -> list[Row]:
    """Everything about one checkpoint: made, validated, timed, printed, saved."""
    rows, opened = [Row(PYTORCH, "fp32", size_mb=weights.stat().st_size / 1e6)], []
    device = select_device(opt.device)
    if device.type == "cpu":
        tune_allocator()  # as val.py and detect.py do
    backend = load_backend(weights, device)
    opened.append((rows[0], backend))
    if not opt.test:
        config = load_dataset(opt.data)
        # On squares, as files of a fixed size are: val.py itself gives a checkpoint rectangles.
        rows[0].map = measure(backend, config, (opt.imgsz, opt.imgsz), opt.batch_size, rect=False).map
        rows[0].map_diff = 0.0
    precisions = ["fp32", *(["fp16"] if opt.half else []), *(["int8"] if opt.int8 else [])]
    names = [] if opt.pt_only else opt.include or list(EXPORTERS)
    for name in names:
        for precision in precisions:
            row = Row(EXPORTERS[name].title, precision)
            rows.append(row)
            try:
                path = _make(opt, name, weights, folder / f"{name}-{precision}", row)
                if not opt.test:
                    row.map = _validate(opt, path, folder)
                    row.map_diff = row.map - rows[0].map
                    opened.append((row, load_backend(path, device)))
            except UserError as error:
                row.note = str(error)
    if not opt.test:
        _time(opt, opened)
    print(f"\n{weights}\n\n{markdown(rows)}\n\n{_conditions(opt, device)}\n", flush=True)
    atomic_text(folder / "formats.csv", pd.DataFrame(rows).to_csv(index=False))
    if floor is not None:
        _check_floor(rows, floor, set() if opt.include else _impossible(device))
    return rows


def _make(opt: FormatsOptions, name: str, weights: Path, folder: Path, row: Row) -> Path:
    """Export beside a copy of the checkpoint, so that nothing beside the checkpoint itself is replaced."""
    folder.mkdir()
    copy = Path(shutil.copy(weights, folder))
    try:
        (result,) = export.run(
            weights=str(copy),
            include=[name],
            imgsz=[opt.imgsz],
            batch_size=opt.batch_size,
            device=opt.device,
            half=row.precision == "fp16",
            int8=row.precision == "int8",
            data="" if opt.test and row.precision != "int8" else opt.data,
            plugins=opt.plugins,
        )
    except export.ExportError as error:
        # Its message counts the formats of one export, of which there is one here.
        reason = str(error).partition(f"{name} (")[2].removesuffix(")") or str(error)
        raise UserError(reason) from error
    finally:
        copy.unlink()
    row.size_mb, row.score_diff, row.box_diff = result.size_mb, result.max_score_diff, result.max_box_diff
    return result.path


def _validate(opt: FormatsOptions, path: Path, folder: Path) -> float:
    """mAP50-95 by val.py."""
    result = val.run(
        weights=str(path),
        data=opt.data,
        imgsz=opt.imgsz,
        batch_size=opt.batch_size,
        device=opt.device,
        project=str(folder / "val"),
        name=path.parent.name,
    )
    return result.metrics.map


def _time(opt: FormatsOptions, opened: Sequence[tuple[Row, Backend]]) -> None:
    """Time every file in every round, so that a machine that slows down slows all of them down."""
    shape = (opt.batch_size, 3, opt.imgsz, opt.imgsz)
    calls = {
        str(number): partial(backend.predict, torch.full(shape, 0.5, device=backend.device))
        for number, (_, backend) in enumerate(opened)
    }
    timed = interleaved(calls, opt.rounds * opt.repeats, opt.rounds, opened[0][1].device)
    for (row, _), ms in zip(opened, timed.values()):
        row.median_ms, row.p95_ms = ms["median"] / opt.batch_size, ms["p95"] / opt.batch_size


def _impossible(device: torch.device) -> set[tuple[str, str]]:
    """(format's title, precision) of the files that no export makes on this platform."""
    return {
        (exporter.title, precision)
        for exporter in EXPORTERS.values()
        for precision in PRECISIONS
        if exporter.obstacle(precision, device)
    }


def _check_floor(rows: Sequence[Row], floor: float, excused: set[tuple[str, str]]) -> None:
    """With --hard-fail: refuse a file that could not be made, unless it is excused, and a mAP50-95 below the
    number given. The table is out by then, so hours of figures are not lost."""
    for row in rows:
        if row.note and (row.format, row.precision) not in excused:
            raise UserError(f"--hard-fail: {row.format} {row.precision}: {row.note}")
        if row.map is not None and row.map < floor:
            raise UserError(
                f"--hard-fail {floor:g}: {row.format} {row.precision} reaches mAP50-95 {row.map:.3f} only"
            )


def _conditions(opt: FormatsOptions, device: torch.device) -> str:
    """What the figures hold for."""
    return (
        f"{opt.data}, {opt.imgsz} px squares, batch {opt.batch_size}; {describe(device)}; torch "
        f"{versions()['torch']}; ms an image over {opt.rounds} rounds of {opt.repeats} calls in turn"
    )


FIGURES = {
    "size_mb": ("MB", ".1f"),
    "map": ("mAP50-95", ".4f"),
    "map_diff": ("to PyTorch", "+.4f"),
    "score_diff": ("score, max diff", ".1e"),
    "box_diff": ("box, max diff px", ".2g"),
    "median_ms": ("ms median", ".1f"),
    "p95_ms": ("ms p95", ".1f"),
}


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; a row without a file holds the reason instead of figures."""
    heads = ["format", "precision", *(title for title, _ in FIGURES.values()), "note"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * len(FIGURES) + "---|"]
    for row in rows:
        values = [(getattr(row, name), style) for name, (_, style) in FIGURES.items()]
        figures = ["" if value is None else format(value, style) for value, style in values]
        cells = [row.format, row.precision, *figures, row.note.replace("|", "/").replace("\n", " ")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Benchmark as the command line says."""
    run(**given(FormatsOptions))


if __name__ == "__main__":
    guard(main)
