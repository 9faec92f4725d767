"""Measure what a network costs: parameters, GFLOPs, latency, also layer by layer.

GFLOPs have one definition: twice the multiply-accumulates of convolutions and matrix products (attention
included) at the stated size, in 10^9. Normalisation, activations, pooling and resizing are not counted.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from utils.device import synchronize
from utils.errors import UserError, first_line
from utils.image_size import read_size

LOGGER = logging.getLogger("yolo.profiling")

Size = int | Sequence[int]
LayerTable = list[dict[str, Any]]  # Any: a row's numbers, texts and arguments, by the names of the columns
_Shape = tuple[int, ...] | list[tuple[int, ...]] | None  # of a map, or of the head's maps
_Output = Tensor | Sequence[Tensor] | tuple[Tensor, Sequence[Tensor]]  # of a row; the head adds its raw maps
_T = TypeVar("_T")


class Fusible(Protocol):
    """A network whose BatchNorms can be folded."""

    def fuse(self) -> nn.Module:
        """Fold them in place."""


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that a network learns; a tensor that layers share counts once."""
    return sum(p.numel() for p in model.parameters())


class CannotCountError(UserError):
    """Say which layer cannot be run to be counted."""


def gflops(model: nn.Module, imgsz: Size = 640) -> float | None:
    """Count the GFLOPs of one image of (h, w) pixels.

    Returns None, with a warning that names the layer, where a layer cannot be counted: a finished training
    must not be lost for a figure of its report.
    """
    try:
        return 2 * sum(_macs(model, imgsz).values()) / 1e9
    except CannotCountError as error:
        LOGGER.warning("no GFLOPs: %s", error)
        return None


def latency(
    fn: Callable[[], object], repeats: int = 30, warmup: int = 5, device: torch.device | None = None
) -> dict[str, float]:
    """Time a call: `percentiles` of `repeats` calls after `warmup` unmeasured ones, in ms."""
    return percentiles(call_times(fn, repeats, warmup, device))


def call_times(
    fn: Callable[[], object], repeats: int, warmup: int = 5, device: torch.device | None = None
) -> list[float]:
    """Return the milliseconds of each of `repeats` calls after `warmup` unmeasured ones."""
    device = device or torch.device("cpu")
    for _ in range(warmup):
        fn()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        fn()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """Return min, mean, median, p90 and p95 of a series."""
    series = torch.tensor(times, dtype=torch.float64)
    quantiles = {"median": 0.5, "p90": 0.9, "p95": 0.95}
    return {
        "min": min(times),
        "mean": float(series.mean()),
        **{name: float(series.quantile(q)) for name, q in quantiles.items()},
    }


def interleaved(
    calls: Mapping[str, Callable[[], object]], repeats: int, rounds: int, device: torch.device | None = None
) -> dict[str, dict[str, float]]:
    """Return the `percentiles` of several calls, timed in rounds through all of them.

    A machine that becomes slower or faster meanwhile then does so for all alike. Every round begins with
    another call, and each turn with two unmeasured runs.

    Args:
        calls: by name.
        repeats: timed runs of each call, over all rounds.
        rounds: how many; no more than `repeats`.
    """
    names, rounds = list(calls), min(rounds, repeats)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        share = repeats * (number + 1) // rounds - repeats * number // rounds
        shift = number % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            times[name] += call_times(calls[name], share, 2, device)
    return {name: percentiles(series) for name, series in times.items()}


def summary(model: nn.Module, imgsz: Size = 640) -> dict[str, float | None]:
    """Count a DetectionModel's layers, parameters before and after fusion, and GFLOPs.

    Layers are the modules that compute something and hold no others. GFLOPs are None as in `gflops`.
    """
    fused = _on_copy(model, lambda copied: count_parameters(cast(Fusible, copied).fuse()))
    return {
        "layers": sum(1 for m in model.modules() if not isinstance(m, nn.Identity) and not [*m.children()]),
        "parameters": count_parameters(model),
        "parameters_fused": fused,
        "gflops": gflops(model, imgsz),
    }


def layer_table(model: nn.Module, imgsz: Size = 640, timed: bool = False) -> LayerTable:
    """Describe each row of a DetectionModel: index, from, n, params, module, args, shape.

    `shape` is the output's for one image, without the batch; for the head it is a list of shapes. With
    `timed` also gflops and ms, the median of five runs on the model's own device.

    Raises:
        UserError: with `timed`, a layer that cannot be counted.
    """
    macs = _macs(model, imgsz) if timed else {}
    if timed:
        shapes, times = _shapes_and_times(model, imgsz, repeats=5)
    else:
        shapes, times = _on_copy(model, lambda copied: _shapes_and_times(copied, imgsz, repeats=0))
    table = []
    for row in cast("list[Any]", model.rows):  # Any: `models.build.rows.Row`, above this floor
        entry = {
            "index": row.index,
            "from": row.from_,
            "n": row.number,
            "params": count_parameters(_layers(model)[row.index]),
            "module": row.name,
            "args": row.args,
            "shape": shapes[row.index],
        }
        if timed:
            entry |= {"gflops": 2 * macs[row.index] / 1e9, "ms": times[row.index]}
        table.append(entry)
    return table


