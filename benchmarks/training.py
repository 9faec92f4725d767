"""How fast training is, as ratios from one run on one machine.

    python benchmarks/training.py --cfg models/yolov5n.yaml --data data/digits.yaml

Four things are measured, each in a process of its own, in turn, `--rounds` times; the medians are compared:

    bare     forward + backward of the net alone: float32, NCHW, the C library's memory as it comes
    loop     the whole training loop: loader, augmentation, forward, loss, backward, optimizer, average
    loss     the loss with its own backward, and beside it forward + backward, as the loop runs them
    loader   the loader alone, one worker, images cached in memory

With --compare-modes, forward + backward of several nets in every mode that `--amp auto` chooses from, and in
the mode that it chose, in turn in one process:

    python benchmarks/training.py --compare-modes
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from models.yolo import DetectionModel
from utils.cli import Parser, guard
from utils.dataset.config import load_dataset
from utils.dataset.detection_dataset import BatchOptions
from utils.dataset.images import load_images
from utils.dataset.loader import Loader, build_loader, workers_beside
from utils.device import autocast, describe, seeded, tune_allocator, versions
from utils.errors import UserError
from utils.training.compute_mode import ComputeMode, convolutions, unmeasured_mode
from utils.training.ema import ModelEMA
from utils.training.hyp import load_hyp
from utils.training.measured_mode import HOPELESS, Measured, Measurement, Workload, choose_mode
from utils.training.optim import LRSchedule, build_optimizer
from utils.training.trainer import BatchReport, Trainer

CPU = torch.device("cpu")
WARM_UP = 4
NETS = (
    "yolov5-mobilenetv2",
    "yolov5-mobilenetv3-small",
    "yolov5-efficientnet-lite0",
    "yolov5-ghostnet",
    "yolov5-mobilevit-xxs",
    "yolov5n",
)
MINUTES = 11.5  # of --compare-modes
LONG = 10**6  # images of a training so long that measuring takes the most seconds it may


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cfg", default="models/yolov5n.yaml", help="model YAML")
    add("--data", default="data/digits.yaml", help="dataset YAML")
    add("--imgsz", type=int, default=320)
    add("--batch-size", type=int, default=16)
    add("--workers", type=int, help="loader processes of the loop (without it as many as train.py takes)")
    add("--batches", type=int, default=20, help="batches measured in each part and round")
    add("--rounds", type=int, default=3)
    add("--compare-modes", action="store_true", help="compare modes of computing instead")
    add(
        "--nets", nargs="+", default=NETS, metavar="NET", help="of --compare-modes: names of YAMLs in models/"
    )
    add("--part", choices=sorted(PARTS), help="measure only this, in this process, and print it as JSON")
    return parser


def make_loader(opt: argparse.Namespace, workers: int) -> Loader:
    """The training loader with images cached in memory."""
    images = load_images(load_dataset(opt.data), "train", require_labels=True)
    options = BatchOptions(opt.imgsz, opt.batch_size, hyp=load_hyp("hyp.scratch-low.yaml"), cache="ram")
    return build_loader(images, options, workers=workers, shuffle=True)


def endless(loader: Loader) -> Iterator:
    """Batch after batch, over as many epochs as it takes; an epoch's short last batch is left out."""
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        for number, batch in enumerate(loader):
            if number < len(loader) - 1 or len(loader) == 1:
                yield batch


def make_model(opt: argparse.Namespace) -> DetectionModel:
    """The net with the data set's classes."""
    with seeded(0):
        return DetectionModel(opt.cfg, nc=load_dataset(opt.data).nc)


def make_trainer(opt: argparse.Namespace) -> Trainer:
    """A trainer as train.py makes it."""
    tune_allocator()
    model = make_model(opt).to(memory_format=torch.channels_last)
    mode = choose_mode(model, Workload(opt.imgsz, opt.batch_size, LONG))
    mode.prepare(model)
    hyp = load_hyp("hyp.scratch-low.yaml")
    return Trainer(
        model=model,
        loss=train.build_loss(model, hyp, opt.imgsz),
        optimizer=build_optimizer(model, "SGD", hyp, opt.batch_size),
        schedule=LRSchedule(hyp, 100, opt.batches + WARM_UP, opt.batch_size),
        device=CPU,
        mode=mode,
        ema=ModelEMA(model),
        imgsz=opt.imgsz,
    )


