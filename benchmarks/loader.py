"""Images per second of the loader alone: decoded images cached in memory, mosaic on, nothing trained.

    python benchmarks/loader.py --data data/digits.yaml --imgsz 320 --batch-size 16

Training at n images/s wants at least 4 n here, or it waits for its data.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from utils.cli import Parser, guard
from utils.dataset.config import load_dataset
from utils.dataset.detection_dataset import BatchOptions
from utils.dataset.images import load_images
from utils.dataset.loader import build_loader
from utils.device import describe
from utils.files import find_file, load_yaml


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", default="data/digits.yaml", help="dataset YAML; its train images are loaded"
    )
    parser.add_argument(
        "--hyp", default="data/hyps/hyp.scratch-low.yaml", help="augmentation hyperparameters"
    )
    parser.add_argument("--imgsz", "--img", type=int, default=320, help="side of an image in pixels")
    parser.add_argument("--batch-size", type=int, default=16, help="images per batch")
    parser.add_argument("--workers", type=int, default=1, help="loader processes; 0 loads in this one")
    parser.add_argument("--cache", default="ram", choices=("ram", "disk", "no"), help="decoded images")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the images that are timed")
    return parser


def main() -> None:
    """Load some epochs and print images/s of each and of the best."""
    opt = build_parser().parse_args()
    images = load_images(load_dataset(opt.data), "train")
    options = BatchOptions(
        opt.imgsz,
        opt.batch_size,
        hyp=load_yaml(find_file(opt.hyp, "data/hyps")),
        cache=None if opt.cache == "no" else opt.cache,
    )
    loader = build_loader(images, options, workers=opt.workers, shuffle=True)
    rates = []
    for epoch in range(opt.epochs + 1):
        loader.set_epoch(epoch)
        start, seen = time.perf_counter(), 0
        for batch, _, _, _ in loader:
            seen += len(batch)
        rates.append(seen / (time.perf_counter() - start))
    loader.close()
    timed = rates[1:]  # the first epoch starts the workers
    print(
        f"{describe(torch.device('cpu'))}: {len(images)} images, {opt.imgsz} px, batch {opt.batch_size}, "
        f"{loader.workers} workers, cache {opt.cache}"
    )
    print(f"images/s by epoch: {', '.join(f'{rate:.0f}' for rate in timed)}")
    print(f"best: {max(timed):.0f} images/s, {1000 / max(timed):.2f} ms/image")


if __name__ == "__main__":
    guard(main)
