"""What `--amp auto` chooses, on machines whose times the tests know; nothing here asserts a real time."""

from __future__ import annotations

import itertools
import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.layers.depthwise import convolution
from utils.training import measured_mode
from utils.training.compute_mode import ComputeMode
from utils.training.measured_mode import (
    MOST_SECONDS,
    MOST_SHARE,
    LayerRun,
    Measurement,
    StepRun,
    Workload,
    choose_mode,
)

LAYERS = ("stem", "wide", "strided", "point")
LONG = Workload(imgsz=32, batch_size=8, images=100_000)


class Net(nn.Module):
    """A dense convolution, a depthwise one, a strided depthwise one and a pointwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.wide = convolution(8, 8, 5, 1, 2, g=8)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.strided = convolution(8, 8, 3, 2, 1, g=8)
        self.point = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.point(self.strided(self.drop(self.norm(self.wide(self.stem(x))))))]


@dataclass
class Machine:
    """A processor whose times are known.

    Attributes:
        bf16, float32, direct: milliseconds of each layer per image; in float32 without conversion.
        converted: what a layer in float32 within bfloat16 takes longer.
        rest_bf16, rest_float32: milliseconds of all that is no convolution.
        contiguous: factor of that memory format.
        speed: factor of all times.
    """

    bf16: tuple[float, ...]
    float32: tuple[float, ...]
    direct: float = 9.0
    converted: float = 0.2
    rest_bf16: float = 3.0
    rest_float32: float = 5.0
    contiguous: float = 1.5
    speed: float = 1e-3
    net: Net = field(default_factory=Net)
    steps: list[StepRun] = field(default_factory=list)

    def layer(self, name: str, dtype: torch.dtype | None, float32: bool, direct: bool) -> float:
        number = LAYERS.index(name)
        if dtype is None:
            return self.float32[number]
        if float32:
            return self.float32[number] + self.converted
        return self.direct if direct and name == "strided" else self.bf16[number]

    def of_mode(self, mode: ComputeMode) -> float:
        """Milliseconds per image."""
        layers = sum(self.layer(n, mode.dtype, n in mode.float32, n in mode.direct) for n in LAYERS)
        rest = self.rest_float32 if mode.dtype is None else self.rest_bf16
        return (layers + rest) * (1 if mode.channels_last else self.contiguous)

    def __call__(self, what: LayerRun | StepRun, call) -> float:
        if isinstance(what, StepRun):
            if not self.steps:
                call()  # the layers are found in it
            self.steps.append(what)
            return self.speed * what.batch * self.of_mode(what.mode)
        names = {repr(layer): name for name, layer in self.net.named_modules()}
        name = names[what.kind.text]
        assert what.kind.inner == (name != "stem") and what.kind.learns
        assert what.kind.strided == (name == "strided") and (what.kind.strided or not what.direct)
        factor = 1 if what.channels_last else self.contiguous
        return self.speed * what.batch * factor * self.layer(name, what.dtype, what.float32, what.direct)

    def best(self) -> float:
        """The least milliseconds per image of all modes that there are."""
        sets = [frozenset(c) for n in range(5) for c in itertools.combinations(LAYERS, n)]
        modes = [ComputeMode(None, last) for last in (True, False)] + [
            ComputeMode(torch.bfloat16, last, names, direct)
            for last in (True, False)
            for names in sets
            for direct in (frozenset(), frozenset(["strided"]))
        ]
        return min(map(self.of_mode, modes))


MACHINES = {
    "slow depthwise convolutions in bf16": (
        Machine(bf16=(2, 20, 6, 1), float32=(3, 4, 2, 2)),
        {"wide", "strided"},
    ),
    "the opposite: all convolutions faster in bf16": (
        Machine(bf16=(2, 4, 2, 1), float32=(3, 20, 9, 2)),
        set(),
    ),
    "the library's gradient faster": (Machine(bf16=(2, 4, 6, 1), float32=(3, 9, 9, 2), direct=2), set()),
    "float32 faster in everything": (
        Machine(bf16=(4, 20, 9, 3), float32=(3, 4, 2, 2), rest_bf16=9),
        None,
    ),
    "contiguous faster": (
        Machine(bf16=(2, 20, 6, 1), float32=(3, 4, 2, 2), contiguous=0.5),
        {"wide", "strided"},
    ),
}


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has bfloat16 and, without a measurement, would take it."""
    monkeypatch.setattr(measured_mode, "supports_bfloat16", lambda: True)
    monkeypatch.setattr(measured_mode, "unmeasured_mode", lambda _: ComputeMode(torch.bfloat16))


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("speed", [1e-4, 1e-3, 1e-2])
def test_the_choice_is_nearly_the_best_on_machines_of_opposite_preferences(name, speed):
    machine, float32 = MACHINES[name]
    machine = replace(machine, speed=speed, steps=[])
    found = Measurement(machine.net, LONG, machine).run()
    assert machine.best() >= 0.95 * machine.of_mode(found.mode)
    assert found.mode.float32 == (float32 or set())
    assert (found.mode.dtype is None) == (float32 is None)
    assert found.rates[found.mode] == max(found.rates.values())
    slowest = max(map(machine.of_mode, (ComputeMode(), ComputeMode(torch.bfloat16))))
    assert slowest > 1.2 * machine.of_mode(found.mode), "a fixed rule would be slower on one of them"


