"""Measure how well the anchors of a head fit the boxes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor

from utils.dataset_checks.findings import CheckedData, Finding, Section
from utils.training.anchors import ENOUGH_RECALL, check_anchors


@dataclass
class _Head:
    """Hold anchors that the search may replace; the network keeps its own."""

    anchors: Tensor
    stride: Tensor


def check_anchor_fit(data: CheckedData) -> Section:
    """Report the anchors' best possible recall, and what train.py would make of them.

    It is the share of boxes that some anchor matches, with ratios of sides up to `anchor_t` = 4.
    """
    section = Section(f"Anchors at {data.imgsz} px")
    split = "train" if "train" in data.splits else next(iter(data.splits))
    images = data.splits[split]
    if data.anchors is None:
        section.facts["head"] = "has no anchors"
        return section
    if not len(images.all_labels):
        section.facts[split] = "no boxes"
        return section
    head = _Head(copy.deepcopy(data.anchors.anchors), copy.deepcopy(data.anchors.stride))
    report = check_anchors(images, head, data.imgsz)
    section.facts["best possible recall"] = round(report.recall, 4)
    section.facts["anchors that match a box"] = round(report.anchors_per_box, 2)
    section.facts["recall after train.py's own search"] = round(report.new_recall, 4)
    if report.recall <= ENOUGH_RECALL:
        value = f"best possible recall {report.recall:.4f}, {report.new_recall:.4f} after a search"
        found = "; ".join(f"{w:.0f}x{h:.0f}" for w, h in report.anchors.tolist())
        remedy = f"leave out --noautoanchor, and train.py takes {found}"
        score = 1 - report.recall
        section.findings.append(
            Finding("anchor-fit", str(data.config.path), value, remedy, score=score, split=split)
        )
    return section
