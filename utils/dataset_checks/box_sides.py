"""Measure boxes at the training size, and find those that are too small."""

from __future__ import annotations

import numpy as np

from utils.dataset.augmentations import MIN_BOX_SIDE
from utils.dataset.image_set import ImageSet
from utils.dataset_checks.findings import CheckedData, Finding, Mark, Section
from utils.dataset_checks.label_files import label_line

CELL = 8
"""Pixels of the finest grid of most heads: a smaller box shares its cell with its surroundings."""


def check_box_sides(data: CheckedData) -> Section:
    """Report the sides of boxes at the training size, and too small boxes."""
    section = Section(f"Boxes at {data.imgsz} px")
    for split, images, owner in data.labels():
        if not len(owner):
            section.facts[split] = "no boxes"
            continue
        sides = images.box_sides(data.imgsz)
        short = sides.min(axis=1)
        low, middle, high = np.percentile(short, (1, 50, 99))
        section.facts[split] = (
            f"{len(short)} boxes; shorter side {low:.1f} px (1 %), {middle:.1f} px (median), {high:.1f} px "
            f"(99 %); {(short < CELL).mean():.1%} under {CELL} px"
        )
        for row in np.flatnonzero(short <= MIN_BOX_SIDE):
            section.findings.append(_small(data, split, images, int(owner[row]), int(row), sides[row]))
    return section


def _small(
    data: CheckedData, split: str, images: ImageSet, index: int, row: int, sides: np.ndarray
) -> Finding:
    """Return the finding of a box that training drops."""
    width, height = sides.tolist()
    path = data.label_files[split][index]
    label = images.all_labels[row].tolist()
    name = data.config.label_names.get(int(label[0]), f"class {int(label[0])}")
    return Finding(
        "small-box",
        path,
        f"{name!r} is {width:.1f} x {height:.1f} px at {data.imgsz} px",
        "train with a larger --imgsz, or cut the images into tiles; delete the row if it is a slip",
        label_line(data, path, row - int(images.offsets[index])),
        score=1 - min(width, height) / (2 * MIN_BOX_SIDE),
        split=split,
        images=(images.path(index),),
        marks=(Mark(name, tuple(label)),),
    )
