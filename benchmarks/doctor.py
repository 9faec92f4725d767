"""How many planted label errors data/check.py finds, of each kind.

    python benchmarks/doctor.py
    python benchmarks/doctor.py --voc BCCD --start yolov5n.pt --recipe adamw --imgsz 320 --epochs 12

copies a data set (the digits; with --voc a folder in Pascal VOC's layout, converted), removes, adds, renames
and shifts 5 % of the labels each, trains on these labels (or takes --weights), runs data/check.py and prints
for each kind the recall of the planted errors among the first findings of that kind: as many as a tenth of
the labels. Errors that the data set had before count as false alarms, so the figures are lower bounds.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from data import check
from utils.boxes import box_iou, xywh2xyxy
from utils.cli import Parser, guard
from utils.dataset.config import load_dataset
from utils.dataset.image_set import ImageSet
from utils.dataset.images import load_images
from utils.dataset_checks.findings import Finding
from utils.dataset_checks.suspects import SUSPECTS
from utils.device import describe, select_device
from utils.files import ROOT, save_yaml

FREE = 0.1  # most IoU of a spurious box with a label
SHIFTED = (0.3, 0.7)  # IoU of a shifted box with the right one


def build_parser() -> Parser:
    """The command line of this benchmark."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="data/digits.yaml", help="dataset YAML")
    add("--voc", type=Path, help="a folder in Pascal VOC's layout instead")
    add("--work", type=Path, default=ROOT / "runs/doctor", help="scratch folder")
    add("--share", type=float, default=0.05, help="of the labels, for each kind of error")
    add("--seed", type=int, default=0)
    add("--weights", default="", help="trained on the planted labels; without it they are trained on here")
    add("--recipe", default="digits", help="of the training")
    add("--start", default="", help="weights that the training starts from")
    for name in ("epochs", "imgsz", "batch-size"):
        add(f"--{name}", type=int, help="of the training (without it the recipe's)")
    return parser


@dataclass(frozen=True)
class Planted:
    """One planted error: its kind, the label file, the line (0: removed) and the row as it was or is."""

    kind: str
    file: str
    line: int
    row: tuple[float, ...]


def plant(images: ImageSet, folder: Path, split: str, share: float, seed: int, nc: int) -> list[Planted]:
    """Copy a split into a folder with errors in its labels, and return these."""
    rng = np.random.default_rng((seed, *split.encode()))
    total = len(images.all_labels)
    count = round(share * total)
    drawn = rng.permutation(total)[: 4 * count].reshape(4, count)
    owner = np.repeat(np.arange(len(images)), np.diff(images.offsets))
    error_of = {int(row): kind for kind, rows in zip(SUSPECTS, drawn) for row in rows}
    added = [rows for kind, rows in zip(SUSPECTS, drawn) if kind == "spurious-label"][0]
    places = rng.integers(len(images), size=count)  # a box like another label's, in any image
    planted: list[Planted] = []
    for index in range(len(images)):
        label = folder / "labels" / split / f"{index:06d}.txt"
        rows: list[tuple[float, ...]] = []
        for number in np.flatnonzero(owner == index).tolist():
            row, kind = tuple(images.all_labels[number].tolist()), error_of.get(number, "")
            if kind == "missing-label":
                planted.append(Planted(kind, str(label), 0, row))
                continue
            if kind == "wrong-class":
                row = (float((row[0] + rng.integers(1, nc)) % nc), *row[1:])
            elif kind == "shifted-box":
                row = shift(row, rng)
            rows.append(row)
            if kind in ("wrong-class", "shifted-box"):
                planted.append(Planted(kind, str(label), len(rows), row))
        for number in added[places == index].tolist():
            rows.append(free_box(tuple(images.all_labels[number].tolist()), images.labels(index), rng))
            planted.append(Planted("spurious-label", str(label), len(rows), rows[-1]))
        write_labels(label, rows)
        image = Path(images.path(index))
        copy = folder / "images" / split / f"{index:06d}{image.suffix}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, copy)
    return planted


