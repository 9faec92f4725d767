"""Export a checkpoint to other formats, each file checked against PyTorch on a real image.

python export.py --weights runs/train/exp/weights/best.pt --include onnx torchscript --imgsz 640 --dynamic
"""

from __future__ import annotations

import contextlib
import copy
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import models.formats  # noqa: F401 registers the formats
from models.export_checks.accept import check_accuracy, check_difference, check_nms, compare
from models.export_checks.int8_accuracy import Accuracy, Quantiser
from models.formats.exporter import EXPORTERS, WORKSPACE, Exporter, Job, network_input
from models.formats.metadata import Metadata
from models.formats.nms_options import Suppression
from models.formats.onnx import OPSET, check_opset
from models.plugins import load_plugins
from models.weights.checkpoint import Checkpoint, load_checkpoint
from models.weights.releases import fetch_missing
from models.yolo import DetectionModel
from utils.cli import Options, from_keywords, given, guard, option, parse
from utils.dataset.config import load_dataset
from utils.dataset.images import list_images
from utils.device import select_device
from utils.errors import UserError, first_line
from utils.files import ROOT, find_file, path_size, replace_path
from utils.image_size import fit_size
from utils.results.model_card import ExportedFile, ModelCard, read_metrics
from utils.training.run_folder import RunFolder, with_newest_run

LOGGER = logging.getLogger("yolo.export")

NMS_BATCHES = 8  # of calibration images, on which the NMS of an int8 file is checked too
CALIBRATION_IMAGES = 100
ELSEWHERE = frozenset({"saved_model", "pb", "edgetpu", "tfjs", "paddle"})  # YOLOv5 has them, we do not
_NMS = Suppression()


@dataclass(frozen=True)
class ExportResult:
    """Describe one exported file.

    Attributes:
        format: its name in --include.
        path: the file.
        seconds: how long exporting and checking took.
        size_mb: its size in MB (10^6 bytes).
        max_score_diff: largest difference to PyTorch over every objectness and class score checked.
        max_box_diff: the same over centres, widths and heights, in pixels.
        precision: 'fp32', 'fp16' or 'int8'.
        accuracy: of an int8 file, the mAP on the validation images beside PyTorch's; None for others.
        detections: with NMS inside, how many were compared with what NMS makes of the network's boxes; the
            figures above are then of the network before it. None without NMS.
    """

    format: str
    path: Path
    seconds: float
    size_mb: float
    max_score_diff: float
    max_box_diff: float
    precision: str = "fp32"
    accuracy: Accuracy | None = None
    detections: int | None = None


class ExportError(UserError):
    """Say which formats failed; `results` holds those that did not."""

    def __init__(self, message: str, results: list[ExportResult]) -> None:
        super().__init__(message)
        self.results = results


