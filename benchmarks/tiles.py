"""What tiles find: AP of small, medium and large objects in large images, with and without --tile.

    python benchmarks/tiles.py --weights runs/train/digits/weights/best.pt

pastes the digits of the validation images, most of them small, into large canvases, measures the weights on
these by val.py --coco-eval with the whole image only, with tiles and the whole image, and with tiles only,
and prints a table. Sizes are COCO's: small is below 32 x 32 pixels of the image, large from 96 x 96 on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import val
from utils.boxes import xywhn2xyxy, xyxy2xywhn
from utils.cli import Parser, guard
from utils.dataset.bundled.grounds import ground
from utils.dataset.config import load_dataset
from utils.dataset.images import load_images
from utils.device import describe, select_device
from utils.files import ROOT, save_yaml
from utils.images import load_image

HEIGHTS = ((12, 31, 0.7), (32, 95, 0.2), (96, 500, 0.1))
"""Least and most height of an object in pixels, and the share of such ones."""
MARGIN = 0.2  # of a box, pasted around it and blended into the canvas
GAP = 4  # pixels between two objects at least
TRIES = 40


def build_parser() -> Parser:
    """The command line of this benchmark."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", nargs="+", required=True, help="a detector of the digits: .pt or exported file")
    add("--data", default="data/digits.yaml", help="dataset YAML, whose validation objects are pasted")
    add("--work", type=Path, default=ROOT / "runs/tiles", help="folder of the canvases and the runs")
    add("--images", type=int, default=12, help="canvases")
    add("--objects", type=int, default=60, help="of a canvas")
    add("--sides", type=int, nargs=2, default=(2000, 3000), help="least and most pixels of a side")
    add("--imgsz", type=int, default=224, help="of the network, and of a tile")
    add("--overlap", type=float, default=0.2, help="of the tiles")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    return parser


def cut_out(data: str) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Every validation object: its class, its pixels with a margin, and its box xyxy in these."""
    config = load_dataset(data)
    images = load_images(config, "val", workers=0)
    objects = []
    for index in range(len(images)):
        image, labels = load_image(images.path(index)), images.labels(index)
        height, width = image.shape[:2]
        for cls, box in zip(labels[:, 0], xywhn2xyxy(labels[:, 1:], width, height)):
            around = MARGIN * np.tile(box[2:] - box[:2], 2) * (-1, -1, 1, 1)
            x1, y1, x2, y2 = (box + around).round().astype(int)
            if min(x1, y1) >= 0 and x2 <= width and y2 <= height:
                objects.append((int(cls), image[y1:y2, x1:x2], box - (x1, y1, x1, y1)))
    return objects


def compose(
    rng: np.random.Generator,
    objects: Sequence[tuple[int, np.ndarray, np.ndarray]],
    sides: Sequence[int],
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """One canvas BGR, and its labels (k, 5) class + xywh normalised."""
    height, width = (int(side) for side in rng.integers(sides[0], sides[1] + 1, 2))
    canvas = ground(rng, height, width).astype(np.float32)
    taken, labels = np.zeros((height, width), bool), []
    kinds = rng.choice(len(HEIGHTS), count, p=[share for *_, share in HEIGHTS])
    for kind in sorted(kinds.tolist(), reverse=True):  # large ones first, because they need most room
        cls, patch, box = objects[rng.integers(len(objects))]
        low, high, _ = HEIGHTS[kind]
        scale = float(np.exp(rng.uniform(np.log(low), np.log(high)))) / (box[3] - box[1])
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        patch = cv2.resize(patch, None, fx=scale, fy=scale, interpolation=method).astype(np.float32)
        h, w = patch.shape[:2]
        for _ in range(TRIES):
            top, left = int(rng.integers(2, height - h - 2)), int(rng.integers(2, width - w - 2))
            window = slice(top, top + h), slice(left, left + w)
            if not taken[window].any():
                taken[max(top - GAP, 0) : top + h + GAP, max(left - GAP, 0) : left + w + GAP] = True
                canvas[window] += fading(h, w) * (patch.clip(0, 255) - canvas[window])
                labels.append((cls, *(box * scale + (left, top, left, top))))
                break
    rows = np.array(labels, np.float32).reshape(-1, 5)
    rows[:, 1:] = xyxy2xywhn(rows[:, 1:], width, height)
    return canvas.clip(0, 255).round().astype(np.uint8), rows


def fading(height: int, width: int) -> np.ndarray:
    """Weights (h, w, 1) that are 1 on the object and fall to 0 across its margin."""
    rows, columns = (np.arange(n) + 0.5 for n in (height, width))
    edge = [
        np.minimum(at, n - at) / (0.8 * MARGIN / (1 + 2 * MARGIN) * n)
        for at, n in ((rows, height), (columns, width))
    ]
    return (edge[0].clip(0, 1)[:, None] * edge[1].clip(0, 1))[..., None]


def write_set(options: argparse.Namespace) -> Path:
    """Write the canvases and their YAML, which it returns."""
    folder = options.work / "set"
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True, exist_ok=True)
        for old in (folder / kind / "val").iterdir():
            old.unlink()
    objects = cut_out(options.data)
    for number in range(options.images):
        rng = np.random.default_rng((options.seed, number))
        canvas, rows = compose(rng, objects, options.sides, options.objects)
        cv2.imwrite(str(folder / "images" / "val" / f"{number:03d}.png"), canvas)
        text = "".join(f"{int(c)} {x:.7f} {y:.7f} {w:.7f} {h:.7f}\n" for c, x, y, w, h in rows.tolist())
        (folder / "labels" / "val" / f"{number:03d}.txt").write_text(text)
    names = load_dataset(options.data).names
    save_yaml(
        folder / "tiles.yaml",
        {"path": str(folder), "train": "images/val", "val": "images/val", "names": names},
    )
    return folder / "tiles.yaml"


def main() -> None:
    """Print the table."""
    options = build_parser().parse_args()
    data = write_set(options)
    common = {"weights": options.weights, "data": str(data), "imgsz": options.imgsz, "device": options.device}
    common |= {"coco_eval": True, "max_det": 1000, "project": str(options.work / "runs"), "workers": 0}
    tiled = {"tile": True, "overlap": options.overlap}
    print(
        f"{options.images} canvases of {options.sides[0]} to {options.sides[1]} px,",
        describe(select_device(options.device)),
    )
    print(f"{'':24}{'AP small':>10}{'medium':>10}{'large':>10}{'all':>10}{'mAP50':>10}{'ms/image':>10}")
    for title, more in (
        ("whole image", {}),
        ("--tile", tiled),
        ("--tile --tiles-only", tiled | {"tiles_only": True}),
    ):
        result = val.run(**common, **more)
        stats = result.coco.stats
        figures = [stats[f"map_{size}"] for size in ("small", "medium", "large")] + [
            stats["map"],
            stats["map50"],
        ]
        row = "".join(f"{value:>10.3f}" for value in figures)
        print(f"{title:24}{row}{sum(result.speed.values()):>10.0f}")


if __name__ == "__main__":
    guard(main)
