"""Put the figures of several nets into tables, as CSV and as Markdown.

Figures are comparable only if data, image size and recipe are the same. So rows are grouped by the conditions
of their training and of their measurement, and only nets of one group are ranked.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import ROOT, find_file
from utils.training.distillation import GAINS
from utils.training.hyp import load_hyp
from utils.training.run_folder import RunFolder

UNKNOWN = "conditions unknown"
_TITLED = {"epochs": "{} epochs", "batch_size": "batch {}", "optimizer": "{}", "seed": "seed {}"}
_MEASURED = {"on": "{}", "at": "{} px"}
# Options that a title names only where they differ from these.
_USUAL: dict[str, object] = {
    "cos_lr": False,
    "label_smoothing": 0.0,
    "amp": "auto",
    "rect": False,
    "multi_scale": False,
    "image_weights": False,
    "single_cls": False,
    "freeze": [0],
    "backbone_lr": None,
    "noautoanchor": False,
    "patience": None,
}
# train.py's options that two comparable trainings share, besides the data and the hyperparameters.
RECIPE = ("imgsz", *_TITLED, *_USUAL)

Conditions = dict[str, Any]  # Any: values of options, as `conditions_of` returns them


@dataclass(frozen=True)
class Column:
    """Describe a column of the tables.

    Attributes:
        title: its heading.
        keys: the figures of a cell; the first one is ranked, the others follow in brackets.
        form: format of a figure.
        best: +1 if more is better, -1 if less is better, 0 if neither.
    """

    title: str
    keys: tuple[str, ...]
    form: str
    best: int

    def text(self, values: Mapping[str, float]) -> str:
        """Return the cell for a row's figures; empty without the first figure."""
        figures = [values.get(key) for key in self.keys]
        if figures[0] is None:
            return ""
        first, *rest = [self.form.format(f).replace(",", " ") for f in figures if f is not None]
        return f"{first} ({', '.join(rest)})" if rest else first


NET_COLUMNS = (
    Column("mAP50-95", ("map",), "{:.3f}", 1),
    Column("mAP50", ("map50",), "{:.3f}", 1),
    Column("P", ("precision",), "{:.3f}", 1),
    Column("R", ("recall",), "{:.3f}", 1),
    Column("parameters (fused)", ("parameters", "parameters_fused"), "{:,d}", -1),
    Column("GFLOPs", ("gflops",), "{:.2f}", -1),
    Column("MB", ("size_mb",), "{:.1f}", -1),
    Column("PyTorch ms (p90, p95)", ("torch_ms", "torch_p90", "torch_p95"), "{:.1f}", -1),
    Column("ONNX Runtime ms (p90, p95)", ("onnx_ms", "onnx_p90", "onnx_p95"), "{:.1f}", -1),
    Column("training s", ("train_seconds",), "{:.0f}", -1),
    Column("epochs", ("epochs",), "{:d}", 0),
)
FIGURES = tuple(key for column in NET_COLUMNS for key in column.keys)
CSV_COLUMNS = ("net", "start", "conditions", "status", *FIGURES, "weights")


@dataclass
class NetRow:
    """Hold the figures of one net.

    Attributes:
        key: name of its folder in the run's folder; unique.
        label: its name on the page.
        start: start of its training: 'scratch', 'imagenet', the name of other weights, or 'checkpoint'.
        conditions: as `conditions_of` returns them; None if they are unknown.
        values: figures by the keys of NET_COLUMNS; a figure that was not measured is absent.
        weights: the checkpoint's path.
        failed: a sentence why there are no figures; '' if there are.
        note: a remark for the page.
        data, imgsz: data set (as `data_path` returns it) and pixels of the measurement; '' and 0 for those
            of its training.
    """

    key: str
    label: str
    start: str = ""
    conditions: Conditions | None = None
    values: dict[str, float] = field(default_factory=dict)
    weights: str = ""
    failed: str = ""
    note: str = ""
    data: str = ""
    imgsz: int = 0

    @property
    def measured(self) -> tuple[str, int]:
        """Return data set and image size of the measurement."""
        trained = self.conditions or {"data": "", "imgsz": 0}
        return self.data or trained["data"], self.imgsz or trained["imgsz"]


