"""Read official YOLOv5 checkpoints without running a line of them.

An official `.pt` file is a pickle of whole fp16 modules: it names classes (`models.yolo.Model`,
`models.common.C3`, `torch.nn.modules.conv.Conv2d`) that an ordinary unpickler would import and call. Here
every name on a closed list is answered with a shell that records what it is given and does nothing, under
`torch.load(weights_only=True)`, which refuses every other name. What is left is data: the model's YAML, its
class names and its tensors, from which our own model is rebuilt.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from utils.errors import UserError
from utils.files import DEEPEST, MOST_NODES

# Where the official project keeps its blocks; a name below any of these modules is the same block.
_BLOCK_MODULES = ("models.common", "models.experimental", "models.yolo")
_BLOCKS = (
    "Bottleneck BottleneckCSP C3 C3Ghost C3SPP C3TR C3x Concat Contract Conv CrossConv DWConv "
    "DWConvTranspose2d Detect DetectionModel Expand Focus GhostBottleneck GhostConv MixConv2d Model SPP SPPF "
    "Sum TransformerBlock TransformerLayer"
)
_PACKAGE = "yolov5."  # in front of these modules in files of the package yolov5
_ROOT_NAMES = frozenset({"models.yolo.Model", "models.yolo.DetectionModel"})
_TORCH_MODULES = {
    "torch.nn.modules.activation": (
        "ELU GELU Hardsigmoid Hardswish LeakyReLU Mish MultiheadAttention PReLU ReLU ReLU6 SiLU Sigmoid Tanh"
    ),
    "torch.nn.modules.batchnorm": "BatchNorm2d SyncBatchNorm",
    "torch.nn.modules.container": "ModuleDict ModuleList ParameterList Sequential",
    "torch.nn.modules.conv": "Conv2d ConvTranspose2d",
    "torch.nn.modules.dropout": "Dropout Dropout2d",
    "torch.nn.modules.flatten": "Flatten",
    "torch.nn.modules.linear": "Identity Linear NonDynamicallyQuantizableLinear",
    "torch.nn.modules.normalization": "GroupNorm LayerNorm",
    "torch.nn.modules.padding": "ZeroPad2d",
    "torch.nn.modules.pooling": "AdaptiveAvgPool2d AvgPool2d MaxPool2d",
    "torch.nn.modules.upsampling": "Upsample UpsamplingBilinear2d UpsamplingNearest2d",
}
# What training leaves beside the model (best_fitness is a numpy array, opt may hold paths): nothing reads it.
_VALUES = (
    "argparse.Namespace",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",  # as Python 3.13 calls them
    "pathlib._local.WindowsPath",
)
# How the refused names of other kinds of checkpoint start, what such a file is, and what to do.
_KINDS = {
    ("ultralytics.",): (
        "a checkpoint of the package ultralytics (YOLOv8 or later), whose head differs; train a network here "
        "on the same data set: the labels are the same"
    ),
    ("models.yolo.Seg", "models.common.Proto"): (
        "a YOLOv5 segmentation checkpoint, and only detection is done here; take the checkpoint without -seg "
        "or train one: polygon labels are read as boxes"
    ),
    ("models.yolo.Classif", "models.common.Classif"): (
        "a YOLOv5 classification checkpoint, and only detection is done here; take the checkpoint without "
        "-cls or train one on images with labelled boxes"
    ),
    ("models.",): (
        "a checkpoint of a YOLOv5 fork with blocks of its own; write its YAML, register these blocks in a "
        "file of yours, and train anew: train.py --cfg YAML --plugins FILE"
    ),
}
_FAMILIAR = ("ultralytics.", "models.", "utils.", "torch.", "timm.")  # what such files name besides
Stored = Any  # Any: a checkpoint's values are of any kind until they are checked
_ACTIVATIONS = "torch.nn.modules.activation."
_DEEPEST = 64  # nesting of modules; official models have 6, a file that points into itself has no end
OFFICIAL_LICENCE = "AGPL-3.0"  # of YOLOv5, and of the weights that are published with it
_MODEL_KEYS = ("ema", "model")  # the averaged weights are the ones the official project itself would use


class Shell:
    """Replace a class or function that a file names: keep its state, run nothing."""

    path = ""

    def __new__(cls, *args: object, **_: object) -> Shell:
        """Record the arguments.

        A pickle may call this or `object.__new__`; both end here.
        """
        shell = object.__new__(cls)
        shell.__dict__["args"] = args
        shell.__dict__["state"] = {}
        return shell

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Do nothing: the arguments were recorded when it was made."""

    def __setstate__(self, state: object) -> None:
        """Record the state as it is."""
        self.__dict__["state"] = state if isinstance(state, dict) else {}

    def part(self, name: str) -> dict[str, object]:
        """Return a mapping in the state (`_modules`, `_parameters`, `_buffers`), else an empty one."""
        value = self.__dict__["state"].get(name)
        return value if isinstance(value, dict) else {}

    def get(self, name: str) -> Stored:
        """Return an attribute in the state, or None."""
        return self.__dict__["state"].get(name)


