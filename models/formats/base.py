"""Define what every format is opened as: `Backend`, and the table of formats."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from models.formats.metadata import OTHER_WAY, Metadata, Names
from models.formats.nms_graph import figure_tensors
from models.formats.nms_options import changes
from models.yolo import DetectionModel
from utils.dataset.detection_dataset import BatchOptions
from utils.errors import UserError, first_line
from utils.letterbox import to_luma
from utils.nms import NmsOptions

LOGGER = logging.getLogger("yolo.backends")

MASKS = 32  # mask coefficients of a box in YOLOv5's segmentation networks


@dataclass(frozen=True)
class OpenOptions:
    """Hold what `load_backend` was asked for, as the format's class receives it."""

    half: bool = False
    dnn: bool = False
    names: Names | None = None
    fuse: bool = True


class Backend(ABC):
    """Run a network, whatever file it came from.

    Attributes:
        names: class names by index.
        stride: the largest stride: image sides are multiples of it.
        precision: how a file's weights are stored: 'fp32', 'fp16' or 'int8'.
        pytorch: whether it runs a DetectionModel itself (not an exported file).
        fixed_size: the only (height, width) it takes; None when free.
        fixed_batch: the only batch size the file takes; None when free. `predict` pads and splits to it, so a
            caller may pass any batch; passing this one is fastest.
        nms: the NMS inside an exported file; None for a network that gives decoded boxes.
        model: the DetectionModel of a single `.pt`; None for exported files and ensembles.
    """

    pytorch: ClassVar[bool] = False

    def __init__(self, path: Path, device: torch.device, metadata: Metadata) -> None:
        self.path = path
        self.device = device
        self.names = metadata.names
        self.stride = metadata.stride
        self.half = metadata.half
        self.precision = metadata.precision
        self.ch = metadata.ch
        self.fixed_size = None if metadata.dynamic else metadata.imgsz
        self.fixed_batch = None if metadata.dynamic else metadata.batch
        self.model: DetectionModel | None = None
        self.nms = metadata.nms
        self._said: set[str] = set()

    @property
    def nc(self) -> int:
        """Return the number of classes."""
        return len(self.names)

    @property
    def rect_ok(self) -> bool:
        """Return whether every image may have its own rectangle.

        A file of a fixed size takes only images letterboxed to that size.
        """
        return self.fixed_size is None

    def batch_options(
        self, imgsz: int, batch_size: int, *, rect: bool = True, frame: tuple[int, int] | None = None
    ) -> BatchOptions:
        """Return how the images of a validation become batches for this network.

        Args:
            imgsz: their long side in pixels.
            batch_size: images of a batch, where the file takes any number.
            rect: whether each batch has its own rectangle, where the file takes any size.
            frame: the (height, width) of all images otherwise; None: the square.
        """
        rect = rect and self.rect_ok
        return BatchOptions(
            imgsz,
            self.fixed_batch or batch_size,
            rect=rect,
            stride=self.stride,
            pad=0.5 if rect else 0.0,
            frame=self.fixed_size or (None if rect else frame),
        )

    def predict(self, images: Tensor, augment: bool = False) -> Tensor:
        """Run the network.

        Args:
            images: (N, ch, H, W) RGB, uint8 or floating in 0..1, on any device.
            augment: test-time augmentation; checkpoints only.

        Returns:
            (N, boxes, 5 + nc) float32 on `device`: xywh in pixels, objectness, class scores.

        Raises:
            UserError: a size the file cannot take, augmentation asked of an exported file, or a file with NMS
                inside, for which `detections` serves.
        """
        if self.nms is not None:
            raise UserError(f"{self.path}: has NMS inside and gives no decoded boxes; ask for its detections")
        inputs = self._checked(images, augment)
        with torch.no_grad():
            outputs = [self._run(piece, augment)[:number] for piece, number in self._pieces(inputs)]
        output = (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).float()
        if not self.pytorch and (problem := output_problem(output, self.nc)):
            raise UserError(f"{self.path}: {problem}")
        return output

    def detections(
        self, images: Tensor, wanted: NmsOptions, *, augment: bool = False, labels: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        """Run the network and its NMS, inside the file or after it.

        Args:
            images, augment: as for `predict`.
            wanted: what is asked of the NMS.
            labels: per image (m, 5) class + xywh in pixels, added with confidence 1 (hybrid labelling).

        Returns:
            Per image (n, 6) float32 on `device`: xyxy in pixels of the input, confidence, class; best first.

        Raises:
            UserError: as for `predict`, or the NMS inside the file cannot do what is wanted.
        """
        return self.suppress(self.infer(images, wanted, augment=augment), wanted, labels)

    def infer(self, images: Tensor, wanted: NmsOptions, *, augment: bool = False) -> Tensor | list[Tensor]:
        """Return what `suppress` takes: the first half of `detections`, to be timed alone.

        What an exported file's runtime raises becomes one sentence.
        """
        try:
            return self._infer(images, wanted, augment)
        except UserError:
            raise
        except Exception as error:  # every runtime has errors of its own
            if self.pytorch:
                raise
            raise UserError(
                f"{self.path}: cannot be run on images {tuple(images.shape)} ({first_line(error)}); give a "
                "smaller batch or export it again"
            ) from error

    def _infer(self, images: Tensor, wanted: NmsOptions, augment: bool) -> Tensor | list[Tensor]:
        if self.nms is None:
            return self.predict(images, augment)
        self.check_nms(wanted)
        figures = figure_tensors(self.nms, wanted)
        found: list[Tensor] = []
        inputs = self._checked(images, augment)
        with torch.no_grad():
            for piece, number in self._pieces(inputs):
                rows, counts = self._run_nms(piece, figures)
                if rows.shape[2:] != (6,):
                    raise ValueError(f"its output {tuple(rows.shape)} is not (images, boxes, 6)")
                pairs = zip(rows[:number].float(), counts[:number].tolist())
                found += [image[:count].to(self.device) for image, count in pairs]
        return found

    def suppress(
        self, inferred: Tensor | list[Tensor], wanted: NmsOptions, labels: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        """Return the detections of what `infer` gave: the second half of `detections`."""
        if isinstance(inferred, Tensor):
            return wanted.suppress(inferred, labels)
        if self.nms is None:
            raise TypeError(f"{self.path}: has no NMS inside, so only decoded boxes can be given")
        if len(labels):
            raise UserError(f"{self.path}: has NMS inside, so labels cannot be added before it; give the .pt")
        if self.nms.full(inferred, wanted):
            self._say_once(
                f"gives {self.nms.max_det} boxes of an image at most, and an image here has as many, so some "
                "may be missing; export it again with a larger --max-det"
            )
        return [self.nms.narrow(found, wanted) for found in inferred]

    def check_nms(self, wanted: NmsOptions) -> None:
        """Refuse what the NMS inside the file cannot do.

        What it does in another way is said once.

        Raises:
            UserError: a sentence with the remedy.
        """
        if self.nms is None:
            return
        if refusal := self.nms.refusal(wanted, self.nc):
            raise UserError(f"{self.path}: {refusal}")
        if note := self.nms.note(wanted, self.nc):
            self._say_once(note)

    def nearest(self, wanted: NmsOptions) -> NmsOptions:
        """Return the options nearest to `wanted` that the file can do.

        The difference is said once.
        """
        if self.nms is None:
            return wanted
        near = self.nms.nearest(wanted, self.nc)
        if difference := changes(wanted, near):
            self._say_once(f"has NMS inside: {difference}; mAP is not comparable with that of the .pt")
        return near

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            LOGGER.warning("%s: %s", self.path, sentence)

    def _checked(self, images: Tensor, augment: bool) -> Tensor:
        """Return images as the network takes them.

        A size or an augmentation that it cannot do is refused.
        """
        if augment and not self.pytorch:
            raise UserError(f"{self.path}: --augment needs a .pt checkpoint, an exported file cannot do it")
        size = (images.shape[-2], images.shape[-1])
        if self.fixed_size is not None and size != self.fixed_size:
            height, width = self.fixed_size
            raise UserError(
                f"{self.path}: takes images of {height}x{width} (height x width), not {size[0]}x{size[1]}; "
                f"give --imgsz {height} {width} or export with --dynamic"
            )
        return self.prepare(images)

    def prepare(self, images: Tensor) -> Tensor:
        """Return images as the network takes them; what is prepared already stays as it is.

        Args:
            images: (N, ch, H, W) RGB, uint8 or floating in 0..1, on any device. A network of one channel
                takes three as well and gets their luma.

        Returns:
            Floating in 0..1, on the network's device, in its precision and number of channels.
        """
        images = images.to(self.device, non_blocking=True)
        scale = images.dtype == torch.uint8
        images = images.to(torch.float16 if self.half else torch.float32)
        if scale:
            images = images / 255
        if self.ch == 1 and images.shape[1] == 3:
            images = to_luma(images)
        return images

    def _pieces(self, images: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Yield pieces of `fixed_batch` images, and how many images of each count.

        The last piece is padded with zeros. A network whose batch is free gets all images at once.
        """
        size = self.fixed_batch
        if size is None or len(images) == size:
            yield images, len(images)
            return
        for piece in images.split(size):
            short = size - len(piece)
            yield torch.cat([piece, piece.new_zeros(short, *piece.shape[1:])]) if short else piece, len(piece)

    @abstractmethod
    def _run(self, images: Tensor, augment: bool) -> Tensor:
        """Run the network on floating images (N, ch, H, W).

        Their size, batch and precision are those that the network takes.
        """

    def _run_nms(self, images: Tensor, figures: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Run a file with NMS inside; return (N, max_det, 6) and counts (N,).

        `figures` are the graph's further inputs by name, in order (`models.formats.nms_graph.INPUTS`), on
        the CPU; empty where it has none.
        """
        raise UserError(f"{self.path}: files of this format with NMS inside cannot be run here")

    def warmup(self, shape: tuple[int, int, int, int]) -> None:
        """Run once on zeros of `shape` (N, ch, H, W).

        The first timed call then pays for no set-up.
        """
        height, width = self.fixed_size or shape[2:]
        images = torch.zeros((*shape[:2], height, width), device=self.device)
        self.infer(images, NmsOptions() if self.nms is None else self.nms.usual())


def output_problem(output: Tensor, nc: int) -> str | None:
    """Return why an output is not that of a YOLOv5 head; None when it is.

    >>> output_problem(torch.rand(1, 84, 8400), 80).split(":")[0]
    'its output (1, 84, 8400) is that of a YOLOv8 or YOLO11 head, not a YOLOv5 head (images, boxes, 85)'
    """
    shape = tuple(output.shape)
    if len(shape) != 3:
        kind = "another kind of network"
    elif shape[2] == 6 and _finished(output):
        kind = "an end-to-end head (YOLOv10, YOLO26) or of NMS inside the file"
    elif shape[2] == 5 + nc:
        return None
    elif 5 <= shape[1] < shape[2]:
        kind = "a YOLOv8 or YOLO11 head"
    elif shape[2] == 5 + nc + MASKS:
        kind = "YOLOv5's segmentation head"
    else:
        return (
            f"gives {shape[2] - 5} classes, but there are {nc} names for them; give --data with the dataset "
            "it was trained on"
        )
    return f"its output {shape} is that of {kind}, not a YOLOv5 head (images, boxes, {5 + nc}): {OTHER_WAY}"


def _finished(rows: Tensor) -> bool:
    """Return whether rows (N, n, 6) are detections: two corners, falling confidence, whole class."""
    corners = (rows[..., 2:4] >= rows[..., :2]).all()
    falling = (rows[..., 4].diff() <= 0).all()
    return bool(corners and falling and (rows[..., 5] == rows[..., 5].round()).all())


Opener = Callable[[Path, torch.device, OpenOptions], Backend]

FORMATS: dict[str, Opener] = {}


def register_format(*endings: str) -> Callable[[Opener], Opener]:
    """Register what opens files, or folders, whose names have these endings.

    An ending is lower-case and includes its dot.
    """

    def register(opener: Opener) -> Opener:
        FORMATS.update(dict.fromkeys(endings, opener))
        return opener

    return register


def damaged(path: Path, kind: str, error: Exception) -> UserError:
    """Return the error of a file that its runtime cannot open."""
    return UserError(f"{path}: is not {kind} or is damaged ({first_line(error)})")


def check_precision(path: Path, exported_half: bool, wanted_half: bool, device: torch.device) -> None:
    """Refuse a precision that the file or the device cannot have.

    A file runs in the precision it was exported in; float16 files need CUDA.
    """
    if wanted_half and not exported_half:
        raise UserError(f"{path}: was exported in float32; leave --half out or export it with --half")
    if exported_half and device.type != "cuda":
        raise UserError(f"{path}: is in float16, which needs a CUDA device; export it without --half")
