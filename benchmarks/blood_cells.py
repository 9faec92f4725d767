"""Several nets, several seeds, one recipe, one small real data set: BCCD blood cells (MIT licence).

    python benchmarks/blood_cells.py --voc BCCD --cfg models/yolov5n.yaml models/yolov5-mobilenetv2.yaml

converts the Pascal VOC folder (Annotations, ImageSets/Main, JPEGImages) into a scratch folder, trains every
net from scratch with every seed by one recipe (320 px, batch 16, 60 epochs, default hyperparameters unless
--hyp names others) and prints a Markdown table: the best checkpoint on the validation images, the mean over
the seeds, the seconds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from utils.cli import WORKERS_HELP, Parser, guard
from utils.device import describe, select_device
from utils.files import ROOT

NAMES = ("RBC", "WBC", "Platelets")


def build_parser() -> Parser:
    """The command line of this benchmark."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--voc", type=Path, required=True, help="BCCD as published, in Pascal VOC layout")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/blood-cells", help="scratch folder")
    parser.add_argument("--cfg", nargs="+", default=["models/yolov5n.yaml"], help="model YAMLs to train")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--hyp", default="data/hyps/hyp.scratch-low.yaml", help="hyperparameter YAML")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, help=WORKERS_HELP)
    parser.add_argument("--device", default="")
    return parser


def convert(voc: Path, folder: Path) -> Path:
    """Convert the VOC folder once; returns the dataset YAML."""
    yaml_path = folder / "data.yaml"
    if not yaml_path.exists():
        command = [sys.executable, str(ROOT / "data/convert.py"), "voc", str(voc), str(folder)]
        subprocess.run([*command, "--names", *NAMES], check=True)
        yaml_path = next(folder.glob("*.yaml"))
    return yaml_path


def one_run(opt: Namespace, data: Path, cfg: str, seed: int) -> dict:
    """Train one net with one seed; its best checkpoint's figures."""
    result = train.run(
        cfg=cfg,
        weights="",
        data=str(data),
        hyp=opt.hyp,
        imgsz=opt.imgsz,
        batch_size=opt.batch_size,
        epochs=opt.epochs,
        seed=seed,
        workers=opt.workers,
        device=opt.device,
        cache="ram",
        noplots=True,
        project=str(opt.work / "runs"),
        name=f"{Path(cfg).stem}-seed{seed}",
    )
    metrics = result.metrics
    return {
        "precision": metrics.precision,
        "recall": metrics.recall,
        "mAP50": metrics.map50,
        "mAP50-95": metrics.map,
        "seconds": result.seconds,
    }


def main() -> None:
    """Run every net with every seed and print the table."""
    opt = build_parser().parse_args()
    data = convert(opt.voc, opt.work / "data")
    columns = ["precision", "recall", "mAP50", "mAP50-95", "seconds"]
    rows = []
    for cfg in opt.cfg:
        runs = [one_run(opt, data, cfg, seed) for seed in opt.seeds]
        rows += [(Path(cfg).stem, str(seed), run) for seed, run in zip(opt.seeds, runs)]
        mean = {key: statistics.mean(run[key] for run in runs) for key in columns}
        rows.append((Path(cfg).stem, "mean", mean))
    recipe = f"{opt.imgsz} px, batch {opt.batch_size}, {opt.epochs} epochs, {opt.hyp}"
    print(f"\n{describe(select_device(opt.device))}; {recipe}")
    print(f"| net | seed | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for name, seed, run in rows:
        figures = " | ".join(f"{run[key]:.0f}" if key == "seconds" else f"{run[key]:.3f}" for key in columns)
        print(f"| {name} | {seed} | {figures} |")


if __name__ == "__main__":
    guard(main)
