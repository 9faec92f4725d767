"""Save and load checkpoints: plain tensors, YAML and metadata, without running code.

A file is one dict (schema 1):

    schema    1; a reader refuses a later one
    project   who wrote it
    task      'detect'
    yaml      the model's YAML, from which the network is rebuilt
    names     class names by index
    plugins   {block name: file} of the user's own blocks that the YAML names
    state     the model's state_dict
    meta      what the trainer knows: epoch, best_fitness, opt, hyp, date, seed, versions; and `licence`, if
              weights of others are in it whose licence it carries
    training  what a resumed run needs (optimizer, EMA, generators, ...), or None

Every value is a tensor or plain Python data, so that `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.build.rows import KEYS
from models.registry import lookup
from models.schema import SCHEMA, TASK
from models.weights.official import (
    OFFICIAL_LICENCE,
    OfficialFile,
    Stored,
    is_official,
    parse_official,
    read_file,
)
from models.yolo import DetectionModel
from utils.device import seeded
from utils.errors import UserError
from utils.files import YamlMapping, atomic_write, find_file
from utils.package import PROJECT

_SMALL = 10_000_000  # parameters: of a smaller model it is said which tensors do not fit


@dataclass
class Checkpoint:
    """Hold a checkpoint that was read.

    Attributes:
        model: the network rebuilt, float32, in eval mode, on the device asked for.
        meta: what its trainer wrote about it.
        training: the state a resumed run needs; None when stripped or official.
        official: whether it is a pickled YOLOv5 file.
        path: the file.
    """

    model: DetectionModel
    meta: dict[str, Stored]
    training: dict[str, Stored] | None
    official: bool
    path: Path


def save_checkpoint(
    path: str | Path,
    model: DetectionModel,
    *,
    meta: Mapping[str, object],
    training: Mapping[str, object] | None = None,
    half: bool = False,
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: the file; an old one stays as it is unless the new one is complete.
        model: the network, not fused (a fused one no longer fits its YAML).
        meta: plain facts about it; numpy values become Python's or tensors, paths become text.
        training: optimizer state and the like, for resuming.
        half: store the weight matrices as float16. Norm statistics, biases and anchors stay float32: they are
            few, and small variances would vanish.

    Raises:
        UserError: the disk is full, or the file cannot be written.
        TypeError: `meta` or `training` holds what is neither plain data nor a tensor.
        ValueError: the model is fused.
    """
    if model.is_fused:
        raise ValueError("a fused model cannot be saved as a checkpoint: keep the unfused one")
    licence = {"licence": model.licence} if model.licence else {}
    payload = {
        "schema": SCHEMA,
        "project": PROJECT,
        "task": TASK,
        "yaml": plain_data(model.yaml, "yaml"),
        "names": {int(i): str(name) for i, name in model.names.items()},
        "plugins": needed_plugins(model.yaml),
        "state": _state(model, half),
        "meta": plain_data({**meta, **licence}, "meta"),
        "training": None if training is None else plain_data(dict(training), "training"),
    }
    buffer = io.BytesIO()  # serialised first: a disk error then surfaces as itself, not as torch's
    torch.save(payload, buffer)
    try:
        atomic_write(path, lambda file: file.write(buffer.getbuffer()))
    except OSError as error:
        kept = "the checkpoint that was there is unchanged" if Path(path).is_file() else "nothing was written"
        raise UserError(
            f"{path}: could not be saved ({error.strerror or error}); {kept}; "
            "free some space or choose another folder and resume"
        ) from error


def _state(model: nn.Module, half: bool) -> dict[str, Tensor]:
    """Return the model's state_dict on the CPU, matrices in float16 on request.

    Each tensor has storage of its own.
    """
    matrices = {name for name, p in model.named_parameters() if p.ndim > 1} if half else set()
    state = {}
    for name, tensor in model.state_dict().items():
        value = _detached(tensor)
        if name in matrices and value.is_floating_point():
            reduced = value.half()
            value = reduced if torch.isfinite(reduced).all() else value
        state[name] = value
    return state


