"""Train several detectors under the same conditions, and compare them.

    python compare.py --cfg models/yolov5n.yaml models/yolov5-efficientnet-lite0.yaml+imagenet --data my.yaml

The run's folder gets compare.csv, compare.md, pareto.png and index.html. An interrupted run continues with
--resume FOLDER; finished nets are not trained again.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

import export
import train
import val
from models.backends import load_backend
from models.formats.base import Backend
from models.formats.onnx import onnx_obstacle
from models.layers.timm_torchvision_rows import is_named
from models.plugins import load_plugins
from models.weights.checkpoint import Checkpoint, load_checkpoint
from models.weights.releases import fetch_missing
from models.yolo import DetectionModel
from utils.cli import from_keywords, given, guard
from utils.comparison.latency import Latencies
from utils.comparison.net_folder import NetFolder, TrainingRecord
from utils.comparison.options import MAY_CHANGE, CompareOptions, ComparePlan, Net, open_run, train_options
from utils.comparison.page import Page, SampleImage
from utils.comparison.report import measurement_facts, package_versions, write_report
from utils.comparison.samples import find_boxes, sample_pictures
from utils.comparison.table import Group, NetRow, conditions_of, data_path, group_rows, start_of, tell_apart
from utils.dataset.config import DatasetConfig, class_difference, load_dataset
from utils.dataset.image_set import ImageSet
from utils.dataset.images import load_images
from utils.device import amp_dtype, describe, select_device, tune_allocator
from utils.errors import UserError
from utils.files import atomic_write, find_file, increment_dir
from utils.image_size import fit_side
from utils.images import load_image
from utils.letterbox import letterbox_tensor
from utils.nms import NmsOptions
from utils.package import command
from utils.profiling import summary
from utils.training.options import TrainingOptions, with_recipe
from utils.training.run_folder import RunFolder

LOGGER = logging.getLogger("yolo.compare")

__all__ = ["CompareResult", "parse_opt", "run"]

SHOWN = NmsOptions(0.25, 0.45)  # boxes in the pictures of the page

Engines = dict[str, Backend]
"""One net by engine: 'torch', and 'onnx' where ONNX Runtime is available."""


@dataclass
class CompareResult:
    """Hold a comparison's folder, its rows by conditions, and the nets that failed."""

    save_dir: Path
    groups: list[Group]
    failed: list[NetRow]


@dataclass(frozen=True)
class Setup:
    """Hold what all nets of a comparison share.

    Attributes:
        plan: options and nets.
        device: where the nets are trained and timed.
        data, images: the data set and its val images.
        folder: of the run; each net has a folder inside.
        onnx_missing: why nothing can run in ONNX Runtime; '' if it can.
    """

    plan: ComparePlan
    device: torch.device
    data: DatasetConfig
    images: ImageSet
    folder: Path
    onnx_missing: str

    @property
    def opt(self) -> CompareOptions:
        """Return the options."""
        return self.plan.opt

    def net_folder(self, key: str) -> NetFolder:
        """Return the folder of a net."""
        return NetFolder(self.folder / key)


def parse_opt(argv: Sequence[str] | None = None) -> CompareOptions:
    """Return the options of a command line, with all defaults."""
    return from_keywords(CompareOptions, with_recipe(given(CompareOptions, argv), TrainingOptions))


def run(**options: object) -> CompareResult:
    """Compare, with the command line's options as keywords.

    Raises:
        UserError: nothing could be started. A net that fails is in the result's `failed` instead.
    """
    named = from_keywords(CompareOptions, {"weights": options.get("weights") or []})
    fetch_missing(*named.weights)
    return compare_nets(prepare(open_run(options)))


def prepare(plan: ComparePlan) -> Setup:
    """Load the data set, and make the run's folder."""
    opt = plan.opt
    device = select_device(opt.device)
    amp_dtype(opt.amp, device)  # refused now, not once per net
    load_plugins(opt.plugins)
    tune_allocator()  # as training does; a resumed run without training is timed under the same conditions
    data = load_dataset(opt.data, single_cls=opt.single_cls)
    images = load_images(data, "val", workers=opt.workers)
    folder = plan.folder or increment_dir(opt.project, opt.name, opt.exist_ok)
    plan.save(folder)
    return Setup(plan, device, data, images, folder, onnx_obstacle(device))


