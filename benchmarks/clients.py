"""Other people's programs as readers of our files and of the hub model: what they find, beside what we find.

    python -m venv clients
    clients/bin/pip install -r requirements.txt -c constraints.txt
    clients/bin/pip install ai-edge-litert ncnn boto3 defusedxml filterpy gitpython "huggingface-hub<0.25" \
        psutil polars "pydeprecate<0.14" rich seaborn "setuptools<81" shapely ultralytics-thop \
        openvino-telemetry
    clients/bin/pip install --no-deps yolov5==7.0.14 ultralytics==8.3.253 sahi==0.12.8 supervision==0.31.2 \
        norfair==2.3.0 openvino==2025.4.1
    python benchmarks/clients.py --python clients/bin/python --weights yolov5n.pt --imgsz 320

exports the checkpoint, gives each program the files and one square image, SAHI a larger one to slice, and
prints a table. A difference is the largest to ours, in pixels and in confidence. SAHI runs the hub model, and
our ONNX file by the package yolov5: its difference is that between the two. The package yolov5 needs an
OpenVINO that still has `openvino.runtime`, and gets ai-edge-litert by its former name tflite_runtime.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import types
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "onnx": "net.onnx",
    "torchscript": "net.torchscript",
    "openvino": "net_openvino_model",
    "tflite": "net.tflite",
    "ncnn": "net_ncnn_model",
    "hub": "net.pt",
}
CONF, IOU = 0.25, 0.45
IMAGE, LARGE = "image.png", "large.png"
Found = Iterator[tuple[str, np.ndarray]]


def hub(path: Path):
    """Any file of ours as torch.hub loads it."""
    import torch

    return torch.hub.load(str(ROOT), "custom", str(path), source="local", device="cpu", _verbose=False)


def pixels(folder: Path) -> np.ndarray:
    """The square image, RGB (side, side, 3)."""
    from PIL import Image

    return np.array(Image.open(folder / IMAGE))


def yolov5(folder: Path) -> Found:
    """DetectMultiBackend and AutoShape on each file."""
    import ai_edge_litert.interpreter
    import torch
    from yolov5.models.common import AutoShape, DetectMultiBackend

    sys.modules["tflite_runtime"] = types.ModuleType("tflite_runtime")
    sys.modules["tflite_runtime.interpreter"] = ai_edge_litert.interpreter
    image = pixels(folder)
    for name in ("onnx", "torchscript", "openvino", "tflite"):
        model = AutoShape(DetectMultiBackend(str(folder / FILES[name]), device=torch.device("cpu")))
        model.conf, model.iou = CONF, IOU
        assert model.names[0] and int(model.stride) == 32
        yield name, model(image, size=len(image)).xyxy[0].detach().numpy()


def ultralytics(folder: Path) -> Found:
    """AutoBackend on each file; NMS is ours, because that of the package is for other heads."""
    import torch
    from ultralytics.nn.autobackend import AutoBackend

    images = torch.from_numpy(pixels(folder).transpose(2, 0, 1)[None].copy()).float() / 255
    for name in ("onnx", "torchscript", "openvino", "ncnn"):
        backend = AutoBackend(str(folder / FILES[name]), torch.device("cpu"))
        assert backend.names[0] and int(backend.stride) == 32
        output = backend(images)
        yield name, (output[0] if isinstance(output, list | tuple) else output).detach().numpy()


def sahi(folder: Path) -> Found:
    """Sliced prediction with model_type="yolov5": the hub model, and our ONNX file by the package yolov5."""
    from sahi import AutoDetectionModel
    from sahi.predict import get_sliced_prediction

    side = len(pixels(folder))
    sources = {
        "hub": {"model": hub(folder / FILES["hub"])},
        "onnx": {"model_path": str(folder / FILES["onnx"])},
    }
    for name, source in sources.items():
        model = AutoDetectionModel.from_pretrained(
            "yolov5", confidence_threshold=CONF, device="cpu", image_size=side, **source
        )
        found = get_sliced_prediction(
            str(folder / LARGE), model, side, side, verbose=0
        ).object_prediction_list
        rows = [[*one.bbox.to_xyxy(), one.score.value, one.category.id] for one in found]
        yield name, np.array(rows).reshape(-1, 6)


def supervision(folder: Path) -> Found:
    """Detections.from_yolov5 of the hub model's results."""
    import supervision as sv

    found = sv.Detections.from_yolov5(hub(folder / FILES["hub"])(folder / IMAGE, size=len(pixels(folder))))
    yield "hub", np.column_stack((found.xyxy, found.confidence, found.class_id))


