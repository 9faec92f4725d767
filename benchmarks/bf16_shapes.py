"""Which convolutions of the shipped networks a CPU computes wrongly in bfloat16 (docs/bf16-fault.md).

    python benchmarks/bf16_shapes.py            # every kernel, stride, padding and kind that the YAMLs have
    python benchmarks/bf16_shapes.py --wide     # kernels 1 to 7, strides 1 to 4, dilations 1 and 2, 3 kinds
    python benchmarks/bf16_shapes.py --nets     # whole networks on narrow images

Every byte that the C library hands out is 0xFF (NaN) while a convolution runs, so a result that depends on
memory that nobody wrote is not finite. Forward and both gradients are compared with float32 on the same
rounded numbers, for results of 1 to 4 pixels and a few larger, contiguous and channels_last, with and without
gradients. It needs glibc.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import platform
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.yolo import DetectionModel
from utils.cli import guard
from utils.device import cpu_name, seeded
from utils.errors import UserError
from utils.files import ROOT

SIDES = (1, 2, 3, 4, 8, 20)  # of the results
TOLERANCE = 0.03  # of the largest value; bfloat16 has 8 bits, and sums are kept in float32
_M_PERTURB = -6  # of mallopt: memory is filled with the complement of the low byte


@dataclass(frozen=True)
class Shape:
    """A convolution: channels, kernel, stride, padding and dilation as (height, width)."""

    c1: int
    c2: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)

    @property
    def kind(self) -> str:
        return "dense" if self.groups == 1 else "depthwise" if self.groups == self.c1 else "grouped"

    def inputs(self, out: int, axis: int) -> list[int]:
        """The smallest and the largest side whose result has `out` pixels."""
        stride = self.stride[axis]
        least = (
            (out - 1) * stride + self.dilation[axis] * (self.kernel[axis] - 1) + 1 - 2 * self.padding[axis]
        )
        return sorted({side for side in (least, least + stride - 1) if side > 0})


@contextlib.contextmanager
def unwritten_is_nan() -> Iterator[None]:
    """Fill all memory with NaN as it is handed out.

    Raises:
        UserError: this C library cannot.
    """
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if libc is None or not libc.mallopt(_M_PERTURB, 0x100):
        raise UserError("memory cannot be filled with NaN here: it needs glibc's malloc")
    try:
        if not torch.empty(1 << 16).isnan().all():
            raise UserError("memory cannot be filled with NaN here: another malloc is in use")
        yield
    finally:
        libc.mallopt(_M_PERTURB, 0)


def differs(result: Tensor, exact: Tensor) -> bool:
    """Whether a result is not finite or further from float32's than bfloat16 explains."""
    return not bool((result.float() - exact).abs().max() <= TOLERANCE * exact.abs().max() + 1e-3)


