"""Draw mAP over the cost of several nets, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

from utils.comparison.table import Group
from utils.evaluation.plots import choose_font, new_figure, plain_text, rgb, save_figure

_COSTS = (("torch_ms", "PyTorch ms per image (median, batch 1)"), ("gflops", "GFLOPs per image"))

_MARKERS = "osD^vPX"

_LOG_RANGE = 8  # costs further apart than this factor are shown on a logarithmic axis


def plot_pareto(groups: Sequence[Group], path: str | Path) -> None:
    """Draw mAP50-95 over latency and over GFLOPs, with the Pareto front of each group.

    Each group has its colour and marker. Nets of unknown conditions are hollow and have no front.
    """
    figure = new_figure(14, 6)
    for axis, (cost, title) in zip(figure.subplots(1, 2), _COSTS):
        axis.set(xlabel=title, ylabel="mAP50-95")
        axis.grid(color="0.92", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
        points = [point for i, group in enumerate(groups) for point in _draw_group(axis, group, cost, i)]
        if not points:
            axis.text(0.5, 0.5, "nothing measured", ha="center", transform=axis.transAxes, color="0.5")
            continue
        costs = [x for x, _, _ in points]
        if min(costs) > 0 and max(costs) > _LOG_RANGE * min(costs):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.14, y=0.14)
        low, high = axis.get_ylim()
        axis.set_ylim(bottom=max(low, -0.03 * high))
    if len(groups) > 1 or (groups and groups[0].front("gflops")):
        handles, labels = figure.axes[1].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.draw_without_rendering()  # places everything, so that the free space is known
    figure.set_layout_engine("none")
    for axis, (cost, _) in zip(figure.axes, _COSTS):
        _name_points(axis, [p for g in groups for p in _points(g, cost)])
    save_figure(figure, path, dpi=150)


def _points(group: Group, cost: str) -> list[tuple[float, float, str]]:
    """Return (cost, mAP50-95, label) of a group's rows that have both."""
    return [(row.values[cost], row.values["map"], row.label) for row in group.rows if cost in row.values]


def _draw_group(axis: Axes, group: Group, cost: str, number: int) -> list[tuple[float, float, str]]:
    """Draw a group's points and front, and return the points."""
    points = _points(group, cost)
    if not points:
        return points
    ink = rgb(4 + number) if group.ranked else (0.5, 0.5, 0.5)
    name = f"conditions {group.number}" if group.ranked else group.title
    front = group.front(cost)
    if front:
        line = [(row.values[cost], row.values["map"]) for row in front]
        axis.plot(*zip(*line), color=ink, linewidth=1.6, alpha=0.6, label=f"{name}: not dominated", zorder=2)
    on_front = {row.label for row in front}
    filled = [ink if label in on_front else "white" for _, _, label in points]
    axis.scatter(
        [x for x, _, _ in points],
        [y for _, y, _ in points],
        s=48,
        marker=_MARKERS[number % len(_MARKERS)],
        c=filled,
        edgecolors=[ink],
        linewidths=1.5,
        label=plain_text(name),
        zorder=3,
    )
    return points


def _name_points(axis: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each point's label beside it, where it covers least.

    A thin line joins a point and a label that is further away.
    """
    pixels = [tuple(axis.transData.transform((x, y))) for x, y, _ in points]
    per_point = axis.figure.dpi / 72
    reach = 6 * per_point
    taken = [Bbox.from_extents(x - reach, y - reach, x + reach, y + reach) for x, y in pixels]
    room = axis.get_window_extent()
    for (x, y), (px, py), (_, _, label) in zip([p[:2] for p in points], pixels, points):
        text = axis.annotate(
            plain_text(label), (x, y), (0, 0), textcoords="offset points", fontsize=8.5, zorder=4
        )
        choose_font(text)
        size = text.get_window_extent()
        tries = []
        for radius in (9, 18, 30, 44, 60):
            for turn in range(12):
                angle = math.tau * turn / 12
                cx = px + radius * per_point * math.cos(angle) + math.cos(angle) * size.width / 2
                cy = py + radius * per_point * math.sin(angle) + math.sin(angle) * size.height / 2
                box = Bbox.from_bounds(cx - size.width / 2, cy - size.height / 2, size.width, size.height)
                tries.append((_hidden(box, taken, room) + radius * 4, radius, box))
        _, radius, box = min(tries, key=lambda entry: entry[0])
        taken.append(box)
        text.set_position(((box.x0 - px) / per_point, (box.y0 - py) / per_point))
        if radius > 18:
            end = axis.transData.inverted().transform(
                (min(max(px, box.x0), box.x1), min(max(py, box.y0), box.y1))
            )
            axis.plot(
                [x, end[0]], [y, end[1]], color="0.6", linewidth=0.7, zorder=1, scalex=False, scaley=False
            )


def _hidden(box: Bbox, taken: Sequence[Bbox], room: Bbox) -> float:
    """Return the area of a label, in square pixels, over others or outside the chart."""
    overlaps = (Bbox.intersection(box, other) for other in taken)
    covered = sum(shared.width * shared.height for shared in overlaps if shared is not None)
    inside = Bbox.intersection(box, room)
    outside = box.width * box.height - (inside.width * inside.height if inside is not None else 0)
    return covered + 3 * outside
