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
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import models.formats  # noqa: F401 registers the formats
from models.export_checks.accept import check_nms, compare, judge, judge_accuracy
from models.export_checks.int8_accuracy import Accuracy, Quantiser
from models.formats.exporter import EXPORTERS, Exporter, Job, network_input
from models.formats.metadata import Metadata
from models.formats.nms_options import Suppression
from models.registry import load_plugins
from models.weights.checkpoint import load_checkpoint
from models.weights.releases import fetch_missing
from models.yolo import DetectionModel
from utils.cli import Parser, guard, overlay
from utils.dataset.config import load_dataset
from utils.dataset.images import list_images
from utils.device import select_device
from utils.errors import UserError, first_line
from utils.files import IMAGE_SUFFIXES, ROOT, find_file, path_size, replace_path
from utils.image_size import fit_size
from utils.training.run_folder import newest_best

LOGGER = logging.getLogger("yolo.export")

NMS_BATCHES = 8  # of calibration images, on which NMS behind an int8 network is checked too
CALIBRATION_IMAGES = 100
SIZE = 640  # pixels of both sides, where neither --imgsz nor a run of ours says another
OPSET = 17  # which ONNX Runtime, OpenVINO and TensorRT of the last years read
WORKSPACE = 4.0  # GB
OPSETS = range(11, 21)  # what the tracing exporter writes; below 11 it has no Resize as the networks need it
ELSEWHERE = frozenset({"saved_model", "pb", "edgetpu", "tfjs", "paddle"})  # YOLOv5 has them, we do not


@dataclass(frozen=True)
class ExportResult:
    """One exported file.

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
    """Some formats failed; `results` holds those that did not."""

    def __init__(self, message: str, results: list[ExportResult]) -> None:
        super().__init__(message)
        self.results = results


def build_parser() -> Parser:
    """The command line's options."""
    parser = Parser(prog="export.py", description=__doc__.splitlines()[0])
    weights = "checkpoint (.pt), ours or an official name (default: the newest best.pt below runs/train)"
    parser.add_argument("--weights", help=weights)
    data = "dataset YAML: images to check and calibrate with (--int8 without --weights: that of the run)"
    parser.add_argument("--data", default="", help=data)
    size = f"h w (default: that of the run without --weights, else {SIZE})"
    parser.add_argument("--imgsz", "--img", "--img-size", nargs="+", type=int, help=size)
    parser.add_argument("--batch-size", type=int, default=1, help="batch size of a static file")
    parser.add_argument("--device", default="cpu", help="cpu, or 0 for the first GPU")
    parser.add_argument("--half", action="store_true", help="float16 weights (TorchScript: CUDA only)")
    parser.add_argument("--int8", action="store_true", help="int8, calibrated on --data's training images")
    parser.add_argument(
        "--calibration-images",
        type=int,
        help=f"how many training images --int8 looks at (default: {CALIBRATION_IMAGES})",
    )
    parser.add_argument("--dynamic", action="store_true", help="leave batch, height and width free")
    parser.add_argument("--simplify", action="store_true", help="ONNX: simplify the graph with onnxslim")
    parser.add_argument("--opset", type=int, help=f"ONNX: operator set (default: {OPSET})")
    parser.add_argument(
        "--workspace", type=float, help=f"TensorRT: memory to build with, GB (default: {WORKSPACE:g})"
    )
    add_nms_options(parser)
    parser.add_argument("--verbose", action="store_true", help="show what the exporters say")
    parser.add_argument(
        "--include", nargs="+", default=["torchscript"], help=f"formats: {', '.join(EXPORTERS)}"
    )
    parser.add_argument("--plugins", nargs="+", default=[], help="Python files that register your own blocks")
    _refuse_others(parser)
    return parser


def _refuse_others(parser: Parser) -> None:
    """What YOLOv5's export.py has beside these."""
    parser.refuse("the head here never writes into what it is given; leave it out", "--inplace")
    parser.refuse("exported files hold the network as it detects; leave it out", "--train")
    parser.refuse("PyTorch Mobile has ended; use --include executorch, its successor", "--optimize")
    parser.refuse("TensorFlow is not used here; --include tflite does without it", "--keras")
    parser.refuse(
        "int8 weights have a scale for each channel, which loses less; leave it out", "--per-tensor"
    )
    parser.refuse("TensorRT's timings are not kept between exports; leave it out", "--cache")
    parser.refuse("CoreML files are .mlpackage folders only; leave it out", "--mlmodel")
    parser.refuse("NMS keeps the best --max-det of all classes together; leave it out", "--topk-per-class")


