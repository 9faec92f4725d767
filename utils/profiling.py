"""What a network costs: parameters, GFLOPs, latency, and the same layer by layer.

One definition of GFLOPs: twice the multiply-accumulates of convolutions and matrix products (attention
included) at the stated size, in 10^9. Normalisation, activations, pooling and resizing are not counted.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from utils.device import synchronize
from utils.errors import UserError

LOGGER = logging.getLogger("yolo.profiling")

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_COUNTED = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear, nn.MultiheadAttention)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)

Size = int | Sequence[int]


def count_parameters(model: nn.Module) -> int:
    """Numbers a network learns; a tensor that several layers share counts once."""
    return sum(p.numel() for p in model.parameters())


class CannotCountError(UserError):
    """A layer cannot be run to be counted; the sentence names it."""


def gflops(model: nn.Module, imgsz: Size = 640) -> float | None:
    """GFLOPs of one image of (h, w) pixels, as defined above. The model itself is not touched.

    None where a layer cannot be counted, with a warning that names it: a figure of the report is no reason to
    lose a finished training.
    """
    try:
        return 2 * sum(_macs(model, imgsz).values()) / 1e9
    except CannotCountError as error:
        LOGGER.warning("no GFLOPs: %s", error)
        return None


def latency(
    fn: Callable[[], Any], repeats: int = 30, warmup: int = 5, device: torch.device | None = None
) -> dict[str, float]:
    """Milliseconds of a call: min, mean, median, p90, p95 of `repeats` calls after `warmup` unmeasured."""
    return percentiles(call_times(fn, repeats, warmup, device))


def call_times(
    fn: Callable[[], Any], repeats: int, warmup: int = 5, device: torch.device | None = None
) -> list[float]:
    """The milliseconds of each of `repeats` calls after `warmup` unmeasured."""
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
    """Min, mean, median, p90 and p95 of a series."""
    series = torch.tensor(times, dtype=torch.float64)
    quantiles = {"median": 0.5, "p90": 0.9, "p95": 0.95}
    return {
        "min": min(times),
        "mean": float(series.mean()),
        **{name: float(series.quantile(q)) for name, q in quantiles.items()},
    }


def interleaved(
    calls: Mapping[str, Callable[[], Any]], repeats: int, rounds: int, device: torch.device | None = None
) -> dict[str, dict[str, float]]:
    """The `percentiles` of several calls, timed in rounds through all of them.

    A machine that becomes slower or faster on the way then does so for all alike. Every round begins with
    another call, and each of its turns with two unmeasured runs.

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
    """A DetectionModel's layers, parameters before and after fusion, and GFLOPs.

    Layers are the modules that do something and hold no others. GFLOPs are None as in `gflops`.
    """
    fused = _on_copy(model, lambda twin: count_parameters(twin.fuse()))
    return {
        "layers": sum(1 for m in model.modules() if not isinstance(m, nn.Identity) and not [*m.children()]),
        "parameters": count_parameters(model),
        "parameters_fused": fused,
        "gflops": gflops(model, imgsz),
    }


def layer_table(model: nn.Module, imgsz: Size = 640, timed: bool = False) -> list[dict[str, Any]]:
    """One dict per row of a DetectionModel: index, from, n, params, module, args, shape.

    `shape` is the output's for one image, without the batch; a list of shapes for the detector's output. With
    `timed` also gflops and ms, the median of five runs on the model's own device.

    Raises:
        UserError: with `timed`, a layer that cannot be counted.
    """
    macs = _macs(model, imgsz) if timed else {}
    if timed:
        shapes, times = _shapes_and_times(model, imgsz, repeats=5)
    else:
        shapes, times = _on_copy(model, lambda twin: _shapes_and_times(twin, imgsz, repeats=0))
    table = []
    for row in model.rows:
        entry = {
            "index": row.index,
            "from": row.from_,
            "n": row.number,
            "params": count_parameters(model.model[row.index]),
            "module": row.name,
            "args": row.args,
            "shape": shapes[row.index],
        }
        if timed:
            entry |= {"gflops": 2 * macs[row.index] / 1e9, "ms": times[row.index]}
        table.append(entry)
    return table


def _height_width(imgsz: Size) -> tuple[int, int]:
    """(h, w) from one number or two."""
    sides = [imgsz, imgsz] if isinstance(imgsz, int) else [*imgsz] * (2 if len(imgsz) == 1 else 1)
    if len(sides) != 2 or min(sides) < 1:
        raise UserError(f"image size {imgsz!r}: expected one number or height and width, in pixels")
    return int(sides[0]), int(sides[1])


def _weightless_copy(model: nn.Module) -> nn.Module:
    """A copy on the meta device, in eval mode: shapes without memory or arithmetic."""
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(model, memo).eval()