@dataclass
class Group:
    """Hold rows of the same training and measurement conditions, best mAP50-95 first.

    Attributes:
        number: of the group, from 1.
        title: the conditions in words.
        difference: how they differ from those of group 1.
        conditions: of the training; None if they are unknown.
    """

    number: int
    title: str
    difference: str
    rows: list[NetRow]
    conditions: Conditions | None

    @property
    def ranked(self) -> bool:
        """Return whether its rows are comparable; rows of unknown conditions are not."""
        return self.conditions is not None

    @property
    def heading(self) -> str:
        """Return the heading of its table: its number, or its title without conditions."""
        return f"Conditions {self.number}" if self.ranked else self.title[:1].upper() + self.title[1:]

    def best(self, column: Column) -> str | None:
        """Return the text of a column's best cell; None with fewer than two figures."""
        rows = [row for row in self.rows if column.keys[0] in row.values]
        if not self.ranked or not column.best or len(rows) < 2:
            return None
        return column.text(max(rows, key=lambda row: column.best * row.values[column.keys[0]]).values)

    def front(self, cost: str) -> list[NetRow]:
        """Return the rows on the Pareto front of mAP50-95 over `cost`, cheapest first."""
        rows = [row for row in self.rows if cost in row.values] if self.ranked else []
        points = [(row.values[cost], row.values["map"]) for row in rows]
        return [rows[i] for i in pareto_front(points)]


def conditions_of(meta: Mapping[str, object], nc: int) -> Conditions | None:
    """Return the training conditions that train.py wrote into a checkpoint's metadata.

    Returns:
        The number of classes `nc`, `data` (see `data_path`), `hyp` and the options of RECIPE; None if the
        metadata lack them.
    """
    opt, hyp = meta.get("opt"), meta.get("hyp")
    if not isinstance(opt, Mapping) or not isinstance(hyp, Mapping):
        return None
    if any(name not in opt for name in ("data", *RECIPE) if name not in _USUAL):
        return None
    found = {name: opt.get(name, _USUAL.get(name)) for name in RECIPE}  # an older train.py had fewer options
    patience = found["patience"]
    endless = not patience or patience >= found["epochs"]
    found |= {"freeze": list(found["freeze"]), "patience": None if endless else patience}
    recipe = {name: value for name, value in hyp.items() if name not in GAINS}  # the start names the teacher
    return {"data": data_path(opt["data"]), "nc": nc, **found, "hyp": recipe}


def data_path(data: str | Path) -> str:
    """Return a dataset YAML's absolute path; as given if the file is missing."""
    try:
        return str(find_file(data, "data").resolve())
    except UserError:
        return str(data)


def start_of(meta: Mapping[str, object]) -> str:
    """Return the start of a training, its neck and teacher; 'checkpoint' if it is unknown."""
    opt = meta.get("opt")
    if not isinstance(opt, Mapping):
        return "checkpoint"
    start = "checkpoint" if opt.get("weights") else str(opt.get("backbone_weights") or "scratch")
    files = {"neck": opt.get("neck_weights"), "teacher": opt.get("teacher")}
    return ", ".join([start, *(f"{what} {checkpoint_name(file)}" for what, file in files.items() if file)])