def wrong_results(
    shape: Shape, size: tuple[int, int], memory: torch.memory_format, trains: bool
) -> list[str]:
    """Which of the result and the gradients are wrong for an image of a size."""
    with seeded(0):
        x = torch.randn(2, shape.c1, *size).bfloat16().contiguous(memory_format=memory)
        weight = torch.randn(shape.c2, shape.c1 // shape.groups, *shape.kernel)
        weight = (weight / weight[0].numel() ** 0.5).bfloat16().contiguous(memory_format=memory)
    how = (None, shape.stride, shape.padding, shape.dilation, shape.groups)
    exact = [t.float().requires_grad_() for t in (x, weight)]
    expected = F.conv2d(*exact, *how)
    ours = [t.requires_grad_(trains) for t in (x, weight)]
    with unwritten_is_nan():
        result = F.conv2d(*ours, *how)
    wrong = ["result"] if differs(result.detach(), expected.detach()) else []
    if trains:
        with seeded(1):
            direction = torch.randn(expected.shape).bfloat16().contiguous(memory_format=memory)
        with unwritten_is_nan():
            gradients = torch.autograd.grad(result, ours, direction)
        wanted = torch.autograd.grad(expected, exact, direction.float())
        names = ("gradient of the image", "gradient of the weight")
        wrong += [n for n, g, w in zip(names, gradients, wanted) if differs(g, w)]
    return wrong


def shapes_of_the_zoo() -> list[Shape]:
    """One convolution for each kernel, stride, padding, dilation and kind in the shipped networks."""
    found: dict[object, Shape] = {}
    for path in sorted((ROOT / "models").glob("*.yaml")):
        with torch.device("meta"):
            model = DetectionModel(path)
        for m in model.modules():
            if isinstance(m, nn.Conv2d) and not isinstance(m.padding, str):
                pairs = (m.kernel_size, m.stride, m.padding, m.dilation)
                shape = Shape(m.in_channels, m.out_channels, m.groups, *pairs)  # type: ignore[arg-type]
                found.setdefault((*pairs, shape.kind), shape)
    return sorted(found.values(), key=lambda s: (s.kind, s.kernel, s.stride, s.padding))


def shapes_of_a_grid() -> list[Shape]:
    """Kernels 1 to 7, strides 1 to 4, dilations 1 and 2, with and without padding, in three kinds."""
    kinds = ((32, 64, 1), (64, 64, 4), (64, 64, 64))
    grid = itertools.product(kinds, range(1, 8), range(1, 5), (1, 2))
    return [
        Shape(*kind, (k, k), (s, s), (p, p), (d, d))
        for kind, k, s, d in grid
        for p in sorted({0, k // 2})
        if k > 1 or d == 1
    ]


def table(shapes: Iterable[Shape]) -> list[str]:
    """A Markdown row for each convolution that is wrong somewhere, and a last line that counts."""
    rows, tried, count = [], 0, 0
    for shape in shapes:
        count += 1
        wrong: dict[str, set[tuple[int, int]]] = defaultdict(set)
        sizes = [[(i, out) for out in SIDES for i in shape.inputs(out, axis)] for axis in (0, 1)]
        for (h, oh), (w, ow) in itertools.product(*sizes):
            for memory, trains in itertools.product(
                (torch.contiguous_format, torch.channels_last), (False, True)
            ):
                tried += 1
                for what in wrong_results(shape, (h, w), memory, trains):
                    wrong[what].add((oh, ow))
        for what, outs in wrong.items():
            heights, widths = (sorted({out[axis] for out in outs}) for axis in (0, 1))
            cells = (
                shape.kind,
                _by(shape.kernel),
                _by(shape.stride),
                _by(shape.padding),
                _by(shape.dilation),
                what,
            )
            rows.append(f"| {' | '.join(cells)} | {_listed(heights)} | {_listed(widths)} |")
            print(rows[-1], flush=True)
    return [*rows, f"{count} convolutions, {tried} calls, {len(rows)} kinds of wrong result"]


def _by(pair: tuple[int, int]) -> str:
    return f"{pair[0]}x{pair[1]}"


def _listed(values: Iterable[int]) -> str:
    return " ".join(map(str, values))


def network_errors(cfg: Path, size: tuple[int, int]) -> tuple[float, float]:
    """Relative differences to float32 of the maps and of the gradients; NaN where one is not finite."""
    runs = []
    for reduced in (False, True):
        with seeded(0), unwritten_is_nan():
            model = DetectionModel(cfg, nc=3).to(memory_format=torch.channels_last).train()
            images = torch.rand(2, 3, *size).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                raws = model(images)
            sum(raw.float().square().mean() for raw in raws).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        runs.append(
            [torch.cat([t.detach().float().flatten() for t in tensors]) for tensors in (raws, gradients)]
        )
    return tuple(((b - a).norm() / a.norm()).item() for a, b in zip(*runs))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--wide", action="store_true", help="a grid of shapes instead of the networks' own")
    parser.add_argument("--nets", action="store_true", help="whole networks on narrow images")
    opt = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{cpu_name()}; torch {torch.__version__}; {torch.backends.cpu.get_cpu_capability()}")
    if opt.nets:
        print("| network | image | maps | gradients |\n|---|---|---:|---:|")
        for cfg, size in itertools.product(
            sorted((ROOT / "models").glob("*.yaml")), ((320, 32), (32, 320), (320, 64))
        ):
            maps, gradients = network_errors(cfg, size)
            print(f"| {cfg.stem} | {_by(size)} | {maps:.1e} | {gradients:.1e} |", flush=True)
        return
    print(
        "| kind | kernel | stride | padding | dilation | what is wrong | heights | widths |\n|" + "---|" * 8
    )
    print(table(shapes_of_a_grid() if opt.wide else shapes_of_the_zoo())[-1])


if __name__ == "__main__":
    guard(main)
