"""Nets side by side: rows of figures, groups of equal conditions, the Pareto front, CSV and Markdown.

Figures are comparable only where data, image size and recipe are the same. So rows are put into groups by
the conditions they were trained under and by what they were measured on, and a best figure or a front is
looked for inside one group only.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import ROOT, find_file
from utils.training.hyp import load_hyp

UNKNOWN = "conditions unknown"
# What makes two trainings comparable besides the data and the hyperparameters; train.py's option names.
RECIPE = ("imgsz", "epochs", "batch_size", "optimizer", "seed", "cos_lr", "label_smoothing", "amp", "rect")
RECIPE += ("multi_scale", "image_weights", "single_cls", "freeze", "backbone_lr", "noautoanchor", "patience")
_TITLED = {"epochs": "{} epochs", "batch_size": "batch {}", "optimizer": "{}"}
_TITLED |= {"seed": "seed {}"}
_MEASURED = {"on": "{}", "at": "{} px"}
_USUAL = {"cos_lr": False, "label_smoothing": 0.0, "amp": "auto", "rect": False, "multi_scale": False}
_USUAL |= {"image_weights": False, "single_cls": False, "freeze": [0], "backbone_lr": None}
_USUAL |= {"noautoanchor": False, "patience": None}


@dataclass(frozen=True)
class Column:
    """A column of the tables: its title, the figures of a cell, how they are written and which one is best.

    The first key is the figure that sorts and is ranked; the others follow it in brackets. `best` is +1 where
    more is better, -1 where less is, 0 where neither.
    """

    title: str
    keys: tuple[str, ...]
    form: str
    best: int

    def text(self, values: Mapping[str, float | None]) -> str:
        """The cell for a row's figures; empty where there is none."""
        figures = [values.get(key) for key in self.keys]
        if figures[0] is None:
            return ""
        first, *rest = [self.form.format(f).replace(",", " ") for f in figures if f is not None]
        return f"{first} ({', '.join(rest)})" if rest else first


