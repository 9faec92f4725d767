"""Define what a file says about its network, for all formats."""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.formats.nms_options import Suppression
from models.schema import SCHEMA, SCHEMA_DECODED, TASK
from utils.errors import UserError, first_line, shown
from utils.package import PROJECT, VERSION

LOGGER = logging.getLogger("yolo.backends")

STRIDE_LIMIT = 4096  # pixels; P6 networks have 64
SIDE_LIMIT = 1 << 14  # pixels of an image's side, and images of a batch
FOREIGN = "Ultralytics"  # the author of all files of the package ultralytics; official YOLOv5 files name none
OTHER_WAY = "run it with the program it is from, or train a network here on the same labels"
PRECISIONS = ("fp32", "fp16", "int8")
NORMALISATION = "RGB in 0..1; the network subtracts its own mean and divides by its own std"

Names = Mapping[int, str] | Sequence[str]
_Value = Any  # Any: an entry's text, or what JSON, YAML or a Python literal makes of it
RawMetadata = Mapping[str, _Value]


@dataclass
class Metadata:
    """Hold what an exported file says about itself.

    Attributes:
        names: class names by index.
        stride: the largest stride of the network, in pixels.
        imgsz: the (height, width) it was exported at.
        batch: the batch size it was exported at.
        dynamic: whether batch, height and width are free.
        half: whether it takes images in float16.
        ch: channels of an image.
        device: 'cpu' or 'cuda': the kind of device it was traced on; None when unknown.
        precision: what its weights are in: 'fp32', 'fp16' or 'int8'.
        nms: the non-maximum suppression in the file; None when it gives the decoded tensor.
        licence: of weights of others in it, such as AGPL-3.0; '' for none that is known.
    """

    names: dict[int, str]
    stride: int
    imgsz: tuple[int, int] | None = None
    batch: int | None = None
    dynamic: bool = False
    half: bool = False
    ch: int = 3
    device: str | None = None
    precision: str = "fp32"
    nms: Suppression | None = None
    licence: str = ""

    def values(self) -> dict[str, object]:
        """Return what an exported file carries, as values that JSON and YAML keep."""
        values: dict[str, object] = {
            "author": PROJECT,
            "version": VERSION,
            "task": TASK,
            "schema": SCHEMA_DECODED if self.nms is None else SCHEMA,
            "stride": self.stride,
            "names": dict(self.names),
            "imgsz": None if self.imgsz is None else list(self.imgsz),
            "batch": self.batch,
            "shape": None if self.imgsz is None else [self.batch, self.ch, *self.imgsz],
            "dynamic": self.dynamic,
            "half": self.half,
            "precision": self.precision,
            "ch": self.ch,
            "device": self.device,
            "normalisation": NORMALISATION,
            "nms": None if self.nms is None else asdict(self.nms),
            "license": self.licence or None,  # as YOLOv5's own exports spell it
        }
        return {key: value for key, value in values.items() if value is not None}

    def entries(self) -> dict[str, str]:
        """Return `values` as text, for files that keep nothing else.

        The names are a Python literal, which YOLOv5's readers expect; the rest is JSON.

        >>> Metadata({0: "cat"}, 32).entries()["names"]
        "{0: 'cat'}"
        """
        values = self.values()
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
        return {**texts, "names": repr(values["names"])}


def carried(path: Path, raw: object) -> RawMetadata:
    """Return what was read as a file's metadata; refuse what is none."""
    if not isinstance(raw, dict):
        raise UserError(
            f"{path}: carries no metadata, so it is damaged or neither this project nor YOLOv5 exported it; "
            "export the checkpoint again"
        )
    return raw


def parse_metadata(path: Path, raw: RawMetadata, names: Names | None) -> Metadata:
    """Read the metadata of an exported file, ours or official YOLOv5's.

    Args:
        path: the file, for messages.
        raw: the entries; values are text (JSON, or Python literals as YOLOv5 writes) or already decoded.
        names: class names to use when the file has none.

    Raises:
        UserError: a later schema, another task, no names anywhere, or entries that cannot be read.
    """
    values = {key: decode(value) for key, value in raw.items()}
    if values.get("author") == FOREIGN:
        raise UserError(
            f"{path}: was exported by the package ultralytics (YOLOv8 or later), whose heads give other "
            f"outputs than YOLOv5's: {OTHER_WAY}"
        )
    schema = values.get("schema", 0)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise UserError(
            f"{path}: was exported by a later version (schema {shown(schema)}, this version reads up to "
            f"{SCHEMA}); update this project or export the file again"
        )
    if values.get("task", TASK) != TASK:
        raise UserError(
            f"{path}: was exported for the task {shown(values['task'])}; only {shown(TASK)} is supported"
        )
    if names and not values.get("names"):
        LOGGER.warning(
            "%s: carries no class names, so those of --data are used, and what else it does not say is taken "
            "to be as in YOLOv5",
            path,
        )
    found = values.get("names") or names
    if not found:
        raise UserError(
            f"{path}: carries no class names, so it was not exported by this project; give --data with the "
            "dataset's YAML (names= from Python), or export the checkpoint again"
        )
    try:
        shape = values.get("shape")
        imgsz = values.get("imgsz") or (shape[2:] if shape else None)
        batch = values.get("batch") or (shape[0] if shape else None)
        return Metadata(
            names=index_names(found),
            stride=_whole("stride", values.get("stride", 32), STRIDE_LIMIT),
            imgsz=None if imgsz is None else (_whole("side", imgsz[0]), _whole("side", imgsz[1])),
            batch=None if batch is None else _whole("batch", batch),
            dynamic=bool(values.get("dynamic", False)),
            half=bool(values.get("half", False)),
            precision=_precision(values),
            device=None if values.get("device") is None else str(values["device"])[:80],
            ch=int(values.get("ch") or (shape[1] if shape else 3)),
            nms=Suppression(**values["nms"]) if values.get("nms") else None,
            licence=str(values.get("license") or ""),
        )
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: its metadata cannot be read ({first_line(error)}); export the file again"
        ) from None


def _whole(what: str, value: _Value, limit: int = SIDE_LIMIT) -> int:
    """Return a whole number above 0; refuse what no network can have."""
    if not 1 <= float(value) <= limit or float(value) != int(value):
        raise ValueError(f"{what} {shown(value)}")
    return int(value)


def _precision(values: RawMetadata) -> str:
    """Return the precision of the weights.

    A file that does not say is float32, or float16 when it takes float16 images.
    """
    precision = values.get("precision", "fp16" if values.get("half", False) else "fp32")
    if precision not in PRECISIONS:
        raise ValueError(f"precision {shown(precision)}")
    return precision


def index_names(names: Names) -> dict[int, str]:
    """Return class names as {index: name}.

    They come as a list or as a mapping whose keys may be text (JSON).
    """
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
    return {int(i): str(name) for i, name in sorted(pairs, key=lambda pair: int(pair[0]))}


def decode(value: _Value) -> _Value:
    """Return a text value read as JSON or as a Python literal.

    Text that is neither stays text.
    """
    if not isinstance(value, str):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return value
