"""Measure how a network trains fastest on this CPU: what `--amp auto` does there.

Every convolution of a kind of its own is timed alone in bfloat16 and in float32; then whole training steps of
the modes composed from that are timed in turn. The time for it is limited.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.device import autocast, seeded
from utils.errors import UserError
from utils.files import atomic_text, read_regular, user_cache_dir
from utils.training.compute_mode import (
    ComputeMode,
    SpreadsGradient,
    convolutions,
    set_layer,
    this_machine,
    unmeasured_mode,
)

LOGGER = logging.getLogger("yolo.train")

CPU = torch.device("cpu")
MOST_SECONDS, MOST_SHARE = 15.0, 0.03
"""The most that measuring may take: seconds, and a share of the expected training."""
FEWEST_IMAGES = 1000
"""A training that sees fewer images is too short to be measured at all."""
PROBED = 2  # images of the first steps, which tell how long the training will take
_ROUNDS = 5
CLEARLY = 0.8  # a layer changes where that takes less than this share of its time
WORTH = 0.002  # and where all of its kind save more than this share of a step; below, it is noise
HOPELESS = 1.3  # a mode that takes so many times the best one's time is not timed again
SHORT = 0.02  # seconds of runs from which on two of each are enough
_PLANNED = 10  # steps' worth of time for all layers and rounds
_FORMAT_LAYERS = 3  # kinds of layers on which the memory formats are tried first
_SCHEMA = 1


@dataclass(frozen=True)
class Workload:
    """Hold what one process trains.

    Attributes:
        imgsz: pixels of a side.
        batch_size: images per step of this process.
        images: all that it will see, over all epochs.
    """

    imgsz: int
    batch_size: int
    images: int


@dataclass(frozen=True)
class LayerKind:
    """Describe convolutions that take the same time.

    Attributes:
        text: class and arguments, as torch prints them.
        channels, height, width, dtype: of the input.
        inner: whether the input needs a gradient.
        learns: whether the weight does.
        strided: whether it has a gradient of its own beside the library's.
    """

    text: str
    channels: int
    height: int
    width: int
    dtype: torch.dtype
    inner: bool
    learns: bool
    strided: bool


@dataclass(frozen=True)
class LayerRun:
    """Name a timed call: forward and backward of one convolution."""

    kind: LayerKind
    dtype: torch.dtype | None
    float32: bool
    direct: bool
    channels_last: bool
    batch: int


@dataclass(frozen=True)
class StepRun:
    """Name a timed call: forward and backward of the network."""

    mode: ComputeMode
    batch: int


Stopwatch = Callable[[LayerRun | StepRun, Callable[[], object]], float]
"""Runs a call and returns its seconds. Tests give another one, which knows the names."""


def by_clock(_: LayerRun | StepRun, call: Callable[[], object]) -> float:
    """Run a call, and return its seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Measured:
    """Hold the fastest mode and the rates it was chosen by.

    Attributes:
        rates: images per second of each mode that was timed in whole steps; empty if there was no time.
        why: there was no time.
        batch: images per timed step.
        seconds: what the timed calls took.
    """

    mode: ComputeMode
    rates: dict[ComputeMode, float]
    batch: int = 0
    seconds: float = 0.0
    why: str = "the training is too short to measure it"

    def __str__(self) -> str:
        """Return words for a message."""
        if not self.rates:
            return f"{self.mode}, by the kind of processor: {self.why}"
        others = [
            f"{_brief(mode, self.mode)} {rate:.1f}" for mode, rate in self.rates.items() if mode != self.mode
        ]
        told = f" ({', '.join(others)})" if others else ""
        return (
            f"{self.mode}: {self.rates[self.mode]:.1f} images/s{told}, measured on batches of {self.batch} "
            f"in {self.seconds:.0f} s"
        )


def _brief(mode: ComputeMode, chosen: ComputeMode) -> str:
    """Return words for a mode, without the memory format of the chosen one."""
    text = str(mode)
    return text if mode.channels_last != chosen.channels_last else text.rpartition(", ")[0]


def choose_mode(
    model: nn.Module, work: Workload, stopwatch: Stopwatch = by_clock, cache: Path | None = None
) -> ComputeMode:
    """Return the mode in which a network trains fastest on this CPU.

    One line of the log tells it. Neither the network nor the random state changes.

    Args:
        model: the network, with its frozen parts as they are trained.
        work: what is trained.
        stopwatch: times the calls.
        cache: folder of earlier choices; None: that of the user.
    """
    if work.images < FEWEST_IMAGES:
        LOGGER.info("amp auto: %s", found := Measured(unmeasured_mode(CPU), {}))
        return found.mode
    kept = _Kept.of(model, work, cache)
    known = kept.read(model)
    if known is not None:
        LOGGER.info("amp auto: %s, as measured before (%s)", known, kept.file)
        return known
    with seeded(0):
        found = Measurement(model, work, stopwatch).run()
    if found.rates:
        mode = replace(found.mode, machine=this_machine())
        kept.write(mode)
    else:
        mode = found.mode
    LOGGER.info("amp auto: %s", found)
    return mode