def checkpoint_name(path: str | Path) -> str:
    """Return a checkpoint's name; for best.pt and last.pt that of the run's folder."""
    path = Path(path)
    return RunFolder.of(path).path.name if path.stem in ("best", "last") else path.stem


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the numbers of the points (cost, value) that no other point beats, by cost.

    A point beats another if it is not worse in both and better in one. Equal points do not beat each other.

    >>> pareto_front([(1.0, 0.5), (3.0, 0.6), (2.0, 0.7)])
    [0, 2]
    """

    def beaten(cost: float, value: float) -> bool:
        return any(c <= cost and v >= value and (c < cost or v > value) for c, v in points)

    front = [i for i, point in enumerate(points) if not beaten(*point)]
    return sorted(front, key=lambda i: (*points[i], i))


def group_rows(
    rows: Sequence[NetRow], first: Conditions | None, hyp_names: Sequence[str | Path] = ()
) -> list[Group]:
    """Group the rows that have figures by their conditions; unknown conditions come last.

    Args:
        rows: failed ones are left out.
        first: the conditions of group 1, if any row has them.
        hyp_names: hyperparameter files, besides those in data/hyps, whose names titles may use.
    """
    found: list[list[NetRow]] = []
    for row in rows:
        if row.failed:
            continue
        alike = (r for r in found if r[0].conditions == row.conditions and r[0].measured == row.measured)
        same = next(alike, None)
        if same is None:
            found.append(same := [])
        same.append(row)
    found.sort(key=lambda members: (members[0].conditions is None, members[0].conditions != first))
    files = [*hyp_names, *sorted((ROOT / "data" / "hyps").glob("*.yaml"))]
    groups = []
    for number, members in enumerate(found, 1):
        one = members[0]
        difference = describe_difference(one, found[0][0]) if number > 1 else ""
        members.sort(key=lambda row: -row.values["map"])
        groups.append(Group(number, describe_row(one, files), difference, members, one.conditions))
    return groups


def tell_apart(rows: list[NetRow]) -> None:
    """Add their folders' names to labels that several rows share."""
    labels = [row.label for row in rows]
    for row in rows:
        if labels.count(row.label) > 1:
            row.label = f"{row.label} [{row.key}]"


def describe_row(row: NetRow, hyp_files: Sequence[str | Path] = ()) -> str:
    """Describe a row's measurement and training in one line, without usual options."""
    (data, imgsz), conditions = row.measured, row.conditions
    if conditions is None:
        return f"{UNKNOWN}, measured on {Path(data).name} at {imgsz} px" if data else UNKNOWN
    parts = [Path(data).name, f"{conditions['nc']} classes", f"{imgsz} px"]
    if not _as_trained(row):
        trained = Path(conditions["data"])
        namesake = trained.name == Path(data).name and conditions["data"] != data
        parts.append(f"trained on {trained if namesake else trained.name} at {conditions['imgsz']} px")
    parts += [form.format(conditions[name]) for name, form in _TITLED.items()]
    parts = [{"1 classes": "1 class", "1 epochs": "1 epoch"}.get(part, part) for part in parts]
    parts.append(hyp_name(conditions["hyp"], hyp_files))
    for name, usual in _USUAL.items():
        if conditions[name] != usual:
            parts.append(_option(name, conditions[name]))
    return ", ".join(parts)


def _as_trained(row: NetRow) -> bool:
    """Return whether a row was measured on the data and image size of its training."""
    return row.conditions is not None and row.measured == (row.conditions["data"], row.conditions["imgsz"])