def norfair(folder: Path) -> Found:
    """A tracker that gets the hub model's boxes of the same frame eight times: where it sees its objects."""
    import norfair as nf

    tracker = nf.Tracker(distance_function="iou", distance_threshold=0.5)
    for boxes in hub(folder / FILES["hub"])([str(folder / IMAGE)] * 8, size=len(pixels(folder))).xyxy:
        frame = [nf.Detection(row[:4].reshape(2, 2), row[[4, 4]], row[4:]) for row in boxes.numpy()]
        objects = tracker.update(frame)
    rows = [[*one.estimate.ravel(), *one.last_detection.data] for one in objects]
    yield "hub", np.array(rows).reshape(-1, 6)


CLIENTS: dict[str, Callable[[Path], Found]] = {
    each.__name__: each for each in (yolov5, ultralytics, sahi, supervision, norfair)
}


def prepare(folder: Path, opt: Namespace) -> dict[str, np.ndarray]:
    """Export the formats, write both images, and return our boxes (n, 6) by file."""
    import cv2

    import export
    from utils.files import find_file
    from utils.images import load_image
    from utils.letterbox import letterbox

    (folder / FILES["hub"]).write_bytes(find_file(opt.weights).read_bytes())
    export.run(weights=str(folder / FILES["hub"]), include=[*FILES][:-1], imgsz=[opt.imgsz])
    for name, side in ((IMAGE, opt.imgsz), (LARGE, 3 * opt.imgsz)):
        cv2.imwrite(str(folder / name), letterbox(load_image(opt.source), (side, side), auto=False)[0])
    images = pixels(folder)
    return {name: hub(folder / file)(images, size=opt.imgsz).xyxy[0].numpy() for name, file in FILES.items()}


def as_boxes(rows: np.ndarray) -> np.ndarray:
    """Boxes (n, 6), the most confident first; decoded rows (1, boxes, 5 + nc) get our NMS."""
    import torch

    from utils.nms import NmsOptions

    if rows.ndim == 3:
        rows = NmsOptions(CONF, IOU).suppress(torch.from_numpy(rows))[0].numpy()
    return rows[np.argsort(-rows[:, 4], kind="stable")]


def difference(found: np.ndarray, ours: np.ndarray) -> str:
    """The largest difference in pixels and in confidence, or what is not the same at all."""
    if len(found) != len(ours):
        return f"{len(found)} boxes, ours {len(ours)}"
    if not np.array_equal(found[:, 5], ours[:, 5]):
        return "other classes"
    apart = np.abs(found - ours).max(0, initial=0)
    return f"{apart[:4].max():.4f} px, {apart[4]:.6f}"


def main() -> None:
    """Export, run every client in the other interpreter, print the table."""
    from utils.cli import Parser
    from utils.errors import UserError

    parser = Parser(description="Read our files with other people's programs.")
    parser.add_argument("--python", required=True, help="the interpreter that has the clients")
    parser.add_argument("--weights", required=True, help="a checkpoint")
    parser.add_argument("--source", default=str(ROOT / "data/images/grace_hopper.jpg"), help="an image")
    parser.add_argument("--imgsz", type=int, default=320, help="side of the square image")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=[*CLIENTS])
    opt = parser.parse_args()
    lines = ["| client | version | reads | boxes | largest difference to ours |", "|---|---|---|---|---|"]
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = prepare(folder, opt)
        for client in opt.clients:
            command = [str(Path(opt.python).absolute()), "-P", __file__, "--child", client, name]
            settings = {**os.environ, "YOLO_CONFIG_DIR": name}  # not in the user's home
            done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)
            if done.returncode:
                failed.append(f"{client} stopped: {done.stderr.strip().splitlines()[-1]}")
                continue
            found = dict(np.load(folder / f"{client}.npz"))
            version = str(found.pop("version"))
            expected = {"onnx": found["hub"]} if client == "sahi" else ours
            for file, rows in found.items():
                boxes = as_boxes(rows)
                told = difference(boxes, expected[file]) if file in expected else "-"
                lines.append(f"| {client} | {version} | {FILES[file]} | {len(boxes)} | {told} |")
    print("\n".join(lines))
    if failed:
        raise UserError("; ".join(failed))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        here = Path(sys.argv[3])
        version = np.array(importlib.metadata.version(sys.argv[2]))
        np.savez(here / f"{sys.argv[2]}.npz", version=version, **dict(CLIENTS[sys.argv[2]](here)))
    else:
        sys.path.insert(0, str(ROOT))
        from utils.cli import guard

        guard(main)