def add_nms_options(parser: Parser) -> None:
    """The options of `--nms`, without which none of the others has a meaning."""
    parser.add_argument("--nms", action="store_true", help="put NMS into the file: it gives detections")
    usual = Suppression()
    for name, kind, text in (
        ("conf", float, "least confidence"),
        ("iou", float, "IoU above which NMS drops the weaker box"),
    ):
        default = getattr(usual, f"{name}_thres")
        parser.add_argument(f"--{name}-thres", type=kind, help=f"with --nms: {text} (default: {default})")
    most = f"with --nms: most detections of an image (default: {usual.max_det})"
    parser.add_argument("--max-det", "--topk-all", type=int, help=most)
    agnostic = "with --nms: let boxes of different classes suppress each other"
    parser.add_argument("--agnostic-nms", action="store_true", help=agnostic)
    inputs = "with --nms: make the three figures inputs of the graph instead of constants"
    parser.add_argument("--nms-inputs", action="store_true", help=inputs)


def parse_opt(argv: Sequence[str] | None = None) -> Namespace:
    """Options from a command line."""
    return build_parser().parse_args(argv)


def run(**options: Any) -> list[ExportResult]:
    """Export and check; options as on the command line, with underscores.

    Raises:
        ExportError: a format failed; the others were exported all the same and are in `results`.
        UserError: the options contradict each other or the checkpoint cannot be read.
    """
    return export(overlay(build_parser(), options))


def export(opt: Namespace) -> list[ExportResult]:
    """Export to every format of `opt.include`; see `run`."""
    opt = _from_newest_run(opt)
    formats = _check_options(opt)
    opt = _with_defaults(opt)
    device = select_device(opt.device)
    load_plugins(opt.plugins)
    fetch_missing(opt.weights)
    weights = find_file(opt.weights)
    model = load_checkpoint(weights, device).model
    size = fit_size(opt.imgsz, int(max(model.stride)))
    quantiser = None
    if opt.int8:  # first of all: it fetches a data set that is not there yet
        shape = (opt.batch_size, model.ch, *size)
        quantiser = Quantiser(opt.data, opt.calibration_images, weights, shape, device)
    photograph = _photograph(opt.data)
    example = _check_batch(photograph, model.ch, opt.batch_size, size).to(device)
    batches = [example]
    if opt.dynamic:
        other = _second_size(size, int(max(model.stride)))
        batches.append(_check_batch(photograph, model.ch, opt.batch_size + 1, other).to(device))
    job = _job(model, example, opt)
    if quantiser is not None:
        job = replace(job, calibration=quantiser.batches)
    results, failures = [], []
    for name in formats:
        try:
            results.append(_export_one(name, job, model, batches, weights, quantiser))
        except (UserError, OSError) as error:
            failures.append(f"{name} ({error})")
    for result in results:
        LOGGER.info("%s: %s, %.1f MB", result.format, result.path, result.size_mb)
    if failures:
        raise ExportError(f"{len(failures)} of {len(formats)} formats failed: {'; '.join(failures)}", results)
    return results


def _check_options(opt: Namespace) -> list[str]:
    """The formats asked for, each once; options that cannot be honoured stop here."""
    formats = list(dict.fromkeys([opt.include] if isinstance(opt.include, str) else opt.include))
    absent = [name for name in formats if name not in EXPORTERS]
    if absent:
        what = "not a format of this project" if set(absent) <= ELSEWHERE else "not a format"
        raise UserError(f"--include {' '.join(absent)}: {what}; available: {', '.join(EXPORTERS)}")
    if opt.half and opt.int8:
        raise UserError("--half and --int8 exclude each other; leave one of them out")
    if opt.int8 and not opt.data:
        raise UserError("--int8: is calibrated on the images it is made for; add --data with their YAML")
    _check_figures(opt)
    if opt.calibration_images is not None and not opt.int8:
        raise UserError("--calibration-images: only int8 is calibrated; add --int8 or leave it out")
    for option in ("opset", "workspace", "simplify"):
        able = [exporter.name for exporter in EXPORTERS.values() if option in exporter.options]
        if getattr(opt, option) and not set(able) & set(formats):
            raise UserError(f"--{option}: concerns --include {' and '.join(able)} only; leave it out")
    suppression_of(opt)
    if Path(opt.weights).suffix.lower() != ".pt":
        raise UserError(f"--weights {opt.weights}: only a .pt checkpoint can be exported")
    return formats