COLUMNS = (
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
FIGURES = tuple(key for column in COLUMNS for key in column.keys)
CSV_COLUMNS = ("net", "start", "conditions", "status", *FIGURES, "weights")


@dataclass
class Row:
    """One net.

    Attributes:
        key: its folder in the run's folder; unique. label: what it is called on the page.
        start: what its training began with: 'scratch', 'imagenet', other weights' name, or 'checkpoint'.
        conditions: as `conditions_of` gives them; None when they are not known.
        values: figures by the keys of COLUMNS. weights: the checkpoint's path.
        failed: why there are no figures, as a sentence; '' when there are.
        note: what else is to be said about it.
        data, imgsz: the data set (as `data_path` gives it) and the pixels that the figures were measured
            with; '' and 0 for those of its training.
    """

    key: str
    label: str
    start: str = ""
    conditions: dict[str, Any] | None = None
    values: dict[str, float | None] = field(default_factory=dict)
    weights: str = ""
    failed: str = ""
    note: str = ""
    data: str = ""
    imgsz: int = 0

    @property
    def measured(self) -> tuple[str, int]:
        """The data set and the image size that the figures hold for."""
        trained = self.conditions or {"data": "", "imgsz": 0}
        return self.data or trained["data"], self.imgsz or trained["imgsz"]


@dataclass
class Group:
    """Rows trained under the same conditions and measured on the same, best mAP50-95 first.

    `title` says what was measured and names the conditions, `difference` says how they differ from the first
    group's. Rows whose conditions are unknown are not `ranked`: nothing says that they may be held against
    one another.
    """

    number: int
    title: str
    difference: str
    rows: list[Row]
    conditions: dict[str, Any] | None

    @property
    def ranked(self) -> bool:
        """Whether its rows may be held against one another."""
        return self.conditions is not None

    @property
    def heading(self) -> str:
        """What stands above its table: its number, or all that is known where that is no condition."""
        return f"Conditions {self.number}" if self.ranked else self.title[:1].upper() + self.title[1:]

    def best(self, column: Column) -> str | None:
        """The text of a column's best cell, where there are at least two figures to choose from."""
        rows = [row for row in self.rows if row.values.get(column.keys[0]) is not None]
        if not self.ranked or not column.best or len(rows) < 2:
            return None
        return column.text(max(rows, key=lambda row: column.best * row.values[column.keys[0]]).values)

    def front(self, cost: str) -> list[Row]:
        """Its rows on the Pareto front of mAP50-95 over the figure `cost`, cheapest first."""
        rows = [row for row in self.rows if row.values.get(cost) is not None] if self.ranked else []
        points = [(row.values[cost], row.values["map"]) for row in rows]
        return [rows[i] for i in pareto_front(points)]


def conditions_of(meta: Mapping[str, Any], nc: int) -> dict[str, Any] | None:
    """What a checkpoint was trained under, from the meta data that train.py wrote; None when it is not told.

    Returns:
        nc, the data set's path (resolved where it is there still), the hyperparameters, the options RECIPE.
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
    return {"data": data_path(opt["data"]), "nc": nc, **found, "hyp": dict(hyp)}


def data_path(data: str | Path) -> str:
    """A dataset YAML's absolute path, so that two spellings of it are one; as given when it is gone."""
    try:
        return str(find_file(data, "data").resolve())
    except UserError:
        return str(data)


def start_of(meta: Mapping[str, Any]) -> str:
    """What a checkpoint's training began with; 'checkpoint' also where nothing is told about it."""
    opt = meta.get("opt")
    if not isinstance(opt, Mapping) or opt.get("weights"):
        return "checkpoint"
    return str(opt.get("backbone_weights") or "scratch")


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which of the points (cost, value) no other one beats, in order of cost.

    A point is beaten by one that is no worse in both and better in one; equal points stand together.
    """

    def beaten(cost: float, value: float) -> bool:
        return any(c <= cost and v >= value and (c < cost or v > value) for c, v in points)

    front = [i for i, point in enumerate(points) if not beaten(*point)]
    return sorted(front, key=lambda i: (*points[i], i))


def group_rows(
    rows: Sequence[Row], first: Mapping[str, Any] | None, hyp_names: Sequence[str | Path] = ()
) -> list[Group]:
    """Rows that have figures, by their conditions; those of unknown conditions last.

    Args:
        rows: failed ones are left out.
        first: the conditions to begin with, if any row has them.
        hyp_names: hyperparameter files to know hyperparameters by, besides those in data/hyps.
    """
    found: list[list[Row]] = []
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
        one, leader = members[0], found[0][0]
        difference = ""
        if number > 1 and one.conditions is not None and leader.conditions is not None:
            difference = describe_difference(one, leader)
        members.sort(key=lambda row: -row.values["map"])
        groups.append(Group(number, describe_row(one, files), difference, members, one.conditions))
    return groups


def tell_apart(rows: list[Row]) -> None:
    """Give rows of one label their folders' names besides."""
    labels = [row.label for row in rows]
    for row in rows:
        if labels.count(row.label) > 1:
            row.label = f"{row.label} [{row.key}]"


def describe_row(row: Row, hyp_files: Sequence[str | Path] = ()) -> str:
    """What a row was measured on and trained under, as one line; options that are as usual are not named."""
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


def _as_trained(row: Row) -> bool:
    """Whether a row's figures hold for the data set and the image size of its training."""
    return row.conditions is not None and row.measured == (row.conditions["data"], row.conditions["imgsz"])


def _option(name: str, value: Any) -> str:
    """An option as it is typed."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return flag if value else f"no {flag}"
    return f"{flag} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def hyp_name(hyp: Mapping[str, float], files: Sequence[str | Path]) -> str:
    """The name of the file that holds these hyperparameters, or that they are others'.

    `nominal_batch` is none of a file that does not state it: train.py then fits it to the data.
    """
    for file in files:
        if not Path(file).is_file():
            continue
        stated = load_hyp(file)
        fitted = {"nominal_batch"} - set(stated)
        if stated == {name: value for name, value in hyp.items() if name not in fitted}:
            return Path(file).name
    return "hyperparameters of its own"


def describe_difference(row: Row, other: Row) -> str:
    """How what a row was measured on and trained under differs from another's, with both values."""
    parts = []
    as_trained = _as_trained(row) and _as_trained(other)
    if not as_trained:
        for (name, form), mine, theirs in zip(_MEASURED.items(), row.measured, other.measured):
            if mine != theirs:
                parts.append(f"measured {name} {form.format(mine)} instead of {form.format(theirs)}")
    mine, theirs = row.conditions, other.conditions
    for name in [name for name in mine if name != "hyp" and mine[name] != theirs.get(name)]:
        when = "trained with " if name in ("data", "imgsz") and not as_trained else ""
        parts.append(f"{when}{name} {_plain(mine[name])} instead of {_plain(theirs.get(name))}")
    mine, theirs = mine["hyp"], theirs["hyp"]
    for name in [name for name in {**theirs, **mine} if mine.get(name) != theirs.get(name)]:
        parts.append(f"hyp {name} {_plain(mine.get(name))} instead of {_plain(theirs.get(name))}")
    return "; ".join(parts)


def _plain(value: Any) -> str:
    """A value in a sentence."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def to_csv(groups: Sequence[Group], failed: Sequence[Row]) -> str:
    """All rows with their unrounded figures; `conditions` is the number of the group."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for group in groups:
        for row in group.rows:
            figures = ["" if (v := row.values.get(key)) is None else v for key in FIGURES]
            where = str(group.number) if group.ranked else "unknown"
            writer.writerow([row.label, row.start, where, "ok", *figures, row.weights])
    for row in failed:
        blank = [""] * len(FIGURES)
        writer.writerow([row.label, row.start, "", f"failed: {row.failed}", *blank, row.weights])
    return buffer.getvalue()


def to_markdown(groups: Sequence[Group], failed: Sequence[Row], measured: Sequence[str]) -> str:
    """Tables ready to paste, one per group, the best figure of each column in bold.

    Args:
        measured: sentences about how and on what, put below the tables.
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
    """A group's table; columns that are empty in all of its rows are left out."""
    columns = [c for c in COLUMNS if any(c.text(row.values) for row in group.rows)]
    lines = [f"| net | start | {' | '.join(c.title for c in columns)} |"]
    lines.append(f"|---|---|{'---:|' * len(columns)}")
    best = {column.title: group.best(column) for column in columns}
    for row in group.rows:
        texts = [(c.text(row.values), best[c.title]) for c in columns]
        cells = [f"**{text}**" if text and is_best(text, top) else text for text, top in texts]
        lines.append(f"| {_md(row.label)} | {_md(row.start)} | {' | '.join(cells)} |")
    return lines


def is_best(text: str, top: str | None) -> bool:
    """Whether a cell shows the same leading figure as the best one: equal as printed is equal."""
    return top is not None and text.partition(" (")[0] == top.partition(" (")[0]


def _md(text: str) -> str:
    """Text that is no markup: a name comes from the user's files."""
    for sign, safe in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("|", "\\|"),
        ("*", "\\*"),
        ("`", "\\`"),
    ):
        text = text.replace(sign, safe)
    return " ".join(text.split())
