"""Train several detectors under the same conditions, or take trained ones, and put them side by side.

    python compare.py --cfg models/yolov5n.yaml models/yolov5-efficientnet-lite0.yaml+imagenet --data my.yaml

The run's folder gets compare.csv, compare.md, pareto.png and index.html. Called again with --resume FOLDER,
it goes on where it was stopped; nets that are finished are not trained again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import export
import train
import val
from models.backends import load_backend
from models.formats.base import Backend
from models.formats.onnx import onnx_obstacle
from models.layers.library_nets import is_named
from models.registry import load_plugins
from models.weights.checkpoint import Checkpoint, load_checkpoint
from models.weights.releases import fetch_missing
from utils.cli import from_keywords, given, guard
from utils.comparison.options import CompareOptions, ComparePlan, Net, open_run, train_options
from utils.comparison.page import Page, Sample, render
from utils.comparison.pareto import plot_pareto
from utils.comparison.samples import FindBoxes, sample_pictures
from utils.comparison.table import (
    Group,
    Row,
    conditions_of,
    data_path,
    group_rows,
    start_of,
    tell_apart,
    to_csv,
    to_markdown,
)
from utils.dataset.config import class_difference, load_dataset
from utils.dataset.images import load_images
from utils.detector import Detector
from utils.device import amp_dtype, describe, select_device, tune_allocator, versions
from utils.errors import UserError
from utils.files import atomic_text, atomic_write, find_file, increment_dir
from utils.image_size import fit_side
from utils.images import load_image
from utils.letterbox import letterbox, letterbox_tensor, rgb_planes
from utils.nms import NmsOptions
from utils.profiling import interleaved, summary
from utils.training.loggers import read_results
from utils.training.options import TrainingOptions, with_recipe
from utils.training.run_folder import RunFolder

LOGGER = logging.getLogger("yolo.compare")

__all__ = ["CompareResult", "parse_opt", "run"]

ROUNDS = 10  # the timed runs of a net are spread over so many rounds through all nets
SHOWN_CONF, SHOWN_IOU = 0.25, 0.45


@dataclass
class CompareResult:
    """What a comparison left: its folder, its rows by conditions, and the nets that failed."""

    save_dir: Path
    groups: list[Group]
    failed: list[Row]


def parse_opt(argv: Sequence[str] | None = None) -> CompareOptions:
    """Return the options that a command line gives, with all defaults."""
    return from_keywords(CompareOptions, with_recipe(given(CompareOptions, argv), TrainingOptions))


def run(**options: Any) -> CompareResult:
    """Compare, with the command line's options as keywords; what is left out takes its default.

    Raises:
        UserError: nothing could be started. A net that fails is in the result's `failed` instead.
    """
    fetch_missing(*CompareOptions(weights=options.get("weights") or []).weights)
    return Comparison(open_run(options)).run()


class Comparison:
    """One run: every net trained and validated in a folder of its own, then all timed and written down."""

    def __init__(self, plan: ComparePlan) -> None:
        self.plan, self.opt = plan, plan.opt
        opt = self.opt
        self.device = select_device(opt.device)
        amp_dtype(opt.amp, self.device)  # refused now, not once per net
        load_plugins(opt.plugins)
        tune_allocator()  # training would switch it on, and a resumed run is timed like a first one
        self.data = load_dataset(opt.data, single_cls=opt.single_cls)
        self.images = load_images(self.data, "val", workers=opt.workers)
        self.nets = plan.nets()
        self.folder = plan.folder or increment_dir(opt.project, opt.name, opt.exist_ok)
        plan.save(self.folder)
        self.onnx_missing = onnx_obstacle(self.device)

    def run(self) -> CompareResult:
        """All nets, one after the other, and the page."""
        rows = []
        for number, net in enumerate(self.nets, 1):
            LOGGER.info("net %d/%d: %s", number, len(self.nets), net.label)
            try:
                rows.append(self._net(net))
            except KeyboardInterrupt:
                LOGGER.info("stopped; 'python compare.py --resume %s' goes on", self.folder)
                raise
        tell_apart(rows)
        done = [row for row in rows if not row.failed]
        backends = self._open_backends(done)
        self._time(done, backends)
        samples = self._samples(done, backends)
        return self._write(rows, samples)

    def _net(self, net: Net) -> Row:
        """One net's figures, taken over when they are there already; its failure is its row's alone."""
        place = self.folder / net.key
        try:
            state, found = _read_json(place / "training.json"), _read_json(place / "result.json")
            found = found if (place / "weights" / "best.pt").is_file() else {}
            made_from = found.pop("source", None)
            try:
                source = _fingerprint(net)
            except UserError as error:
                if not found:
                    raise
                LOGGER.warning("%s: taken as it was finished, though its file is gone (%s)", net.label, error)
                source = made_from
            if net.cfg and state and state["source"] != source:
                raise UserError(
                    f"{net.cfg} has changed since it was trained; delete {place} to train it again"
                )
            if found and made_from == source:
                LOGGER.info("%s: finished before", net.label)
                return self._complete(Row(**found), place)
            if net.cfg:
                self._train(net, place, source)
            else:
                (place / "weights").mkdir(parents=True, exist_ok=True)
                shutil.copyfile(find_file(net.weights), place / "weights" / "best.pt")
            row = self._measure(net, place)
            atomic_text(place / "result.json", _json(asdict(row) | {"source": source}))
            return row
        except (UserError, OSError) as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 whatever one net's blocks raise, it stops no other net
            LOGGER.exception("%s", net.label)
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
        LOGGER.error("%s: failed: %s", net.label, reason)
        return Row(
            net.key, net.label, net.backbone_weights or "scratch" if net.cfg else "checkpoint", failed=reason
        )

    def _train(self, net: Net, place: Path, source: str) -> None:
        """Train a net, or go on with it; training.json sums the seconds of all sessions."""
        last, before = place / "weights" / "last.pt", 0.0
        state = _read_json(place / "training.json")
        if last.is_file() and state:
            # A session that was stopped counts up to the checkpoint that is gone on from.
            before = state["seconds"]
            if state["started"] is not None:
                before += max(last.stat().st_mtime - state["started"], 0.0)
        started = {"source": source, "seconds": before, "started": time.time()}
        finished = started | {"started": None}
        checkpoint = load_checkpoint(last) if last.is_file() and state else None
        if checkpoint and checkpoint.training is None:
            _keep_best(checkpoint, place / "weights" / "best.pt")
            atomic_text(place / "training.json", _json(finished))
            return
        atomic_text(place / "training.json", _json(started))
        if checkpoint:
            runtime = ("device", "workers", "cache", "noplots", "save_period", "plugins", "data")
            result = train.run(resume=str(last), **{name: getattr(self.opt, name) for name in runtime})
        else:
            options = train_options(self.opt, net)
            result = train.run(**options, project=str(self.folder), name=net.key, exist_ok=True)
        atomic_text(place / "training.json", _json(finished | {"seconds": before + result.seconds}))

    def _measure(self, net: Net, place: Path) -> Row:
        """Validate a net's best checkpoint in float32 and count what it is made of."""
        best = place / "weights" / "best.pt"
        checkpoint = load_checkpoint(best)
        imgsz, own = self._imgsz(checkpoint), self._own_data(checkpoint)
        measured = val.run(
            weights=str(best),
            data=own or self.opt.data,
            imgsz=imgsz,
            batch_size=2 * self.opt.batch_size if self.opt.batch_size > 0 else 32,
            device=self.opt.device,
            workers=self.opt.workers,
            single_cls=self.opt.single_cls,
            plugins=self.opt.plugins,
            project=str(place),
            name="val",
            exist_ok=True,
        )
        metrics, size = measured.metrics, summary(checkpoint.model, imgsz)
        values = {
            "map": float(metrics.map),
            "map50": float(metrics.map50),
            "precision": float(metrics.precision),
            "recall": float(metrics.recall),
            **{name: size[name] for name in ("parameters", "parameters_fused", "gflops")},
            "size_mb": best.stat().st_size / 1e6,
            "train_seconds": _read_json(place / "training.json")["seconds"] if net.cfg else None,
            "epochs": _epochs(net, place),
        }
        conditions = None if checkpoint.official else conditions_of(checkpoint.meta, checkpoint.model.nc)
        if conditions:  # the pixels that it was really trained with
            conditions["imgsz"] = _whole_strides(conditions["imgsz"], checkpoint.model)
        label = net.label if net.cfg else _checkpoint_label(net, checkpoint)
        weights = net.weights or str(best.relative_to(self.folder))
        note = f"accuracy measured on its own {Path(own).name} ({checkpoint.model.nc} classes)" if own else ""
        measured = {"data": data_path(own or self.opt.data), "imgsz": imgsz}
        return Row(
            net.key, label, start_of(checkpoint.meta), conditions, values, weights, note=note, **measured
        )

    def _complete(self, row: Row, place: Path) -> Row:
        """A row of an earlier session; one of an earlier version did not say yet what it was measured on."""
        if not row.imgsz:
            checkpoint = load_checkpoint(place / "weights" / "best.pt")
            row.imgsz = self._imgsz(checkpoint)
            row.data = data_path(self._own_data(checkpoint) or self.opt.data)
            if row.conditions:
                row.conditions["imgsz"] = _whole_strides(row.conditions["imgsz"], checkpoint.model)
        return row

    def _own_data(self, checkpoint: Checkpoint) -> str:
        """The data set that a checkpoint of another number of classes was trained on; '' where ours fits.

        Its classes mean nothing on ours, so it is measured on its own and stands under other conditions. One
        that does not say, or whose data are gone, is left to val.py, which refuses it.
        """
        opt = checkpoint.meta.get("opt")
        data = opt.get("data") if isinstance(opt, dict) else None
        if not class_difference(checkpoint.model.names, self.data) or not data:
            return ""
        return data if Path(data_path(data)).is_file() else ""

    def _best(self, row: Row) -> Path:
        return self.folder / row.key / "weights" / "best.pt"

    def _imgsz(self, checkpoint: Checkpoint) -> int:
        """The pixels to measure with: --imgsz, or those of the training where --weights alone were given."""
        opt = checkpoint.meta.get("opt")
        trained = opt.get("imgsz") if self.plan.own_imgsz and isinstance(opt, dict) else None
        usable = isinstance(trained, int) and trained > 0
        return _whole_strides(trained if usable else self.opt.imgsz, checkpoint.model)

    def _open_backends(self, rows: list[Row]) -> dict[str, dict[str, Backend]]:
        """Each net's checkpoint, fused, and its ONNX file, exported where it is not there yet."""
        if self.onnx_missing:
            LOGGER.warning("no ONNX Runtime column: %s", self.onnx_missing)
        backends = {}
        for row in rows:
            best = self._best(row)
            backends[row.key] = {"torch": load_backend(best, self.device)}
            if self.onnx_missing:
                continue
            file, size = best.with_suffix(".onnx"), row.imgsz
            try:
                if not file.is_file() or file.stat().st_mtime < best.stat().st_mtime:
                    common = {"data": self.opt.data, "plugins": self.opt.plugins, "include": ["onnx"]}
                    export.run(weights=str(best), imgsz=[size, size], **common)
                backends[row.key]["onnx"] = load_backend(file, self.device)
            except UserError as error:
                row.note = "; ".join(filter(None, (row.note, f"no ONNX figures: {error}")))
                LOGGER.warning("%s: %s", row.label, row.note)
        return backends

    def _time(self, rows: list[Row], backends: dict[str, dict[str, Backend]]) -> None:
        """Fill in the latencies: those of the last time if nothing is new, else of all nets together."""
        file = self.folder / "latency.json"
        setting = {
            "hardware": describe(self.device),
            "runs": self.opt.latency_runs,
            "versions": versions() | _onnx_version(),
            "nets": {row.key: [self._best(row).stat().st_mtime_ns, *backends[row.key]] for row in rows},
        }
        found = _read_json(file)
        if any(found.get(name) != value for name, value in setting.items()):
            calls: dict[str, Callable[[], Any]] = {}
            image = load_image(self.images.path(0))
            for row in rows:
                batch = letterbox_tensor(image, row.imgsz).to(self.device)
                for engine, backend in backends[row.key].items():
                    calls[f"{row.key}/{engine}"] = partial(backend.predict, batch)
            LOGGER.info("timing %d nets in %d rounds", len(rows), ROUNDS)
            found = setting | {"ms": interleaved(calls, self.opt.latency_runs, ROUNDS, self.device)}
            atomic_text(file, _json(found))
        for row in rows:
            for engine in backends[row.key]:
                ms = found["ms"][f"{row.key}/{engine}"]
                row.values[f"{engine}_ms"] = ms["median"]
                row.values |= {f"{engine}_{name}": ms[name] for name in ("p90", "p95")}

    def _samples(self, rows: list[Row], backends: dict[str, dict[str, Backend]]) -> list[Sample]:
        """The same val images as each net sees them."""
        wanted = NmsOptions(SHOWN_CONF, SHOWN_IOU, agnostic=self.opt.single_cls)

        def detector(backend: Backend, size: int) -> FindBoxes:
            detect = Detector(backend, wanted)

            def find(image: np.ndarray) -> np.ndarray:
                boxed, ratio, pad = letterbox(image, size, auto=False)
                return detect([rgb_planes(boxed)], [(image.shape[:2], (ratio, pad))]).boxes[0].numpy()

            return find

        opened = [(row, backends[row.key]["torch"]) for row in rows]
        # Those of other classes would be drawn under our classes' names.
        detectors = {
            r.label: detector(b, r.imgsz) for r, b in opened if not class_difference(b.names, self.data)
        }
        return sample_pictures(self.images, self.data.names, self.opt.samples, detectors)

    def _write(self, rows: list[Row], samples: list[Sample]) -> CompareResult:
        """compare.csv, compare.md, pareto.png and index.html."""
        folder, failed = self.folder, [row for row in rows if row.failed]
        trained = {net.key for net in self.nets if net.cfg}
        own = next((row.conditions for row in rows if row.key in trained and not row.failed), None)
        groups = group_rows(rows, own, [self.plan.hyp_file] if self.plan.hyp_file else [])
        facts = self._facts(sorted({row.imgsz for row in rows if not row.failed}))
        atomic_text(folder / "compare.csv", to_csv(groups, failed))
        measured = [f"{name.capitalize()}: {text}." for name, text in facts.items()]
        atomic_text(folder / "compare.md", to_markdown(groups, failed, measured))
        plot_pareto(groups, folder / "pareto.png")
        page = Page(
            title=f"{len(rows)} detectors on {self.data.path.name}",
            groups=groups,
            failed=failed,
            chart=(folder / "pareto.png").read_bytes(),
            samples=samples,
            facts=facts,
            command=self.plan.command_line(),
        )
        atomic_text(folder / "index.html", render(page))
        LOGGER.info("\n%s", to_markdown(groups, failed, ()))
        LOGGER.info("results saved to %s; open %s", folder, folder / "index.html")
        return CompareResult(folder, groups, failed)

    def _facts(self, sizes: list[int]) -> dict[str, str]:
        """How, when and on what the figures came about; `sizes` are the pixels of all rows."""
        packages = versions() | _onnx_version()
        size = f"{(sizes or [self.opt.imgsz])[0]} px" if len(sizes) < 2 else "the size that its table names"
        facts = {
            "accuracy": f"best checkpoint in float32 on the {len(self.images)} val images of "
            f"{self.data.path.name} ({self.data.nc} classes), {size}",
            "latency": f"one image of {size}, batch 1, float32, BatchNorm fused, without NMS; "
            f"median, 90th and 95th percentile of {self.opt.latency_runs} runs in rounds through all nets",
            "hardware": describe(self.device),
            "versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
            "date": datetime.now().strftime("%Y-%m-%d"),
        }
        return facts | ({"ONNX Runtime": f"not measured: {self.onnx_missing}"} if self.onnx_missing else {})