def _from_newest_run(opt: Namespace) -> Namespace:
    """Return the options with weights and an image size; without weights, the newest run's.

    --int8 is then calibrated on that run's data.
    """
    given = {name: value for name, value in vars(opt).items() if value is not None and value != ""}
    found: dict[str, object] = {"imgsz": SIZE}
    if "weights" not in given:
        trained = newest_best()
        found = {"weights": str(trained.best), "imgsz": trained.imgsz or SIZE}
        if opt.int8:
            found["data"] = trained.data
        on = f" on {trained.data}" if opt.int8 and trained.data else ""
        LOGGER.info("no --weights given: using %s, trained%s at %d pixels", trained.best, on, found["imgsz"])
    return Namespace(**{**vars(opt), **found, **given})


def _with_defaults(opt: Namespace) -> Namespace:
    """The options with a figure where one was not given, which `_check_options` must be able to tell."""
    usual = {"calibration_images": CALIBRATION_IMAGES, "opset": OPSET, "workspace": WORKSPACE}
    given = {name: value for name, value in vars(opt).items() if value is not None}
    return Namespace(**{**vars(opt), **usual, **given})


def _check_figures(opt: Namespace) -> None:
    """Numbers within their bounds; None is an option that was not given."""
    if opt.calibration_images is not None and opt.calibration_images < 1:
        raise UserError(f"--calibration-images {opt.calibration_images}: must be 1 or more; 100 to 300 do")
    if opt.opset is not None and opt.opset not in OPSETS:
        raise UserError(
            f"--opset {opt.opset}: must be {OPSETS[0]} to {OPSETS[-1]}; {OPSET} runs nearly everywhere"
        )
    if opt.workspace is not None and opt.workspace <= 0:
        raise UserError(f"--workspace {opt.workspace:g}: must be above 0 GB; {WORKSPACE:g} do")
    if opt.batch_size < 1:
        raise UserError(f"--batch-size {opt.batch_size}: must be 1 or more")


def suppression_of(opt: Namespace) -> Suppression | None:
    """The NMS that the options ask for; None without `--nms`, which the others need."""
    figures = {name: getattr(opt, name) for name in ("conf_thres", "iou_thres", "max_det")}
    given = {name: value for name, value in figures.items() if value is not None}
    if not opt.nms:
        switches = [name for name in ("agnostic_nms", "nms_inputs") if getattr(opt, name)]
        if lost := [*given, *switches]:
            raise UserError(f"--{lost[0].replace('_', '-')}: says how NMS works in the file; add --nms")
        return None
    for name in ("conf_thres", "iou_thres"):
        if not 0 <= given.get(name, 0) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {given[name]}: must lie between 0 and 1")
    if given.get("max_det", 1) < 1:
        raise UserError(f"--max-det {opt.max_det}: must be at least 1")
    return Suppression(**given, agnostic=opt.agnostic_nms, inputs=opt.nms_inputs)