@dataclass(frozen=True)
class _Kept:
    """Keep a choice in the user's cache folder.

    Attributes:
        facts: what the choice depends on.
        file: where it is.
    """

    facts: dict[str, object]
    file: Path

    @classmethod
    def of(cls, model: nn.Module, work: Workload, folder: Path | None) -> _Kept:
        learning = [parameter.requires_grad for parameter in model.parameters()]
        facts: dict[str, object] = {
            "schema": _SCHEMA,
            "machine": this_machine(),
            "network": sha256(f"{model!r}{learning}".encode()).hexdigest(),
            "imgsz": work.imgsz,
            "batch_size": work.batch_size,
        }
        name = sha256(json.dumps(facts).encode()).hexdigest()[:16]
        return cls(facts, (folder or user_cache_dir() / "yolo-modes") / f"{name}.json")

    def read(self, model: nn.Module) -> ComputeMode | None:
        """Return the choice; None if there is none, or its file is damaged."""
        try:
            held = json.loads(read_regular(self.file))
            if not isinstance(held, dict) or held.get("facts") != self.facts:
                return None
            mode = ComputeMode.from_plain(held.get("mode"), str(self.file))
        except (OSError, ValueError, RecursionError, UserError):
            return None
        return mode if mode.float32 | mode.direct <= {name for name, _ in convolutions(model)} else None

    def write(self, mode: ComputeMode) -> None:
        """Write the choice, if the folder can be written."""
        with contextlib.suppress(OSError):
            atomic_text(self.file, json.dumps({"facts": self.facts, "mode": mode.to_plain()}))