def _shells() -> list[tuple[type[Shell], str]]:
    """Return one shell class for each name that an official file may use."""
    names = [f"{module}.{block}" for module in _BLOCK_MODULES for block in _BLOCKS.split()]
    names += [f"{module}.{name}" for module, group in _TORCH_MODULES.items() for name in group.split()]
    names += _VALUES
    aliases = [(name, _PACKAGE + name) for name in names if name.startswith(_BLOCK_MODULES)]
    pairs = [*((name, name) for name in names), *aliases]
    return [(type("Shell", (Shell,), {"path": path}), name) for path, name in pairs]


SHELLS = _shells()


def read_file(path: Path) -> Stored:
    """Return what a checkpoint file holds, read with `weights_only=True`.

    Raises:
        UserError: missing or empty file, a zip or bytes of something else, a damaged file, or a pickle that
            names anything but tensors, plain data and the shells' names. Nothing of such a file is executed.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file; check the path")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty, so it is no checkpoint; copy or train it again")
    with path.open("rb") as file:
        file.read(
            1
        )  # a file that may not be read says so here: what torch raises below is about its contents
    try:
        _refuse_other_archives(path)
        with torch.serialization.safe_globals([*SHELLS]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols and versions; what matters is raised
            data = torch.load(path, map_location="cpu", weights_only=True)
        _refuse_growth(data)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 a malformed byte may surface as any exception: all mean the same
        raise UserError(_sentence(path, error)) from None
    return data


def _refuse_growth(data: object) -> None:
    """Refuse what would take far more memory than its file when it is copied.

    A few bytes of a pickle can say the same list a million times, or a tensor of one stored number repeated.

    Raises:
        ValueError: what there is too much of.
    """
    if _written_out(data, {}, 0) > MOST_NODES:
        raise ValueError(f"its values are nested without end, or more than {MOST_NODES}")


def _written_out(value: Any, known: dict[int, int], depth: int) -> int:  # Any: a pickle's values
    """Return the number of values when every reference is written out."""
    if depth > DEEPEST:
        raise ValueError("its values are nested without end")
    if isinstance(value, torch.Tensor):
        if (
            value.is_meta
            or value.layout is not torch.strided
            or value.numel() * value.itemsize > value.untyped_storage().nbytes()
        ):
            raise ValueError("a tensor in it is larger than what is stored")
        return 1
    if isinstance(value, Shell):
        value = value.__dict__
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = MOST_NODES  # as long as it is counted: what holds itself has no end
        parts = (*value, *value.values()) if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_written_out(part, known, depth + 1) for part in parts)
    return known[id(value)]


def _refuse_other_archives(path: Path) -> None:
    """Refuse a zip that torch.save did not write, TorchScript included."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("it is compressed, which torch.save never does")
        pickled = b"".join(archive.read(name) for name in names if name.endswith("/data.pkl"))
        if b"bytearray" in pickled:  # torch would make one of any size that the pickle says
            raise ValueError("its pickle makes a bytearray")
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(f"{path}: is a TorchScript file, not a checkpoint; name it *.torchscript to run it")
    if not any(name.endswith("/data.pkl") for name in names):
        inside = ", ".join(names[:3]) or "nothing"
        raise UserError(
            f"{path}: is a zip archive of something else (it holds {inside}), not a checkpoint; "
            "give a .pt file that train.py or YOLOv5 wrote"
        )