def _second_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Another size, of another aspect, to check a dynamic file with."""
    return size[0] + stride, max(stride, size[1] // 2 // stride * stride)


def _job(model: DetectionModel, example: Tensor, opt: Namespace) -> Job:
    """The fused copy that is exported, with what its file will say."""
    exported = copy.deepcopy(model).fuse()
    exported.detect.export = True
    metadata = Metadata(
        names=dict(model.names),
        stride=int(max(model.stride)),
        imgsz=(example.shape[2], example.shape[3]),
        batch=example.shape[0],
        dynamic=opt.dynamic,
        ch=model.ch,
        device=example.device.type,
        precision=precision_of(opt),
        nms=suppression_of(opt),
    )
    channels_last = torch.channels_last  # what the backends run; the traced weights keep it
    return Job(
        exported.to(memory_format=channels_last), example.to(memory_format=channels_last), metadata, opt
    )


def _export_one(
    name: str,
    job: Job,
    reference: DetectionModel,
    batches: list[Tensor],
    weights: Path,
    quantiser: Quantiser | None,
) -> ExportResult:
    """Write one format under a temporary name, check it, and only then put it where it belongs.

    With NMS there are two files: the network, which is compared and measured as any other, and that network
    with NMS behind it, which is checked against the first and kept.
    """
    exporter, precision = EXPORTERS[name], job.metadata.precision
    target = weights.with_name(weights.stem + _check_exporter(exporter, job.opt))
    started = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix=f".{weights.stem}.", suffix=".part", dir=weights.parent))
    try:
        part = folder / target.name
        with _one_sentence("its exporter", job.opt.verbose):
            exporter.write(replace(job, metadata=replace(job.metadata, nms=None)), part)
        with _one_sentence("the check of the file", job.opt.verbose):
            score, box = compare(reference, part, batches)
        judge(name, score, box, precision)
        accuracy, found = None, None
        if quantiser is not None:
            with _one_sentence("measuring the file", job.opt.verbose):
                accuracy = quantiser.accuracy(part)
            judge_accuracy(name, accuracy)
        if job.metadata.nms is not None:
            network, part = part, folder / "nms" / target.name
            part.parent.mkdir()
            with _one_sentence("its exporter", job.opt.verbose):
                exporter.add_nms(job, network, part)
            more = [] if quantiser is None else islice(quantiser.batches(), NMS_BATCHES)
            with _one_sentence("the check of its NMS", job.opt.verbose):
                found = check_nms(name, network, part, [*batches, *(b.to(job.example.device) for b in more)])
        seconds = time.perf_counter() - started
        replace_path(part, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    size = path_size(target) / 1e6
    return ExportResult(name, target, seconds, size, score, box, precision, accuracy, found)


def precision_of(opt: Namespace) -> str:
    """The precision asked for, as exporters name it."""
    return "int8" if opt.int8 else "fp16" if opt.half else "fp32"


def _check_exporter(exporter: Exporter, opt: Namespace) -> str:
    """How the file's name will end; what the platform or the format cannot do stops here."""
    precision = precision_of(opt)
    if reason := exporter.obstacle(precision, select_device(opt.device)):
        raise UserError(reason)
    # What changes the file itself; what changes how it is made needs one format that honours it.
    asked = {"batch": opt.batch_size > 1, "dynamic": opt.dynamic, "nms": opt.nms}
    able = exporter.options if exporter.add_nms is None else exporter.options | {"nms"}
    for option in sorted(option for option, given in asked.items() if given):
        if option not in able:
            flag = "--batch-size above 1" if option == "batch" else f"--{option}"
            raise UserError(f"--include {exporter.name}: {exporter.title} files cannot have {flag}")
    return exporter.endings[precision]


@contextlib.contextmanager
def _one_sentence(what: str, verbose: bool) -> Iterator[None]:
    """Around foreign code: whatever the packages behind a format raise becomes one sentence.

    That includes a graph that was traced at one size and stops at the second one it is checked with.
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
    """A photograph letterboxed to `size` as (batch, ch, H, W) in 0..1; every other one mirrored, so that
    images mixed up within a batch show.
    """
    tensor = network_input(photograph, size, ch)
    return torch.stack([tensor.flip(2) if i % 2 else tensor for i in range(batch)])


def _photograph(data: str) -> Path:
    """An image to check with: the dataset's first, of val if it has that, else ours, else matplotlib's."""
    if data:
        config = load_dataset(data, fetch=False)
        split = next(name for name in ("val", "train", "test") if name in config.splits)
        return Path(list_images(config.splits[split], config.root)[0][0])
    folder = ROOT / "data" / "images"
    ours = sorted(p for p in folder.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if ours:
        return ours[0]
    import matplotlib

    return Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


def main() -> None:
    """Export as the command line says."""
    export(parse_opt())


if __name__ == "__main__":
    guard(main)
