"""The same few images as several detectors see them, drawn for a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np

from utils.boxes import xywhn2xyxy
from utils.comparison.page import Sample
from utils.dataset.image_set import ImageSet
from utils.images import load_image
from utils.results.drawing import draw_detections

FindBoxes = Callable[[np.ndarray], np.ndarray]
"""(H, W, 3) BGR uint8 -> (n, 6) xyxy in its pixels, confidence, class."""

PIXELS = (320, 480)  # longer side of a picture, at least (names must be legible) and at most
QUALITY = 88  # of its JPEG


def sample_pictures(
    images: ImageSet, names: Mapping[int, str], count: int, detectors: Mapping[str, FindBoxes]
) -> list[Sample]:
    """Images evenly spread over those with labels, each with its ground truth and every detector's boxes.

    Args:
        images: a split.
        names: of the classes.
        count: how many images; fewer if fewer have labels.
        detectors: by caption, each (H, W, 3) BGR uint8 -> (n, 6) xyxy in its pixels, confidence, class.
    """
    labelled = np.flatnonzero(np.diff(images.offsets))
    count = min(count, len(labelled)) if detectors else 0
    samples = []
    for step in range(count):
        index = int(labelled[step * len(labelled) // count])
        path, labels = images.path(index), images.labels(index)
        image = load_image(path)
        truth = np.ones((len(labels), 6))
        truth[:, :4] = xywhn2xyxy(labels[:, 1:5], image.shape[1], image.shape[0])
        truth[:, 5] = labels[:, 0]
        sample = Sample(Path(path).name)
        sample.pictures.append(("ground truth", _picture(image, truth, names, hide_conf=True), len(truth)))
        for caption, detect in detectors.items():
            found = detect(image)
            sample.pictures.append((caption, _picture(image, found, names), len(found)))
        samples.append(sample)
    return samples


def _picture(image: np.ndarray, det: np.ndarray, names: Mapping[int, str], hide_conf: bool = False) -> bytes:
    """An image with boxes (n, 6) in its pixels drawn on it, as a JPEG of a size for a page."""
    side = max(image.shape[:2])
    scale = float(np.clip(side, *PIXELS)) / side
    if scale != 1:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=method)
    det = np.array(det, dtype=np.float64)
    det[:, :4] *= scale
    drawn = draw_detections(image, det, names, line_thickness=2, hide_conf=hide_conf)
    return cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