def _weightless_copy(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device, in eval mode: shapes without memory or arithmetic."""
    memo: dict[int, Tensor] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(model, memo).eval()


def _on_copy(model: nn.Module, work: Callable[[nn.Module], _T]) -> _T:
    """Work on a copy without weights, or on a real one where numbers are needed."""
    try:
        return work(_weightless_copy(model))
    except (NotImplementedError, RuntimeError, CannotCountError):
        return work(copy.deepcopy(model).cpu().float().eval())


def _image_for(model: nn.Module, imgsz: Size) -> Tensor:
    """Make one grey image of that size, on the model's device and of its kind."""
    parameter = next(model.parameters())
    shape = (1, int(getattr(model, "ch", 3)), *read_size(imgsz, "image size"))
    return torch.full(shape, 0.5, dtype=parameter.dtype, device=parameter.device)


def _layers(model: nn.Module) -> nn.Sequential:
    return cast(nn.Sequential, model.model)


def _macs(model: nn.Module, imgsz: Size) -> Counter[int]:
    """Count multiply-accumulates by row of `model.model`; what is in no row is under -1."""
    return _on_copy(model, lambda copied: _count_macs(copied, _image_for(copied, imgsz)))


def _count_macs(model: nn.Module, image: Tensor) -> Counter[int]:
    """Run a copy under PyTorch's counter of products, read before and after each row.

    Raises:
        CannotCountError: the network fails at a layer.
    """
    macs: Counter[int] = Counter()
    running: list[int] = []  # the row that runs, kept when it fails

    def before(index: int) -> None:
        running[:] = [index]
        macs[index] -= counter.get_total_flops() // 2

    def after(index: int) -> None:
        running.clear()
        macs[index] += counter.get_total_flops() // 2

    layers = getattr(model, "model", None)
    rows = list(layers) if isinstance(layers, nn.Sequential) else []
    for index, layer in enumerate(rows):
        layer.register_forward_pre_hook(lambda *_, index=index: before(index))
        layer.register_forward_hook(lambda *_, index=index: after(index))
    # Fused kernels hide their products from the counter: attention and LSTM run as plain ones, and a gradient
    # that is wanted keeps transformers from their fast path.
    counter = FlopCounterMode(display=False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _without_onednn(), torch.enable_grad(), counter:
            model(image)
    except Exception as error:  # whatever a plug-in's block raises with one image
        size = "x".join(map(str, image.shape[2:]))
        place = _place(model, rows, running[0]) if running else "the network"
        raise CannotCountError(
            f"{place} cannot be counted on one image of {size} px: {first_line(error)}"
        ) from error
    macs[-1] = counter.get_total_flops() // 2 - sum(macs.values())
    return macs


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    """Switch oneDNN off, without torch's warning about GPUs that have no part in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _place(model: nn.Module, rows: list[nn.Module], index: int) -> str:
    """Name a row for a message."""
    known = getattr(model, "rows", None)
    return f"layer {index}, {known[index].name if known else type(rows[index]).__name__},"


def _shapes_and_times(model: nn.Module, imgsz: Size, repeats: int) -> tuple[list[_Shape], list[float]]:
    """Return each row's output shape, and its median milliseconds when `repeats` is above 0."""
    image = _image_for(model, imgsz)
    shapes: list[_Shape] = [None] * len(_layers(model))
    starts = [0.0] * len(shapes)
    times: list[list[float]] = [[] for _ in shapes]

    def before(index: int) -> None:
        synchronize(image.device)
        starts[index] = time.perf_counter()

    def after(index: int, y: _Output) -> None:
        synchronize(image.device)
        times[index].append(1e3 * (time.perf_counter() - starts[index]))
        shapes[index] = _shape_of(y)

    handles = []
    for index, layer in enumerate(_layers(model)):
        handles.append(layer.register_forward_pre_hook(lambda *_, index=index: before(index)))
        handles.append(layer.register_forward_hook(lambda m, x, y, index=index: after(index, y)))
    training = model.training
    try:
        with torch.no_grad():
            model.eval()
            for _ in range(repeats + 1):  # the first run warms up
                model(image)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return shapes, [sorted(t[1:])[len(t[1:]) // 2] if len(t) > 1 else 0.0 for t in times]


def _shape_of(y: _Output) -> _Shape:
    if isinstance(y, Tensor):
        return tuple(y.shape[1:])
    raws = y[1] if isinstance(y, tuple) else y
    return [tuple(raw.shape[1:]) for raw in raws]


def table_lines(table: LayerTable) -> list[str]:
    """Format the table of layers as lines of text, each column as wide as needed."""
    columns = ["", "from", "n", "params", "module", "arguments", "output"]
    timed = "ms" in table[0]
    cells = []
    for row in table:
        shapes = row["shape"] if isinstance(row["shape"], list) else [row["shape"]]
        output = ", ".join("x".join(map(str, shape)) for shape in shapes)
        line = [row["index"], row["from"], row["n"], row["params"], row["module"], str(row["args"]), output]
        cells.append([*map(str, line), f"{row['gflops']:.3f}", f"{row['ms']:.2f}"] if timed else line)
    lines = [[*columns, "GFLOPs", "ms"] if timed else columns, *cells]
    widths = [max(len(str(line[i])) for line in lines) for i in range(len(lines[0]))]
    left = (4, 5, 6)
    return [
        "  ".join(f"{c!s:<{w}}" if i in left else f"{c!s:>{w}}" for i, (c, w) in enumerate(zip(line, widths)))
        for line in lines
    ]
