"""Measure a detector on a labelled data set: precision, recall, mAP, speed.

python val.py --weights runs/train/exp/weights/best.pt --data data/digits.yaml
"""

from __future__ import annotations

import contextlib
import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.backends import check_channels, load_backend
from models.plugins import load_plugins
from models.weights.checkpoint import load_checkpoint
from models.weights.releases import fetch_missing
from utils.cli import WORKERS_HELP, from_keywords, given, guard, option, parse
from utils.dataset.config import DatasetConfig, check_classes, load_dataset
from utils.dataset.detection_dataset import BatchOptions
from utils.dataset.images import load_images
from utils.dataset.loader import build_loader, workers_beside
from utils.device import describe, limit_threads, select_device, tune_allocator
from utils.errors import UserError
from utils.evaluation.coco import (
    COCO_CATEGORY_IDS,
    CocoEvaluator,
    coco_evaluate,
    installed_evaluator,
    is_coco,
    json_image_id,
    prediction_rows,
)
from utils.evaluation.evaluate import EvalOptions, ImageResult, ValResult, evaluate, log_table
from utils.evaluation.metrics import save_metrics
from utils.evaluation.plots import plot_study
from utils.evaluation.run_page import measurement, write_run_page
from utils.files import RUNS_DIR, atomic_text, atomic_write, increment_dir
from utils.image_size import fit_side
from utils.nms import NmsOptions
from utils.profiling import summary
from utils.results.result_files import StemBook, label_lines
from utils.tiles import TileOptions
from utils.training.run_folder import with_newest_run

__all__ = ["ValResult", "evaluate", "run"]

LOGGER = logging.getLogger("yolo.val")
METRIC_CONFIDENCE = 0.001  # above it recall is cut off and mAP is no longer comparable
STUDY_SIZES = tuple(range(256, 1536 + 1, 128))
# What a task does not write about each image.
_UNSAVED = {
    "study": ("save_txt", "save_hybrid", "save_conf", "save_json", "coco_eval"),
    "speed": ("save_json",),
}


@dataclass(frozen=True)
class ValOptions(TileOptions):
    """Measure a detector on a labelled data set.

    Some options follow from others: `save_hybrid` saves as `save_txt` does, COCO's own YAML asks for
    `save_json`, and `task` speed measures with the thresholds of a detection.
    """

    data: str = option(
        "data/coco128.yaml",
        help="dataset YAML (default: that of the run without --weights, else data/coco128.yaml)",
    )
    weights: list[str] = option(
        [],
        help="a .pt or exported file, or an official name such as yolov5s.pt; several .pt: an ensemble "
        "(default: the newest best.pt below runs/train)",
    )
    batch_size: int = option(32, help="images per batch; with --tile: tiles per batch")
    imgsz: int = option(
        640,
        flags=("--img", "--img-size"),
        help="longer side of the images in pixels (default: that of the run without --weights, else 640)",
    )
    conf_thres: float = option(METRIC_CONFIDENCE, help="least confidence")
    iou_thres: float = option(0.6, help="IoU above which NMS drops the weaker box")
    max_det: int = option(300, help="most detections per image")
    task: str = option(
        "val",
        choices=("train", "val", "test", "speed", "study"),
        help="the split to measure; speed: conf 0.25, IoU 0.45, square; study: sizes 256 to 1536",
    )
    device: str = option("", type=str, help="cpu, 0, cuda:1; empty: CUDA if there is any")
    workers: int | None = option(None, help=WORKERS_HELP)
    single_cls: bool = option(False, help="treat all classes as one")
    augment: bool = option(False, help="test-time augmentation (.pt only)")
    verbose: bool = option(False, help="one line per class")
    save_txt: bool = option(False, help="save labels/<name>.txt: class xc yc w h, normalised")
    save_hybrid: bool = option(False, help="save labels together with predictions as --save-txt")
    save_conf: bool = option(False, help="add the confidence to --save-txt")
    save_json: bool = option(False, help="save <weights>_predictions.json in COCO's format")
    coco_eval: bool = option(False, help="also give the COCO-exact figures, for any data set")
    noplots: bool = option(False, help="draw nothing, and write no report.html")
    project: str = option(str(RUNS_DIR / "val"), help="folder of the runs")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._follow(save_txt=self.save_txt or self.save_hybrid)
        if self.task == "speed":
            self._follow(conf_thres=0.25, iou_thres=0.45)
        elif self.task != "study":
            self._follow(save_json=self.save_json or Path(self.data).name == "coco.yaml")

    def check(self) -> None:
        """Refuse values and combinations that cannot work."""
        for name in _UNSAVED.get(self.task, ()):
            if getattr(self, name):
                raise UserError(
                    f"--task {self.task} does not write what --{name.replace('_', '-')} asks for; "
                    "leave it out, or use --task val"
                )
        self.at_least(batch_size=1, imgsz=1, max_det=1)
        self.check_tiles()
        if self.task == "study" and self.tile is not False:
            raise UserError("--task study with --tile: it measures whole images at each size; use --task val")