def _fingerprint(net: Net) -> str:
    """What a net was made from, so that a change of its file shows; '' for a network known by name."""
    if net.cfg and is_named(net.cfg):
        return ""
    file = find_file(net.cfg, "models") if net.cfg else find_file(net.weights)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _whole_strides(imgsz: int, model: Any) -> int:
    return fit_side(imgsz, max(int(model.stride.max()), 32), least=2)


def _keep_best(last: Checkpoint, best: Path) -> None:
    """Make up for a stop between the last epoch's last.pt and its best.pt."""
    reached = load_checkpoint(best).meta["best_fitness"] if best.is_file() else -1.0
    if last.meta["best_fitness"] > reached:
        atomic_write(best, lambda file: file.write(last.path.read_bytes()))


def _checkpoint_label(net: Net, checkpoint: Checkpoint) -> str:
    """A trained checkpoint by the YAML it was built from, where it says so, and its run."""
    opt = checkpoint.meta.get("opt")
    cfg = opt.get("cfg") if isinstance(opt, dict) else ""
    name = train.cfg_name(cfg) if cfg else ""
    return f"{name} ({net.label})" if name and name != net.label else net.label


def _epochs(net: Net, place: Path) -> int | None:
    """How many epochs a net was trained, by the results.csv of its run; None where that is gone."""
    folder = place if net.cfg else RunFolder.of(find_file(net.weights)).path
    return len(read_results(folder / "results.csv")) or None


def _onnx_version() -> dict[str, str]:
    with contextlib.suppress(PackageNotFoundError):
        return {"onnxruntime": version("onnxruntime")}
    return {}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _read_json(path: Path) -> dict[str, Any]:
    """A state file of ours; empty when it is not there or damaged, so that what it told is done again."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def main() -> None:
    """Compare as the command line says; nets that failed make the exit code 1."""
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
