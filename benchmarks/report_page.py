"""Measure report.html of a validation of 5 000 images: its size, and the time that it takes.

python benchmarks/report_page.py out

It draws noise of 640 x 480 pixels, which no JPEG makes small, so a page of photographs is smaller. There is
no network: the detections are the boxes of the labels, one more in each image and some of another class.
Times are seconds of the process.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.dataset.config import DatasetConfig
from utils.device import versions
from utils.evaluation.evaluate import ValResult
from utils.evaluation.metrics import ConfusionMatrix, DetectionStats
from utils.evaluation.mistakes import Mistakes
from utils.evaluation.run_page import write_run_page

IMAGES, CLASSES, OBJECTS = 5000, 80, 8


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure report.html of a validation of 5 000 images.")
    parser.add_argument("folder", type=Path, help="for the images, 1.6 GB, and the page")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    names = {number: f"class {number}" for number in range(CLASSES)}
    config = DatasetConfig(folder / "noise.yaml", folder, {}, names)
    draw = np.random.default_rng(0)
    stats, confusion, mistakes = DetectionStats(), ConfusionMatrix(CLASSES), Mistakes()
    collecting = 0.0
    for number in range(IMAGES):
        path = folder / f"{number}.jpg"
        cv2.imwrite(str(path), draw.integers(0, 255, (480, 640, 3), np.uint8))
        corner, side = draw.uniform(0, 400, (OBJECTS, 2)), draw.uniform(10, 200, (OBJECTS, 2))
        boxes, classes = np.hstack((corner, corner + side)), draw.integers(0, CLASSES, OBJECTS)
        labels = torch.tensor(np.column_stack((classes, boxes))[1:], dtype=torch.float32)
        said = np.where(draw.random(OBJECTS) < 0.8, classes, draw.integers(0, CLASSES, OBJECTS))
        found = np.column_stack((boxes, draw.uniform(0.1, 1, OBJECTS), said))
        detections = torch.tensor(found[np.argsort(-found[:, 4])], dtype=torch.float32)
        stats.add(detections, labels)
        pairing = confusion.add(detections, labels)
        started = time.process_time()
        mistakes.add(str(path), pairing)
        collecting += time.process_time() - started
    versions()  # a validation has imported what this imports
    metrics, speed = stats.compute(names), {"inference": 0.0}
    maps = metrics.maps(CLASSES)
    result = ValResult(metrics, confusion, stats.seen, stats.instances, maps, speed, mistakes=mistakes)
    started = time.process_time()
    page = write_run_page(folder, "5 000 images", result, config, {})
    print(f"{collecting:.2f} s beside the images, {time.process_time() - started:.2f} s for the page")
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
