"""Hold detect.py against the boxes that a reference implementation found with the same weights.

    python benchmarks/reference_detections.py WEIGHTS IMAGES_FOLDER REFERENCE.json

The JSON has `imgsz`, `conf_thres`, `iou_thres` and `detections`: {image name: [{class, confidence, xyxy}]},
boxes in whole pixels. A box is found when a detection of its class overlaps it with IoU >= 0.98 and differs
by at most 0.01 in confidence. Prints found/total, the worst IoU, the worst confidence difference and how
many boxes there are on top; exit code 1 when one is missing.
"""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import detect
from utils.boxes import box_iou
from utils.cli import Parser, guard
from utils.errors import UserError

MIN_IOU = 0.98
MAX_CONFIDENCE_DIFFERENCE = 0.01


def parse_opt(argv: list[str] | None = None) -> Namespace:
    """Options from the command line."""
    parser = Parser(description="Compare detect.py with reference detections.")
    parser.add_argument("weights", help="the weights file that the reference was made with")
    parser.add_argument("images", type=Path, help="folder of the images")
    parser.add_argument("reference", type=Path, help="reference JSON")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(argv)


def best_match(expected: dict, boxes: np.ndarray) -> tuple[float, float]:
    """IoU and confidence difference of the detection that overlaps a reference box of its class most."""
    same = boxes[boxes[:, 5] == expected["class"]]
    if not len(same):
        return 0.0, 1.0
    target = torch.tensor([expected["xyxy"]], dtype=torch.float32)
    iou = box_iou(target, torch.from_numpy(same[:, :4]))[0].numpy()
    best = int(iou.argmax())
    return float(iou[best]), abs(float(same[best, 4]) - expected["confidence"])


def main() -> None:
    """Detect, compare, print the figures."""
    opt = parse_opt()
    reference = json.loads(opt.reference.read_text(encoding="utf-8"))
    names = sorted(reference["detections"])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "images.txt"
        source.write_text("\n".join(str((opt.images / n).resolve()) for n in names), encoding="utf-8")
        result = detect.run(
            weights=[opt.weights],
            source=str(source),
            imgsz=[reference["imgsz"]],
            conf_thres=reference["conf_thres"],
            iou_thres=reference["iou_thres"],
            device=opt.device,
            nosave=True,
            project=folder,
        )
    boxes = {Path(d.path).name: d.boxes for d in result.detections}
    empty = np.empty((0, 6), np.float32)
    matches = [best_match(e, boxes.get(n, empty)) for n in names for e in reference["detections"][n]]
    found = sum(iou >= MIN_IOU and diff <= MAX_CONFIDENCE_DIFFERENCE for iou, diff in matches)
    extra = sum(map(len, boxes.values())) - len(matches)
    print(
        f"found {found}/{len(matches)}, worst IoU {min(m[0] for m in matches):.4f}, "
        f"worst confidence difference {max(m[1] for m in matches):.4f}, {extra} more than the reference"
    )
    if found < len(matches):
        raise UserError(f"{len(matches) - found} reference boxes of {opt.reference} were not found")


if __name__ == "__main__":
    guard(main)
