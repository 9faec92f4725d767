"""What compat/models gives: networks as YOLOv5's loaders return them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import models.common
from models.backends import load_backend
from models.experimental import Ensemble, attempt_load
from models.hub import HubModel
from tests.hub import folder  # noqa: F401
from utils.errors import UserError

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_the_wrappers_are_found_in_models_common_and_no_other_name_is() -> None:
    assert models.common.DetectMultiBackend.__module__ == "models.experimental"
    assert issubclass(models.common.AutoShape, torch.nn.Module)
    with pytest.raises(AttributeError, match="has no attribute 'DetectMultiBackends'"):
        _ = models.common.DetectMultiBackends


def test_one_checkpoint_gives_boxes_and_maps_without_gradients(folder: Path) -> None:  # noqa: F811
    truth = load_backend(folder / "tiny.pt").predict(IMAGES)
    model = attempt_load(str(folder / "tiny.pt"), map_location="cpu")
    decoded, maps = model(IMAGES)
    assert torch.equal(decoded, truth) and not decoded.requires_grad
    assert [m.shape[-1] for m in maps] == [8, 8]
    multi = models.common.DetectMultiBackend([folder / "tiny.pt"], fuse=False)
    boxes, raw = multi(IMAGES)
    assert multi.pt and not (multi.onnx or multi.jit or multi.engine or multi.fp16)
    assert (multi.names, multi.stride) == ({0: "class0", 1: "class1", 2: "class2"}, 16)
    torch.testing.assert_close(boxes, truth, atol=1e-3, rtol=1e-4)
    assert [r.shape for r in raw] == [m.shape for m in maps]


def test_several_checkpoints_are_an_ensemble(folder: Path) -> None:  # noqa: F811
    files = [folder / "tiny.pt"] * 2
    model = attempt_load(files)
    assert isinstance(model, Ensemble) and int(model.stride.max()) == 16 and len(model.names) == 3
    boxes, none = model(IMAGES)
    assert none is None and boxes.shape[1] == 2 * attempt_load(files[0])(IMAGES)[0].shape[1]
    together, none = models.common.DetectMultiBackend(files)(IMAGES)
    assert none is None and torch.equal(together, boxes)


def test_feature_maps_are_drawn_where_visualize_says(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    model = models.common.DetectMultiBackend(folder / "tiny.pt")
    model(IMAGES, visualize=tmp_path / "maps")
    assert np.load(tmp_path / "maps" / "layer00_Conv.npy").shape == (8, 32, 48)
    with pytest.raises(UserError, match="visualize needs a single .pt"):
        models.common.DetectMultiBackend([folder / "tiny.pt"] * 2)(IMAGES, visualize=tmp_path)


def test_autoshape_of_either_loader_finds_the_same(folder: Path) -> None:  # noqa: F811
    picture = str(folder / "wide.png")
    found = [
        models.common.AutoShape(loaded)(picture, size=64).xyxy[0]
        for loaded in (
            models.common.DetectMultiBackend(folder / "tiny.pt"),
            attempt_load(folder / "tiny.pt"),
        )
    ]
    assert len(found[0]) > 3 and torch.equal(*found)


def test_the_models_are_those_of_models_common_and_can_be_pickled(folder: Path) -> None:  # noqa: F811
    picture = str(folder / "wide.png")
    multi = models.common.DetectMultiBackend(folder / "tiny.pt")
    multi.warmup((1, 3, 64, 64), half=False)
    for model in (models.common.AutoShape(multi), HubModel(multi.backend)):
        assert type(model).__module__ == "models.common"  # SAHI takes no other
        again = pickle.loads(pickle.dumps(model))  # noqa: S301 (our own bytes)
        assert torch.equal(again(picture, size=64).xyxy[0], model(picture, size=64).xyxy[0])
