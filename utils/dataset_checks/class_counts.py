"""Count the boxes of each class, and find classes that are empty or rare."""

from __future__ import annotations

import numpy as np

from utils.dataset_checks.findings import CheckedData, Finding, Section, boxes_of

RARE = 50
"""A class with fewer boxes in the training images is hardly learnt."""


def check_class_counts(data: CheckedData) -> Section:
    """Report the boxes and images of each class, and the classes with few or none."""
    section = Section("Classes")
    names, nc = data.config.label_names, len(data.config.label_names)
    counts: dict[str, np.ndarray] = {}
    told: dict[int, list[str]] = {number: [] for number in names}
    for split, images, owner in data.labels():
        classes = images.all_labels[:, 0].astype(np.int64)
        known = classes < nc
        counts[split] = np.bincount(classes[known], minlength=nc)
        pairs = np.unique(np.stack((classes[known], owner[known])), axis=1)
        in_images = np.bincount(pairs[0], minlength=nc)
        for number in names:
            told[number].append(
                f"{split} {boxes_of(counts[split][number])} in {in_images[number]} of {len(images)} images"
            )
    for number, name in names.items():
        section.facts[f"{number} {name}"] = "; ".join(told[number])
        section.findings += _few(data, name, {split: int(count[number]) for split, count in counts.items()})
    return section


def _few(data: CheckedData, name: str, counts: dict[str, int]) -> list[Finding]:
    """Return what is wrong with the number of boxes of a class in each split."""
    found, file = [], str(data.config.path)
    for split, count in counts.items():
        if count == 0:
            remedy = (
                "label some, or take the class out of the YAML if no image has it"
                if split == "train"
                else "add images of it, or the metrics say nothing about this class"
            )
            found.append(Finding("empty-class", file, f"class {name!r} has no box", remedy, split=split))
        elif split == "train" and count < RARE:
            value = f"class {name!r} has {boxes_of(count)}"
            remedy = "add images of it; --image-weights shows the ones that are there more often"
            found.append(Finding("rare-class", file, value, remedy, score=1 - count / RARE, split=split))
    return found
