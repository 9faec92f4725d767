"""A script as people wrote them inside a YOLOv5 checkout runs in ours, and finds what detect.py finds."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import detect
from tests.hub import folder  # noqa: F401
from utils.files import ROOT

# Counts what it sees in a folder, frame by frame, as a robot's or a tracker's script does.
SCRIPT = """
import sys
from pathlib import Path

import torch

from models.common import DetectMultiBackend
from models.experimental import attempt_load
from utils.dataloaders import IMG_FORMATS, VID_FORMATS, LoadImages
from utils.general import (LOGGER, Profile, check_img_size, check_requirements, colorstr, cv2,
                           increment_path, non_max_suppression, print_args, scale_boxes, xyxy2xywh)
from utils.plots import Annotator, colors, save_one_box
from utils.torch_utils import select_device, smart_inference_mode, time_sync


@smart_inference_mode()
def watch(loader, weights, source, out, size=64):
    print_args()
    device = select_device("cpu")
    run = increment_path(Path(out) / "watch", mkdir=True)
    (run / "labels").mkdir()
    if loader == "attempt_load":
        model = attempt_load(weights, device=device)
        stride, pt = int(model.stride.max()), True
        names = model.module.names if hasattr(model, "module") else model.names
    else:
        model = DetectMultiBackend(weights, device=device, dnn=False, data="data/coco128.yaml", fp16=False)
        stride, names, pt = model.stride, model.names, model.pt
    size = check_img_size((size, size), s=stride)
    if loader != "attempt_load":
        model.warmup(imgsz=(1, 3, *size))
    dataset, film = LoadImages(source, img_size=size, stride=stride, auto=pt), None
    seen, clocks, began = 0, (Profile(), Profile(), Profile()), time_sync()
    for path, im, im0s, cap, line in dataset:
        with clocks[0]:
            im = torch.from_numpy(im).to(device).float() / 255
            im = im[None] if im.ndim == 3 else im
        with clocks[1]:
            pred = model(im, augment=False)
            pred = pred[0] if loader == "attempt_load" else pred
        with clocks[2]:
            pred = non_max_suppression(pred, 0.25, 0.45, None, False, max_det=1000)
        for det in pred:
            seen += 1
            p, frame, im0 = Path(path), getattr(dataset, "frame", 0), im0s.copy()
            assert p.suffix[1:] in IMG_FORMATS + VID_FORMATS
            gn = torch.tensor(im0.shape)[[1, 0, 1, 0]]
            annotator = Annotator(im0, line_width=2, example=str(names))
            if len(det):
                det[:, :4] = scale_boxes(im.shape[2:], det[:, :4], im0.shape).round()
                text = p.stem + ("" if dataset.mode == "image" else f"_{frame}")
                for *xyxy, conf, cls in reversed(det):
                    c = int(cls)
                    xywh = (xyxy2xywh(torch.tensor(xyxy).view(1, 4)) / gn).view(-1).tolist()
                    with open(run / "labels" / f"{text}.txt", "a") as file:
                        file.write(("%g " * 6).rstrip() % (c, *xywh, conf) + "\\n")
                    annotator.box_label(xyxy, f"{names[c]} {conf:.2f}", color=colors(c, True))
                save_one_box(xyxy, im0s, file=run / "crops" / names[c] / f"{p.stem}.jpg", BGR=True)
            drawn = annotator.result()
            assert (drawn != im0s).any() == bool(len(det))
            if dataset.mode == "image":
                cv2.imwrite(str(run / p.name), drawn)
            else:
                if film is None:
                    w, h = int(cap.get(cv2.CAP_PROP_FRAME_WIDTH)), int(cap.get(cv2.CAP_PROP_FRAME_HEIGHT))
                    film = cv2.VideoWriter(str(run / p.with_suffix(".mp4").name),
                                           cv2.VideoWriter_fourcc(*"mp4v"), cap.get(cv2.CAP_PROP_FPS), (w, h))
                film.write(drawn)
        LOGGER.info(f"{line}{len(det)} found, {clocks[1].dt * 1E3:.1f}ms")
    if film is not None:
        film.release()
    speed = tuple(clock.t / seen * 1e3 for clock in clocks)
    assert min(speed) > 0 and time_sync() > began
    LOGGER.info(f"Results saved to {colorstr('bold', run)}")


if __name__ == "__main__":
    check_requirements(exclude=("tensorboard", "thop"))
    watch(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:  # noqa: F811
    """Two pictures and a short video."""
    source = folder / "source"
    source.mkdir()
    pictures = [cv2.imread(str(path)) for path in sorted(folder.glob("*.png"))]
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(source / f"p{number}.png"), picture)
    writer = cv2.VideoWriter(str(source / "film.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 8, (96, 72))
    for number in range(3):
        writer.write(cv2.resize(np.roll(pictures[0], 20 * number, 1), (96, 72)))
    writer.release()
    return source


@pytest.fixture(scope="module")
def expected(folder: Path, source: Path) -> dict[str, np.ndarray]:  # noqa: F811
    detect.run(
        weights=folder / "tiny.pt", source=source, imgsz=64, device="cpu", nosave=True, save_txt=True,
        save_conf=True, project=folder / "detect",
    )  # fmt: skip
    return label_rows(folder / "detect" / "exp" / "labels")


def label_rows(path: Path) -> dict[str, np.ndarray]:
    found = {file.stem: np.loadtxt(file, ndmin=2) for file in path.glob("*.txt")}
    return {stem: rows[np.lexsort(rows.T)] for stem, rows in found.items()}


@pytest.mark.parametrize("loader", ["attempt_load", "DetectMultiBackend"])
def test_a_script_of_a_yolov5_checkout_finds_what_detect_py_finds(
    folder: Path,  # noqa: F811
    source: Path,
    expected: dict[str, np.ndarray],
    tmp_path: Path,
    loader: str,
) -> None:
    script = tmp_path / "watch.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), loader, str(folder / "tiny.pt"), str(source), str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = label_rows(tmp_path / "watch" / "labels")
    assert found.keys() == expected.keys() and {"p0", "p1", "film_1", "film_3"} <= found.keys()
    assert sum(map(len, found.values())) > 20
    for stem, rows in expected.items():
        np.testing.assert_allclose(found[stem], rows, atol=2e-5)  # as written, with six digits
    film = cv2.VideoCapture(str(tmp_path / "watch" / "film.mp4"))
    assert (film.get(cv2.CAP_PROP_FRAME_COUNT), film.get(cv2.CAP_PROP_FPS)) == (3, 8)
    assert {path.name for path in (tmp_path / "watch").iterdir()} > {"crops", "p0.png", "p1.png"}
    assert "image 2/3" in done.stdout and "video 3/3 (3/3)" in done.stdout
    assert f"loader={loader}, weights=" in done.stdout


def test_every_name_of_the_document_exists() -> None:
    page = (ROOT / "docs" / "coming-from-yolov5.md").read_text(encoding="utf-8")
    table = page.partition("## Scripts that import from YOLOv5")[2].partition("What differs")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+) \|$", table, re.M)
    assert len(rows) == 9
    for modules, names in rows:
        for module in re.findall(r"`([\w.]+)`", modules):
            for name in re.findall(r"`(\w+)`", names.partition("(")[0]):
                assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"
