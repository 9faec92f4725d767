"""Evaluate any data set exactly as COCO does, and write predictions as COCO JSON.

The ground truth is built from the labels themselves, in native pixels, with image ids counted from 1: file
names that are no numbers, or the same number twice, cannot mix images up. Annotation ids start at 1 too,
because pycocotools reads an id of 0 as "no match".
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import JsonObject

# COCO's 80 detection classes carry ids up to 90: these ten were never released.
_UNUSED_IDS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
COCO_CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in _UNUSED_IDS)

# Preferred first: faster-coco-eval computes the same numbers in C++.
_EVALUATORS = (
    ("faster_coco_eval", "faster_coco_eval", "COCO", "faster_coco_eval", "COCOeval_faster"),
    ("pycocotools", "pycocotools.coco", "COCO", "pycocotools.cocoeval", "COCOeval"),
)
_STATS = (
    *("map", "map50", "map75", "map_small", "map_medium", "map_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


@dataclass
class CocoResult:
    """Hold COCO's twelve figures (0..1, -1 for nothing to measure) and their evaluator."""

    map: float
    map50: float
    stats: dict[str, float]
    evaluator: str


def is_coco(yaml_path: Path, splits: Mapping[str, Iterable[Path]], nc: int) -> bool:
    """Return whether a data set is COCO itself.

    Its JSON must then carry COCO's own category ids.

    That is 80 classes and either a YAML called coco.yaml or a split that names train2017 or val2017.
    """
    years = {"train2017", "val2017", "test-dev2017"}
    named = any(years & {path.stem, path.name} for paths in splits.values() for path in paths)
    return nc == len(COCO_CATEGORY_IDS) and (yaml_path.name == "coco.yaml" or named)


def json_image_id(path: str | Path) -> int | str:
    """Return a file's image id: its stem, as a number if possible."""
    stem = Path(path).stem
    return int(stem) if stem.isascii() and stem.isdigit() else stem


def prediction_rows(
    image_id: int | str,
    detections: np.ndarray,
    categories: tuple[int, ...] | None = None,
    rounded: bool = True,
) -> list[JsonObject]:
    """Return detections (n, 6) in native pixels as COCO result rows.

    Boxes become top-left x, y, width, height (3 decimals), scores have 5 decimals; `rounded=False` keeps all
    digits. `categories[class]` gives the category id, the class itself where it is None.
    """
    rows = []
    for x1, y1, x2, y2, conf, cls in detections.astype(np.float64).tolist():
        box = [x1, y1, x2 - x1, y2 - y1]
        rows.append(
            {
                "image_id": image_id,
                "category_id": categories[int(cls)] if categories else int(cls),
                "bbox": [round(v, 3) for v in box] if rounded else box,
                "score": round(conf, 5) if rounded else conf,
            }
        )
    return rows


class CocoEvaluator:
    """Collect images, labels and detections, and evaluate them as COCO does."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._truth: dict[str, list[JsonObject]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": c, "name": name} for c, name in names.items()],
        }
        self._rows: list[JsonObject] = []

    def add(self, shape: tuple[int, int], labels: np.ndarray, detections: np.ndarray, path: str = "") -> None:
        """Add one image (h, w): labels (m, 5) class, xyxy and detections (n, 6)."""
        image_id = len(self._truth["images"]) + 1
        height, width = (int(v) for v in shape)
        self._truth["images"].append(
            {"id": image_id, "file_name": Path(path).name, "height": height, "width": width}
        )
        for cls, x1, y1, x2, y2 in labels.astype(np.float64).tolist():
            self._truth["annotations"].append(
                {
                    "id": len(self._truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": int(cls),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
        self._rows += prediction_rows(image_id, detections, rounded=False)

    def evaluate(self) -> CocoResult:
        """Return COCO's figures, with at most 100 detections per image.

        Raises:
            UserError: no evaluator installed.
        """
        return coco_evaluate(self._truth, self._rows)


def installed_evaluator() -> tuple[str, ...]:
    """Return the evaluator to use: faster-coco-eval, else pycocotools.

    Raises:
        UserError: neither is installed.
    """
    for entry in _EVALUATORS:
        if importlib.util.find_spec(entry[0]):
            return entry
    raise UserError(
        "COCO evaluation needs faster-coco-eval or pycocotools and neither is installed; "
        "run 'pip install faster-coco-eval'"
    )


def coco_evaluate(
    truth: JsonObject, rows: list[JsonObject], image_ids: list[int] | None = None
) -> CocoResult:
    """Evaluate result rows against a ground truth in COCO's format.

    `image_ids` limits the images.

    Raises:
        UserError: no evaluator installed.
    """
    name, coco_module, coco_class, eval_module, eval_class = installed_evaluator()
    known = {image["id"] for image in truth["images"]}
    rows = [dict(row) for row in rows if row["image_id"] in known]  # loadRes writes into the rows it is given
    if not truth["annotations"]:
        return CocoResult(0.0, 0.0, dict.fromkeys(_STATS, -1.0), name)
    if not rows:
        return CocoResult(0.0, 0.0, dict.fromkeys(_STATS, 0.0), name)
    with contextlib.redirect_stdout(io.StringIO()):  # both print progress that says nothing here
        ground = getattr(importlib.import_module(coco_module), coco_class)()
        ground.dataset = {"info": {}, "licenses": [], **truth}
        ground.createIndex()
        evaluation = getattr(importlib.import_module(eval_module), eval_class)(
            ground, ground.loadRes(rows), "bbox"
        )
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = {key: float(value) for key, value in zip(_STATS, evaluation.stats)}
    return CocoResult(stats["map"], stats["map50"], stats, name)
