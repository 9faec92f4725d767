"""What the model for Python returns: its forms, pictures, crops and folders."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.hub import folder, model, rgb  # noqa: F401 fixtures
from utils.errors import UserError


def test_forms_of_the_result(folder, model, capsys):
    results = model(folder / "wide.png", size=128)
    det = results.xyxy[0]
    x1, y1, x2, y2 = det[0, :4].tolist()
    assert results.xywh[0][0, :4].tolist() == pytest.approx([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
    assert results.xyxyn[0][0].tolist() == pytest.approx(
        [x1 / 130, y1 / 75, x2 / 130, y2 / 75, *det[0, 4:].tolist()]
    )
    assert results.xywhn[0][0, 2:4].tolist() == pytest.approx([(x2 - x1) / 130, (y2 - y1) / 75], rel=1e-5)
    frame = results.pandas().xyxy[0]
    assert list(frame.columns) == ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]
    assert frame["name"][0] == f"class{int(det[0, 5])}" and frame["class"].dtype.kind == "i"
    assert list(results.pandas().xywhn[0].columns)[:4] == ["xcenter", "ycenter", "width", "height"]
    assert isinstance(results.xyxy[0], torch.Tensor)  # pandas() leaves the original alone
    (image,) = json.loads(results.json())
    assert (image["file"], image["width"], image["height"]) == ("wide.png", 130, 75)
    assert image["detections"][0]["xmin"] == pytest.approx(x1, abs=1e-3) and len(image["detections"]) == 20
    results.print()
    assert "image 1/1: 75x130" in capsys.readouterr().out


def test_render_save_and_crop(folder, tmp_path, model):
    results = model([folder / "wide.png", folder / "wide.png"], size=128)
    clean = rgb(folder / "wide.png")
    crops = results.crop(save_dir=tmp_path / "exp")
    paths = results.save(save_dir=tmp_path / "exp")
    assert [str(p.relative_to(tmp_path)) for p in paths] == ["exp2/wide.jpg", "exp2/wide-2.jpg"]
    assert (results.ims[0] != clean).any() and results.ims[0].shape == clean.shape
    saved = rgb(paths[0]).astype(int)
    assert np.abs(saved - results.ims[0]).mean() < np.abs(saved - clean).mean()
    x1, y1, x2, y2 = crops[0]["box"]
    assert len(crops) == 40 and crops[0]["im"].shape[0] == pytest.approx((y2 - y1) * 1.02 + 10, abs=75)
    assert len(list((tmp_path / "exp" / "crops").rglob("*.jpg"))) == 40
    assert results.crop(save=False)[0]["label"] == crops[0]["label"]


def test_results_are_saved_below_the_working_folder(folder, tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = model(folder / "wide.png", size=128)
    assert [str(path) for path in results.save()] == [str(Path("runs", "hub", "exp", "wide.jpg"))]
    assert results.crop() and len(list((tmp_path / "runs/hub/exp2/crops").rglob("*.jpg"))) == 20
    assert (tmp_path / "runs" / "hub" / "exp" / "wide.jpg").is_file()


def test_show_without_a_display_is_a_sentence(folder, model, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="no display"):
        model(folder / "wide.png", size=128).show()