def compare_nets(setup: Setup) -> CompareResult:
    """Train and measure one net after the other, time all together, and write the report."""
    rows, nets = [], setup.plan.nets()
    for number, net in enumerate(nets, 1):
        LOGGER.info("net %d/%d: %s", number, len(nets), net.label)
        try:
            rows.append(make_row(setup, net))
        except KeyboardInterrupt:
            LOGGER.info("stopped; '%s --resume %s' continues", command("compare.py"), setup.folder)
            raise
    tell_apart(rows)
    done, failed = [row for row in rows if not row.failed], [row for row in rows if row.failed]
    engines = {row.key: open_engines(setup, row) for row in done}
    time_nets(setup, done, engines)
    trained = {net.key for net in nets if net.cfg}
    first = next((row.conditions for row in done if row.key in trained), None)
    groups = group_rows(done, first, [setup.plan.hyp_file] if setup.plan.hyp_file else [])
    samples = draw_samples(setup, done, engines)
    facts = measurement_facts(setup.opt, setup.data, len(setup.images), setup.device, done)
    if setup.onnx_missing:
        facts["ONNX Runtime"] = f"not measured: {setup.onnx_missing}"
    title = f"{len(rows)} detectors on {setup.data.path.name}"
    page = Page(title, groups, failed, samples, facts, setup.plan.command_line())
    write_report(page, setup.folder)
    return CompareResult(setup.folder, groups, failed)


def make_row(setup: Setup, net: Net) -> NetRow:
    """Return a net's figures, or why it failed; no failure stops the other nets."""
    try:
        return finished_row(setup, net) or new_row(setup, net)
    except (UserError, OSError) as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 a net's own blocks may raise anything
        LOGGER.exception("%s", net.label)
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
    LOGGER.error("%s: failed: %s", net.label, reason)
    start = net.backbone_weights or "scratch" if net.cfg else "checkpoint"
    return NetRow(net.key, net.label, start, failed=reason)


def finished_row(setup: Setup, net: Net) -> NetRow | None:
    """Return the row of a net that an earlier session finished; else None.

    Raises:
        UserError: the net's YAML has changed since its training, or it is missing before the net is finished.
    """
    folder = setup.net_folder(net.key)
    finished, record = folder.read_row(), folder.read_training()
    try:
        source = fingerprint(net)
    except UserError as error:
        if finished is None:
            raise
        LOGGER.warning("%s: its file is missing, the finished figures are kept (%s)", net.label, error)
        source = finished[1]
    if net.cfg and record and record.source != source:
        raise UserError(f"{net.cfg} has changed since it was trained; delete {folder.path} to train it again")
    if finished is None or finished[1] != source:
        return None
    LOGGER.info("%s: finished before", net.label)
    row = finished[0]
    if not row.imgsz:  # a row of an earlier version, which did not name its measurement
        checkpoint = load_checkpoint(folder.best)
        row.imgsz = measured_imgsz(setup, checkpoint)
        row.data = data_path(own_data(setup, checkpoint) or setup.opt.data)
        if row.conditions:
            row.conditions["imgsz"] = model_side(row.conditions["imgsz"], checkpoint.model)
    return row


def new_row(setup: Setup, net: Net) -> NetRow:
    """Train a net or copy its checkpoint, measure it, and keep its row."""
    folder, source = setup.net_folder(net.key), fingerprint(net)
    if net.cfg:
        train_net(setup, net, folder, source)
    else:
        folder.best.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(find_file(net.weights), folder.best)
    row = measure_net(setup, net, folder)
    folder.write_row(row, source)
    return row