def _sentence(path: Path, error: Exception) -> str:
    """Return one sentence on a file that torch refused."""
    try:
        refused = sorted(refused_names(path))
    except (ImportError, AttributeError, TypeError):
        refused = []  # torch keeps the list that is compared with in a private place, and may move it
    if refused and (kind := _kind([name.removeprefix(_PACKAGE) for name in refused])):
        return f"{path}: names {', '.join(refused[:3])}, so it is {kind} (nothing of it was run)"
    if refused:
        return (
            f"{path}: refused, because the pickle in it names {', '.join(refused[:3])}, which is neither a "
            "tensor, plain data nor a YOLOv5 detection block and could run code; nothing of it was run"
        )
    text = str(error)
    if "persistent_load of storage" in text:
        return f"{path}: is a model in torch's container before 1.6; save it again with YOLOv5 v6.0 or later"
    told = re.search(r"WeightsUnpickler error: (.*)", text)
    reason = re.split(r"[\n.]", told[1] if told else text.strip())[0] or "no message"
    return (
        f"{path}: is not a checkpoint or is damaged ({type(error).__name__}: {reason[:100]}); "
        "give a .pt file that train.py or YOLOv5 wrote"
    )


def _kind(refused: list[str]) -> str | None:
    """Return what a file with these names is; None if one names another project."""
    if not all(name.startswith(_FAMILIAR) for name in refused):
        return None
    kinds = (kind for starts, kind in _KINDS.items() if any(name.startswith(starts) for name in refused))
    return next(kinds, None)


def refused_names(path: Path) -> set[str]:
    """Return the names in a file's pickles that the reader refuses.

    They are found without unpickling.
    """
    from torch._weights_only_unpickler import _get_allowed_globals

    admitted = set(_get_allowed_globals()) | {name for _, name in SHELLS}
    return {name for name in _named(path) if name not in admitted}


def _named(path: Path) -> Iterator[str]:
    """Yield every global that the pickles of a file name.

    It stops where the bytes are no pickle any more.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    if member.endswith("/data.pkl"):
                        with archive.open(member) as file:
                            yield from _globals_of(file)
        else:
            with path.open("rb") as file:
                for _ in range(4):  # the old format: magic number, version, system, then the object
                    yield from _globals_of(file)
    except Exception:  # noqa: BLE001 damaged bytes may surface as any exception
        return


def _globals_of(file: IO[bytes]) -> Iterator[str]:
    """Yield the names in one pickle, by reading its opcodes."""
    from torch._weights_only_unpickler import (  # type: ignore[attr-defined]  # torch does not list them
        IMPORT_MAPPING,
        NAME_MAPPING,
    )

    pushed: list[object] = [None, None]
    memo: dict[int, object] = {}
    argument: Any  # Any: of an opcode: text, a number or None
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "MEMOIZE":
            memo[len(memo)] = pushed[-1]
            continue
        if "PUT" in opcode.name:
            memo[argument] = pushed[-1]
            continue
        if opcode.name in ("GLOBAL", "INST"):
            module, _, name = argument.partition(" ")
        elif opcode.name == "STACK_GLOBAL":
            module, name = map(str, pushed[-2:])
        else:
            pushed.append(memo.get(argument) if "GET" in opcode.name else argument)
            continue
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        yield f"{module}.{name}"
        pushed.append(None)


@dataclass
class OfficialFile:
    """Hold an official checkpoint as plain data.

    Attributes:
        yaml: the model's YAML as the file keeps it (rows of literals and names).
        names: class names by index.
        state: every parameter and buffer by its state_dict name, float32 where floating.
        activations: the activation classes the model uses (`SiLU`, ...), to hold the rebuilt one against.
        meta: what else is plain in the file: epoch, date, opt.
    """

    yaml: dict[str, Stored]
    names: dict[int, str]
    state: dict[str, torch.Tensor]
    activations: set[str]
    meta: dict[str, Stored]


def is_official(data: object) -> bool:
    """Return whether what `read_file` returned is an official checkpoint.

    A bare pickled model is one too.
    """
    return _root(data) is not None


def _root(data: object) -> Shell | None:
    """Return the model's shell, the averaged one if there is one."""
    candidates = [data.get(key) for key in _MODEL_KEYS] if isinstance(data, dict) else [data]
    return next((c for c in candidates if isinstance(c, Shell)), None)


