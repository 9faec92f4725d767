"""Take over another detector's neck and head, matched row by row from the output back.

Rows are paired for as long as both networks build the same layer. Where they begin to differ, two maps of
one shape go into the same neck: ours comes from an adapter, a convolution of the backbone's map, and theirs
from their backbone. `models/weights/align.py` teaches the adapters to give those maps.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from models.build.rows import Row
from models.heads import DetectionHead
from models.weights.checkpoint import load_checkpoint
from models.weights.matching import leaves
from models.yolo import DetectionModel
from utils.errors import UserError, shown

LOGGER = logging.getLogger("yolo.models")

_LEAST = 0.5  # of the neck's tensors; fewer fit by chance, and the head may be of another kind
_FITTING = "models/yolov5n-efficientnet-lite0.yaml, which has yolov5n's"


@dataclass
class NeckMatch:
    """Hold how far two detectors are alike, from their outputs back.

    Attributes:
        rows: {row: row of the source} that build the same layer.
        joints: {row: row of the source} that those read, and that differ.
        adapters: {joint: its rows from the backbone on}, in order; only joints that the backbone alone feeds.
    """

    rows: dict[int, int] = field(default_factory=dict)
    joints: dict[int, int] = field(default_factory=dict)
    adapters: dict[int, list[int]] = field(default_factory=dict)


@dataclass
class NeckReport:
    """Hold what became of the tensors of a neck and head.

    Attributes:
        label: the file. licence: of its weights. total: tensors, adapters not counted.
        fitted: how many were taken over; those of the head count although their unknown classes start anew.
        left: names of the others. unknown: classes that the source does not have.
    """

    label: str
    licence: str
    total: int
    fitted: int = 0
    left: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return one line for the log, which names what did not fit."""
        rest = f"; not fitted: {', '.join(self.left)}" if self.left else ""
        if self.unknown:
            rest += f"; classes that start anew: {shown(', '.join(self.unknown))}"
        return f"{self.label}: {self.fitted} of {self.total} tensors of the neck and head fitted{rest}"


def load_neck(model: DetectionModel, path: str | Path, names: Mapping[int, str]) -> NeckReport:
    """Fill a model's neck and head, anchors included, with a checkpoint's, in place.

    Args:
        model: built from its YAML.
        path: a checkpoint, ours or an official one.
        names: classes of the model; a class that the checkpoint knows by the same name is taken over too.

    Raises:
        UserError: no such checkpoint, or fewer than half of the neck's tensors fit.
    """
    source = load_checkpoint(path).model
    match = match_necks(model, source)
    pairs, left = _pair_tensors(model, match)
    report = NeckReport(str(path), source.licence, len(pairs) + len(left), len(pairs), left)
    detect = f"model.{model.rows[-1].index}."
    of_neck, fitted = (sum(not key.startswith(detect) for key in keys) for keys in ([*pairs, *left], pairs))
    if fitted < _LEAST * of_neck:
        first = model.rows[max(match.joints.keys() - match.adapters.keys(), default=max(match.joints))]
        raise UserError(
            f"--neck-weights {path}: only {len(pairs)} of the {report.total} tensors of the neck and head "
            f"fit, and {first.place} is the first row, from the output back, that does not; take a YAML "
            f"whose neck is that network's own, such as {_FITTING}"
        )
    own, other = model.state_dict(), source.state_dict()
    wild = [key for key in pairs.values() if not bool(other[key].isfinite().all())]
    if wild:
        raise UserError(
            f"--neck-weights {path}: {wild[0]} holds values that are not finite (NaN or infinity), in "
            f"{len(wild)} tensors in all; take weights of a training that went well"
        )
    with torch.no_grad():
        for key, theirs in pairs.items():
            if not key.startswith(detect):
                own[key].copy_(other[theirs])
        if model.rows[-1].index in match.rows:
            _take_output(model.detect, source.detect, names, source.names)
            report.unknown = [name for name in names.values() if name not in source.names.values()]
    model.licence = model.licence or source.licence
    return report


def _pair_tensors(model: DetectionModel, match: NeckMatch) -> tuple[dict[str, str], list[str]]:
    """Return the neck's and head's {tensor: tensor of the source}, and those without a partner."""
    adapters = {row for chain in match.adapters.values() for row in chain}
    pairs, left = {}, []
    for leaf in leaves(model.state_dict()):
        row = int(leaf.name.split(".")[1])
        if model.rows[row].section == "backbone" or row in adapters:
            continue
        for key in map(leaf.key, leaf.shapes):
            if row in match.rows:
                pairs[key] = key.replace(f"model.{row}.", f"model.{match.rows[row]}.", 1)
            else:
                left.append(key)
    return pairs, left


def _take_output(
    own: DetectionHead, other: DetectionHead, names: Mapping[int, str], others: Mapping[int, str]
) -> None:
    """Copy a head of the same kind, anchors included, and the classes that are known."""
    known = {name: index for index, name in others.items()}
    shared = [(index, known[name]) for index, name in names.items() if name in known]
    before = own.BEFORE_CLASSES
    to = [*range(before), *(before + index for index, _ in shared)]
    fro = [*range(before), *(before + index for _, index in shared)]
    theirs = other.state_dict()
    for key, target in own.state_dict().items():
        if own.CLASS_TENSORS.fullmatch(key):
            values = theirs[key].view(other.na, before + other.nc, -1)
            target.view(own.na, before + own.nc, -1)[:, to] = values[:, fro]
        else:
            target.copy_(theirs[key])


def match_necks(model: DetectionModel, source: DetectionModel) -> NeckMatch:
    """Pair the rows of two detectors from their outputs back."""
    match = NeckMatch()
    waiting = [(model.rows[-1], source.rows[-1])]
    while waiting:
        own, other = waiting.pop()
        if own.index in match.rows or own.index in match.joints:
            continue
        if own.section == "head" and _are_alike(model, own, source, other):
            match.rows[own.index] = other.index
        elif not own.spec.output or len(own.sources) != len(other.sources):
            match.joints[own.index] = other.index
            continue  # another head may read the same neck, another layer of a neck may not
        waiting += [
            (model.rows[a], source.rows[b]) for a, b in zip(own.sources, other.sources) if min(a, b) >= 0
        ]
    chains = {joint: _adapter(model, joint) for joint in match.joints}
    match.adapters = {joint: chain for joint, chain in chains.items() if chain}
    return match


def _are_alike(model: DetectionModel, own: Row, source: DetectionModel, other: Row) -> bool:
    """Return whether two rows build the same layer, and read maps of the same shapes.

    Two heads may have other numbers of classes, and other anchors, but not another number of these.
    """
    if own.name != other.name or _read(model, own) != _read(source, other):
        return False
    ours, theirs = model.model[own.index], source.model[other.index]
    if own.spec.output:
        return isinstance(ours, DetectionHead) and isinstance(theirs, DetectionHead) and ours.na == theirs.na
    return own.args == other.args and repr(ours) == repr(theirs)  # the second shows activations and eps


def _read(model: DetectionModel, row: Row) -> list[tuple[int, float]]:
    """Return channels and stride of the maps that a row reads."""
    return [(model.rows[s].out_channels, model.rows[s].stride) for s in row.sources]


def _adapter(model: DetectionModel, joint: int) -> list[int]:
    """Return the head's rows that lead from one row of the backbone to a joint.

    None where there are no such rows, or another row of the head takes part.
    """
    chain: list[int] = []
    row = model.rows[joint]
    while row.section == "head":
        chain.insert(0, row.index)
        if len(row.sources) > 1:
            return []
        row = model.rows[row.sources[0]]
    return chain