@dataclass(frozen=True)
class ExportOptions(Options):
    """Export a checkpoint to other formats, each file checked against PyTorch on a real image.

    None means that an option is not given. A given one must concern a format that is exported.
    """

    REFUSED = {
        "--inplace": "the head here never writes into what it is given; leave it out",
        "--train": "exported files hold the network as it detects; leave it out",
        "--optimize": "PyTorch Mobile has ended; use --include executorch, its successor",
        "--keras": "TensorFlow is not used here; --include tflite does without it",
        "--per-tensor": "int8 weights have a scale for each channel, which loses less; leave it out",
        "--cache": "TensorRT's timings are not kept between exports; leave it out",
        "--mlmodel": "CoreML files are .mlpackage folders only; leave it out",
        "--topk-per-class": "NMS keeps the best --max-det of all classes together; leave it out",
    }

    weights: str = option(
        "", help="checkpoint (.pt), ours or an official name (default: the newest best.pt below runs/train)"
    )
    data: str = option(
        "",
        help="dataset YAML: images to check and calibrate with (--int8 without --weights: that of the run)",
    )
    imgsz: list[int] = option(
        [640, 640],
        flags=("--img", "--img-size"),
        help="h w (default: that of the run without --weights, else 640)",
    )
    batch_size: int = option(1, help="batch size of a static file")
    device: str = option("cpu", type=str, help="cpu, or 0 for the first GPU")
    half: bool = option(False, help="float16 weights (TorchScript: CUDA only)")
    int8: bool = option(False, help="int8, calibrated on --data's training images")
    calibration_images: int | None = option(
        None, help=f"how many training images --int8 looks at (default: {CALIBRATION_IMAGES})"
    )
    dynamic: bool = option(False, help="leave batch, height and width free")
    simplify: bool = option(False, help="ONNX: simplify the graph with onnxslim")
    opset: int | None = option(None, help=f"ONNX: operator set (default: {OPSET})")
    workspace: float | None = option(
        None, help=f"TensorRT: memory to build with, GB (default: {WORKSPACE:g})"
    )
    nms: bool = option(False, help="put NMS into the file: it gives detections")
    conf_thres: float | None = option(None, help=f"with --nms: least confidence (default: {_NMS.conf_thres})")
    iou_thres: float | None = option(
        None, help=f"with --nms: IoU above which NMS drops the weaker box (default: {_NMS.iou_thres})"
    )
    max_det: int | None = option(
        None, flags=("--topk-all",), help=f"with --nms: most detections of an image (default: {_NMS.max_det})"
    )
    agnostic_nms: bool = option(False, help="with --nms: let boxes of different classes suppress each other")
    nms_inputs: bool = option(
        False, help="with --nms: make the three figures inputs of the graph instead of constants"
    )
    nocard: bool = option(False, help="leave the MODEL.md of the run as it is")
    verbose: bool = option(False, help="show what the exporters say")
    include: list[str] = option(["torchscript"], help=f"formats: {', '.join(EXPORTERS)}")
    plugins: list[str] = option([], help="Python files that register your own blocks")

    def check(self) -> None:
        """Refuse values and combinations that cannot work."""
        absent = [name for name in self.formats if name not in EXPORTERS]
        if absent:
            what = "not a format of this project" if set(absent) <= ELSEWHERE else "not a format"
            raise UserError(f"--include {' '.join(absent)}: {what}; available: {', '.join(EXPORTERS)}")
        if self.half and self.int8:
            raise UserError("--half and --int8 exclude each other; leave one of them out")
        if self.int8 and self.weights and not self.data:  # without weights it is the run's
            raise UserError("--int8: is calibrated on the images it is made for; add --data with their YAML")
        self._check_figures()
        if self.calibration_images is not None and not self.int8:
            raise UserError("--calibration-images: only int8 is calibrated; add --int8 or leave it out")
        for name in ("opset", "workspace", "simplify"):
            able = [exporter.name for exporter in EXPORTERS.values() if name in exporter.options]
            if getattr(self, name) and not set(able) & set(self.formats):
                raise UserError(f"--{name}: concerns --include {' and '.join(able)} only; leave it out")
        self.suppression()
        if self.weights and Path(self.weights).suffix.lower() != ".pt":
            raise UserError(f"--weights {self.weights}: only a .pt checkpoint can be exported")

    def _check_figures(self) -> None:
        """Refuse numbers that are out of their ranges."""
        self.at_least(batch_size=1, calibration_images=1)
        if self.opset is not None:
            check_opset(self.opset)
        if self.workspace is not None and self.workspace <= 0:
            raise UserError(f"--workspace {self.workspace:g}: must be above 0 GB; {WORKSPACE:g} do")

    @property
    def formats(self) -> list[str]:
        """Return the formats asked for, each once."""
        return list(dict.fromkeys(self.include))

    @property
    def precision(self) -> str:
        """Return the precision asked for, as exporters name it."""
        return "int8" if self.int8 else "fp16" if self.half else "fp32"

    def suppression(self) -> Suppression | None:
        """Return the requested NMS, or None if `nms` is False.

        Raises:
            UserError: an option of NMS without `nms`, or a value that is out of its range.
        """
        figures = {name: getattr(self, name) for name in ("conf_thres", "iou_thres", "max_det")}
        given_figures = {name: value for name, value in figures.items() if value is not None}
        if not self.nms:
            switches = [name for name in ("agnostic_nms", "nms_inputs") if getattr(self, name)]
            if lost := [*given_figures, *switches]:
                raise UserError(f"--{lost[0].replace('_', '-')}: says how NMS works in the file; add --nms")
            return None
        for name in ("conf_thres", "iou_thres"):
            if not 0 <= given_figures.get(name, 0) <= 1:
                raise UserError(f"--{name.replace('_', '-')} {given_figures[name]}: must lie between 0 and 1")
        self.at_least(max_det=1)
        return Suppression(**given_figures, agnostic=self.agnostic_nms, inputs=self.nms_inputs)