def parse_opt(argv: Sequence[str] | None = None) -> ValOptions:
    """Return the options of a command line, with all defaults."""
    return parse(ValOptions, argv)


def run(**options: Any) -> ValResult:
    """Validate, with the command line's options as keywords.

    `speed` and `study` take several weights one after another and return the last result; otherwise several
    `.pt` are an ensemble.

    Raises:
        UserError: an option that cannot be honoured, weights or data that do not fit together.
    """
    opt = from_keywords(ValOptions, with_newest_run(options, data=True))
    if opt.coco_eval:
        installed_evaluator()
    fetch_missing(*opt.weights)
    load_plugins(opt.plugins)
    if opt.task == "study":
        return _study(opt)
    if opt.task == "speed":
        return [_Validation(opt, [weights]).run() for weights in opt.weights][-1]
    if opt.conf_thres > METRIC_CONFIDENCE:
        LOGGER.warning("--conf-thres %g > %g: mAP will not be comparable", opt.conf_thres, METRIC_CONFIDENCE)
    if opt.save_hybrid:
        LOGGER.warning("--save-hybrid: labels are among the predictions, so the metrics mean nothing")
    return _Validation(opt, opt.weights).run()


class _Validation:
    """Hold one set of weights and one split, to measure at one or several sizes."""

    def __init__(self, opt: ValOptions, weights: list[str]) -> None:
        self.opt, self.weights = opt, weights
        self.device = select_device(opt.device)
        if self.device.type == "cpu":
            tune_allocator()
            limit_threads()
        self.config = load_dataset(opt.data, single_cls=opt.single_cls)
        self.backend = load_backend(
            weights, self.device, half=opt.half, dnn=opt.dnn, names=self.config.label_names
        )
        check_channels(self.backend.path, self.backend.ch)
        check_classes(self.backend.path, self.backend.names, self.config)
        self.split = opt.task if opt.task in ("train", "test") else "val"
        if self.split not in self.config.splits:
            have = ", ".join(self.config.splits)
            raise UserError(
                f"{self.config.path}: has no '{self.split}' split, only {have}; choose another --task"
            )
        self.images = load_images(self.config, self.split, workers=opt.workers)

    def run(self) -> ValResult:
        """Validate with everything the options ask for, into a folder of its own."""
        opt = self.opt
        save_dir = increment_dir(opt.project, opt.name, opt.exist_ok)
        saver = _Saver(opt, self.config, save_dir)
        imgsz = fit_side(opt.imgsz, self.backend.stride, only=self.backend.fixed_size)
        try:
            result = self.measure(imgsz, saver, plots=opt.task != "speed" and not opt.noplots)
        except BaseException:
            with contextlib.suppress(OSError):  # takes the folders only while they are empty
                (save_dir / "labels").rmdir()
            with contextlib.suppress(OSError):
                save_dir.rmdir()
            raise
        result.save_dir = save_dir
        log_table(result, self.config, opt.verbose)
        saver.finish(result, f"{Path(self.weights[0]).stem}_predictions.json", self.split)
        self._report(result, imgsz)
        return result

    def measure(self, imgsz: int, saver: _Saver | None = None, plots: bool = False) -> ValResult:
        """Validate at one image size."""
        opt, backend = self.opt, self.backend
        rect = opt.task != "speed"
        size = backend.fixed_size or (imgsz, imgsz)
        batches = backend.batch_options(imgsz, opt.batch_size, rect=rect)
        tiling = opt.tiling(size, backend.stride, batches.batch_size, rect and backend.rect_ok)
        loaded = batches if tiling is None else BatchOptions(imgsz, 1, native=True)
        loader = build_loader(self.images, loaded, workers=workers_beside(backend.device, opt.workers))
        try:
            backend.warmup((1 if backend.pytorch else batches.batch_size, 3, *size))
            return evaluate(
                backend,
                loader,
                self.config.names,
                EvalOptions(
                    nms=NmsOptions(opt.conf_thres, opt.iou_thres, max_det=opt.max_det),
                    single_cls=opt.single_cls,
                    augment=opt.augment,
                    hybrid=opt.save_hybrid,
                    plots_dir=saver.folder if saver and plots else None,
                    tiling=tiling,
                ),
                on_image=saver,
            )
        finally:
            loader.close()

    def _report(self, result: ValResult, imgsz: int) -> None:
        """Log the speed and where the files are, and write metrics.json."""
        speed = ", ".join(f"{ms:.1f} ms {stage}" for stage, ms in result.speed.items())
        LOGGER.info("speed per image at %d px: %s (%s)", imgsz, speed, describe(self.device))
        facts: dict[str, Any] = {}
        seed = None
        if self.backend.model is not None:  # the backend's is fused and perhaps float16: count on a fresh one
            checkpoint = load_checkpoint(self.backend.path)
            facts, seed = summary(checkpoint.model, imgsz), (checkpoint.meta or {}).get("seed")
        save_metrics(
            result.save_dir / "metrics.json",
            result.metrics,
            parameters=facts.get("parameters"),
            gflops=facts.get("gflops"),
            speed=result.speed,
            imgsz=imgsz,
            nc=self.config.nc,
            seed=seed,
            images=result.seen,
            instances=result.instances,
            coco=result.coco.stats if result.coco else None,
        )
        LOGGER.info("results saved to %s", result.save_dir)
        if result.mistakes is not None:
            self._write_page(result, imgsz)

    def _write_page(self, result: ValResult, imgsz: int) -> None:
        """Write report.html."""
        opt, names = self.opt, [Path(weights).name for weights in self.weights]
        assert result.save_dir is not None  # set by `run`
        facts: dict[str, object] = {
            "weights": ", ".join(map(str, self.weights)),
            "data": f"{self.split} images of {self.config.path}",
            "NMS": f"confidence {opt.conf_thres:g}, IoU {opt.iou_thres:g}, at most {opt.max_det} boxes",
            **measurement(result, imgsz, self.device),
        }
        title = f"{' and '.join(names)} on {self.config.path.name}"
        write_run_page(result.save_dir, title, result, self.config, facts)


