"""Define what every exporter is given and what it says about itself."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.formats.metadata import Metadata
from models.formats.nms_options import Suppression
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.images import load_image
from utils.letterbox import letterbox_tensor

Untyped = Any  # Any: an object of an optional package; most have no types, and any may be absent

_Node = TypeVar("_Node")
_Key = TypeVar("_Key", bound=Hashable)

WORKSPACE = 4.0  # GB


def network_input(path: str | Path, size: tuple[int, int], ch: int) -> Tensor:
    """Return an image file as (ch, H, W), as `letterbox_tensor` makes it.

    Raises:
        UserError: an image that cannot be read.
    """
    return letterbox_tensor(load_image(path), size, ch)[0]


@dataclass(frozen=True)
class Job:
    """Hold what an exporter works on.

    Attributes:
        model: fused, in eval mode, float32, its head giving the decoded tensor alone.
        example: (N, ch, H, W) on the model's device, float32.
        metadata: what the file is to say about itself, and with it the precision asked for.
        calibration: for int8 gives the images to calibrate with, the same at every call, as batches of the
            example's size; None otherwise.
        verbose: whether the packages that write the format may say what they do.
        opset: ONNX's operator set, one of `models.formats.onnx.OPSETS`.
        simplify: whether the ONNX graph is simplified.
        workspace: memory that TensorRT may build with, in GB.
    """

    model: DetectionModel
    example: Tensor
    metadata: Metadata
    calibration: Callable[[], Iterator[Tensor]] | None = None
    verbose: bool = False
    opset: int = 17
    simplify: bool = False
    workspace: float = WORKSPACE

    @property
    def nms(self) -> Suppression:
        """Return the NMS that the file gets.

        Raises:
            ValueError: the job asks for none.
        """
        if self.metadata.nms is None:
            raise ValueError("this job asks for no NMS")
        return self.metadata.nms

    def calibration_batches(self) -> Iterator[Tensor]:
        """Return the images to calibrate with, the same at every call.

        Raises:
            ValueError: the job has none.
        """
        if self.calibration is None:
            raise ValueError("this job has no images to calibrate with")
        return self.calibration()


@dataclass(frozen=True)
class Exporter:
    """Describe a format that export.py can write.

    Attributes:
        name: its name in --include.
        title: its name for people.
        write: writes the network, giving decoded boxes, as the file or the folder at the path it is given.
        endings: by precision ('fp32', 'fp16', 'int8'), how the file's name ends after the checkpoint's stem;
            a precision that is not there is refused.
        options: which of the options 'batch', 'dynamic', 'simplify', 'opset' and 'workspace' it honours; the
            first two are refused by the others, the rest must concern at least one format of an export.
        cuda_only: the precisions that this format can be written in and run in with CUDA only.
        unavailable: why this platform cannot write it; None when it can.
        add_nms: takes what `write` wrote at the first path, as it is, and writes it at the second with the
            job's NMS added; None: --nms is refused.
    """

    name: str
    title: str
    write: Callable[[Job, Path], None]
    endings: Mapping[str, str]
    options: frozenset[str] = field(default_factory=frozenset)
    cuda_only: frozenset[str] = frozenset()
    unavailable: Callable[[], str | None] = lambda: None
    add_nms: Callable[[Job, Path, Path], None] | None = None

    def obstacle(self, precision: str, device: torch.device) -> str | None:
        """Return why no file of this precision can be made here; None if one can."""
        if reason := self.unavailable():
            return reason
        if precision not in self.endings:
            can = ", ".join(self.endings)
            return f"--include {self.name}: cannot be written in {precision}, only in {can}"
        if precision in self.cuda_only and device.type != "cuda":
            return f"--half: {self.title} in float16 needs a CUDA device; add --device 0 or leave --half out"
        return None


EXPORTERS: dict[str, Exporter] = {}


def register_exporter(exporter: Exporter) -> Exporter:
    """Make a format known to export.py."""
    EXPORTERS[exporter.name] = exporter
    return exporter


class Decoded(nn.Module):
    """Wrap the model as a function of the images alone: a graph keeps no more."""

    def __init__(self, model: DetectionModel) -> None:
        super().__init__()
        self.model = model
        self.eval()  # exporters put back the mode they found here, in every module below

    def forward(self, images: Tensor) -> Tensor:
        """Return the decoded boxes (N, boxes, 5 + nc) of images (N, ch, H, W)."""
        return self.model(images)


def in_half(job: Job) -> Job:
    """Return the job in float16, images included; the job itself stays float32."""
    return replace(
        job,
        model=copy.deepcopy(job.model).half(),
        example=job.example.half(),
        metadata=replace(job.metadata, half=True),
    )


def back_to(
    results: Iterable[_Node],
    inputs: Callable[[_Node], Iterable[_Node]],
    is_end: Callable[[_Node], bool],
    key: Callable[[_Node], _Key],
) -> dict[_Key, _Node]:
    """Return the nodes of a graph from its results back to the first ends.

    The search follows every input until it meets an end, which is included.

    With convolutions and linear layers as ends that is the detection head, whose 1x1 convolutions are a
    hundredth of the arithmetic, and in int8 alone cost 0.01 of mAP50-95.

    Args:
        results: the nodes that give the results.
        inputs: gives the nodes that a node reads.
        is_end: whether the search stops at a node.
        key: what tells nodes apart.

    Returns:
        Each node once, by its key.
    """
    waiting = list(results)
    found: dict[_Key, _Node] = {}
    while waiting:
        node = waiting.pop()
        if key(node) not in found:
            found[key(node)] = node
            if not is_end(node):
                waiting += inputs(node)
    return found


@contextlib.contextmanager
def quiet(verbose: bool = False) -> Iterator[None]:
    """Hide the warnings of tracing and conversion, unless `verbose`.

    Every exported file is checked afterwards.
    """
    with warnings.catch_warnings():
        if not verbose:
            warnings.simplefilter("ignore")
        yield


def require(package: str, wanted_by: str, install: str | None = None) -> ModuleType:
    """Return an optional package, imported.

    Raises:
        UserError: it is not installed; the sentence says how to install it.
    """
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # a dotted name whose parent is absent
        found = None
    if found is None:
        name = install or package
        raise UserError(f"{wanted_by}: needs the package {name}; pip install {name}")
    return importlib.import_module(package)