def measure_bare(opt: argparse.Namespace) -> dict[str, float]:
    """Images/s of forward + backward."""
    model = make_model(opt).train()
    images = torch.rand(opt.batch_size, 3, opt.imgsz, opt.imgsz)
    seconds = []
    for _ in range(opt.batches + WARM_UP):
        model.zero_grad(set_to_none=True)
        started = time.perf_counter()
        sum(raw.pow(2).mean() for raw in model(images)).backward()
        seconds.append(time.perf_counter() - started)
    return {"images_per_second": opt.batch_size / statistics.median(seconds[WARM_UP:])}


def measure_loop(opt: argparse.Namespace) -> dict[str, float]:
    """Images/s from the end of one batch to the end of another, everything between them included."""
    trainer, loader = make_trainer(opt), make_loader(opt, workers_beside(CPU, opt.workers))
    ends: list[tuple[float, int]] = []

    def note(report: BatchReport) -> None:
        ends.append((time.perf_counter(), report.images))

    trainer.train_epoch(itertools.islice(endless(loader), opt.batches + WARM_UP), 0, note)
    loader.close()
    measured = ends[WARM_UP - 1 :]
    return {"images_per_second": sum(n for _, n in measured[1:]) / (measured[-1][0] - measured[0][0])}


def measure_loss(opt: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of the loss with its backward to the raw maps, and of forward + backward."""
    trainer, loader = make_trainer(opt), make_loader(opt, 0)
    model, loss_ms, net_ms = trainer.model.train(), [], []
    for images, targets, _, _ in itertools.islice(endless(loader), opt.batches + WARM_UP):
        model.zero_grad(set_to_none=True)
        inputs = trainer.prepare(images)
        started = time.perf_counter()
        with autocast(CPU, trainer.mode.dtype):
            raws = model(inputs)
        forward = time.perf_counter()
        leaves = [raw.detach().requires_grad_() for raw in raws]
        trainer.loss(leaves, targets)[0].backward()
        lost = time.perf_counter()
        torch.autograd.backward(raws, [leaf.grad for leaf in leaves])
        net_ms.append(1e3 * (forward - started + time.perf_counter() - lost))
        loss_ms.append(1e3 * (lost - forward))
    return {"loss": statistics.median(loss_ms[WARM_UP:]), "net": statistics.median(net_ms[WARM_UP:])}


def measure_loader(opt: argparse.Namespace) -> dict[str, float]:
    """Images/s of one worker that nobody waits for."""
    loader = make_loader(opt, 1)
    # What was prefetched while the first batches went by must not count: measure over many more.
    stream = itertools.islice(endless(loader), 2 * WARM_UP + 3 * opt.batches)
    count = 0
    for number, (images, *_) in enumerate(stream):
        if number == 2 * WARM_UP:
            started, count = time.perf_counter(), 0
        count += len(images)
    seconds = time.perf_counter() - started
    loader.close()
    return {"images_per_second": (count - len(images)) / seconds}


PARTS = {"bare": measure_bare, "loop": measure_loop, "loss": measure_loss, "loader": measure_loader}


def in_own_process(opt: argparse.Namespace, part: str) -> dict[str, float]:
    """Measure one part in a fresh process: the allocator's settings must not reach the others."""
    command = [sys.executable, __file__, "--part", part]
    for name in ("cfg", "data", "imgsz", "batch_size", "workers", "batches"):
        if getattr(opt, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(opt, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UserError(f"part {part}: {told[-1] if told else _silent_end(done.returncode)}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _silent_end(code: int) -> str:
    """One sentence for a process that ended without a word, as one that the system kills does."""
    if code < 0:
        return f"was killed by signal {-code}; free some memory or give a smaller --batch-size"
    return f"ended with exit code {code} without a word; run it alone with --part"


def compare(opt: argparse.Namespace) -> dict[str, Any]:
    """Measure all parts in turn and print the ratios."""
    found: dict[str, list[dict[str, float]]] = {part: [] for part in PARTS}
    for number in range(opt.rounds):
        for part in PARTS:
            found[part].append(in_own_process(opt, part))
            print(f"round {number + 1}/{opt.rounds}  {part:7} {found[part][-1]}", flush=True)
    bare, loop, loader = (
        statistics.median(row["images_per_second"] for row in found[part])
        for part in ("bare", "loop", "loader")
    )
    share = statistics.median(row["loss"] / row["net"] for row in found["loss"])
    print(
        f"\n{opt.cfg}, {opt.imgsz} px, batch {opt.batch_size}, {describe(CPU)}, torch {versions()['torch']}"
    )
    print(f"loop / bare forward+backward   {loop / bare:6.2f}   ({loop:.1f} / {bare:.1f} images/s)")
    print(f"loss / forward+backward        {share:6.1%}")
    print(f"loader / loop                  {loader / loop:6.2f}   ({loader:.1f} / {loop:.1f} images/s)")
    return {"loop_over_bare": loop / bare, "loss_share": share, "loader_over_loop": loader / loop}


def modes_of(model: torch.nn.Module) -> dict[str, ComputeMode]:
    """The modes that `--amp auto` can compose, without its choice layer by layer."""
    deep = frozenset(name for name, layer in convolutions(model) if layer.groups > 1)
    strided = frozenset(name for name, layer in convolutions(model) if hasattr(layer, "spreads"))
    return {
        "float32": ComputeMode(),
        "float32 contiguous": ComputeMode(channels_last=False),
        "bf16": ComputeMode(torch.bfloat16),
        "bf16 contiguous": ComputeMode(torch.bfloat16, False),
        "bf16, library's gradient": ComputeMode(torch.bfloat16, direct=strided),
        "bf16, depthwise in float32": ComputeMode(torch.bfloat16, float32=deep),
    }


def time_modes(net: str, imgsz: int, batch: int, seconds: float) -> tuple[dict[str, str], Measured]:
    """One row of the table: images/s of each mode, and what auto chose.

    Modes that are hopeless at a batch of 2 are not run at the whole batch; their figure is in brackets.
    """
    started = time.perf_counter()
    with seeded(0):
        model = DetectionModel(f"models/{net}.yaml", nc=3).to(memory_format=torch.channels_last)
    work = Workload(imgsz, batch, LONG)
    found = Measurement(model, work).run()
    today = unmeasured_mode(CPU)
    modes = modes_of(model) | {"auto": found.mode, "today": today}
    timer = Measurement(model, work)
    best: dict[ComputeMode, float] = {}
    # The first step compiles kernels too, which says nothing.
    few = {mode: min(timer.step(mode, 2) for _ in range(2)) for mode in modes.values()}
    kept = [mode for mode in few if few[mode] < HOPELESS * min(few.values()) or mode in (found.mode, today)]
    now, spent = time.perf_counter(), 0.0
    for number in itertools.count():
        if number and now + spent - started > seconds:
            break
        for mode in kept[number % len(kept) :] + kept[: number % len(kept)]:
            best[mode] = min(timer.step(mode, batch), best.get(mode, float("inf")))
        now, spent = time.perf_counter(), time.perf_counter() - now
    rates = {name: batch / best[mode] for name, mode in modes.items() if mode in best}
    row = {
        name: f"{rates[name]:.1f}" if name in rates else f"({2 / few[mode]:.1f})"
        for name, mode in modes.items()
    }
    row["auto / best"] = f"{rates['auto'] / max(rates.values()):.2f}"
    row["auto / today"] = f"{rates['auto'] / rates['today']:.2f}"
    return row, found


def compare_modes(opt: argparse.Namespace) -> None:
    """Print the table of all modes, row by row, and what auto chose for each net."""
    tune_allocator()
    ends = time.perf_counter() + 60 * MINUTES
    cases = [(net, batch) for net in opt.nets for batch in (8, 16)]
    print(
        f"{opt.imgsz} px, forward + backward, images/s, {describe(CPU)}, torch {versions()['torch']}\n",
        flush=True,
    )
    notes = []
    for number, (net, batch) in enumerate(cases):
        share = (ends - time.perf_counter()) / (len(cases) - number)
        row, found = time_modes(net, opt.imgsz, batch, share)
        if number == 0:
            print(f"| net | batch | {' | '.join(row)} |\n|{'---|' * (len(row) + 2)}", flush=True)
        print(f"| {net.removeprefix('yolov5-')} | {batch} | {' | '.join(row.values())} |", flush=True)
        notes.append(
            f"- {net.removeprefix('yolov5-')}, batch {batch}: {found}; {row['auto / today']} of today's"
        )
    print("\n" + "\n".join(notes))


def main() -> None:
    """Compare, or measure one part."""
    opt = build_parser().parse_args()
    if opt.compare_modes:
        compare_modes(opt)
    elif opt.part:
        print(json.dumps(PARTS[opt.part](opt)))
    else:
        compare(opt)


if __name__ == "__main__":
    guard(main)