@dataclass
class _Saver:
    """Take each image's result and keep what the options ask for."""

    opt: ValOptions
    config: DatasetConfig
    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stems = StemBook()
        self.categories = None
        if is_coco(self.config.path, self.config.splits, self.config.nc):
            self.categories = COCO_CATEGORY_IDS
        self.seen_ids: list[int | str] = []
        self.evaluator = CocoEvaluator(self.config.names) if self.opt.coco_eval else None
        if self.opt.save_txt:
            (self.folder / "labels").mkdir(exist_ok=True)

    def __call__(self, image: ImageResult) -> None:
        detections = image.detections.numpy()
        if self.opt.save_txt and len(detections):
            stem = self._stems.claim(Path(image.path).stem, False)
            lines = label_lines(detections, image.shape, conf=self.opt.save_conf)
            (self.folder / "labels" / f"{stem}.txt").write_text(lines, encoding="utf-8")
        if self.opt.save_json:
            self.seen_ids.append(json_image_id(image.path))
            self.rows += prediction_rows(self.seen_ids[-1], detections, self.categories)
        if self.evaluator is not None:
            self.evaluator.add(image.shape, image.labels.numpy(), detections, image.path)

    def finish(self, result: ValResult, json_name: str, split: str) -> None:
        """Write the predictions JSON and evaluate by COCO's own code, where asked for."""
        if self.evaluator is not None:
            result.coco = self.evaluator.evaluate()
        if self.opt.save_json:
            atomic_text(self.folder / json_name, json.dumps(self.rows))
            LOGGER.info("predictions saved to %s", self.folder / json_name)
            if self.categories and split == "val":
                self._evaluate_official(result)
        if result.coco is not None:
            LOGGER.info("COCO figures by %s:", result.coco.evaluator)
            LOGGER.info("  ".join(f"{name} {value:.3f}" for name, value in result.coco.stats.items()))

    def _evaluate_official(self, result: ValResult) -> None:
        """Evaluate COCO by its own annotations, with crowds, in place of ours."""
        truth_file = self.config.root / "annotations" / "instances_val2017.json"
        if not truth_file.is_file():
            LOGGER.info("%s is missing, so mAP stays as measured from the labels", truth_file)
            return
        truth = json.loads(truth_file.read_text(encoding="utf-8"))
        known = {image["id"] for image in truth["images"]}
        seen = [i for i in self.seen_ids if i in known]
        if not seen:
            LOGGER.info("%s knows none of these images, so mAP stays as measured from the labels", truth_file)
            return
        try:
            result.coco = coco_evaluate(truth, self.rows, seen)
        except UserError as error:  # no evaluator: the JSON is written, the measured figures stand
            LOGGER.warning("%s; mAP stays as measured from the labels", error)
            return
        result.metrics.map50, result.metrics.map = result.coco.map50, result.coco.map