class Measurement:
    """Time a copy of a network in several modes.

    Args:
        model: the network.
        work: what is trained.
        stopwatch: times the calls; their seconds are what is counted against the limit.
    """

    def __init__(self, model: nn.Module, work: Workload, stopwatch: Stopwatch = by_clock) -> None:
        self.model = copy.deepcopy(model).train()
        self.work = work
        self.stopwatch = stopwatch
        self.default = unmeasured_mode(CPU)
        self.limit = MOST_SECONDS
        self.per_image = 0.0
        self.spent = 0.0
        self.heaviest: dict[LayerKind, float] = {}
        self.layers = dict(convolutions(self.model))
        self.kinds: dict[LayerKind, list[str]] = {}
        self.times: dict[ComputeMode, float] = {}

    def run(self) -> Measured:
        """Return the fastest mode; the default one where there is no time to find it."""
        probed = min(PROBED, self.work.batch_size)
        if self._find_kinds(probed) > MOST_SECONDS / 4:
            return Measured(
                self.default, {}, why=f"steps are too slow to be measured in {MOST_SECONDS:.0f} s"
            )
        self.per_image = self.step(self.default, probed) / probed
        self.limit = min(MOST_SECONDS, MOST_SHARE * self.per_image * self.work.images)
        left = self.limit - self.spent
        batch = largest_batch(left / (_PLANNED * self.per_image), self.work.batch_size)
        modes = [ComputeMode(), self.default]
        if batch and supports_bfloat16():
            modes += [ComputeMode(torch.bfloat16), *self.mixed(batch)]
        elif left < 2 * len(modes) * probed * self.per_image:
            return Measured(self.default, {})
        batch = batch or probed
        best = self.compare(modes, batch)
        other = replace(best, channels_last=False)
        if self.spent + 3 * self.times[best] < self.limit and self.gains_by(other, best):
            best = self.compare([best, other], batch)
        rates = {mode: batch / seconds for mode, seconds in self.times.items()}
        return Measured(best, rates, batch, self.spent)

    def _find_kinds(self, batch: int) -> float:
        """Sort the convolutions by kind in a first step; return its seconds."""

        def note(name: str) -> Callable[[nn.Module, Sequence[object]], None]:
            def hook(layer: nn.Module, inputs: Sequence[object]) -> None:
                x = inputs[0] if len(inputs) == 1 else None
                if isinstance(layer, nn.Conv2d) and isinstance(x, Tensor) and x.ndim == 4:
                    self.kinds.setdefault(_kind_of(layer, x), []).append(name)

            return hook

        handles = [layer.register_forward_pre_hook(note(name)) for name, layer in self.layers.items()]
        seconds = self.step(ComputeMode(torch.bfloat16) if supports_bfloat16() else self.default, batch)
        for handle in handles:
            handle.remove()
        return seconds

    def step(self, mode: ComputeMode, batch: int) -> float:
        """Return the seconds of forward and backward of the network."""
        mode.prepare(self.model)
        side = self.work.imgsz
        images = torch.rand(batch, 3, side, side).contiguous(memory_format=mode.memory_format)

        def call() -> None:
            with autocast(CPU, mode.dtype):
                raws = self.model(images)
            torch.stack([raw.float().pow(2).mean() for raw in raws]).sum().backward()

        seconds = self._time(StepRun(mode, batch), call)
        self.model.zero_grad(set_to_none=True)
        return seconds

    def mixed(self, batch: int) -> list[ComputeMode]:
        """Return bfloat16 with each kind as it is fastest; none if time runs out."""
        float32: set[str] = set()
        direct: set[str] = set()
        for kind, names in self.kinds.items():
            hows = ["spread", "float32", *(["direct"] if kind.strided else [])]
            runs = [LayerRun(kind, torch.bfloat16, h == "float32", h == "direct", True, batch) for h in hows]
            spread, full, *plain = self.best_of(runs)
            if self._gains(full, min([spread, *plain]), len(names) / batch):
                float32.update(names)
            elif plain and self._gains(plain[0], spread, len(names) / batch):
                direct.update(names)
            self.heaviest[kind] = len(names) * min([spread, full, *plain])
            if self.spent > self.limit / 2:
                return []
        return [ComputeMode(torch.bfloat16, True, frozenset(float32), frozenset(direct))]

    def _gains(self, seconds: float, other: float, per_image: float) -> bool:
        """Return whether convolutions of a kind save enough by taking less than other seconds."""
        return seconds < CLEARLY * other and (other - seconds) * per_image > WORTH * self.per_image

    def best_of(self, runs: Sequence[LayerRun]) -> list[float]:
        """Return the least seconds of each run, timed in turn; short ones run more often."""
        inputs = [_input_of(run) for run in runs]
        series: list[list[float]] = [[] for _ in runs]
        while len(series[0]) < 2 or (len(series[0]) < 4 and sum(map(sum, series)) < SHORT):
            for times, run, x in zip(series, runs, inputs):
                times.append(self.layer(run, x))
        return [min(times) for times in series]

    def layer(self, run: LayerRun, x: Tensor) -> float:
        """Return the seconds of forward and backward of a convolution alone."""
        layer = self.layers[self.kinds[run.kind][0]]
        set_layer(layer, float32=run.float32, direct=run.direct)
        layer.to(memory_format=torch.channels_last if run.channels_last else torch.contiguous_format)

        def call() -> None:
            with autocast(CPU, run.dtype):
                y = layer(x)
            if y.requires_grad:
                y.backward(torch.ones_like(y))

        seconds = self._time(run, call)
        layer.zero_grad(set_to_none=True)
        x.grad = None
        return seconds

    def compare(self, modes: Sequence[ComputeMode], batch: int) -> ComputeMode:
        """Time whole steps of modes in turn; return the fastest mode of all so far."""
        rest = list(dict.fromkeys(modes))
        for number in range(_ROUNDS):
            for mode in rest:
                if number and self.spent + self.times[mode] > self.limit:
                    return min(self.times, key=self.times.__getitem__)
                self.times[mode] = min(self.step(mode, batch), self.times.get(mode, float("inf")))
            best = min(self.times.values())
            rest = [mode for mode in rest if self.times[mode] < HOPELESS * best]
        return min(self.times, key=self.times.__getitem__)

    def gains_by(self, other: ComputeMode, mode: ComputeMode) -> bool:
        """Return whether the heaviest convolutions are faster in another mode's memory format."""
        heavy = sorted(self.heaviest, key=self.heaviest.__getitem__, reverse=True)[:_FORMAT_LAYERS]
        sums = [0.0, 0.0]
        for kind in heavy:
            name = self.kinds[kind][0]
            runs = [
                LayerRun(kind, how.dtype, name in how.float32, name in how.direct, how.channels_last, 1)
                for how in (mode, other)
            ]
            sums = [total + seconds for total, seconds in zip(sums, self.best_of(runs))]
        return sums[1] < sums[0]

    def _time(self, what: LayerRun | StepRun, call: Callable[[], object]) -> float:
        seconds = self.stopwatch(what, call)
        self.spent += seconds
        return seconds


def _kind_of(layer: nn.Conv2d, x: Tensor) -> LayerKind:
    """Return the kind of a convolution with this input."""
    channels, height, width = x.shape[1:]
    strided = isinstance(layer, SpreadsGradient) and layer.bias is None
    learns = layer.weight.requires_grad
    return LayerKind(repr(layer), channels, height, width, x.dtype, x.requires_grad, learns, strided)


def _input_of(run: LayerRun) -> Tensor:
    """Return an input for a convolution alone."""
    kind = run.kind
    x = torch.ones(run.batch, kind.channels, kind.height, kind.width)
    x = x.to(kind.dtype if run.dtype else torch.float32)
    format_ = torch.channels_last if run.channels_last else torch.contiguous_format
    return x.contiguous(memory_format=format_).requires_grad_(kind.inner)


def largest_batch(affordable: float, most: int) -> int:
    """Return the largest affordable power of two, or `most` if that is affordable.

    >>> largest_batch(5.5, 16), largest_batch(99, 12), largest_batch(0.7, 16)
    (4, 12, 0)
    """
    if affordable < 1:
        return 0
    return most if affordable >= most else 1 << (int(affordable).bit_length() - 1)


def supports_bfloat16() -> bool:
    """Return whether the library has fast bfloat16 convolutions for this CPU at all."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