def train_net(setup: Setup, net: Net, folder: NetFolder, source: str) -> None:
    """Train a net, or continue its training; training.json sums the seconds of all sessions."""
    last = folder.run.last
    resumable = folder.read_training() is not None and last.is_file()
    record = TrainingRecord(source, folder.seconds_before(), time.time())
    checkpoint = load_checkpoint(last) if resumable else None
    if checkpoint and checkpoint.training is None:  # stopped after the last epoch
        keep_best(checkpoint, folder.best)
        folder.write_training(replace(record, started=None))
        return
    folder.write_training(record)
    if checkpoint:
        result = train.run(resume=str(last), **{name: getattr(setup.opt, name) for name in MAY_CHANGE})
    else:
        options = train_options(setup.opt, net)
        result = train.run(**options, project=str(setup.folder), name=net.key, exist_ok=True)
    folder.write_training(replace(record, seconds=record.seconds + result.seconds, started=None))


def keep_best(last: Checkpoint, best: Path) -> None:
    """Copy a finished last.pt to best.pt if a stop prevented that best.pt was saved."""
    reached = load_checkpoint(best).meta["best_fitness"] if best.is_file() else -1.0
    if last.meta["best_fitness"] > reached:
        atomic_write(best, lambda file: file.write(last.path.read_bytes()))


def measure_net(setup: Setup, net: Net, folder: NetFolder) -> NetRow:
    """Validate a net's best checkpoint in float32, and count its parameters and GFLOPs."""
    opt, best = setup.opt, folder.best
    checkpoint = load_checkpoint(best)
    imgsz, own = measured_imgsz(setup, checkpoint), own_data(setup, checkpoint)
    metrics = val.run(
        weights=str(best),
        data=own or opt.data,
        imgsz=imgsz,
        batch_size=2 * opt.batch_size if opt.batch_size > 0 else 32,
        device=opt.device,
        workers=opt.workers,
        single_cls=opt.single_cls,
        plugins=opt.plugins,
        noplots=opt.noplots,
        project=str(folder.path),
        name="val",
        exist_ok=True,
    ).metrics
    size, record = summary(checkpoint.model, imgsz), folder.read_training()
    trained_in = folder if net.cfg else NetFolder(RunFolder.of(find_file(net.weights)).path)
    values = {
        "map": float(metrics.map),
        "map50": float(metrics.map50),
        "precision": float(metrics.precision),
        "recall": float(metrics.recall),
        **{name: size[name] for name in ("parameters", "parameters_fused", "gflops")},
        "size_mb": best.stat().st_size / 1e6,
        "train_seconds": record.seconds if record else None,
        "epochs": trained_in.epochs() or None,
    }
    conditions = None if checkpoint.official else conditions_of(checkpoint.meta, checkpoint.model.nc)
    if conditions:  # the pixels of the training, a multiple of the stride
        conditions["imgsz"] = model_side(conditions["imgsz"], checkpoint.model)
    classes = checkpoint.model.nc
    return NetRow(
        net.key,
        net.label if net.cfg else checkpoint_label(net, checkpoint),
        start_of(checkpoint.meta),
        conditions,
        {name: value for name, value in values.items() if value is not None},
        net.weights or str(best.relative_to(setup.folder)),
        note=f"accuracy measured on its own {Path(own).name} ({classes} classes)" if own else "",
        data=data_path(own or opt.data),
        imgsz=imgsz,
    )


def fingerprint(net: Net) -> str:
    """Return a hash of a net's file; '' for a network of a library."""
    if net.cfg and is_named(net.cfg):
        return ""
    file = find_file(net.cfg, "models") if net.cfg else find_file(net.weights)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def own_data(setup: Setup, checkpoint: Checkpoint) -> str:
    """Return the data set of a checkpoint with other classes than ours, else ''.

    Such a checkpoint is measured on its own data set, and grouped under other conditions. If it does not name
    its data set, or that is missing, the result is '' and val.py refuses it.
    """
    data = _saved_option(checkpoint, "data")
    if not isinstance(data, str) or not class_difference(checkpoint.model.names, setup.data):
        return ""
    return data if Path(data_path(data)).is_file() else ""


