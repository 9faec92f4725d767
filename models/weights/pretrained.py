"""Load pretrained weights into a YAML's backbone, matched by structure.

Weights are worth what they were trained with: behind another activation, BatchNorm eps, padding or input
normalisation they still fit by shape, and the features are rubbish. So the network they were trained in is
built beside ours and both must compute the same before a single tensor is taken over.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from models.weights.checkpoint import load_checkpoint
from models.weights.matching import BackboneComparison, Leaf, backbone_leaves, copy_pairs, leaves, pair
from models.weights.references import (
    KNOWN,
    TWINS,
    Reference,
    build_reference,
    imagenet_state,
    is_label,
    read_weights,
)
from models.yolo import DetectionModel
from utils.errors import UserError, shown

LOGGER = logging.getLogger("yolo.models")

_NEAR = 0.005  # how far apart means in 0..1 may be: 127/255 and a half are one
_LEAST = 0.5  # of the backbone's tensors; fewer fit by chance


@dataclass
class BackboneReport:
    """Hold what became of a backbone's tensors.

    Attributes:
        label: where the weights come from. total: tensors of the backbone. fitted: how many were taken over.
        left: names of those that were not.
    """

    label: str
    total: int
    fitted: int = 0
    left: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return one line for the log, which names what did not fit."""
        rest = f"; not fitted: {', '.join(self.left)}" if self.left else ""
        return f"{self.label}: {self.fitted} of {self.total} tensors of the backbone fitted{rest}"


def load_backbone(model: DetectionModel, weights: str) -> BackboneReport:
    """Fill a model's backbone with weights, in place.

    Args:
        model: built from its YAML.
        weights: 'imagenet' (those the YAML's `pretrained: source/model` names, else those of the known
            network that the backbone equals), a file, 'source/model', or 'source/model=FILE' where a file
            does not say what it is.

    Raises:
        UserError: no such weights, fewer than half fit, or the backbone computes otherwise than the network
            they were trained in.
    """
    check_weights(weights)
    label, path = (_named(model), None) if weights == "imagenet" else _split(weights)
    if path is not None and label is None:
        own = _checkpoint_state(path)
        if own is not None:
            report = _transplant(model, *own, str(path))
            model.licence = model.licence or getattr(own[0].network, "licence", "")
            return report
        state: Mapping[str, Tensor] = read_weights(path)
        reference = _origin(model, path, state)
    else:
        reference = build_reference(label or equal_reference(model))
        state = read_weights(path) if path else imagenet_state(reference.label)
        _check_names(reference, state, path)
    where = f"{path} ({reference.label})" if path else reference.label
    return _transplant(model, reference, state, where)


def check_weights(weights: str) -> None:
    """Refuse a file that is not there, before any data are fetched.

    Raises:
        UserError: there is no such file.
    """
    path = None if weights == "imagenet" else _split(weights)[1]
    if path is not None and not path.is_file():
        raise UserError(f"--backbone-weights {path}: no such file; give a weights file, or imagenet")


def _split(weights: str) -> tuple[str | None, Path | None]:
    """Return the (reference, file) that an option names; either may be None."""
    label, equals, file = str(weights).partition("=")
    if is_label(label) and not Path(weights).is_file():
        return label, Path(file) if equals else None
    return None, Path(weights)


def _named(model: DetectionModel) -> str | None:
    """Return the reference that the YAML or its wrapper row names."""
    label = model.yaml.get("pretrained")
    if label is None:
        for row in model.rows:
            if row.section == "backbone" and row.spec.reference:
                return f"{row.spec.reference}/{row.args[1]}"
        return None
    if not isinstance(label, str) or not is_label(label):
        raise UserError(
            f"{model.source}: pretrained: {shown(label)} names no weights; write source/model, such as "
            f"{KNOWN[0]}"
        )
    return label


def equal_reference(model: DetectionModel) -> str:
    """Return the known network that a backbone equals, as 'source/model'.

    Raises:
        UserError: there is none; where one is built alike, the sentence says what differs.
    """
    own, why = backbone_leaves(model), None
    for label in KNOWN:
        try:
            with torch.device("meta"):
                shapes = build_reference(label).network.state_dict()
        except UserError:  # timm is not installed: its networks are no candidates
            continue
        if len(pair(own, leaves(shapes))) < len(own):
            continue
        reference = build_reference(label)
        problem = (
            _normalisation(model, reference) or BackboneComparison(model, reference.network).difference()
        )
        if problem is None:
            return label
        why = why or f"it is built like {label}, but {problem}"
    raise UserError(
        f"{model.source}: --backbone-weights imagenet finds no ImageNet weights for this backbone"
        f"{f': {why}' if why else ''}; name them by the YAML key 'pretrained: source/model', or give a file"
    )


def _origin(model: DetectionModel, path: Path, state: Mapping[str, Tensor]) -> Reference:
    """Return the reference whose names a file has."""
    named = _named(model)
    found = []
    for label in dict.fromkeys([*([named] if named else []), *KNOWN, *TWINS]):
        try:
            with torch.device("meta"):
                network = build_reference(label).network
        except UserError:
            if label == named:
                raise
            continue
        names = network.state_dict()
        if _share(names, state) == 1.0 and not _foreign(names, state):
            found.append(label)
            if label == named:
                break
    if named in found or len(found) == 1:
        return build_reference(named if named in found else found[0])
    if found:
        raise UserError(
            f"--backbone-weights {path}: may belong to {' or '.join(found)}, which pad or normalise "
            f"otherwise; say which: --backbone-weights {found[0]}={path}"
        )
    raise UserError(
        f"--backbone-weights {path}: its tensors' names ({next(iter(state))}, ...) are those of no network "
        f"known here; say which network they were trained in: --backbone-weights source/model={path}"
    )


