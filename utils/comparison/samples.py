"""Draw the detections of several nets on the same images, for a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np

from utils.boxes import xywhn2xyxy
from utils.comparison.page import SampleImage
from utils.dataset.image_set import ImageSet
from utils.detector import Detecting, Detector
from utils.images import load_image
from utils.letterbox import letterbox, rgb_planes
from utils.nms import NmsOptions
from utils.results.drawing import draw_detections

FindBoxes = Callable[[np.ndarray], np.ndarray]
"""(H, W, 3) BGR uint8 -> (n, 6) xyxy in its pixels, confidence, class."""

PIXELS = (320, 480)  # longer side of a picture: at least, so that names are legible, and at most
JPEG_QUALITY = 88


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
        sample.pictures.append(("ground truth", _picture(image, truth, names, hide_conf=True), len(truth)))
        for caption, detect in detectors.items():
            found = detect(image)
            sample.pictures.append((caption, _picture(image, found, names), len(found)))
        samples.append(sample)
    return samples


def _picture(image: np.ndarray, det: np.ndarray, names: Mapping[int, str], hide_conf: bool = False) -> bytes:
    """Draw boxes (n, 6) on an image, and return it as a small JPEG."""
    side = max(image.shape[:2])
    scale = float(np.clip(side, *PIXELS)) / side
    if scale != 1:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=method)
    det = np.array(det, dtype=np.float64)
    det[:, :4] *= scale
    drawn = draw_detections(image, det, names, line_thickness=2, hide_conf=hide_conf)
    return cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