def measured_imgsz(setup: Setup, checkpoint: Checkpoint) -> int:
    """Return the pixels of the measurement: --imgsz, or those of the training with --weights alone."""
    trained = _saved_option(checkpoint, "imgsz") if setup.plan.own_imgsz else None
    imgsz = trained if isinstance(trained, int) and trained > 0 else setup.opt.imgsz
    return model_side(imgsz, checkpoint.model)


def model_side(imgsz: int, model: DetectionModel) -> int:
    """Return an image size as a multiple of the model's stride, as train.py does."""
    return fit_side(imgsz, max(int(model.stride.max()), 32), least=2)


def checkpoint_label(net: Net, checkpoint: Checkpoint) -> str:
    """Return a trained checkpoint's label: its YAML, if it names one, and its run."""
    cfg = _saved_option(checkpoint, "cfg")
    name = train.cfg_name(cfg) if isinstance(cfg, str) and cfg else ""
    return f"{name} ({net.label})" if name and name != net.label else net.label


def _saved_option(checkpoint: Checkpoint, name: str) -> object:
    """Return an option of the checkpoint's training; None if it is unknown."""
    opt = checkpoint.meta.get("opt")
    return opt.get(name) if isinstance(opt, dict) else None


def open_engines(setup: Setup, row: NetRow) -> Engines:
    """Open a net's fused checkpoint, and its ONNX file, exported if necessary."""
    best, file = setup.net_folder(row.key).best, setup.net_folder(row.key).best.with_suffix(".onnx")
    engines = {"torch": load_backend(best, setup.device)}
    if setup.onnx_missing:
        return engines
    try:
        if not file.is_file() or file.stat().st_mtime < best.stat().st_mtime:
            common = {"data": setup.opt.data, "plugins": setup.opt.plugins, "include": ["onnx"]}
            export.run(weights=str(best), imgsz=[row.imgsz, row.imgsz], **common)
        engines["onnx"] = load_backend(file, setup.device)
    except UserError as error:
        row.note = "; ".join(filter(None, (row.note, f"no ONNX figures: {error}")))
        LOGGER.warning("%s: %s", row.label, row.note)
    return engines


def time_nets(setup: Setup, rows: Sequence[NetRow], engines: dict[str, Engines]) -> None:
    """Fill in the latencies; if nothing has changed, those of the earlier session."""
    if setup.onnx_missing:
        LOGGER.warning("no ONNX Runtime column: %s", setup.onnx_missing)
    image, calls = load_image(setup.images.path(0)), {}
    for row in rows:
        batch = letterbox_tensor(image, row.imgsz).to(setup.device)
        calls[row.key] = {name: partial(backend.predict, batch) for name, backend in engines[row.key].items()}
    conditions = {
        "hardware": describe(setup.device),
        "versions": package_versions(),
        "nets": {
            row.key: [setup.net_folder(row.key).best.stat().st_mtime_ns, *engines[row.key]] for row in rows
        },
    }
    file = setup.folder / "latency.json"
    Latencies(file, conditions, setup.opt.latency_runs, setup.device).fill_in(rows, calls)


def draw_samples(setup: Setup, rows: Sequence[NetRow], engines: dict[str, Engines]) -> list[SampleImage]:
    """Draw the detections of all nets with our classes on the same val images."""
    shown = replace(SHOWN, agnostic=setup.opt.single_cls)
    detectors = {}
    for row in rows:
        backend = engines[row.key]["torch"]
        if not class_difference(backend.names, setup.data):
            detectors[row.label] = find_boxes(backend, row.imgsz, shown)
    return sample_pictures(setup.images, setup.data.names, setup.opt.samples, detectors)


def main() -> None:
    """Compare with the command line's options; nets that failed make the exit code 1."""
    result = run(**given(CompareOptions))
    if result.failed:
        reasons = "; ".join(f"{row.label} ({row.failed})" for row in result.failed)
        total = len(result.failed) + sum(len(group.rows) for group in result.groups)
        raise UserError(
            f"{len(result.failed)} of {total} nets failed: {reasons}; the others' results are in "
            f"{result.save_dir}, and --resume {result.save_dir} tries again"
        )


if __name__ == "__main__":
    guard(main)
