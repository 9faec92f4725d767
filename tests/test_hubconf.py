"""hubconf.py: networks by name, files by path, from any folder."""

import subprocess
import sys

import numpy as np
import pytest

import hubconf
from models.yolo import DetectionModel
from tests.hub import (
    ROOT,  # noqa: F401
    TINY,  # noqa: F401
    folder,  # noqa: F401
    load,  # noqa: F401
    model,  # noqa: F401
    rgb,  # noqa: F401
)
from utils.errors import UserError


def test_new_networks_by_name_and_no_hosted_weights():
    assert all(callable(getattr(hubconf, name)) for name in ("yolov5s", "yolov5_ghostnet"))
    network = load("yolov5n", pretrained=False, classes=2, autoshape=False)
    assert isinstance(network, DetectionModel) and network.nc == 2 and network.train().training
    with pytest.raises(UserError, match="no trained weights are hosted"):
        load("yolov5n")
    results = load("yolov5_mobilenetv2", pretrained=False, classes=2)(
        np.zeros((32, 32, 3), np.uint8), size=64
    )
    assert results.n == 1 and results.names == {0: "class0", 1: "class1"}


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