def parse_opt(argv: Sequence[str] | None = None) -> ExportOptions:
    """Return the options of a command line, with all defaults."""
    return parse(ExportOptions, argv)


def run(**options: Any) -> list[ExportResult]:
    """Export and check; keywords are the command line's options with underscores.

    Raises:
        ExportError: a format failed. The others are exported, and are in its `results`.
        UserError: the options contradict each other, or the checkpoint cannot be read.
    """
    asked = with_newest_run(options, data=bool(options.get("int8")))
    return export(from_keywords(ExportOptions, asked))


def export(opt: ExportOptions) -> list[ExportResult]:
    """Export to every format of `opt.include`; see `run`."""
    device = select_device(opt.device)
    load_plugins(opt.plugins)
    fetch_missing(opt.weights)
    weights = find_file(opt.weights)
    checkpoint = load_checkpoint(weights, device)
    model = checkpoint.model
    size = fit_size(opt.imgsz, int(max(model.stride)))
    quantiser = None
    if opt.int8:  # first of all: it fetches a data set that is not there yet
        shape = (opt.batch_size, model.ch, *size)
        images = opt.calibration_images or CALIBRATION_IMAGES
        quantiser = Quantiser(opt.data, images, weights, shape, device)
    photograph = _photograph(opt.data)
    example = _check_batch(photograph, model.ch, opt.batch_size, size).to(device)
    batches = [example]
    if opt.dynamic:
        stride = int(max(model.stride))
        other = size[0] + stride, max(stride, size[1] // 2 // stride * stride)  # another aspect
        batches.append(_check_batch(photograph, model.ch, opt.batch_size + 1, other).to(device))
    job = _job(model, example, opt)
    if quantiser is not None:
        job = replace(job, calibration=quantiser.batches)
    results, failures = [], []
    for name in opt.formats:
        try:
            results.append(_export_one(name, job, model, batches, weights, quantiser))
        except (UserError, OSError) as error:
            failures.append(f"{name} ({error})")
    for result in results:
        LOGGER.info("%s: %s, %.1f MB", result.format, result.path, result.size_mb)
    if results and not opt.nocard:
        _write_card(checkpoint, weights, results)
    if failures:
        raise ExportError(
            f"{len(failures)} of {len(opt.formats)} formats failed: {'; '.join(failures)}", results
        )
    return results


def _write_card(checkpoint: Checkpoint, weights: Path, results: Sequence[ExportResult]) -> None:
    """Write MODEL.md anew, with the files; only weights that their run has measured have one."""
    run_folder = RunFolder.of(weights)
    is_best = weights.name == run_folder.best.name or not run_folder.best.is_file()
    metrics = read_metrics(run_folder.metrics)
    if not metrics or not is_best or weights.resolve().parent != run_folder.best.parent:
        return
    files = [
        ExportedFile(
            result.path.name,
            result.precision + ", with NMS" * (result.detections is not None),
            f"{result.max_score_diff:.2g} in a score, {result.max_box_diff:.2g} px in a box"
            + (
                f"; mAP50-95 {result.accuracy.map:.3f} instead of {result.accuracy.pytorch_map:.3f}"
                if result.accuracy
                else ""
            ),
        )
        for result in results
    ]
    options = (checkpoint.meta or {}).get("opt", {})
    model = checkpoint.model
    ModelCard(weights, dict(model.names), model.licence, options, metrics, files).write()


def _job(model: DetectionModel, example: Tensor, opt: ExportOptions) -> Job:
    """Return the fused copy of the network to export, with what its file will say."""
    exported = copy.deepcopy(model).optimise()
    exported.detect.export = True
    metadata = Metadata(
        names=dict(model.names),
        stride=int(max(model.stride)),
        imgsz=(example.shape[2], example.shape[3]),
        batch=example.shape[0],
        dynamic=opt.dynamic,
        ch=model.ch,
        device=example.device.type,
        precision=opt.precision,
        nms=opt.suppression(),
        licence=model.licence,
    )
    channels_last = torch.channels_last  # what the backends run; the traced weights keep it
    return Job(
        exported.to(memory_format=channels_last),
        example.to(memory_format=channels_last),
        metadata,
        verbose=opt.verbose,
        opset=opt.opset or OPSET,
        simplify=opt.simplify,
        workspace=opt.workspace or WORKSPACE,
    )


def _export_one(
    name: str,
    job: Job,
    reference: DetectionModel,
    batches: list[Tensor],
    weights: Path,
    quantiser: Quantiser | None,
) -> ExportResult:
    """Write one format under a temporary name, check it, and move it beside the weights.

    With NMS there are two files. The first is the network alone, which is compared and measured like any
    other. The second is that network with NMS; it is checked against the first, and kept.

    Args:
        name: the format's name in --include.
        job: what is exported.
        reference: the network in PyTorch to compare with.
        batches: images (N, ch, H, W) to compare on.
        weights: the checkpoint, whose name the file gets.
        quantiser: for int8; None otherwise.
    """
    exporter, precision = EXPORTERS[name], job.metadata.precision
    target = weights.with_name(weights.stem + _check_exporter(exporter, job))
    started = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix=f".{weights.stem}.", suffix=".part", dir=weights.parent))
    try:
        part = folder / target.name
        with _one_sentence("its exporter", job.verbose):
            exporter.write(replace(job, metadata=replace(job.metadata, nms=None)), part)
        with _one_sentence("the check of the file", job.verbose):
            score, box = compare(reference, part, batches)
        check_difference(name, score, box, precision)
        accuracy, found = None, None
        if quantiser is not None:
            with _one_sentence("measuring the file", job.verbose):
                accuracy = quantiser.accuracy(part)
            check_accuracy(name, accuracy)
        if job.metadata.nms is not None:
            network, part = part, folder / "nms" / target.name
            part.parent.mkdir()
            with _one_sentence("its exporter", job.verbose):
                exporter.add_nms(job, network, part)
            more = [] if quantiser is None else islice(quantiser.batches(), NMS_BATCHES)
            with _one_sentence("the check of its NMS", job.verbose):
                found = check_nms(name, network, part, [*batches, *(b.to(job.example.device) for b in more)])
        seconds = time.perf_counter() - started
        replace_path(part, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    size = path_size(target) / 1e6
    return ExportResult(name, target, seconds, size, score, box, precision, accuracy, found)


def _check_exporter(exporter: Exporter, job: Job) -> str:
    """Return the end of the file's name.

    Raises:
        UserError: the platform or the format cannot do what is asked for.
    """
    wanted = job.metadata
    if reason := exporter.obstacle(wanted.precision, job.example.device):
        raise UserError(reason)
    # Options that change the file itself, which each format must honour; of the others, one format must.
    asked = {"batch": wanted.batch > 1, "dynamic": wanted.dynamic, "nms": wanted.nms is not None}
    able = exporter.options if exporter.add_nms is None else exporter.options | {"nms"}
    for name in sorted(name for name, is_asked in asked.items() if is_asked):
        if name not in able:
            flag = "--batch-size above 1" if name == "batch" else f"--{name}"
            raise UserError(f"--include {exporter.name}: {exporter.title} files cannot have {flag}")
    return exporter.endings[wanted.precision]


@contextlib.contextmanager
def _one_sentence(what: str, verbose: bool) -> Iterator[None]:
    """Turn any exception of the packages behind a format into one sentence.

    One of them is a graph that was traced at one size and fails at the second one of its check.

    Args:
        what: begins the sentence: what was being done.
        verbose: also log the traceback.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 exporters have no common exception, and one format stops no other
        if verbose:
            LOGGER.exception("%s", what)
        reason = first_line(error)
        raise UserError(
            f"{what} stopped with {type(error).__name__}: {reason[:200]}; add --verbose for all of it"
        ) from error


def _check_batch(photograph: Path, ch: int, batch: int, size: tuple[int, int]) -> Tensor:
    """Return a photograph, letterboxed to `size`, as a batch (batch, ch, H, W) in 0..1.

    Every second one is mirrored, so that the check notices images in the wrong order.
    """
    tensor = network_input(photograph, size, ch)
    return torch.stack([tensor.flip(2) if i % 2 else tensor for i in range(batch)])


def _photograph(data: str) -> Path:
    """Return an image to check with.

    It is the first image of the data set, of val if it has that, or else a bundled one.
    """
    if data:
        config = load_dataset(data, fetch=False)
        split = next(name for name in ("val", "train", "test") if name in config.splits)
        return Path(list_images(config.splits[split], config.root)[0][0])
    return ROOT / "data" / "images" / "digits_1.jpg"


def main() -> None:
    """Export as the command line says."""
    run(**given(ExportOptions))


if __name__ == "__main__":
    guard(main)
