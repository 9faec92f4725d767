"""Match the tensors of two networks by structure, and compare what both compute.

Layers are paired by the order, kinds and shapes of what they hold; names are free. Whether paired layers mean
the same is then tried rather than believed: both networks get the same weights, drawn so that every clipping
and every normalisation shows, and one batch in float64, and each convolution must give the same numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from models.layers.activations import ACTIVATIONS
from models.yolo import DetectionModel

_TOLERANCE = 1e-6  # relative; both run in float64, where rounding is ten orders smaller
_BATCH, _SIDE = 4, 64
_UNMATCHED_SUFFIX = "num_batches_tracked"
_GATES = {"Sigmoid", "Hardsigmoid", "Softplus", "Tanh"}  # of attention; timm has some of them as functions


@dataclass(frozen=True)
class Leaf:
    """Hold one layer's own tensors in a state_dict: {name in the layer: shape}."""

    name: str
    shapes: dict[str, tuple[int, ...]] = field(hash=False)

    @property
    def kind(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return what must agree for two layers to be paired.

        A 1x1 convolution and a linear layer are of one kind.
        """
        return tuple(sorted((key, _bare(shape)) for key, shape in self.shapes.items()))

    def key(self, tensor: str) -> str:
        """Return the state_dict's key of one of its tensors."""
        return f"{self.name}.{tensor}" if self.name else tensor


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without the 1x1 of a pointwise convolution."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) and shape[1] > 1 else shape


def leaves(state: Mapping[str, Tensor]) -> list[Leaf]:
    """Return the layers of a state_dict in its order, without batch counters."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, tensor in state.items():
        name, _, last = key.rpartition(".")
        if last != _UNMATCHED_SUFFIX:
            found.setdefault(name, {})[last] = tuple(tensor.shape)
    return [Leaf(name, shapes) for name, shapes in found.items()]


def pair(own: Sequence[Leaf], other: Sequence[Leaf]) -> list[tuple[Leaf, Leaf]]:
    """Return as many pairs of equal kind as the order of both allows.

    Where there is a choice, the earliest is taken.
    """
    a, b = [leaf.kind for leaf in own], [leaf.kind for leaf in other]
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in reversed(range(len(a))):
        for j in reversed(range(len(b))):
            here = best[i + 1][j + 1] + 1 if a[i] == b[j] else 0
            best[i][j] = max(here, best[i + 1][j], best[i][j + 1])
    pairs, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j] and best[i][j] == best[i + 1][j + 1] + 1:
            pairs.append((own[i], other[j]))
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs


@dataclass
class Trace:
    """Hold what was seen while a network ran once.

    Attributes:
        order: names of layers that hold tensors, in order of their first call.
        results: of convolutions and linear layers, by name. inputs: what those were given.
        maps: results of all modules; kept on request.
    """

    order: list[str] = field(default_factory=list)
    results: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    maps: list[Tensor] = field(default_factory=list)


def watch(network: nn.Module, forward: Callable[[], object], keep_maps: bool = False) -> Trace:
    """Run a network and note which layers were called with what.

    Results are copies, since some layers work in place.
    """
    run, seen, handles = Trace(), set(), []

    def hook(name: str) -> Callable[..., None]:
        # Any: a module takes and gives what it likes.
        def note(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            if keep_maps and isinstance(result, Tensor):
                run.maps.append(result.clone())
            if name in seen or not _owns(module):
                return
            seen.add(name)
            run.order.append(name)
            if isinstance(module, nn.Conv2d | nn.Linear):  # it leaves what it is given as it is
                run.results[name], run.inputs[name] = result.clone(), args[0].clone()

        return note

    for name, module in network.named_modules():
        handles.append(module.register_forward_hook(hook(name)))
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return run


def _owns(module: nn.Module) -> bool:
    """Return whether a module holds tensors itself."""
    return bool(module._parameters or module._buffers)


def reveal(network: nn.Module, forward: Callable[[], object], seed: int = 0) -> None:
    """Set weights that show any other activation, padding, eps or wiring, in place.

    Norms scale by 1 to 4, so that results lie on both sides of every kink (0, 3 and 6); their running
    statistics are those of one batch.
    """
    generator = torch.Generator().manual_seed(seed)
    norms: list[Any] = [  # Any: a BatchNorm of whatever library
        m for m in network.modules() if getattr(m, "running_mean", None) is not None
    ]
    with torch.no_grad():
        for module in network.modules():
            for name, p in module.named_parameters(recurse=False):
                low, high = (-1.0, 1.0) if "bias" in name else (1.0, 4.0)
                if p.ndim > 1:
                    fan_in = math.prod(p.shape[1:])
                    p.copy_(torch.randn(p.shape, generator=generator) / math.sqrt(fan_in))
                else:
                    p.copy_(torch.rand(p.shape, generator=generator) * (high - low) + low)
        network.eval()
        kept = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        forward()
        for norm, momentum in zip(norms, kept):
            norm.momentum = momentum
    network.eval()


def backbone_maps(model: DetectionModel, x: Tensor) -> list[object]:
    """Return what each row of a backbone gives for a normalised image."""
    maps: list[object] = []
    for row, layer in zip(model.rows, model.model):
        if row.section != "backbone":
            break
        inputs = [maps[s] if s >= 0 else x for s in row.sources]
        maps.append(layer(inputs if row.spec.joins else inputs[0]))
    return maps


def backbone_leaves(model: DetectionModel) -> list[Leaf]:
    """Return the layers of a backbone, by their names in the whole model."""
    rows = sum(row.section == "backbone" for row in model.rows)
    inside = tuple(f"model.{i}." for i in range(rows))
    return leaves({k: v for k, v in model.state_dict().items() if k.startswith(inside)})


class BackboneComparison:
    """Compare a DetectionModel's backbone with a reference network.

    Args:
        model: a DetectionModel. reference: any network of images. Neither is changed.
        run: runs a reference on a normalised image; by default it is called.
        side: pixels per side of that image, where the reference takes one size only.

    Attributes:
        own: the backbone's layers. pairs: those with their partners in the reference.
        unmatched: layers of the backbone without a partner.
    """

    def __init__(
        self,
        model: DetectionModel,
        reference: nn.Module,
        run: Callable[[nn.Module, Tensor], object] | None = None,
        side: int | None = None,
    ) -> None:
        self.model = copy.deepcopy(model).cpu().double().eval()
        self.reference = copy.deepcopy(reference).cpu().double().eval()
        self._run = run or (lambda network, image: network(image))
        generator = torch.Generator().manual_seed(1)
        self.image = torch.randn((_BATCH, model.ch, *[side or _SIDE] * 2), generator=generator).double()
        self.own = backbone_leaves(model)
        self.pairs = pair(self.own, leaves(reference.state_dict()))
        if self.unmatched:
            self._pair_by_calls()

    @property
    def unmatched(self) -> list[Leaf]:
        """Return the layers of the backbone without a partner."""
        paired = {own.name for own, _ in self.pairs}
        return [leaf for leaf in self.own if leaf.name not in paired]

    def _reference_run(self) -> object:
        return self._run(self.reference, self.image)

    def _pair_by_calls(self) -> None:
        """Pair layers in the order in which they run.

        Blocks that list a shortcut first need not run it first.
        """
        ours = watch(self.model, lambda: backbone_maps(self.model, self.image)).order
        theirs = watch(self.reference, self._reference_run).order
        other = leaves(self.reference.state_dict())
        found = pair(_in_order(self.own, ours), _in_order(other, theirs))
        if len(found) > len(self.pairs):
            self.pairs = found

    def difference(self) -> str | None:
        """Return what the backbone computes differently, as half a sentence, or None.

        Held to equality are all layers that run before the first one without a partner; behind it each
        convolution by itself, and the kinds of activations.
        """
        return self._other_eps() or self._other_activations() or self._other_results()

    def _other_eps(self) -> str | None:
        ours, theirs = dict(self.model.named_modules()), dict(self.reference.named_modules())
        for own, other in self.pairs:
            a, b = (getattr(m, "eps", None) for m in (ours.get(own.name), theirs.get(other.name)))
            if a is not None and b is not None and not math.isclose(a, b, rel_tol=1e-6):
                return f"{own.name} has eps {a:g}, the weights were trained with eps {b:g}"
        return None

    def _other_activations(self) -> str | None:
        """Compare the activations of rows whose layers all have partners.

        Only asked where there are such rows: a network without them is compared by its numbers.
        """
        if not self.unmatched:
            return None
        own_rows = {int(leaf.name.split(".")[1]) for leaf in self.unmatched}
        rows = [i for i, row in enumerate(self.model.rows) if row.section == "backbone" and i not in own_rows]
        a, b = (
            names - _GATES for names in (activations_of(self.model, rows), activations_of(self.reference))
        )
        if b and not a <= b:
            return f"its activations are {_listed(a)}, the weights were trained with {_listed(b)}"
        return None

    def _other_results(self) -> str | None:
        reveal(self.reference, self._reference_run)
        copy_pairs(self.pairs, self.reference.state_dict(), self.model.state_dict())
        kept: list[object] = []
        ours = watch(self.model, lambda: kept.extend(backbone_maps(self.model, self.image)))
        theirs = watch(self.reference, self._reference_run, keep_maps=True)
        missing = {leaf.name for leaf in self.unmatched}
        partner = {own.name: other.name for own, other in self.pairs}
        for number, name in enumerate(ours.order):
            if name in missing:
                return self._other_convolutions(ours.order[number:], partner, theirs)
            if name not in ours.results or partner[name] not in theirs.results:
                continue
            if not same(ours.results[name], theirs.results[partner[name]]):
                return self._cause(name, ours.inputs[name], theirs.inputs[partner[name]])
        return None if missing else self._other_taps(kept, theirs.maps)

    def _other_convolutions(
        self, names: Sequence[str], partner: Mapping[str, str], theirs: Trace
    ) -> str | None:
        """Return convolutions with another result, each on its partner's input."""
        modules = dict(self.model.named_modules())
        for name in names:
            other = partner.get(name)
            if other not in theirs.results or not isinstance(modules[name], nn.Conv2d):
                continue
            given = theirs.inputs[other]
            if given.ndim != 4:
                continue
            with torch.no_grad():
                result = modules[name](given)
            if not same(result, theirs.results[other]):
                return self._cause(name, given, given)
        return None

    def _cause(self, name: str, ours: Tensor, theirs: Tensor) -> str:
        linear = isinstance(self.model.get_submodule(name), nn.Linear)  # it neither pads nor strides
        if linear or (ours.shape == theirs.shape and not same(ours, theirs)):
            backbone = [i for i, row in enumerate(self.model.rows) if row.section == "backbone"]
            a, b = activations_of(self.model, backbone), activations_of(self.reference)
            if a != b:
                return f"its activations are {_listed(a)}, the weights were trained with {_listed(b)}"
            how = "attended to (by patch or heads)" if linear else "activated or joined"
            return f"what reaches {name} is {how} otherwise than where the weights come from"
        return f"{name} pads or strides otherwise than the layer that its weights come from"

    def _other_taps(self, maps: list[object], others: list[Tensor]) -> str | None:
        """Return the maps of the head that the reference does not compute."""
        rows = {s for row in self.model.rows if row.section == "head" for s in row.sources}
        for index in sorted(i for i in rows if i < len(maps)):
            if self.model.rows[index].spec.picks:
                continue
            tap = maps[index]
            if isinstance(tap, Tensor) and not any(same(tap, other) for other in others):
                return (
                    f"the result of layer {index} is none that the reference has (another activation after "
                    "its last convolution)"
                )
        return None


def _in_order(found: Sequence[Leaf], names: Sequence[str]) -> list[Leaf]:
    """Return layers in the order of their calls, then those never called."""
    place = {name: i for i, name in enumerate(names)}
    return sorted(found, key=lambda leaf: place.get(leaf.name, len(place)))


def same(a: Tensor, b: Tensor) -> bool:
    """Return whether two maps hold the same numbers.

    Tokens of attention may be laid out differently.
    """
    if a.numel() != b.numel():
        return False
    limit = _TOLERANCE * max(float(b.abs().max()), 1e-30)
    if abs(float(a.max() - b.max())) > limit or abs(float(a.min() - b.min())) > limit:
        return False
    if a.shape == b.shape and float((a - b).abs().max()) <= limit:
        return True
    return float((a.flatten().sort().values - b.flatten().sort().values).abs().max()) <= limit


def activations_of(network: nn.Module, rows: Sequence[int] | None = None) -> set[str]:
    """Return the names of a network's activations.

    Of a DetectionModel only those of `rows`, if given.
    """
    parts: Iterator[nn.Module] = network.modules()
    if rows is not None:
        parts = (module for i in rows for module in network.get_submodule(f"model.{i}").modules())
    return {type(m).__name__ for m in parts} & (set(ACTIVATIONS) - {"Identity"})


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def copy_pairs(
    pairs: Sequence[tuple[Leaf, Leaf]], source: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> tuple[int, list[str]]:
    """Copy each pair's tensors from one state_dict into another, in place.

    Returns:
        How many tensors were copied, and the target's names whose source is missing or of another shape.
    """
    copied, left = 0, []
    with torch.no_grad():
        for own, other in pairs:
            for tensor in own.shapes:
                value = source.get(other.key(tensor))
                goal = target[own.key(tensor)]
                if value is None or _bare(tuple(value.shape)) != _bare(tuple(goal.shape)):
                    left.append(own.key(tensor))
                    continue
                goal.copy_(value.reshape(goal.shape))
                copied += 1
    return copied, left
