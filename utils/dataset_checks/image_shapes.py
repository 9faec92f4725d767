"""Measure the sizes and shapes of images, and find those that training shows badly."""

from __future__ import annotations

import numpy as np

from utils.dataset_checks.findings import CheckedData, Finding, Section

LONG = 4.0
"""Of an image with a larger ratio of its sides three quarters of the square of training are padding."""


def check_image_shapes(data: CheckedData) -> Section:
    """Report image sizes and ratios of sides, and very long images."""
    section = Section("Images")
    for split, images in data.splits.items():
        if not len(images):
            section.facts[split] = "no usable image"
            continue
        sides = images.sizes
        ratio = sides[:, 0] / sides[:, 1]
        sizes, counts = np.unique(sides, axis=0, return_counts=True)
        width, height = sizes[counts.argmax()]
        long = sides.max(axis=1)
        enlarged = (long < data.imgsz).mean()
        section.facts[split] = (
            f"{len(sides)} images, sizes: {len(sizes)}, most often {width} x {height}; long side "
            f"{long.min()} to {long.max()} px, median {np.median(long):.0f}; {enlarged:.1%} are enlarged to "
            f"{data.imgsz} px; width / height {ratio.min():.2f} to {ratio.max():.2f}"
        )
        longest = np.maximum(ratio, 1 / ratio)
        for index in np.flatnonzero(longest > LONG):
            path, (width, height) = images.path(int(index)), sides[index]
            value = f"{width} x {height} px, {longest[index]:.1f} times as long as it is high or wide"
            remedy = "cut it into tiles, or train with --rect"
            score = float(1 - LONG / longest[index])
            section.findings.append(
                Finding("long-image", path, value, remedy, score=score, split=split, images=(path,))
            )
    return section
