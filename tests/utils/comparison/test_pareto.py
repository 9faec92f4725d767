"""The Pareto picture: every name readable, and a front per group."""

from __future__ import annotations

import cv2

from utils.comparison import pareto
from utils.comparison.pareto import plot_pareto
from utils.comparison.table import Group, NetRow


def pareto_rows() -> list[NetRow]:
    """Four nets close together with long names: what the names must get along with."""
    figures = [(5.0, 0.50), (5.1, 0.505), (5.2, 0.50), (60.0, 0.9)]
    names = ["yolov5-efficientnet-lite0", "yolov5-efficientnet-lite0 (ImageNet)", "$x$ & <b>", "timm-x"]
    same = {"epochs": 1}
    return [
        NetRow(name, name, "", same, {"map": score, "gflops": cost, "torch_ms": cost})
        for name, (cost, score) in zip(names, figures)
    ]


def test_pareto_names_every_net_and_hides_none(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pareto, "save_figure", lambda figure, *args, **kw: figures.append(figure))
    groups = [Group(1, "same", "", pareto_rows(), {"epochs": 1})]
    plot_pareto(groups, tmp_path / "pareto.png")
    for axis in figures[0].axes:
        labels = [text for text in axis.texts if text.get_text()]
        assert len(labels) == 4 and axis.get_xscale() == "log"
        boxes = [text.get_window_extent() for text in labels]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        room = axis.get_window_extent()
        assert all(room.x0 <= b.x0 and b.x1 <= room.x1 and room.y0 <= b.y0 and b.y1 <= room.y1 for b in boxes)
        front = next(line for line in axis.lines if str(line.get_label()).startswith("conditions 1"))
        assert front.get_xdata().tolist() == [5.0, 5.1, 60.0]


def test_pareto_picture_with_unknown_conditions_and_with_nothing(tmp_path):
    unknown = Group(2, "conditions unknown", "", pareto_rows()[:1], None)
    for number, groups in enumerate(([Group(1, "same", "", pareto_rows(), {}), unknown], [unknown], [])):
        plot_pareto(groups, tmp_path / f"{number}.png")
        assert cv2.imread(str(tmp_path / f"{number}.png")).shape == (900, 2100, 3)
