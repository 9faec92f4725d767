"""The detector for Python, called on whatever holds an image: what `torch.hub.load` returns.

>>> from models.backends import ModelBackend, optimised
>>> from models.yolo import DetectionModel
>>> cpu = torch.device("cpu")
>>> model = HubModel(ModelBackend(optimised(DetectionModel("yolov5n.yaml", nc=2), cpu), cpu))
>>> model.conf = 0.9
>>> results = model(np.zeros((48, 64, 3), np.uint8), size=64)
>>> results.s, results.xyxy[0].shape[1]
((1, 3, 64, 64), 6)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from operator import index
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from models.backends import check_channels
from models.formats.base import Backend
from utils.device import amp_dtype, autocast
from utils.downloads import fetch, file_name, is_url
from utils.errors import UserError, shown
from utils.image_size import read_size, whole_strides
from utils.images import load_image, pillow_to_bgr
from utils.letterbox import UNSCALED, Placement, common_shape, letterbox, rgb_planes
from utils.nms import NmsOptions
from utils.results.detections import Detections
from utils.tiles import TILE_OVERLAP, Tiling, check_tiles, make_detector

MAX_DOWNLOAD = 1 << 28  # bytes of one image
_Read = TypeVar("_Read")
BATCH = 8  # images that the network gets at once, so that its memory does not grow with a list's length


class HubModel(nn.Module):
    """Detects in images of any form and size; letterbox and NMS are included.

    What NMS does is set by attributes.

    Attributes:
        conf, iou: thresholds of confidence and overlap.
        classes: keep these class numbers only; None: all.
        max_det: most detections per image.
        agnostic: boxes of different classes suppress each other.
        multi_label: a box may be several classes.
        tile: longer side in pixels of overlapping tiles, for small objects in large images (`utils.tiles`);
            True: the network's size; False: no tiles.
        overlap: least share of a tile that the next one shows too.
        tiles_only: leave the whole image out beside its tiles.
        amp: run in the device's reduced precision (float16 or bfloat16); checkpoints only.
        names, stride: of the network; `model` is the DetectionModel itself, None for exported files.
        pt: whether a checkpoint runs, not an exported file. fp16: whether images go in as float16.
    """

    __module__ = "models.common"  # where YOLOv5 has such a class: SAHI takes a model of no other module

    conf: float = 0.25
    iou: float = 0.45
    classes: Sequence[int] | None = None
    max_det: int = 1000
    agnostic: bool = False
    multi_label: bool = False
    tile: bool | int = False
    overlap: float = TILE_OVERLAP
    tiles_only: bool = False
    amp: bool = False

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        self.model = backend.model
        self.names = backend.names
        self.stride = backend.stride
        self.pt = backend.pytorch
        self.eval()

    def __reduce__(self) -> tuple[object, ...]:
        """Return what pickle takes: the module that the class is in, not `__module__` above."""
        kind = type(self)
        renamed = kind.__module__ == HubModel.__module__
        home = vars(kind)["__init__"].__module__ if renamed else kind.__module__
        return _bare, (home, kind.__qualname__), self.__dict__

    @property
    def fp16(self) -> bool:
        """Return whether images go in as float16; `.half()` changes it."""
        return self.backend.half

    def train(self, mode: bool = True) -> HubModel:
        """Refuse training: this model is fused and detects only."""
        if mode:
            raise UserError("this model detects only; load it with autoshape=False to train it")
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HubModel:
        """Move the network, as `.to()`, `.cuda()` and `.half()` ask, and send images where it is."""
        probe = fn(torch.zeros(1, device=self.backend.device))
        moved = probe.device != self.backend.device or probe.dtype != torch.float32
        if moved and self.model is None:
            raise UserError(
                f"{self.backend.path}: only a single .pt can be moved or change its precision; "
                "give device= when loading"
            )
        if probe.dtype not in (torch.float32, torch.float16):
            raise UserError(
                f"{probe.dtype}: the model runs in float32 or float16; set model.amp = True for less"
            )
        super()._apply(fn, recurse)
        if self.model is not None:
            weight = next(self.model.parameters())
            self.backend.device, self.backend.half = weight.device, weight.dtype == torch.float16
        return self

    @torch.no_grad()
    def forward(
        self, ims: object, size: int | tuple[int, int] | None = None, augment: bool = False
    ) -> Detections | Tensor:
        """Detect objects, or give a tensor's decoded output.

        Args:
            ims: a path, http(s) address, PIL image, RGB array (h,w,3) or tensor (3,h,w), or a list of these
                in any mixture and of any sizes: all get one shape and run in batches of `BATCH`. A tensor
                (N,3,h,w) of RGB in 0..1 or uint8, its sides multiples of the stride, goes straight through
                the network.
            size: pixels of the long side, or (h, w) to fit into; None: 640, or the one size a file takes.
            augment: test-time augmentation; checkpoints only.

        Returns:
            `Detections`; for a tensor (N,3,h,w) the network's decoded output (N, boxes, 5 + nc).

        Raises:
            UserError: an image that cannot be read or has no such form, or what the file cannot do.
        """
        if self.amp and not self.backend.pytorch:
            raise UserError(
                f"{self.backend.path}: an exported file runs in the precision it was exported in; leave "
                "model.amp False, or load the .pt"
            )
        with autocast(self.backend.device, amp_dtype("auto", self.backend.device) if self.amp else None):
            if isinstance(ims, Tensor) and ims.ndim == 4:
                if size is not None:
                    raise UserError(f"size {size}: a tensor (N, 3, h, w) is not resized; leave size out")
                if self.tile:
                    raise UserError(
                        "a tensor (N, 3, h, w) goes straight through the network and is not cut into tiles; "
                        "pass images, or set model.tile = False"
                    )
                return self.backend.predict(self._checked(ims), augment=augment)
            return self._detect(list(ims) if isinstance(ims, list | tuple) else [ims], size, augment)

    def _checked(self, images: Tensor) -> Tensor:
        """Return a batch that the network can take as it is; refuse any other."""
        channels, *sides = images.shape[1:]
        fits = channels == self.backend.ch or (channels, self.backend.ch) == (3, 1)
        if not fits or 0 in images.shape or any(s % self.stride for s in sides):
            raise UserError(
                f"a tensor of shape {tuple(images.shape)} does not fit the network: it must be (N, "
                f"{self.backend.ch}, height, width) with sides that are multiples of {self.stride}"
            )
        return images

    def _wanted(self) -> NmsOptions:
        """Return what the attributes ask of NMS."""
        classes = self._value("classes", _class_numbers, "None, a class number or a list of them")
        bad = sorted(c for c in classes or () if not 0 <= c < len(self.names))
        if bad:
            raise UserError(
                f"model.classes {bad[0]}: the model has {len(self.names)} classes, numbered 0 to "
                f"{len(self.names) - 1}"
            )
        conf = self._value("conf", float, "a number from 0 to 1")
        iou = self._value("iou", float, "a number from 0 to 1")
        max_det = self._value("max_det", index, "a whole number")
        return NmsOptions(conf, iou, classes, bool(self.agnostic), bool(self.multi_label), max_det)

    def _tiling(self, size: int | tuple[int, int] | None) -> Tiling | None:
        """Return how the attributes ask to cut images; None: not at all."""
        tile = self._value("tile", _tile_side, "True, False or a whole number of pixels")
        if tile is False:
            return None
        overlap = self._value("overlap", float, "a number")
        check_tiles(tile, overlap, "model.")
        fixed = self.backend.fixed_size
        wanted = self._fixed(fixed, size) if fixed else read_size(640 if size is None else size, "size")
        return Tiling.of(
            tile,
            (whole_strides(wanted[0], self.stride), whole_strides(wanted[1], self.stride)),
            self.stride,
            overlap=overlap,
            whole=not self.tiles_only,
            batch=self.backend.fixed_batch or BATCH,
            rect=self.backend.rect_ok,
        )

    # Any: what a caller has set the attribute to.
    def _value(self, name: str, read: Callable[[Any], _Read], expected: str) -> _Read:
        """Return an attribute as `read` takes it; refuse what it cannot take."""
        value = getattr(self, name)
        try:
            return read(value)
        except (TypeError, ValueError, ArithmeticError):
            raise UserError(f"model.{name} is {shown(value)} where {expected} is expected") from None

    def _shape(self, sizes: Sequence[tuple[int, int]], size: int | tuple[int, int] | None) -> tuple[int, int]:
        """Return the (h, w) that images of `sizes` (h, w) are letterboxed to."""
        fixed = self.backend.fixed_size
        if fixed is None:
            return common_shape(sizes, read_size(640 if size is None else size, "size"), self.stride)
        return self._fixed(fixed, size)

    def _fixed(self, fixed: tuple[int, int], size: int | tuple[int, int] | None) -> tuple[int, int]:
        """Return the one (h, w) that the file takes; refuse another `size`."""
        if size is not None and (tuple(size) if isinstance(size, list | tuple) else (size,)) not in (
            fixed,
            (max(fixed),),
        ):
            raise UserError(
                f"size {size}: {self.backend.path} takes images of {fixed[0]}x{fixed[1]} (height x width) "
                "only; leave size out, or export with --dynamic"
            )
        return fixed

    def _detect(self, items: list[object], size: int | tuple[int, int] | None, augment: bool) -> Detections:
        if not items:
            raise UserError("no image given; pass a path, an array, or a list of them")
        ch = self.backend.ch
        check_channels(self.backend.path, ch, f", so pass a tensor (N, {ch}, height, width)")
        tiling = self._tiling(size)
        detector = make_detector(self.backend, self._wanted(), tiling, augment=augment)
        start = time.perf_counter()
        images, files = zip(*(read_any(item, number) for number, item in enumerate(items)))
        shape = (0, 0) if tiling else self._shape([image.shape[:2] for image in images], size)
        pred: list[Tensor] = []
        for first in range(0, len(images), BATCH):
            part = images[first : first + BATCH]
            inputs, placements = zip(*(_fitted(image, None if tiling else shape) for image in part))
            found = detector(inputs, placements, spent=time.perf_counter() - start)
            pred += [boxes.to(self.backend.device) for boxes in found.boxes]
            start = time.perf_counter()
        seen = (len(images), *found.shape[1:])
        return Detections(images, pred, files, self.names, list(detector.speed.values()), seen)


def _bare(home: str, name: str) -> HubModel:
    """Return a model without its state, for pickle."""
    kind: type[HubModel] = getattr(import_module(home), name)
    return kind.__new__(kind)


def _fitted(image: np.ndarray, shape: tuple[int, int] | None) -> tuple[np.ndarray, Placement]:
    """Return an RGB image letterboxed to `shape`, or as it is, and its placement."""
    if shape is None:
        return image.transpose(2, 0, 1), (image.shape[:2], UNSCALED)
    boxed, ratio, pad = letterbox(image, shape, auto=False)
    return rgb_planes(boxed, bgr=False), (image.shape[:2], (ratio, pad))


# Any: what a caller has set the attribute to.
def _tile_side(value: Any) -> bool | int:
    """Return a tile's side, True or False as it is; None is False."""
    return value if isinstance(value, bool) else False if value is None else index(value)