def _share(names: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> float:
    """Return the share of a network's convolutions and norms in a file.

    They are compared by name and shape.

    The classifier, the last layer, is left out: it is the data set's, not the backbone's.
    """
    inner = leaves(names)[:-1]
    keys = {leaf.key(tensor): shape for leaf in inner for tensor, shape in leaf.shapes.items()}
    fit = sum(key in state and tuple(state[key].shape) == shape for key, shape in keys.items())
    return fit / max(len(keys), 1)


def _foreign(names: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return layers of a file that a network lacks, between those that it has.

    With them the file is of another network, a deeper one of the family (efficientnet_b1 has all names of
    efficientnet_b0); what only stands beside them, such as a head of one's own, says nothing.
    """
    own = {leaf.name for leaf in leaves(names)}
    parts = {name.partition(".")[0] for name in own if "." in name}
    return [
        leaf.name for leaf in leaves(state) if leaf.name not in own and leaf.name.partition(".")[0] in parts
    ]


def _check_names(reference: Reference, state: Mapping[str, Tensor], path: Path | None) -> None:
    """Check that a file has the names of the network it is for."""
    share = _share(reference.network.state_dict(), state)
    if share < _LEAST:
        raise UserError(
            f"--backbone-weights {reference.label}={path}: the file holds {share:.0%} of that network's "
            "tensors; name the network it was saved from"
        )
    foreign = _foreign(reference.network.state_dict(), state) if path else []
    if foreign:
        raise UserError(
            f"--backbone-weights {reference.label}={path}: its file has {len(foreign)} layers that the "
            f"network lacks, such as {foreign[0]}; name the network it was saved from"
        )


def _checkpoint_state(path: Path) -> tuple[Reference, Mapping[str, Tensor]] | None:
    """Return a detector's checkpoint as a reference with its weights, or None."""
    if not path.is_file() or path.suffix != ".pt":
        return None
    try:
        detector = load_checkpoint(path).model
    except UserError as error:
        try:
            read_weights(path)  # plain tensors: a classifier's weights, no detector
        except UserError:
            raise error from None
        return None
    mean = detector.yaml.get("mean") or [0.0] * detector.ch
    std = detector.yaml.get("std") or [1.0] * detector.ch
    return Reference(str(path), detector, tuple(mean), tuple(std)), detector.state_dict()


def _transplant(
    model: DetectionModel, reference: Reference, state: Mapping[str, Tensor], where: str
) -> BackboneReport:
    """Check that backbone and reference agree, then copy."""
    comparison = BackboneComparison(model, reference.network, _run_reference, reference.side)
    own, total = comparison.own, sum(len(leaf.shapes) for leaf in comparison.own)
    report = BackboneReport(where, total)
    fitting = sum(len(leaf.shapes) for leaf, _ in comparison.pairs)
    if fitting < _LEAST * total:
        raise UserError(
            f"--backbone-weights {where}: only {fitting} of the backbone's {total} tensors fit, the first "
            f"that does not is {_first(own, comparison.unmatched)}; give the weights of the network that "
            f"{model.source} is built after (same widths and depths)"
        )
    problem = _normalisation(model, reference) or comparison.difference()
    if problem is not None:
        raise UserError(
            f"--backbone-weights {where}: {model.source} would not compute what these weights were trained "
            f"for: {problem}; mend the YAML or take other weights"
        )
    names = [other.key(tensor) for own, other in comparison.pairs for tensor in own.shapes]
    wild = [name for name in names if name in state and not bool(state[name].isfinite().all())]
    if wild:
        raise UserError(
            f"--backbone-weights {where}: {wild[0]} holds values that are not finite (NaN or infinity), in "
            f"{len(wild)} tensors in all; take weights of a training that went well"
        )
    report.fitted, report.left = copy_pairs(comparison.pairs, state, model.state_dict())
    report.left += [leaf.key(tensor) for leaf in comparison.unmatched for tensor in leaf.shapes]
    return report


def _run_reference(network: torch.nn.Module, image: Tensor) -> object:
    """Run a reference on a normalised image, without a detector's own normalisation."""
    if isinstance(network, DetectionModel):
        network.mean = network.std = None
    return network(image)


def _first(own: list[Leaf], unmatched: list[Leaf]) -> str:
    leaf = unmatched[0] if unmatched else own[0]
    return f"{leaf.name} ({', '.join(f'{k} {list(v)}' for k, v in leaf.shapes.items())})"


def _normalisation(model: DetectionModel, reference: Reference) -> str | None:
    """Return what is wrong with the YAML's `mean` and `std`, if anything."""
    ours = [
        tuple(model.yaml.get(key) or [default] * model.ch) for key, default in (("mean", 0.0), ("std", 1.0))
    ]
    theirs = [reference.mean, reference.std]
    for a, b in zip(ours, theirs):
        if len(a) != len(b) or max(abs(x - y) for x, y in zip(a, b)) > _NEAR:
            mean, std = ([round(v, 5) for v in values] for values in theirs)
            return (
                f"its input is normalised by mean {list(ours[0])}, std {list(ours[1])}, the weights were "
                f"trained with mean {mean}, std {std}"
            )
    return None