def _detached(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU without gradient, in storage of its own."""
    value = tensor.detach().cpu()
    return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value


def plain_data(value: object, where: str) -> object:
    """Return a copy of nested data with tensors and Python's own types only.

    Args:
        value: the data; numpy scalars and arrays, paths, tuples and namespaces are turned into plain kinds.
        where: its name, for the message.

    Raises:
        TypeError: anything else, with its place.
    """
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, Tensor):
        return _detached(value)
    if isinstance(value, np.generic):
        return plain_data(value.item(), where)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value, order="C"))
    if isinstance(value, Namespace):
        return plain_data(vars(value), where)
    if isinstance(value, Mapping):
        return {plain_data(k, f"{where} key"): plain_data(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(plain_data(v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(value, list):
        return [plain_data(v, f"{where}[{i}]") for i, v in enumerate(value)]
    for kind in (bool, int, float, str):  # an enumeration or another subclass: its plain value
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{where}: a checkpoint holds plain data and tensors, not {type(value).__name__}")


def needed_plugins(yaml: YamlMapping) -> dict[str, str]:
    """Return {block: file} of the user's own blocks that a model's YAML names."""
    used = {str(row[2]) for part in ("backbone", "head") for row in yaml.get(part, ()) if len(row) > 2}
    specs = {name: lookup(name) for name in sorted(used)}
    return {name: spec.source for name, spec in specs.items() if spec is not None and spec.source}


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint of ours or an official YOLOv5 `.pt` file and rebuild its model.

    Args:
        path: the file, as given or below the project.
        device: where the model goes.

    Raises:
        UserError: missing, empty, damaged or foreign file, a later schema, a pickle that could run code (it
            is not run), a plug-in that is not loaded, or tensors that do not fit the YAML beside them.
    """
    file = find_file(path)
    data = read_file(file)
    if is_official(data):
        return _from_official(file, parse_official(file, data), device)
    _check_payload(file, data)
    absent = {name: origin for name, origin in data["plugins"].items() if lookup(name) is None}
    if absent:
        files = sorted(set(absent.values()))
        raise UserError(
            f"{file}: its model uses {', '.join(sorted(absent))} from a plug-in; add --plugins "
            f"{' '.join(files)} (plugins={files} from Python)"
        )
    model = _rebuild(file, data["yaml"], data["state"], data["names"])
    model.licence = str(data["meta"].get("licence", ""))
    return Checkpoint(model.to(device), data["meta"], data.get("training"), official=False, path=file)


def _check_payload(path: Path, data: object) -> None:
    """Check the kind of each part of a payload."""
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
        if isinstance(data, dict) and data and all(isinstance(v, Tensor) for v in data.values()):
            found = "bare weights without the model's YAML"
        else:
            found = f"a {type(data).__name__} without a schema version"
        raise UserError(
            f"{path}: holds {found}, so it is not a checkpoint; give one that train.py or YOLOv5 wrote"
        )
    if data["schema"] > SCHEMA:
        raise UserError(
            f"{path}: was written by a later version (schema {data['schema']}, this version reads up to "
            f"{SCHEMA}); update this project"
        )
    kinds = {"yaml": dict, "names": dict, "plugins": dict, "state": dict, "meta": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(data.get(key), kind)]
    wrong += [] if isinstance(data.get("training"), dict | None) else ["training"]
    if not wrong and not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in data["state"].items()):
        wrong = ["state"]
    if not wrong and not all(isinstance(text, str) for pair in data["plugins"].items() for text in pair):
        wrong = ["plugins"]
    if not wrong and not all(isinstance(i, int) for i in data["names"]):
        wrong = ["names"]
    if wrong:
        raise UserError(f"{path}: its {', '.join(wrong)} is missing or damaged; take an earlier checkpoint")


def _from_official(path: Path, official: OfficialFile, device: str | torch.device) -> Checkpoint:
    """Return our model with an official file's weights, anchors and names."""
    model = _rebuild(path, official.yaml, official.state, official.names)
    model.licence = OFFICIAL_LICENCE
    ours = {type(m).__name__ for m in model.modules() if type(m).__module__ == "torch.nn.modules.activation"}
    if official.activations and ours != official.activations:
        raise UserError(
            f"{path}: its model was trained with {', '.join(sorted(official.activations))}, its YAML builds "
            f"{', '.join(sorted(ours)) or 'no activation'}; only files of YOLOv5 v6.0 or later are read"
        )
    return Checkpoint(model.to(device), official.meta, None, official=True, path=path)