def parse_official(path: Path, data: object) -> OfficialFile:
    """Turn what `read_file` returned into plain data.

    Raises:
        UserError: the pickled object is not a detection model, has no YAML, or contains itself.
    """
    root = _root(data)
    if root is None or root.path not in _ROOT_NAMES:
        found = "no model" if root is None else root.path
        raise UserError(
            f"{path}: holds {found} where a YOLOv5 detection model is expected; give another file"
        )
    yaml = _plain(root.get("yaml"))
    if not isinstance(yaml, dict) or not {"backbone", "head"} <= set(yaml):
        raise UserError(
            f"{path}: its model keeps no YAML (backbone, head), so it cannot be rebuilt; re-export it"
        )
    state: dict[str, torch.Tensor] = {}
    activations: set[str] = set()
    _collect(path, root, "", state, activations, depth=0)
    beside = data if isinstance(data, dict) else {}
    meta = {key: _plain(beside[key]) for key in ("epoch", "date", "opt") if beside.get(key) is not None}
    return OfficialFile(yaml, _names(root.get("names")), state, activations, meta)


def _collect(
    path: Path, shell: Shell, prefix: str, state: dict[str, torch.Tensor], activations: set[str], depth: int
) -> None:
    """Walk the shells as `nn.Module.state_dict` walks modules: parameters, buffers, then children."""
    if depth > _DEEPEST:
        raise UserError(
            f"{path}: its modules are nested without end at {prefix[:60]}; the file is not a real model"
        )
    if shell.path.startswith(_ACTIVATIONS):
        activations.add(shell.path.removeprefix(_ACTIVATIONS))
    transient = shell.get("_non_persistent_buffers_set") or ()
    entries = [*shell.part("_parameters").items()]
    entries += [(k, v) for k, v in shell.part("_buffers").items() if k not in transient]
    for name, value in entries:
        if not isinstance(value, torch.Tensor) or name == "anchor_grid":  # a cache that very old files carry
            continue
        value = value.detach()
        state[f"{prefix}{name}"] = value.float() if value.is_floating_point() else value
    for name, child in shell.part("_modules").items():
        if isinstance(child, Shell):
            _collect(path, child, f"{prefix}{name}.", state, activations, depth + 1)


def _names(value: object) -> dict[int, str]:
    """Return class names by index, from a list or a dict."""
    if isinstance(value, dict):
        return {int(k): str(v) for k, v in value.items() if isinstance(k, int)}
    return {i: str(v) for i, v in enumerate(value)} if isinstance(value, list | tuple) else {}


def _plain(value: object) -> object:
    """Return a copy with plain data only; anything else becomes None."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if isinstance(k, str | int)}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool) else None
