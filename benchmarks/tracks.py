"""How well detect.py --track keeps the numbers of objects: IDF1, switches, counts, frames in and out.

    python benchmarks/tracks.py --weights runs/train/digits/weights/best.pt

draws clips of digits that move along straight lines across a picture and pass each other, runs detect.py on
them, and compares its numbers with the known ones by the metrics of the package `trackers`. Beside it stands
the same tracker fed with the same boxes by its own interface: detect.py must not be worse.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import supervision
import torch
import trackers
from trackers.eval import compute_clear_metrics, compute_identity_metrics

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import detect
from benchmarks.tiles import cut_out, fading
from utils.boxes import box_iou
from utils.cli import Parser, guard
from utils.dataset.bundled.grounds import ground
from utils.files import ROOT
from utils.results.tracks import START_CONFIDENCE
from utils.results.video_writer import VideoFileWriter

SIDES = 360, 480
FPS = 25.0


def build_parser() -> Parser:
    """The command line of this benchmark."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", nargs="+", required=True, help="a detector of the digits: .pt or exported file")
    add("--data", default="data/digits.yaml", help="dataset YAML, whose validation objects move")
    add("--work", type=Path, default=ROOT / "runs/tracks", help="folder of the clips and the runs")
    add("--clips", type=int, default=4)
    add("--frames", type=int, default=100)
    add("--objects", type=int, default=6, help="of a clip")
    add("--imgsz", type=int, default=320)
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    return parser


def draw_clip(rng: np.random.Generator, objects: list, options: argparse.Namespace, path: Path) -> np.ndarray:
    """Write a clip, and return the boxes (frames, objects, 4) xyxy, NaN where less than half is visible.

    Half of the objects move down and half up, each through the middle of the picture.
    """
    height, width = SIDES
    picture = ground(rng, height, width).astype(np.float32)
    large = [found for found in objects if 40 < found[2][3] - found[2][1] < 90]
    movers = [large[rng.integers(len(large))] for _ in range(options.objects)]
    lanes = (rng.permutation(options.objects) + 0.5) / options.objects * (width - 100)
    boxes = np.full((options.frames, options.objects, 4), np.nan)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = VideoFileWriter(path, FPS, (width, height))
    starts, drift = rng.uniform(-0.1, 0.1, options.objects) * height, rng.uniform(-0.5, 0.5, options.objects)
    for index in range(options.frames):
        canvas = picture.copy()
        for number, (_, patch, box) in enumerate(movers):
            h, w = patch.shape[:2]
            way = starts[number] + (index + 1) / options.frames * (height + 0.2 * height) - h / 2
            top = round(way if number % 2 else height - h - way)
            left = round(lanes[number] + drift[number] * index)
            y1, x1, y2, x2 = max(top, 0), max(left, 0), min(top + h, height), min(left + w, width)
            if y1 >= y2 or x1 >= x2:
                continue
            part = slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)
            seen = canvas[y1:y2, x1:x2]
            seen += fading(h, w)[part] * (patch[part].astype(np.float32) - seen)
            whole = box + (left, top, left, top)
            clipped = whole.clip(0, (width, height, width, height))
            shown = (clipped[2:] - clipped[:2]).clip(0).prod() / (whole[2:] - whole[:2]).prod()
            if shown >= 0.5:
                boxes[index, number] = clipped
        writer.write(canvas.clip(0, 255).astype(np.uint8))
    writer.close()
    return boxes


def crossings(boxes: np.ndarray, y: float) -> tuple[int, int]:
    """How many objects pass the height y as a whole, upwards and downwards."""
    up = down = 0
    for track in boxes.transpose(1, 0, 2):
        sides = [1 if box[1] > y else -1 for box in track[~np.isnan(track[:, 0])] if box[1] > y or box[3] < y]
        changes = np.diff(sides)
        up, down = up + int((changes < 0).sum()), down + int((changes > 0).sum())
    return up, down


def library_ids(found: list[detect.Detection]) -> list[np.ndarray]:
    """The numbers that the tracker gives to the same boxes by its own interface."""
    tracker = trackers.ByteTrackTracker(
        frame_rate=FPS, track_activation_threshold=START_CONFIDENCE, high_conf_det_threshold=START_CONFIDENCE
    )
    numbers = []
    for one in found:
        rows = one.boxes.astype(float)
        given = supervision.Detections(
            xyxy=rows[:, :4],
            confidence=rows[:, 4],
            class_id=rows[:, 5].astype(int),
            data={"row": np.arange(len(rows))},
        )
        tracked = tracker.update(given)
        ids = np.full(len(rows), -1)
        if len(tracked):
            ids[tracked.data["row"]] = tracked.tracker_id
        numbers.append(ids)
    return numbers


def measure(truth: np.ndarray, found: list[detect.Detection], ids: list[np.ndarray]) -> dict[str, float]:
    """IDF1 parts and switches of one clip; boxes without a number count as not found."""
    wanted, given, overlaps = [], [], []
    for boxes, one, numbers in zip(truth, found, ids):
        here, kept = ~np.isnan(boxes[:, 0]), numbers >= 0
        wanted.append(np.flatnonzero(here))
        given.append(numbers[kept])
        rows = torch.from_numpy(one.boxes[kept, :4].astype(float))
        overlaps.append(box_iou(torch.from_numpy(boxes[here]), rows).numpy())
    identity = compute_identity_metrics(wanted, given, overlaps)
    clear = compute_clear_metrics(wanted, given, overlaps)
    return {key: identity[key] for key in ("IDTP", "IDFN", "IDFP")} | {
        "IDSW": clear["IDSW"],
        "MOTA": clear["MOTA"],
    }


def main() -> None:
    """Print a line for each clip, and the sums."""
    options = build_parser().parse_args()
    objects = cut_out(options.data)
    y = SIDES[0] / 2
    line = f"0,{y:g},{SIDES[1]},{y:g}"
    sums: dict[str, dict[str, float]] = {"detect.py": {}, "the library": {}}
    for number in range(options.clips):
        path = options.work / f"clip{number}.mp4"
        truth = draw_clip(np.random.default_rng((options.seed, number)), objects, options, path)
        result = detect.run(
            weights=options.weights,
            source=str(path),
            imgsz=options.imgsz,
            device=options.device,
            project=str(options.work / "runs"),
            track=True,
            count_line=line,
        )
        found = list(result.detections)
        (count,) = result.counts
        print(
            f"clip {number}: {options.frames} frames in, {len(found)} out;",
            f"in/out {count['in']}/{count['out']},",
            end=" ",
        )
        print("truth {}/{}".format(*crossings(truth, y)))
        for who, ids in (("detect.py", [one.ids for one in found]), ("the library", library_ids(found))):
            for key, value in measure(truth, found, ids).items():
                sums[who][key] = sums[who].get(key, 0) + value
    print(f"{'':14}{'IDF1':>8}{'switches':>10}{'MOTA':>8}")
    for who, total in sums.items():
        idf1 = total["IDTP"] / (total["IDTP"] + 0.5 * total["IDFN"] + 0.5 * total["IDFP"])
        print(f"{who:14}{idf1:>8.3f}{total['IDSW']:>10.0f}{total['MOTA'] / options.clips:>8.3f}")


if __name__ == "__main__":
    guard(main)
