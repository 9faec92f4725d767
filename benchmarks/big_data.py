"""Measure how a data set of many images starts: first scan, cached start, memory, growth while it is read.

    python benchmarks/big_data.py --images 100000 --rows 10

The images are links to one drawn picture, each with a label file of its own. CPU seconds count all processes.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np

from utils.cli import Parser, guard
from utils.dataset.config import load_dataset
from utils.dataset.images import load_images
from utils.files import save_yaml


def make(folder: Path, images: int, rows: int, side: int) -> Path:
    """Write the data set, and return its YAML."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    noise = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
    for i in range(images):
        picture = folder / f"picture{i // 10_000}.jpg"  # a file can have 65 000 links
        if not picture.exists():
            cv2.imwrite(str(picture), noise)
        os.link(picture, folder / "images" / "train" / f"{i:06d}.jpg")
        boxes = np.column_stack((rng.integers(0, 80, rows), rng.uniform(0.2, 0.4, (rows, 4))))
        text = "".join(f"{int(c)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, x, y, w, h in boxes)
        (folder / "labels" / "train" / f"{i:06d}.txt").write_text(text)
    path = folder / "many.yaml"
    save_yaml(path, {"path": str(folder), "train": "images/train", "val": "images/train", "nc": 80})
    return path


def start(data: str) -> None:
    """Start once, and print seconds, CPU seconds, MiB, and the MiB that reading all labels adds."""
    begun, cpu = time.perf_counter(), _cpu()
    images = load_images(load_dataset(data), "train")
    seconds, cpu = time.perf_counter() - begun, _cpu() - cpu
    before = _mib()
    total = sum(len(images.labels(i)) + len(images.path(i)) * 0 for i in range(len(images)))
    print(f"{len(images)} {total} {seconds:.1f} {cpu:.1f} {before:.0f} {_mib() - before:.0f}")


def _cpu() -> float:
    """Return the CPU seconds of this process and of those that it has waited for."""
    own, children = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _mib() -> float:
    """Return the largest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000, help="images of the set")
    parser.add_argument("--rows", type=int, default=10, help="boxes of each")
    parser.add_argument("--side", type=int, default=320, help="pixels of the picture, of noise")
    parser.add_argument("--start", default="", help="only start this data set and print its figures")
    return parser


def main() -> None:
    """Print one line for the first start and one for each of three cached ones."""
    opt = build_parser().parse_args()
    if opt.start:
        start(opt.start)
        return
    with tempfile.TemporaryDirectory() as folder:
        data = make(Path(folder), opt.images, opt.rows, opt.side)
        print("start | images | boxes | seconds | CPU seconds | MiB | MiB more after reading all labels")
        for name in ("first", "cached", "cached", "cached"):
            done = subprocess.run(
                [sys.executable, __file__, "--start", str(data)], capture_output=True, text=True, check=True
            )
            print(f"{name} | {' | '.join(done.stdout.splitlines()[-1].split())}", flush=True)


if __name__ == "__main__":
    guard(main)
