"""Draw the detections of several nets on the same images, for a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from utils.boxes import xywhn2xyxy
from utils.comparison.page import SampleImage
from utils.dataset.image_set import ImageSet
from utils.detector import Detecting, Detector
from utils.images import load_image
from utils.letterbox import letterbox, rgb_planes
from utils.nms import NmsOptions
from utils.results.drawing import drawn_jpeg

FindBoxes = Callable[[np.ndarray], np.ndarray]
"""(H, W, 3) BGR uint8 -> (n, 6) xyxy in its pixels, confidence, class."""


def find_boxes(backend: Detecting, imgsz: int, nms: NmsOptions) -> FindBoxes:
    """Return a function that finds boxes in one image at `imgsz` pixels.

    Args:
        backend: the network.
        nms: the options of NMS.
    """
    detect = Detector(backend, nms)

    def find(image: np.ndarray) -> np.ndarray:
        boxed, ratio, pad = letterbox(image, imgsz, auto=False)
        return detect([rgb_planes(boxed)], [(image.shape[:2], (ratio, pad))]).boxes[0].numpy()

    return find


def sample_pictures(
    images: ImageSet, names: Mapping[int, str], count: int, detectors: Mapping[str, FindBoxes]
) -> list[SampleImage]:
    """Draw labels and every detector's boxes on images spread evenly over a split.

    Args:
        images: a split; only images with labels are taken.
        names: of the classes.
        count: number of images; fewer if fewer have labels.
        detectors: by caption.
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
        sample = SampleImage(Path(path).name)
        sample.pictures.append(("ground truth", drawn_jpeg(image, truth, names, hide_conf=True), len(truth)))
        for caption, detect in detectors.items():
            found = detect(image)
            sample.pictures.append((caption, drawn_jpeg(image, found, names), len(found)))
        samples.append(sample)
    return samples
