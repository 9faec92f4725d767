"""Write MODEL.md and card.png: what a network is, reached, and how to run it."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from utils.errors import UserError
from utils.files import atomic_text, atomic_write, find_file, load_yaml, read_regular
from utils.images import load_image
from utils.package import PROJECT, command
from utils.results.drawing import write_text

LOGGER = logging.getLogger("yolo.card")

MARK = f"<!-- {PROJECT}: train.py and export.py replace this file; delete this line to keep your changes -->"
PICTURE = "card.png"
PICTURE_SIDE = 720  # pixels
_UNSAFE = re.compile(r"([\\`*_\[\]|])")
_ONNX = """```python
import cv2
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{name}")
entry = session.get_inputs()[0]
height, width = (side if isinstance(side, int) else {side} for side in entry.shape[2:])
image = cv2.imread("image.jpg")
scale = min(height / image.shape[0], width / image.shape[1])
small = cv2.resize(image, None, fx=scale, fy=scale)[:height, :width]
canvas = np.full((height, width, 3), 114, np.uint8)
canvas[: small.shape[0], : small.shape[1]] = small
batch = canvas[None, :, :, ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255
rows = session.run(None, {{entry.name: batch}})[0][0]  # centre x, y, width, height, objectness, classes
scores = rows[:, 4:5] * rows[:, 5:]
boxes = np.hstack((rows[:, :2] - rows[:, 2:4] / 2, rows[:, 2:4])) / scale  # left, top, width, height
best = scores.argmax(1)
kept = cv2.dnn.NMSBoxesBatched(boxes.tolist(), scores.max(1).tolist(), best.tolist(), 0.25, 0.45)
for index in np.array(kept, int).ravel():
    print(best[index], scores[index].max(), boxes[index])
```"""


@dataclass(frozen=True)
class ExportedFile:
    """Describe a file for its row of the card.

    Attributes:
        name: of the file or folder beside the weights.
        precision: what its weights are in.
        difference: to PyTorch, as it was checked.
    """

    name: str
    precision: str
    difference: str

    @property
    def row(self) -> str:
        """Return its row in the card's table."""
        return f"| `{self.name}` | {self.precision} | {self.difference} |"