def _on_copy(model: nn.Module, work: Callable[[nn.Module], Any]) -> Any:
    """Do something to a copy: one without weights, or a real one where an operation needs numbers to run."""
    try:
        return work(_weightless_copy(model))
    except (NotImplementedError, RuntimeError, CannotCountError):
        return work(copy.deepcopy(model).cpu().float().eval())


def _image_for(model: nn.Module, imgsz: Size) -> Tensor:
    """One grey image of that size, on the model's device and of its kind."""
    parameter = next(model.parameters())
    shape = (1, _input_channels(model), *_height_width(imgsz))
    return torch.full(shape, 0.5, dtype=parameter.dtype, device=parameter.device)


def _input_channels(model: nn.Module) -> int:
    return getattr(model, "ch", 3)


def _macs(model: nn.Module, imgsz: Size) -> Counter[int]:
    """Multiply-accumulates by row of `model.model`; what lies in no row is under -1."""
    return _on_copy(model, lambda twin: _count_macs(twin, _image_for(twin, imgsz)))


def _count_macs(model: nn.Module, image: Tensor) -> Counter[int]:
    """Run a copy under thop, our counters in place of its own, and the counter of functional products.

    Raises:
        CannotCountError: the network, or a counter, fails at a layer.
    """
    from thop import (
        profile,
    )  # here: it prints nothing, but importing it costs a second that no other use needs

    functional = _FunctionalMacs(model)
    try:
        with functional:
            total, _, tree = profile(
                model, (image,), custom_ops=_counters(model), verbose=False, ret_layer_info=True
            )
    except Exception as error:  # whatever a plug-in's block raises with one image
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        size = "x".join(map(str, image.shape[2:]))
        raise CannotCountError(
            f"{functional.place()} cannot be counted on one image of {size} px: {reason}"
        ) from error
    macs = functional.macs
    rows = tree["model"][2] if functional.rows else {}
    for name, (ops, _, _) in rows.items():
        macs[int(name)] += round(ops)
    macs[-1] += round(total) - sum(round(ops) for ops, _, _ in rows.values())
    return macs


def _counters(model: nn.Module) -> dict[type[nn.Module], Callable[[nn.Module, Any, Any], None]]:
    """A rule for thop for every class in the network: it knows no subclasses and counts them as nothing."""
    rules: dict[type[nn.Module], Callable[[nn.Module, Any, Any], None]] = {}
    for module in model.modules():
        kind = type(module)
        if isinstance(module, _CONVOLUTIONS):
            rules[kind] = _count_convolution
        elif isinstance(module, _TRANSPOSED):
            rules[kind] = _count_transposed
        elif isinstance(module, nn.Linear):
            rules[kind] = _count_linear
        elif isinstance(module, nn.MultiheadAttention):
            rules[kind] = _count_attention
        elif not any(True for _ in module.children()) and not isinstance(module, _RECURRENT):
            rules[kind] = _count_nothing
    return rules


def _count_convolution(m: Any, x: tuple[Tensor], y: Tensor) -> None:
    m.total_ops += y.numel() * m.weight[0].numel()


def _count_transposed(m: Any, x: tuple[Tensor], y: Tensor) -> None:
    m.total_ops += x[0].numel() * m.weight[0].numel()


def _count_linear(m: Any, x: tuple[Tensor], y: Tensor) -> None:
    m.total_ops += y.numel() * m.in_features


def _count_attention(m: Any, x: tuple[Tensor, ...], y: Any) -> None:
    """Projections of q, k, v and of the result, and the two products of attention."""
    query, key, value = (t if t.ndim == 3 else t.unsqueeze(1) for t in x[:3])
    batch_axis, length_axis = (0, 1) if m.batch_first else (1, 0)
    n, target, source = query.shape[batch_axis], query.shape[length_axis], key.shape[length_axis]
    e = m.embed_dim
    projections = target * e * (e + e) + source * e * (key.shape[-1] + value.shape[-1])
    m.total_ops += n * (projections + 2 * target * source * e)


def _count_nothing(m: Any, x: Any, y: Any) -> None:
    """Normalisation, activations, pooling, resizing: outside the definition."""


