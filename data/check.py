"""Check a data set for bad labels, duplicates, rare classes and small boxes.

    python data/check.py --data my.yaml
    python data/check.py --data my.yaml --weights runs/train/exp/weights/best.pt

With a trained network it also lists labels that are probably wrong. Nothing of the data set is changed; the
run's folder gets findings.json and index.html.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the project's folder is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.backends import check_channels, load_backend
from models.formats.base import Backend
from models.plugins import load_plugins
from models.weights.releases import fetch_missing
from models.yolo import DetectionModel
from utils.cli import WORKERS_HELP, RunOptions, from_keywords, given, option, parse
from utils.dataset.config import DatasetConfig, check_classes, load_dataset
from utils.dataset.loader import workers_beside
from utils.dataset_checks.anchor_fit import check_anchor_fit
from utils.dataset_checks.box_sides import check_box_sides
from utils.dataset_checks.class_counts import check_class_counts
from utils.dataset_checks.duplicates import check_duplicates
from utils.dataset_checks.findings import CheckedData, Section, TrainedNetwork
from utils.dataset_checks.image_shapes import check_image_shapes
from utils.dataset_checks.label_files import check_label_files
from utils.dataset_checks.page import findings_page
from utils.dataset_checks.report import findings_json, findings_text
from utils.dataset_checks.suspects import check_suspects
from utils.device import describe, select_device, tune_allocator
from utils.files import RUNS_DIR, atomic_text, find_file, increment_dir
from utils.image_size import fit_side
from utils.training.run_folder import RunFolder

LOGGER = logging.getLogger("yolo.check")

CHECKS = (
    check_label_files,
    check_duplicates,
    check_class_counts,
    check_image_shapes,
    check_box_sides,
    check_anchor_fit,
    check_suspects,
)


@dataclass(frozen=True)
class CheckOptions(RunOptions):
    """Check a data set, and change nothing of it."""

    data: str = option("data/coco128.yaml", help="dataset YAML")
    weights: str = option("", help="a trained .pt or exported file, to look for labels that are wrong")
    cfg: str = option("models/yolov5n.yaml", help="model YAML whose anchors are checked, without --weights")
    imgsz: int | None = option(
        None,
        flags=("--img", "--img-size"),
        help="longer side of the images in pixels (default: that of the training of --weights, else 640)",
    )
    batch_size: int = option(16, help="images per batch, with --weights")
    device: str = option("", type=str, help="cpu, 0, cuda:1; empty: CUDA if there is any")
    workers: int | None = option(None, help=WORKERS_HELP)
    project: str = option(str(RUNS_DIR / "check"), help="folder of the runs")

    def check(self) -> None:
        """Refuse values that cannot work."""
        self.at_least(imgsz=1, batch_size=1, workers=0)


@dataclass(frozen=True)
class CheckResult:
    """Hold a check's folder and what was found."""

    save_dir: Path
    sections: list[Section]


def parse_opt(argv: Sequence[str] | None = None) -> CheckOptions:
    """Return the options of a command line, with all defaults."""
    return parse(CheckOptions, argv)


def run(**options: object) -> CheckResult:
    """Check a data set, with the command line's options as keywords.

    Raises:
        UserError: the data set has no image that can be used, or the weights do not fit it.
    """
    opt = from_keywords(CheckOptions, options)
    if opt.weights:
        fetch_missing(opt.weights)
    load_plugins(opt.plugins)
    config = load_dataset(opt.data)
    data = read_data(opt, config, open_network(opt, config))
    sections = [check(data) for check in CHECKS]
    folder = increment_dir(opt.project, opt.name, opt.exist_ok)
    LOGGER.info("%s", findings_text(sections))
    atomic_text(folder / "findings.json", findings_json(data, sections))
    facts = {"data": config.path, "image size": f"{data.imgsz} px", "weights": opt.weights or "none"}
    title = f"Check of {config.path.name}"
    atomic_text(folder / "index.html", findings_page(title, sections, facts))
    found = sum(len(section.findings) for section in sections)
    LOGGER.info("\nfindings: %d, in %s; open %s", found, folder, folder / "index.html")
    return CheckResult(folder, sections)


def open_network(opt: CheckOptions, config: DatasetConfig) -> Backend | None:
    """Open the trained network, if one is given, and check its classes."""
    if not opt.weights:
        return None
    device = select_device(opt.device)
    if device.type == "cpu":
        tune_allocator()
    backend = load_backend(opt.weights, device, half=opt.half, dnn=opt.dnn, names=config.label_names)
    check_channels(backend.path, backend.ch)
    check_classes(backend.path, backend.names, config)
    LOGGER.info("%s on %s", backend.path, describe(device))
    return backend


def read_data(opt: CheckOptions, config: DatasetConfig, backend: Backend | None) -> CheckedData:
    """Read the images and labels, and return what the checks need."""
    imgsz = opt.imgsz or trained_imgsz(opt.weights) or 640
    model = backend.model if backend else None
    head = (model or DetectionModel(opt.cfg)).detect
    network = None
    if backend is not None:
        imgsz = fit_side(imgsz, backend.stride, only=backend.fixed_size)
        batches = backend.batch_options(imgsz, opt.batch_size)
        network = TrainedNetwork(backend, batches, workers_beside(backend.device, opt.workers))
    return CheckedData.read(config, imgsz, head if hasattr(head, "anchors") else None, opt.workers, network)


def trained_imgsz(weights: str) -> int:
    """Return the image size that weights were trained at; 0 if unknown."""
    if not weights:
        return 0
    imgsz = RunFolder.of(find_file(weights, folder=True)).read_options().get("imgsz")
    return imgsz if isinstance(imgsz, int) and imgsz > 0 else 0


def main() -> None:
    """Run the command line."""
    run(**given(CheckOptions))


if __name__ == "__main__":
    from utils.cli import guard

    guard(main)
