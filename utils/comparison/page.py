"""Render a comparison as one HTML file, which loads nothing and escapes every text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from utils.comparison.table import NET_COLUMNS, Column, Group, NetRow, is_best
from utils.pages import html_facts, html_figure, html_image, html_page, html_sortable, html_tiles

# Figure, heading of its best net, unit.
_TILES = (
    ("map", "most accurate", "mAP50-95"),
    ("torch_ms", "fastest in PyTorch", "ms"),
    ("onnx_ms", "fastest in ONNX Runtime", "ms"),
    ("parameters", "smallest", "parameters"),
)


@dataclass
class SampleImage:
    """Hold one val image with the boxes of the labels and of each net.

    Attributes:
        name: of the file.
        pictures: (caption, JPEG, number of boxes); the ground truth first.
    """

    name: str
    pictures: list[tuple[str, bytes, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """Hold the content of the page.

    Attributes:
        title: of the run.
        groups: the rows by their conditions.
        failed: nets without figures.
        samples: val images with detections.
        facts: name -> text: how, when and on what the figures were measured.
        command: the command line of the comparison.
    """

    title: str
    groups: Sequence[Group]
    failed: Sequence[NetRow]
    samples: Sequence[SampleImage]
    facts: Mapping[str, str]
    command: str


def render(page: Page, chart: bytes) -> str:
    """Return the page as HTML, with the chart, a PNG file, inside."""
    conditions = "\n".join(_conditions(group) for group in page.groups if group.ranked)
    parts = [
        _lead(page),
        *map(_group, page.groups),
        _failed(page.failed),
        _chart(chart) if page.groups else "",
        _samples(page.samples),
        f"<section><h2>How it was measured</h2>{html_facts(page.facts)}{conditions}"
        f"<pre>{escape(page.command)}</pre></section>",
    ]
    return html_page(page.title, "\n".join(parts))


def _lead(page: Page) -> str:
    """Return the best figures of the first group, in tiles."""
    group = page.groups[0] if page.groups else None
    if group is None or not group.ranked or len(group.rows) < 2:
        return ""
    tiles = []
    for key, what, unit in _TILES:
        column = next(column for column in NET_COLUMNS if column.keys[0] == key)
        rows = [row for row in group.rows if key in row.values]
        if rows:
            row = max(rows, key=lambda row: column.best * row.values[key])
            figure = f"{column.text({key: row.values[key]})} {unit}"
            tiles.append((what, row.label, figure))
    return html_tiles(tiles)


def _group(group: Group) -> str:
    """Return a group's heading and its sortable table, without empty columns."""
    columns = [c for c in NET_COLUMNS if any(c.text(row.values) for row in group.rows)]
    said = group.title if group.ranked else "These checkpoints do not say how they were trained: not ranked."
    differs = ""
    if group.difference:
        differs = f'<p class="differs">Not comparable with conditions 1: {escape(group.difference)}</p>'
    heads = _head(0, "net", "") + _head(1, "start", "")
    heads += "".join(_head(i + 2, c.title, "num") for i, c in enumerate(columns))
    best = {column.title: group.best(column) for column in columns}
    rows = "\n".join(_row(row, columns, best) for row in group.rows)
    notes = "".join(
        f'<p class="note">{escape(row.label)}: {escape(row.note)}</p>' for row in group.rows if row.note
    )
    return (
        f'<section><h2>{escape(group.heading)}</h2><p class="sub">{escape(said)}</p>{differs}'
        f"{html_sortable(heads, rows)}{notes}</section>"
    )


def _head(index: int, title: str, kind: str) -> str:
    main, bracket, rest = title.partition(" (")
    small = f"<small>({escape(rest)}</small>" if bracket else ""
    return f'<th class="{kind}"><button data-column="{index}">{escape(main)}{small}</button></th>'


def _row(row: NetRow, columns: Sequence[Column], best: Mapping[str, str | None]) -> str:
    cells = [f'<th scope="row">{escape(row.label)}</th><td>{escape(row.start)}</td>']
    for column in columns:
        text, value = column.text(row.values), row.values.get(column.keys[0])
        if not text:
            cells.append('<td class="num" data-value=""></td>')
            continue
        main, bracket, rest = text.partition(" (")
        kind = "num best" if is_best(text, best[column.title]) else "num"
        small = f"<small>({escape(rest)}</small>" if bracket else ""
        cells.append(f'<td class="{kind}" data-value="{value!r}">{escape(main)}{small}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _failed(rows: Sequence[NetRow]) -> str:
    if not rows:
        return ""
    body = "".join(
        f'<tr><th scope="row">{escape(row.label)}</th><td>{escape(row.start)}</td>'
        f'<td class="wrap">failed: {escape(row.failed)}</td></tr>'
        for row in rows
    )
    return (
        '<section class="failed"><h2>Not measured</h2><div class="scroll"><table>'
        f"<thead><tr><th>net</th><th>start</th><th>status</th></tr></thead><tbody>{body}</tbody></table>"
        "</div></section>"
    )


def _chart(png: bytes) -> str:
    return (
        '<section class="chart"><h2>Accuracy over cost</h2><p class="sub">Filled: no other net of the same '
        "conditions is as cheap and as accurate, and better in one of them.</p>"
        f"{html_image(png, 'png', 'mAP50-95 over latency and over GFLOPs')}</section>"
    )


def _samples(samples: Sequence[SampleImage]) -> str:
    if not samples:
        return ""
    return (
        '<section><h2>The same images, each net</h2><p class="sub">Detections above confidence 0.25, NMS at '
        "IoU 0.45; the ground truth has the dark frame. Click to enlarge.</p>"
        f"{''.join(map(_sample, samples))}</section>"
    )


def _sample(sample: SampleImage) -> str:
    figures = []
    for number, (caption, jpeg, count) in enumerate(sample.pictures):
        boxes = f"{count} box{'' if count == 1 else 'es'}"
        kind = "" if number else "truth"
        figures.append(html_figure(jpeg, f"{sample.name}: {caption}", caption, boxes, kind))
    return f'<h3>{escape(sample.name)}</h3><div class="sample">{"".join(figures)}</div>'


def _conditions(group: Group) -> str:
    """Return all conditions of a group, hyperparameters too, folded."""
    known = {k: v for k, v in (group.conditions or {}).items() if k != "hyp"}
    known["data"] = Path(known["data"]).name
    data, imgsz = group.rows[0].measured
    measured = {"measured on": Path(data).name, "measured at": f"{imgsz} px"}
    known = measured | {f"trained with {k}" if k in ("data", "imgsz") else k: v for k, v in known.items()}
    known |= {f"hyp {k}": v for k, v in (group.conditions or {}).get("hyp", {}).items()}
    text = {name: "none" if value is None else str(value) for name, value in known.items()}
    return f"<details><summary>Conditions {group.number} in full</summary>{html_facts(text)}</details>"
