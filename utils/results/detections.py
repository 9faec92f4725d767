"""Hold the boxes of a batch of images, in every form that users ask for."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.boxes import xyxy2xywh
from utils.errors import UserError
from utils.files import atomic_text, increment_dir
from utils.results.display import has_display
from utils.results.drawing import class_name, draw_detections
from utils.results.result_files import FreePaths, StemBook, crop_box, folder_names, write_image

if TYPE_CHECKING:
    from pandas import DataFrame

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_CENTRE = ("xcenter", "ycenter", "width", "height")
_FORMS = {"xyxy": _CORNERS, "xyxyn": _CORNERS, "xywh": _CENTRE, "xywhn": _CENTRE}
_SAVE_DIR = Path("runs", "hub", "exp")  # below the working folder, as in YOLOv5: torch.hub's cache is hidden


class Detections:
    """The detections of a batch of images, in several formats.

    Attributes:
        ims: the images, RGB uint8 (h,w,3); after `render()` with the boxes drawn.
        pred, xyxy: per image a tensor (n,6): x1, y1, x2, y2 in the image's pixels, confidence, class.
        xywh: the same with centre and size; xyxyn, xywhn: both divided by the image's width and height.
        names: class names by index.
        files: a file name per image.
        t: ms per image of pre-processing, inference and NMS.
        s: the shape (N, 3, h, w) that the model saw; `n` the number of images.
    """

    def __init__(
        self,
        ims: Sequence[np.ndarray],
        pred: Sequence[Tensor],
        files: Sequence[str],
        names: Mapping[int, str],
        times: Sequence[float] = (0.0, 0.0, 0.0),
        shape: tuple[int, ...] = (),
    ) -> None:
        self.ims = list(ims)
        self._clean = list(ims)
        self.pred = list(pred)
        self.files = list(files)
        self.names = dict(names)
        self.n = len(self.pred)
        self.t = tuple(times)
        self.s = tuple(shape)
        sizes = [det.new_tensor([im.shape[1], im.shape[0]] * 2 + [1, 1]) for im, det in zip(ims, self.pred)]
        self.xyxy = self.pred
        self.xywh = [torch.cat((xyxy2xywh(det[:, :4]), det[:, 4:]), 1) for det in self.pred]
        self.xyxyn = [det / size for det, size in zip(self.xyxy, sizes)]
        self.xywhn = [det / size for det, size in zip(self.xywh, sizes)]

    @property
    def imgs(self) -> list[np.ndarray]:
        """Return `ims` by the name that YOLOv5 had for it until 6.1."""
        return self.ims

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Detections]:
        return iter(self.tolist())

    def __str__(self) -> str:
        lines = []
        for i, (image, det) in enumerate(zip(self._clean, self.pred), start=1):
            found = sorted(Counter(det[:, 5].int().tolist()).items())
            counts = ", ".join(f"{number} {class_name(self.names, index)}" for index, number in found)
            lines.append(f"image {i}/{self.n}: {image.shape[0]}x{image.shape[1]} {counts or 'nothing found'}")
        stages = zip(self.t, ("pre-process", "inference", "NMS"))
        speed = ", ".join(f"{ms:.1f} ms {stage}" for ms, stage in stages)
        return "\n".join([*lines, f"Speed: {speed} per image at shape {self.s}"])

    __repr__ = __str__

    def print(self) -> None:
        """Print what was found in each image, and the speed."""
        print(self)  # noqa: T201 this method's very purpose

    def tolist(self) -> list[Detections]:
        """Return one `Detections` per image."""
        return [
            Detections([im], [det], [file], self.names, self.t, self.s)
            for im, det, file in zip(self._clean, self.pred, self.files)
        ]

    def pandas(self) -> Detections:
        """Return a copy with pandas DataFrames, one per image, in `xyxy`, `xyxyn`, `xywh` and `xywhn`.

        Columns: xmin, ymin, xmax, ymax (or xcenter, ycenter, width, height), confidence, class, name.
        """
        frames = copy(self)
        for form, columns in _FORMS.items():
            tables = [self._table(det, columns) for det in getattr(self, form)]
            setattr(frames, form, tables)
        return frames

    def _table(self, det: Tensor, columns: Sequence[str]) -> DataFrame:
        import pandas as pd

        rows = [[*row[:5], int(row[5]), class_name(self.names, int(row[5]))] for row in det.cpu().tolist()]
        return pd.DataFrame(rows, columns=[*columns, "confidence", "class", "name"])

    def json(self) -> str:
        """Return JSON: a list of images, each with file, width, height and its detections."""
        images: list[dict[str, object]] = []
        for image, det, file in zip(self._clean, self.pred, self.files):
            rows = [
                {
                    **{key: round(value, 3) for key, value in zip(_CORNERS, row)},
                    "confidence": round(row[4], 5),
                    "class": int(row[5]),
                    "name": class_name(self.names, int(row[5])),
                }
                for row in det.cpu().tolist()
            ]
            images.append(
                {"file": file, "width": image.shape[1], "height": image.shape[0], "detections": rows}
            )
        return json.dumps(images, ensure_ascii=False)

    def render(self, labels: bool = True) -> list[np.ndarray]:
        """Draw the boxes and return the drawn images (RGB), which are `ims` from now on."""
        self.ims = [
            cv2.cvtColor(
                draw_detections(
                    cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
                    det.detach().float().cpu().numpy(),
                    self.names,
                    hide_labels=not labels,
                ),
                cv2.COLOR_BGR2RGB,
            )
            for image, det in zip(self._clean, self.pred)
        ]
        return self.ims

    def show(self, labels: bool = True) -> None:
        """Show the drawn images: in a notebook's cell, else in the system's viewer.

        Raises:
            UserError: there is no display.
        """
        notebook = _notebook_display()
        if notebook is None and not has_display():
            raise UserError("show(): there is no display here; use save() or render()")
        for image in self.render(labels):
            picture = Image.fromarray(image)
            if notebook is None:
                picture.show()
            else:
                notebook(picture)

    def save(
        self, labels: bool = True, save_dir: str | Path = _SAVE_DIR, exist_ok: bool = False
    ) -> list[Path]:
        """Write the drawn images as JPEG into `save_dir` and return their paths.

        The folder is `runs/hub/exp` below the working folder unless given, and is numbered on (`exp2`, ...)
        when it is there already, unless `exist_ok`.
        """
        folder = _folder(save_dir, exist_ok)
        paths = [folder / f"{stem}.jpg" for stem in self._stems()]
        for path, image in zip(paths, self.render(labels)):
            write_image(path, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return paths

    def save_json(self, path: str | Path) -> None:
        """Write `json()` to a file."""
        atomic_text(path, self.json())

    # Any: the five values of a crop have four types.
    def crop(
        self, save: bool = True, save_dir: str | Path = _SAVE_DIR, exist_ok: bool = False
    ) -> list[dict[str, Any]]:
        """Cut every detection out of its image, a little larger than its box.

        Returns:
            dicts of box (4 numbers), conf, cls, label (name and confidence) and im (RGB). With `save` each is
            also written to `save_dir/crops/<class>/<file>.jpg`, numbered on as by `save()`.
        """
        folder = _folder(save_dir, exist_ok) if save else None
        folders, paths = folder_names(self.names), FreePaths()
        crops: list[dict[str, Any]] = []  # Any: see above
        for image, det, stem in zip(self._clean, self.pred, self._stems()):
            for row in det.detach().float().cpu().numpy():
                part = crop_box(image, row[:4])
                name = class_name(self.names, int(row[5]))
                crops.append(
                    {
                        "box": row[:4].tolist(),
                        "conf": float(row[4]),
                        "cls": int(row[5]),
                        "label": f"{name} {row[4]:.2f}",
                        "im": part,
                    }
                )
                if folder is not None and part.size:
                    home = folder / "crops" / folders.get(int(row[5]), f"class{int(row[5])}")
                    write_image(paths.next(home / stem), cv2.cvtColor(part, cv2.COLOR_RGB2BGR))
        return crops

    def _stems(self) -> list[str]:
        book = StemBook()
        return [book.claim(Path(file).stem, False) for file in self.files]


def _folder(save_dir: str | Path, exist_ok: bool) -> Path:
    save_dir = Path(save_dir)
    return increment_dir(save_dir.parent, save_dir.name, exist_ok)


def _notebook_display() -> Callable[[object], object] | None:
    """Return IPython's `display` in a notebook, else None."""
    ipython = sys.modules.get("IPython")
    if ipython is None or (shell := ipython.get_ipython()) is None or "IPKernelApp" not in shell.config:
        return None
    show: Callable[[object], object] = ipython.display.display
    return show