@pytest.mark.parametrize("images", [1_000, 5_000, 100_000])
@pytest.mark.parametrize("speed", [1e-4, 1e-3, 1e-2, 3e-2])
def test_measuring_takes_no_longer_than_it_may(images, speed):
    machine = replace(MACHINES["slow depthwise convolutions in bf16"][0], speed=speed, steps=[])
    work = replace(LONG, images=images)
    measurement = Measurement(machine.net, work, machine)
    found = measurement.run()
    training = machine.of_mode(ComputeMode(torch.bfloat16)) * speed * images
    assert measurement.spent <= min(MOST_SECONDS, MOST_SHARE * training)
    assert 0 <= found.batch <= 8
    if found.rates:
        assert machine.of_mode(found.mode) <= machine.of_mode(ComputeMode(torch.bfloat16))


def test_a_network_of_seconds_per_image_is_not_measured():
    machine = Machine(bf16=(2, 20, 6, 1), float32=(3, 4, 2, 2), speed=1.0)
    found = Measurement(machine.net, LONG, machine).run()
    assert found.mode == ComputeMode(torch.bfloat16) and not found.rates and len(machine.steps) == 1
    assert str(found).endswith("by the kind of processor: steps are too slow to be measured in 15 s")


def test_without_bfloat16_only_float32_is_run(monkeypatch):
    monkeypatch.setattr(measured_mode, "supports_bfloat16", lambda: False)
    monkeypatch.setattr(measured_mode, "unmeasured_mode", lambda _: ComputeMode())
    machine = Machine(bf16=(1, 1, 1, 1), float32=(3, 4, 2, 2), contiguous=0.5)
    found = Measurement(machine.net, LONG, machine).run()
    assert {step.mode.dtype for step in machine.steps} == {None}
    assert found.mode == ComputeMode()


def test_neither_network_nor_random_state_changes_and_one_line_tells(tmp_path, log):
    machine = Machine(bf16=(2, 20, 6, 1), float32=(3, 4, 2, 2))
    before = {name: value.clone() for name, value in machine.net.state_dict().items()}
    random = torch.get_rng_state()
    with log.at_level(logging.INFO, "yolo"):
        mode = choose_mode(machine.net, LONG, machine, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in machine.net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in machine.net.parameters()) and not mode.direct
    assert type(machine.net.wide) is nn.Conv2d
    (line,) = set(log.messages)
    assert line.startswith("amp auto: bf16 with 2 convolutions in float32, channels_last: ")
    assert " images/s (float32 " in line and ", bf16 " in line and ", measured on batches of 8 in " in line


def test_a_short_training_is_not_measured(tmp_path, log):
    def never(*_):
        raise AssertionError

    with log.at_level(logging.INFO, "yolo"):
        mode = choose_mode(Net(), replace(LONG, images=960), never, tmp_path)
    assert mode == ComputeMode(torch.bfloat16) and not list(tmp_path.iterdir())
    assert set(log.messages) == {
        "amp auto: bf16, channels_last, by the kind of processor: the training is too short to measure it"
    }


def test_a_choice_is_kept_for_the_same_network_machine_and_batch(tmp_path, monkeypatch, log):
    machine = Machine(bf16=(2, 20, 6, 1), float32=(3, 4, 2, 2))

    def chosen(net: nn.Module = machine.net, work: Workload = LONG) -> tuple[ComputeMode, bool]:
        """The choice, and whether it was measured."""
        machine.steps.clear()
        return choose_mode(net, work, machine, tmp_path), bool(machine.steps)

    first, measured = chosen()
    assert measured and first.machine and first.float32 == {"wide", "strided"}
    log.clear()  # another test may have left the level where the first choice is logged too
    with log.at_level(logging.INFO, "yolo"):
        assert chosen() == (first, False)
    (file,) = tmp_path.iterdir()
    assert set(log.messages) == {f"amp auto: {first}, as measured before ({file})"}
    assert chosen(Net()) == (first, False), "weights do not matter"
    assert chosen(work=replace(LONG, images=5000))[1] is False
    assert chosen(work=replace(LONG, batch_size=4))[1] and chosen(work=replace(LONG, imgsz=64))[1]
    frozen = Net()
    frozen.point.requires_grad_(False)
    machine.net.point.requires_grad_(False)
    monkeypatch.setattr(Machine, "__call__", lambda self, what, call: _any_time(self, what, call))
    assert chosen(frozen)[1]
    monkeypatch.setattr(measured_mode, "this_machine", lambda: "another")
    assert chosen()[1]


def _any_time(machine: Machine, what: LayerRun | StepRun, call) -> float:
    if isinstance(what, StepRun):
        if not machine.steps:
            call()
        machine.steps.append(what)
    return 1e-3


@pytest.mark.parametrize("damage", ["cut", "mode", "name", "facts", "list", "deep", "folder"])
def test_a_damaged_choice_is_made_anew(tmp_path: Path, damage: str):
    machine = Machine(bf16=(2, 20, 6, 1), float32=(3, 4, 2, 2))
    first = choose_mode(machine.net, LONG, machine, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_text()
    held = json.loads(whole)
    text = {
        "cut": whole[: len(whole) // 2],
        "mode": json.dumps(held | {"mode": held["mode"] | {"channels_last": "yes"}}),
        "name": json.dumps(held | {"mode": held["mode"] | {"float32": ["elsewhere"]}}),
        "facts": json.dumps(held | {"facts": held["facts"] | {"machine": "x"}}),
        "list": "[]",
        "deep": "[" * 100_000,
        "folder": "",
    }[damage]
    file.write_text(text)
    if damage == "folder":
        file.unlink()
        file.mkdir()
    machine.steps.clear()
    assert choose_mode(machine.net, LONG, machine, tmp_path) == first and machine.steps
    assert damage == "folder" or file.read_text() == whole
