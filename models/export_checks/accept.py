"""Accept or refuse an exported file.

Its network is compared with PyTorch, its NMS with the rules of NMS, and the mAP of int8 with the
checkpoint's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.backends import load_backend
from models.export_checks.int8_accuracy import Accuracy
from models.export_checks.nms_agreement import compare_detections
from models.yolo import DetectionModel
from utils.errors import UserError

LOGGER = logging.getLogger("yolo.proof")

# How far an exported file may be from the float32, unfused PyTorch model: (score, box side or centre in px).
# Of an int8 file the mAP counts instead.
EXPORT_TOLERANCE = {"fp32": (1e-3, 0.5), "fp16": (2e-2, 4.0)}  # float16 keeps 11 bits
MAP_LOSS = 0.02  # how much mAP50-95 an int8 file may lose before a warning


def compare(reference: DetectionModel, path: Path, batches: Sequence[Tensor]) -> tuple[float, float]:
    """Measure how far an exported file is from the PyTorch model it came from.

    Args:
        reference: the model, float32, not fused.
        path: the exported file.
        batches: images (N, ch, H, W), floating in 0..1, on the model's device.

    Returns:
        The largest difference over all rows of (objectness and class scores, xywh in pixels).
    """
    device = batches[0].device
    backend = load_backend(path, device)
    scores, boxes = [], []
    for images in batches:
        with torch.no_grad():
            wanted = reference(images)[0]
        found = backend.predict(images)
        if found.shape != wanted.shape:
            raise UserError(f"gives {tuple(found.shape)} where PyTorch gives {tuple(wanted.shape)}")
        difference = (found - wanted).abs().nan_to_num(torch.inf, torch.inf)
        scores.append(difference[..., 4:].max().item())
        boxes.append(difference[..., :4].max().item())
    return max(scores), max(boxes)


def check_difference(name: str, score: float, box: float, precision: str) -> None:
    """Say how close the file is, and refuse it when that is not enough.

    Raises:
        UserError: the differences, and those allowed.
    """
    LOGGER.info("%s: at most %.2g off PyTorch in a score, %.2g px in a box", name, score, box)
    if not math.isfinite(score + box):
        raise UserError("gives numbers that are not finite where PyTorch's are, so the file was removed")
    if precision not in EXPORT_TOLERANCE:
        return
    score_limit, box_limit = EXPORT_TOLERANCE[precision]
    if score > score_limit or box > box_limit:
        raise UserError(
            f"differs from PyTorch by {score:.2g} in a score (allowed {score_limit:g}) and {box:.2g} px in a "
            f"box (allowed {box_limit:g}), so the file was removed"
        )


def check_nms(name: str, network: Path, path: Path, batches: Sequence[Tensor]) -> int:
    """Refuse a file whose detections are not what NMS makes of its boxes.

    Only NMS differs between the two files, whatever their precision: what float32 rounds is allowed.

    Args:
        name: the format.
        network: the exported file without NMS.
        path: the same network followed by NMS.
        batches: as for `compare`.

    Returns:
        How many detections were compared.

    Raises:
        UserError: how many are wrong.
    """
    image, device = batches[0][:1], batches[0].device
    batches = [*batches, torch.cat([image, torch.full_like(image, 114 / 255)])]  # one with nothing in it
    decode = load_backend(network, device).predict
    found = compare_detections(decode, load_backend(path, device), batches, EXPORT_TOLERANCE["fp32"])
    if found.wrong:
        raise UserError(
            f"{found.wrong} of its {found.detections} detections are not what NMS makes of its boxes, "
            "so the file was removed"
        )
    LOGGER.info(
        "%s: %d detections as NMS makes them of its boxes, at most %.2g off in a score, %.2g px in a corner",
        *(name, found.detections, found.score, found.box),
    )
    if not found.detections:
        LOGGER.warning("%s: nothing was found in the image it was checked with; give --data", name)
    return found.detections


def check_accuracy(name: str, accuracy: Accuracy) -> None:
    """Report the mAP of the quantised file and of PyTorch.

    A clear loss is warned of; the loss of more than half is refused.

    Raises:
        UserError: more than half of mAP50-95 is lost.
    """
    LOGGER.info(
        "%s: mAP50-95 %.4f (PyTorch %.4f, %+.4f), mAP50 %.4f (PyTorch %.4f, %+.4f)",
        *(name, accuracy.map, accuracy.pytorch_map, accuracy.map - accuracy.pytorch_map),
        *(accuracy.map50, accuracy.pytorch_map50, accuracy.map50 - accuracy.pytorch_map50),
    )
    lost = accuracy.pytorch_map - accuracy.map
    if lost <= MAP_LOSS:
        return
    remedy = "give more --calibration-images or use --half"
    if lost > accuracy.pytorch_map / 2:
        raise UserError(
            f"int8 leaves {accuracy.map:.3f} of PyTorch's mAP50-95 of {accuracy.pytorch_map:.3f}, so the "
            f"file was removed; {remedy}"
        )
    LOGGER.warning("%s: int8 loses %.3f of mAP50-95, more than %g; %s", name, lost, MAP_LOSS, remedy)