def _rebuild(
    path: Path, yaml: YamlMapping, state: dict[str, Tensor], names: dict[int, str]
) -> DetectionModel:
    """Build the YAML's network and fill every tensor of it from `state`."""
    if _holds_tensors(yaml):
        raise UserError(f"{path}: its YAML holds tensors, so it is damaged; take an earlier checkpoint")
    try:
        with seeded(0):  # the initial weights are overwritten: loading must not move the caller's generator
            # Keys that do nothing were told of when the YAML was read: no reason to refuse the weights.
            # Its YAML must not ask for more memory than the file has weights.
            stored = sum(tensor.numel() for tensor in state.values())
            known = {key: value for key, value in yaml.items() if key in KEYS}
            model = DetectionModel(known, most=max(stored, _SMALL))
    except UserError as error:
        raise UserError(f"{path}: its model cannot be rebuilt from its YAML: {error}") from None
    report = transfer(model, state)
    extra = sorted(set(state) - set(model.state_dict()))
    if not report.complete or extra:
        first = [*report.mismatched, *((name, None, None) for name in [*report.missing, *extra])][0]
        detail = f"{first[0]} is {first[1]} in the file, {first[2]} in the model" if first[1] else first[0]
        raise UserError(
            f"{path}: {len(report.missing)} tensors missing, {len(report.mismatched)} of another shape "
            f"and {len(extra)} left over, so the weights do not belong to its YAML (first: {detail}); "
            "give another file"
        )
    if len(names) == model.nc:
        model.names = {i: str(name) for i, (_, name) in enumerate(sorted(names.items()))}
    return model.float().eval()


def _holds_tensors(value: object) -> bool:
    if isinstance(value, dict | list | tuple):
        return any(map(_holds_tensors, [*value, *value.values()] if isinstance(value, dict) else value))
    return isinstance(value, Tensor)


@dataclass
class TransferReport:
    """Hold what became of each tensor of a model in a transfer.

    Attributes:
        matched: names taken over.
        missing: names of the model that the source does not have.
        mismatched: (name, shape in the source, shape in the model).
        excluded: names left alone on request.
        unused: names of the source that the model does not have.
        total: tensors in the model's state_dict.
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    total: int = 0

    @property
    def complete(self) -> bool:
        """Return whether every tensor of the model was filled."""
        return len(self.matched) == self.total

    def __str__(self) -> str:
        """Return one line for the log."""
        parts: dict[str, Sequence[object]] = {
            "missing": self.missing,
            "of another shape": self.mismatched,
            "excluded": self.excluded,
            "unused": self.unused,
        }
        rest = ", ".join(f"{len(names)} {what}" for what, names in parts.items() if names)
        return f"{len(self.matched)}/{self.total} tensors transferred" + (f" ({rest})" if rest else "")


def transfer(
    model: nn.Module, state_dict: Mapping[str, Tensor], exclude: Iterable[str] = ()
) -> TransferReport:
    """Copy tensors of equal name and shape into a model, in place.

    Args:
        model: the network to fill.
        state_dict: weights of another one; dtypes are converted, devices bridged.
        exclude: parts of names to leave alone, such as `anchor`.

    Returns:
        What was matched, missing, mismatched, excluded and unused.
    """
    exclude = tuple(exclude)
    own = model.state_dict()
    report = TransferReport(total=len(own), unused=[name for name in state_dict if name not in own])
    with torch.no_grad():
        for name, target in own.items():
            source = state_dict.get(name)
            if any(part in name for part in exclude):
                report.excluded.append(name)
            elif source is None:
                report.missing.append(name)
            elif source.shape != target.shape:
                report.mismatched.append((name, tuple(source.shape), tuple(target.shape)))
            else:
                target.copy_(source)
                report.matched.append(name)
    return report