class _FunctionalMacs(TorchFunctionMode):
    """Counts products that are no module: matmul, attention, functional convolutions and linear layers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.macs: Counter[int] = Counter()
        self._model = model
        self._row = -1
        self._depth = 0
        layers = getattr(model, "model", None)
        self.rows = list(layers) if isinstance(layers, nn.Sequential) else []
        for index, layer in enumerate(self.rows):
            layer.register_forward_pre_hook(lambda *_, index=index: self._enter_row(index))
            layer.register_forward_hook(lambda *_: self._enter_row(-1))
        for module in model.modules():
            if isinstance(module, _COUNTED + _RECURRENT):
                module.register_forward_pre_hook(lambda *_: self._enter(1))
                module.register_forward_hook(lambda *_: self._enter(-1))

    def place(self) -> str:
        """The layer that is being run, in words."""
        if self._row < 0:
            return "the network"
        rows = getattr(self._model, "rows", None)
        name = rows[self._row].name if rows else type(self.rows[self._row]).__name__
        return f"layer {self._row}, {name},"

    def _enter_row(self, index: int) -> None:
        self._row = index

    def _enter(self, step: int) -> None:
        self._depth += step

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._depth == 0 and func in _DECOMPOSED:
            with _Products() as products:
                result = func(*args, **kwargs)
            self.macs[self._row] += products.macs
            return result
        result = func(*args, **kwargs)
        if self._depth == 0 and isinstance(result, Tensor):
            self.macs[self._row] += _functional_macs(func, args, kwargs, result)
        return result


class _Products(TorchDispatchMode):
    """Counts the matrix products that a function of torch is carried out by.

    Their sizes are neither in a tensordot's arguments nor in an einsum's equation alone: `...` stands for any
    axes, some letters are summed before anything is multiplied, and three operands are multiplied in
    the order that torch chooses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _PRODUCTS:
            self.macs += result.numel() * args[0].shape[-1]
        return result


_F = nn.functional
_DECOMPOSED = {torch.einsum, torch.tensordot}
_PRODUCTS = {torch.ops.aten.bmm.default, torch.ops.aten.mm.default}
_MATMUL = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm}
_ADD_MATMUL = {torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm}
_CONV = {torch.conv1d, torch.conv2d, torch.conv3d, _F.conv1d, _F.conv2d, _F.conv3d}
_CONV_TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
_CONV_TRANSPOSED |= {_F.conv_transpose1d, _F.conv_transpose2d, _F.conv_transpose3d}


def _functional_macs(func: Any, args: Any, kwargs: Any, result: Tensor) -> int:
    """Multiply-accumulates of one call of torch's functions; 0 for those that are no product."""
    values = [*args, *(v for v in kwargs.values() if isinstance(v, Tensor))]
    tensors = [v for v in values if isinstance(v, Tensor)]
    if func in _MATMUL:
        return result.numel() * tensors[0].shape[-1]
    if func is Tensor.__rmatmul__:
        return result.numel() * tensors[1].shape[-1]
    if func in _ADD_MATMUL:
        return result.numel() * tensors[1].shape[-1]
    if func is _F.linear:
        return result.numel() * tensors[1].shape[-1]
    if func in _CONV:
        return result.numel() * tensors[1][0].numel()
    if func in _CONV_TRANSPOSED:
        return tensors[0].numel() * tensors[1][0].numel()
    if func is _F.scaled_dot_product_attention:
        query, key, value = tensors[:3]
        per_pair = query.shape[-1] + value.shape[-1]
        return query.shape[:-1].numel() * key.shape[-2] * per_pair
    return 0


def _shapes_and_times(model: nn.Module, imgsz: Size, repeats: int) -> tuple[list[Any], list[float]]:
    """Each row's output shape, and its median milliseconds when `repeats` is above 0."""
    image = _image_for(model, imgsz)
    shapes: list[Any] = [None] * len(model.model)
    starts = [0.0] * len(shapes)
    times: list[list[float]] = [[] for _ in shapes]

    def before(index: int) -> None:
        synchronize(image.device)
        starts[index] = time.perf_counter()

    def after(index: int, y: Any) -> None:
        synchronize(image.device)
        times[index].append(1e3 * (time.perf_counter() - starts[index]))
        shapes[index] = _shape_of(y)

    handles = []
    for index, layer in enumerate(model.model):
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


def _shape_of(y: Any) -> Any:
    """A map's (C, H, W); of the detector's (decoded, raw maps) the raw maps' shapes."""
    if isinstance(y, Tensor):
        return tuple(y.shape[1:])
    raws = y[1] if isinstance(y, tuple) else y
    return [tuple(raw.shape[1:]) for raw in raws]


def table_lines(table: list[dict[str, Any]]) -> list[str]:
    """The table of layers as lines of text, each column as wide as it needs."""
    header = ["", "from", "n", "params", "module", "arguments", "output"]
    timed = "ms" in table[0]
    cells = [[*header, "GFLOPs", "ms"] if timed else header]
    for row in table:
        shapes = row["shape"] if isinstance(row["shape"], list) else [row["shape"]]
        arguments = str(row["args"])
        output = ", ".join("x".join(map(str, shape)) for shape in shapes)
        line = [row["index"], row["from"], row["n"], row["params"], row["module"], arguments, output]
        cells.append([*line, f"{row['gflops']:.3f}", f"{row['ms']:.2f}"] if timed else line)
    widths = [max(len(str(line[i])) for line in cells) for i in range(len(cells[0]))]
    left = (4, 5, 6)
    return [
        "  ".join(
            f"{cell!s:<{w}}" if i in left else f"{cell!s:>{w}}"
            for i, (cell, w) in enumerate(zip(line, widths))
        )
        for line in cells
    ]