# Any: what a caller has set the attribute to.
def _class_numbers(value: Any) -> list[int] | None:
    """Return class numbers as a list; None for all classes."""
    if value is None:
        return None
    return [index(number) for number in (value if isinstance(value, Iterable) else [value])]


def read_any(item: object, number: int) -> tuple[np.ndarray, str]:
    """Return an image in any form as RGB uint8 (h, w, 3), with its name.

    Args:
        item: a path, an http(s) address, a PIL image, an array or a tensor.
        number: which image of the call it is, from 0; it names images without a file.

    Raises:
        UserError: it cannot be read, or is nothing that holds an image.

    >>> image, name = read_any(torch.full((3, 4, 5), 0.2), 0)
    >>> image.shape, image.dtype, int(image[0, 0, 0]), name
    ((4, 5, 3), dtype('uint8'), 51, 'image0.jpg')
    """
    name = f"image{number}.jpg"
    if isinstance(item, str | Path):
        return _read_file(str(item))
    if isinstance(item, Image.Image):
        bgr = pillow_to_bgr(ImageOps.exif_transpose(item))
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), Path(getattr(item, "filename", "") or name).name
    if isinstance(item, Tensor):
        item = item.detach().cpu()
        item = (item.float() if item.is_floating_point() else item).numpy()  # NumPy has no bfloat16
    if isinstance(item, np.ndarray):
        return _rgb_bytes(item, number), name
    raise UserError(
        f"image {number}: {type(item).__name__} is no image; pass a path, an address, a PIL image or an array"
    )


