"""Which changed copies of images data/check.py finds, and how many different images it takes for copies.

    python benchmarks/near_duplicates.py FOLDER ...

changes every image of a folder in several ways, puts each changed image beside all the unchanged ones, and
prints the share that is found as a copy of its own original. The pairs among the unchanged images are listed,
so that one can look whether they are copies.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import Parser, guard
from utils.dataset.images import list_images
from utils.dataset_checks.duplicates import alike_pictures, thumbnail
from utils.images import load_image

Change = Callable[[np.ndarray], np.ndarray]


def jpeg(image: np.ndarray) -> np.ndarray:
    """The image saved anew with much loss."""
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 20])[1], cv2.IMREAD_COLOR)


def cut(image: np.ndarray, share: float) -> np.ndarray:
    """The image without a share of each side."""
    y, x = (round(share * side) for side in image.shape[:2])
    return image[y : image.shape[0] - y, x : image.shape[1] - x]


CHANGES: dict[str, Change] = {
    "0.4 times as large": lambda image: cv2.resize(image, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA),
    "JPEG of quality 20": jpeg,
    "0.7 of the contrast, brighter": lambda image: cv2.convertScaleAbs(image, alpha=0.7, beta=40),
    "gamma 0.6": lambda image: (255 * (image / 255) ** 0.6).astype(np.uint8),
    "1 % cut at each side": lambda image: cut(image, 0.01),
    "3 % cut at each side": lambda image: cut(image, 0.03),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
}


def measure(folder: Path) -> None:
    """Print the figures of one folder."""
    paths, _ = list_images([folder], folder)
    images = [load_image(path) for path in paths]
    thumbs, n = np.stack([thumbnail(image) for image in images]), len(images)
    partner, likeness = alike_pictures(thumbs, np.zeros(n, int))
    print(f"\n{folder}: {n} images, {int((partner >= 0).sum())} of them like another one")
    for j in np.flatnonzero(partner >= 0).tolist():
        print(f"  {Path(paths[j]).name} and {Path(paths[partner[j]]).name}: {likeness[j]:.3f}")
    for name, change in CHANGES.items():
        changed = np.stack([thumbnail(change(image)) for image in images])
        found, _ = alike_pictures(np.concatenate((thumbs, changed)), np.repeat([0, 1], n))
        print(f"  {name}: {(found[n:] == np.arange(n)).mean():.1%} found")


def build_parser() -> Parser:
    """The command line of this benchmark."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="folder of images")
    return parser


def main() -> None:
    """Measure each folder."""
    for folder in build_parser().parse_args().folders:
        measure(folder)


if __name__ == "__main__":
    guard(main)