def _study(opt: ValOptions) -> ValResult:
    """Validate at sizes 256 to 1536.

    Writes study_<data>_<weights>.txt for each, study.png and study.zip.
    """
    validations = [_Validation(opt, [weights]) for weights in opt.weights]
    for validation in validations:
        if validation.backend.fixed_size is not None:
            raise UserError(
                f"{validation.weights[0]}: --task study needs a file that takes any size; "
                "give a .pt or export it with --dynamic"
            )
    save_dir = increment_dir(opt.project, opt.name, opt.exist_ok)
    tables: dict[str, np.ndarray] = {}
    for validation in validations:
        rows = []
        for imgsz in STUDY_SIZES:
            result = validation.measure(imgsz)
            LOGGER.info("%s at %d px:", validation.weights[0], imgsz)
            log_table(result, validation.config, opt.verbose)
            m = result.metrics
            rows.append([m.precision, m.recall, m.map50, m.map, 0, 0, 0, *result.speed.values()])
        name = f"study_{validation.config.path.stem}_{Path(validation.weights[0]).stem}.txt"
        tables[name] = np.array(rows, dtype=float)
        atomic_write(save_dir / name, lambda file, table=tables[name]: np.savetxt(file, table, fmt="%10.4g"))
    plot_study(
        {Path(name).stem: table for name, table in tables.items()}, STUDY_SIZES, save_dir / "study.png"
    )
    atomic_write(save_dir / "study.zip", lambda file: _zip(file, [save_dir / name for name in tables]))
    result.save_dir = save_dir
    LOGGER.info("results saved to %s", save_dir)
    return result


def _zip(file: Any, paths: list[Path]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, path.name)


def main() -> None:
    """Run the command line."""
    run(**given(ValOptions))


if __name__ == "__main__":
    guard(main)