def _option(name: str, value: object) -> str:
    """Return an option as it is typed."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return flag if value else f"no {flag}"
    return f"{flag} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def hyp_name(hyp: Mapping[str, float], files: Sequence[str | Path]) -> str:
    """Return the name of the file that holds these hyperparameters, or that none does.

    A `nominal_batch` that the file does not state is ignored, because train.py fits it to the data.
    """
    for file in files:
        if not Path(file).is_file():
            continue
        stated = load_hyp(file)
        fitted = {"nominal_batch"} - set(stated)
        if stated == {name: value for name, value in hyp.items() if name not in fitted}:
            return Path(file).name
    return "hyperparameters of its own"


def describe_difference(row: NetRow, other: NetRow) -> str:
    """Describe how a row's measurement and training differ from another's, with both values.

    Returns:
        '' if the conditions of one row are unknown.
    """
    mine, theirs = row.conditions, other.conditions
    if mine is None or theirs is None:
        return ""
    parts = []
    as_trained = _as_trained(row) and _as_trained(other)
    if not as_trained:
        for (name, form), here, there in zip(_MEASURED.items(), row.measured, other.measured):
            if here != there:
                parts.append(f"measured {name} {form.format(here)} instead of {form.format(there)}")
    for name in [name for name in mine if name != "hyp" and mine[name] != theirs.get(name)]:
        when = "trained with " if name in ("data", "imgsz") and not as_trained else ""
        parts.append(f"{when}{name} {_plain(mine[name])} instead of {_plain(theirs.get(name))}")
    mine, theirs = mine["hyp"], theirs["hyp"]
    for name in [name for name in {**theirs, **mine} if mine.get(name) != theirs.get(name)]:
        parts.append(f"hyp {name} {_plain(mine.get(name))} instead of {_plain(theirs.get(name))}")
    return "; ".join(parts)


def _plain(value: object) -> str:
    """Return a value as words of a sentence."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def to_csv(groups: Sequence[Group], failed: Sequence[NetRow]) -> str:
    """Return all rows with unrounded figures; `conditions` is the number of the group."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for group in groups:
        for row in group.rows:
            figures = [row.values.get(key, "") for key in FIGURES]
            where = str(group.number) if group.ranked else "unknown"
            writer.writerow([row.label, row.start, where, "ok", *figures, row.weights])
    for row in failed:
        blank = [""] * len(FIGURES)
        writer.writerow([row.label, row.start, "", f"failed: {row.failed}", *blank, row.weights])
    return buffer.getvalue()


def to_markdown(groups: Sequence[Group], failed: Sequence[NetRow], measured: Sequence[str]) -> str:
    """Return one table per group, with the best figure of each column in bold.

    Args:
        measured: sentences about the measurement, below the tables.
    """
    blocks = []
    for group in groups:
        lines = [f"**Conditions {group.number}:** {_md(group.title)}", ""]
        if group.difference:
            lines[:1] = [lines[0] + "  ", f"Not comparable with conditions 1: {_md(group.difference)}"]
        if not group.ranked:
            lines[:1] = [f"**{_md(group.heading)}** (not ranked)"]
        blocks.append("\n".join(lines + _md_table(group)))
    if failed:
        lines = ["| net | start | status |", "|---|---|---|"]
        lines += [f"| {_md(row.label)} | {_md(row.start)} | failed: {_md(row.failed)} |" for row in failed]
        blocks.append("\n".join(lines))
    notes = [f"{row.label}: {row.note}" for group in groups for row in group.rows if row.note]
    blocks += [_md(text) for text in [*notes, *measured]]
    return "\n\n".join(blocks) + "\n"


def _md_table(group: Group) -> list[str]:
    """Return the lines of a group's table, without columns that are empty in all rows."""
    columns = [c for c in NET_COLUMNS if any(c.text(row.values) for row in group.rows)]
    lines = [f"| net | start | {' | '.join(c.title for c in columns)} |"]
    lines.append(f"|---|---|{'---:|' * len(columns)}")
    best = {column.title: group.best(column) for column in columns}
    for row in group.rows:
        texts = [(c.text(row.values), best[c.title]) for c in columns]
        cells = [f"**{text}**" if text and is_best(text, top) else text for text, top in texts]
        lines.append(f"| {_md(row.label)} | {_md(row.start)} | {' | '.join(cells)} |")
    return lines


def is_best(text: str, top: str | None) -> bool:
    """Return whether a cell shows the same first figure as the best cell."""
    return top is not None and text.partition(" (")[0] == top.partition(" (")[0]


def _md(text: str) -> str:
    """Escape markup in a text, because names come from the user's files."""
    return " ".join(re.sub(r"([|*`])", r"\\\1", escape(text, quote=False)).split())