def _read_file(source: str) -> tuple[np.ndarray, str]:
    if not is_url(source):
        return cv2.cvtColor(load_image(source), cv2.COLOR_BGR2RGB), Path(source).name
    with tempfile.TemporaryDirectory(prefix="hub-") as folder:
        path = fetch(source, Path(folder) / file_name(source), limit=MAX_DOWNLOAD, passing=True)
        return cv2.cvtColor(load_image(path), cv2.COLOR_BGR2RGB), path.name


def _rgb_bytes(array: np.ndarray, number: int) -> np.ndarray:
    """Return an array of any layout as RGB uint8 (h, w, 3).

    It may be (h, w), (h, w, c) or (c, h, w).

    Its values are uint8, uint16 or floats.

    Floats are in 0..1, or in 0..255, as YOLOv5 takes them, when one of them is above 2: interpolation may
    overshoot 1 a little.
    """
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise UserError(
            f"image {number}: an array of shape {array.shape} is no image; it must be (height, width, 3)"
        )
    if array.dtype.kind == "f":
        array = np.nan_to_num(array, posinf=255.0, neginf=0.0)
        array = (array * 255 if array.max() <= 2 else array).clip(0, 255).round()
    elif array.dtype == np.uint16:
        array = array >> 8
    elif array.dtype != np.uint8:
        raise UserError(f"image {number}: {array.dtype} values are none of uint8, uint16 or floats")
    array = array.astype(np.uint8)
    return np.ascontiguousarray(array.repeat(3, axis=2) if array.shape[2] == 1 else array[:, :, :3])