def write_labels(path: Path, rows: Sequence[tuple[float, ...]]) -> None:
    """Write a label file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{int(row[0])} {' '.join(f'{value:.6f}' for value in row[1:])}\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def shift(row: tuple[float, ...], rng: np.random.Generator) -> tuple[float, ...]:
    """Move a box in a random direction, towards the inside of the image, to an IoU of 0.3 to 0.7."""
    cls, xc, yc, w, h = row
    iou, angle = rng.uniform(*SHIFTED), rng.uniform(0, math.pi / 2)
    # Moved by t cos and t sin of its sides, it keeps (1 - t cos)(1 - t sin) = 2 IoU / (1 + IoU) of its area.
    c, s, kept = math.cos(angle), math.sin(angle), 2 * iou / (1 + iou)
    a, b = c * s, c + s
    t = 2 * (1 - kept) / (b + math.sqrt(b * b - 4 * a * (1 - kept)))
    return cls, xc + t * c * w * (1 if xc < 0.5 else -1), yc + t * s * h * (1 if yc < 0.5 else -1), w, h


def free_box(row: tuple[float, ...], labels: np.ndarray, rng: np.random.Generator) -> tuple[float, ...]:
    """Put a box where it overlaps no label, or in a full image where it overlaps them least."""
    cls, _, _, w, h = row
    centres = rng.uniform((w / 2, h / 2), (1 - w / 2, 1 - h / 2), (200, 2))
    boxes = np.concatenate((centres, np.broadcast_to((w, h), centres.shape)), axis=1)
    most = overlaps(boxes, labels[:, 1:5]).max(axis=1, initial=0)
    x, y = centres[int((most > FREE).argmin() if (most <= FREE).any() else most.argmin())].tolist()
    return cls, x, y, w, h


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (n, m) of xywh boxes (n, 4) and (m, 4)."""
    first, second = (xywh2xyxy(torch.from_numpy(np.asarray(x, np.float64).reshape(-1, 4))) for x in (a, b))
    return box_iou(first, second).numpy()


def is_found(error: Planted, findings: Sequence[Finding], same_kind: bool = True) -> bool:
    """Whether one of the findings is this error: at its line, or a missing label at its place."""
    for finding in findings:
        if finding.file != error.file or (same_kind and finding.kind != error.kind):
            continue
        if error.line:
            if finding.line == error.line:
                return True
        elif finding.kind == "missing-label":
            row = np.array([float(value) for value in finding.row.split()])
            if overlaps(row[1:], np.array(error.row[1:]))[0, 0] >= 0.5:
                return True
    return False


def make_data(opt: argparse.Namespace) -> tuple[Path, list[Planted], int]:
    """Write the data set with planted errors: its YAML, the errors, the number of its labels."""
    source = opt.data
    if opt.voc:
        folder = opt.work / "converted"
        if not folder.exists():
            subprocess.run(
                [sys.executable, str(ROOT / "data/convert.py"), "voc", str(opt.voc), str(folder)], check=True
            )
        source = str(next(folder.glob("*.yaml")))
    config = load_dataset(source)
    folder = (opt.work / f"{Path(source).stem}-planted").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    planted, labels = [], 0
    splits = [split for split in ("train", "val") if split in config.splits]
    for split in splits:
        images = load_images(config, split)
        planted += plant(images, folder, split, opt.share, opt.seed, len(config.label_names))
        labels += len(images.all_labels)
    yaml_path = folder / f"{folder.name}.yaml"
    save_yaml(
        yaml_path, {"path": str(folder), **{s: f"images/{s}" for s in splits}, "names": config.label_names}
    )
    return yaml_path, planted, labels


def trained(opt: argparse.Namespace, data: Path) -> str:
    """Train on the planted labels; returns the last checkpoint."""
    asked = {name: getattr(opt, name) for name in ("epochs", "imgsz", "batch_size") if getattr(opt, name)}
    if opt.start:
        asked |= {"weights": opt.start, "cfg": ""}
    result = train.run(
        recipe=opt.recipe,
        data=str(data),
        seed=opt.seed,
        cache="ram",
        noval=True,
        noplots=True,
        project=str(opt.work / "train"),
        name=data.stem,
        **asked,
    )
    return str(result.last)


def main() -> None:
    """Plant, train, check, and print the table."""
    opt = build_parser().parse_args()
    data, planted, labels = make_data(opt)
    weights = opt.weights or trained(opt, data)
    found = check.run(data=str(data), weights=weights, imgsz=opt.imgsz, project=str(opt.work / "check"))
    suspects = found.sections[-1].kinds()
    most = labels // 10
    print(f"\n{data.stem}: {labels} labels, {describe(select_device(''))}, {weights}")
    print(f"| kind | planted | found in the first {most} of its kind | found at all | findings |")
    print("|---|---|---|---|---|")
    for kind in SUSPECTS:
        errors, listed = [error for error in planted if error.kind == kind], suspects.get(kind, [])
        first, ever = (
            sum(is_found(e, part) for e in errors) / len(errors) for part in (listed[:most], listed)
        )
        print(f"| {kind} | {len(errors)} | {first:.0%} | {ever:.0%} | {len(listed)} |")
    everything = sorted((f for listed in suspects.values() for f in listed), key=lambda f: -f.score)
    for part in (most, 2 * most):
        first = sum(is_found(error, everything[:part], same_kind=False) for error in planted)
        print(
            f"first {part} of all kinds: {first} of {len(planted)} planted errors, {first / len(planted):.0%}"
        )


if __name__ == "__main__":
    guard(main)