@dataclass(frozen=True)
class ModelCard:
    """Hold what the card of a trained network says.

    Attributes:
        weights: the checkpoint; the card is written beside it.
        names: of the classes.
        licence: of weights of others in it; '' for none that is known.
        options: of its training.
        metrics: the content of metrics.json.
        exports: files that were exported from it just now.
    """

    weights: Path
    names: Mapping[int, str]
    licence: str
    options: Mapping[str, object]
    metrics: Mapping[str, Any]  # Any: values of a JSON file
    exports: Sequence[ExportedFile] = ()

    def write(self) -> None:
        """Write MODEL.md, unless there is one that is not ours."""
        path = self.weights.with_name("MODEL.md")
        old = _own_text(path)
        if old is None:
            LOGGER.warning("%s: is not ours and is kept; rename it to get the card of this network", path)
            return
        atomic_text(path, self.text(self._kept_rows(old) if self.exports else []))
        LOGGER.info("card of this network: %s", path)

    def text(self, rows: Sequence[str] = ()) -> str:
        """Return the card as Markdown; `rows` are those of files that were exported earlier."""
        rows = [*rows, *(export.row for export in self.exports)]
        parts = [MARK, f"# {_plain(self._title())}"]
        if (self.weights.with_name(PICTURE)).is_file():
            parts.append(f"![Detections on validation images]({PICTURE})")
        parts += [_table(("", ""), self._facts()), self._figures(), self._run(rows)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _title(self) -> str:
        folder = self.weights.resolve().parent
        return f"{(folder.parent if folder.name == 'weights' else folder).name}, {self.weights.name}"

    def _facts(self) -> list[Sequence[str]]:
        """Return the rows on what the network is."""
        options, metrics = self.options, self.metrics
        network = options.get("cfg") or options.get("weights") or ""
        speed = metrics.get("speed") or {}
        times = ", ".join(f"{ms:.1f} ms {stage}" for stage, ms in speed.items())
        named = ", ".join(_plain(name) for name in list(self.names.values())[:50])
        more = f" and {len(self.names) - 50} more" if len(self.names) > 50 else ""
        facts = {
            "network": _plain(Path(str(network)).name),
            "data set": _plain(Path(str(options.get("data", ""))).name),
            f"{len(self.names)} classes": named + more,
            "image size": f"{metrics['imgsz']} px" if "imgsz" in metrics else "",
            "parameters": f"{metrics['parameters']:,}" if metrics.get("parameters") else "",
            "GFLOPs": f"{metrics['gflops']:.2f}" if metrics.get("gflops") else "",
            "epochs": str(metrics.get("epochs", "")),
            "time per image": f"{times} ({_plain(str(metrics['hardware']))})"
            if "hardware" in metrics
            else "",
            "licence of the weights": _plain(self.licence) or "no weights of others with a known licence",
            "licence of the data": _plain(_data_licence(options.get("data"))) or "not known",
        }
        return [(name, value) for name, value in facts.items() if value]

    def _figures(self) -> str:
        """Return the accuracy on the validation images: all classes, each class, each object size."""
        metrics, keys = self.metrics, ("precision", "recall", "map50", "map")
        if "per_class" not in metrics:
            return ""
        rows: list[Sequence[str]] = [("all", *(f"{metrics[key]:.3f}" for key in keys))]
        rows += [(_plain(r["name"]), *(f"{r[key]:.3f}" for key in keys)) for r in metrics["per_class"]]
        table = _table(("class", "precision", "recall", "mAP50", "mAP50-95"), rows)
        text = f"## Accuracy\n\nOn {metrics.get('images', 'the')} validation images.\n\n{table}"
        if sizes := metrics.get("sizes"):
            by_size = [
                (size, str(found["objects"]), f"{found['recall']:.3f}") for size, found in sizes.items()
            ]
            text += "\n\nBy object size (COCO's limits, above confidence 0.25):\n\n"
            text += _table(("size", "objects", "recall"), by_size)
        return text

    def _run(self, rows: Sequence[str]) -> str:
        """Return how to run it, and the exported files."""
        side = self.metrics.get("imgsz", 640)
        commands = (
            f'{command("detect.py")} --weights "{self.weights.name}" --imgsz {side} --source FOLDER',
            f'{command("val.py")} --weights "{self.weights.name}" --imgsz {side} --data DATA.yaml',
        )
        text = "## Run it\n\n```bash\n" + "\n".join(commands) + "\n```"
        if not rows:
            return text
        head = "| file | precision | largest difference to PyTorch, as checked |\n|---|---|---|\n"
        text += f"\n\n## Exported files\n\n{head}" + "\n".join(rows)
        plain = [row for row in rows if ".onnx`" in row and "with NMS" not in row]
        if plain:
            name = plain[-1].split("`")[1]
            text += f"\n\nWith plain ONNX Runtime:\n\n{_ONNX.format(name=name, side=side)}"
        return text

    def _kept_rows(self, old: str) -> list[str]:
        """Return the rows of earlier exports that are still there and not replaced."""
        new = {export.name for export in self.exports}
        table = old.partition("## Exported files")[2]
        found = re.findall(r"^(\| `([^`/\\]+)` \|.*\|)$", table, re.M)
        return [row for row, name in found if name not in new and self.weights.with_name(name).exists()]


def read_metrics(path: Path) -> dict[str, Any]:  # Any: values of a JSON file
    """Return the content of a run's metrics.json; empty without one that can be read."""
    try:
        found = json.loads(read_regular(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_card_picture(drawn: Path, target: Path, figures: str) -> None:
    """Write card.png: validation images with detections below a line of figures.

    Args:
        drawn: a picture of the images, as a validation draws them.
        target: card.png; one that is not ours is kept.
        figures: of the network.
    """
    if target.exists() and not _own_picture(target):
        LOGGER.warning("%s: is not ours and is kept; rename it to get the picture of this network", target)
        return
    try:
        picture = load_image(drawn)
    except UserError:
        return  # nothing was drawn, of a data set without validation images
    scale = PICTURE_SIDE / max(picture.shape[:2])
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    strip = np.full((40, picture.shape[1], 3), 255, np.uint8)
    write_text(strip, (10, 10), figures, (48, 36, 28), 16)
    image = Image.fromarray(np.vstack((strip, picture))[:, :, ::-1])
    mark = PngInfo()
    mark.add_text("Software", PROJECT)
    atomic_write(target, lambda file: image.save(file, "PNG", pnginfo=mark, optimize=True))


def _own_picture(path: Path) -> bool:
    """Return whether a picture is one of ours."""
    with contextlib.suppress(OSError, ValueError), Image.open(path) as image:
        return image.info.get("Software") == PROJECT
    return False


def _own_text(path: Path) -> str | None:
    """Return the text of our own card, empty without one; None if not ours."""
    if not path.exists():
        return ""
    try:
        text = read_regular(path).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text if text.startswith(MARK) else None


def _data_licence(data: object) -> str:
    """Return what the dataset YAML says of its licence; '' if it says nothing."""
    try:
        found = load_yaml(find_file(str(data), "data")) if data else {}
    except (UserError, OSError):
        return ""
    value = found.get("licence", found.get("license"))
    return value if isinstance(value, str) else ""


def _plain(text: str) -> str:
    r"""Return text that is neither Markdown nor HTML.

    >>> print(_plain("a|<b>"))
    a\|&lt;b&gt;
    """
    return _UNSAFE.sub(r"\\\1", escape(" ".join(text.split()), quote=False))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
