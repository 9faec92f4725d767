"""hubconf.py: networks by name, files by path, from any folder."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import hubconf
from models.weights.checkpoint import save_checkpoint
from models.yolo import DetectionModel
from tests.hub import ROOT, TINY, folder, load, model  # noqa: F401 fixtures
from utils.errors import UserError


def test_new_networks_by_name_and_no_hosted_weights():
    assert all(callable(getattr(hubconf, name)) for name in ("yolov5s", "yolov5_ghostnet"))
    network = load("yolov5n", pretrained=False, classes=2, autoshape=False)
    assert isinstance(network, DetectionModel) and network.nc == 2 and network.train().training
    with pytest.raises(UserError, match="no trained weights are hosted"):
        load("yolov5_mobilenetv2")
    with pytest.raises(UserError, match="yolov5s6: its YAML is in its weights; pass pretrained=True"):
        load("yolov5s6", pretrained=False)
    results = load("yolov5_mobilenetv2", pretrained=False, classes=2)(
        np.zeros((32, 32, 3), np.uint8), size=64
    )
    assert results.n == 1 and results.names == {0: "class0", 1: "class1"}


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n6", "yolov5x6"])
def test_official_names_take_their_weights_which_a_folder_may_hold(folder, tmp_path, monkeypatch, name):
    """A file of that name stands in for the official one, which has 80 classes too."""
    network = DetectionModel({**TINY, "nc": 80})
    save_checkpoint(tmp_path / f"{name}.pt", network, meta={})
    monkeypatch.chdir(tmp_path)
    plain = load(name, autoshape=False)
    assert torch.equal(plain.model[0].conv.weight, network.model[0].conv.weight) and plain.nc == 80
    fewer = load(name, classes=3, autoshape=False)
    assert torch.equal(fewer.model[0].conv.weight, network.model[0].conv.weight) and fewer.nc == 3
    results = load(name)(folder / "wide.png", size=64)
    assert results.names == {i: f"class{i}" for i in range(80)}


def test_path_or_model_is_a_file_or_a_network(folder):
    by_name = load("custom", path_or_model=str(folder / "tiny.pt"))
    network = load("custom", str(folder / "tiny.pt"), autoshape=False)
    in_memory = load("custom", path_or_model=network)
    found = [each(folder / "wide.png", size=128).xyxy[0] for each in (by_name, in_memory)]
    assert len(found[0]) and torch.equal(*found)
    assert not network.is_fused, "the network given stays as it is"
    assert load("custom", path_or_model=network, autoshape=False) is not network


def test_from_another_folder_beside_a_package_of_the_same_name(tmp_path, folder):
    code = (
        "import torch, sys\n"
        "model = torch.hub.load(sys.argv[1], 'custom', path=sys.argv[2], source='local', device='cpu')\n"
        "results = model(sys.argv[3], size=128)\n"
        "print(len(results.pandas().xyxy[0]), len(results.render()), len(results.crop(save=False)))\n"
    )
    arguments = [str(ROOT), str(folder / "tiny.pt"), str(folder / "wide.png")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "tiny.pt: 3 classes" in done.stdout, done.stderr
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "__init__.py").write_text("")
    code = "import sys, utils\nsys.path.insert(0, sys.argv[1])\nimport hubconf\nhubconf.custom(sys.argv[2])"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert "another package named 'utils'" in done.stderr


def test_a_network_of_another_kind_is_refused():
    with pytest.raises(UserError, match="Linear: is no DetectionModel; give one, or a file"):
        load("custom", path_or_model=torch.nn.Linear(2, 2))
