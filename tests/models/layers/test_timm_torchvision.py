"""timm and torchvision as libraries: one sentence without them, weights from the cache."""

from __future__ import annotations

import importlib.util
import sys
import time

import pytest
import torch

from models.weights.pretrained import load_backbone
from models.weights.references import imagenet_state
from models.yolo import DetectionModel
from tests.models.weights.test_pretrained import changed
from utils.errors import UserError

HAS_TIMM = importlib.util.find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm, which is optional, is not installed")


def test_without_a_network_the_command_is_said(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"no route to host.*python -c .*mobilenet_v2.*--backbone-weights"):
        load_backbone(changed(), "imagenet")


def test_a_dead_network_is_asked_once_for_timms_weights(monkeypatch, caplog):
    """Left alone, the hub's client tries for minutes and logs two dozen lines."""
    pytest.importorskip("timm", reason="timm, which is optional, is not installed")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nowhere")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"refused\); .*create_model\('test_convnext', pre") as caught:
        imagenet_state("timm/test_convnext")
    assert "--backbone-weights timm/test_convnext=FILE" in str(caught.value)
    assert time.monotonic() - started < 20
    assert caplog.text == ""


def test_weights_that_timm_has_fetched_before_need_no_network(monkeypatch, tmp_path):
    timm = pytest.importorskip("timm", reason="timm, which is optional, is not installed")
    from huggingface_hub import constants
    from safetensors.torch import save_file

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / f"models--{timm.get_pretrained_cfg('test_convnext').hf_hub_id.replace('/', '--')}"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    state = timm.create_model("test_convnext").state_dict()
    save_file(state, repository / "snapshots" / "abc" / "model.safetensors")
    found = imagenet_state("timm/test_convnext")
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


def test_a_network_that_timm_has_no_weights_of():
    pytest.importorskip("timm", reason="timm, which is optional, is not installed")
    with pytest.raises(UserError, match=r"^timm/convnext_atto_rms: timm has no weights of this network"):
        imagenet_state("timm/convnext_atto_rms")


class _Barred:
    """A finder that knows of no timm, and says so as some do."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "timm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_timm_one_sentence_whoever_says_so(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Barred(), *sys.meta_path])
    with pytest.raises(UserError, match=r"timm is not installed; 'pip install timm'"):
        DetectionModel("timm:mobilenetv4_conv_small")


@needs_timm
def test_a_timm_that_lacks_what_it_needs_is_one_sentence(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(UserError, match=r"timm cannot be imported \(.*pip install -U timm"):
        DetectionModel("timm:mobilenetv4_conv_small")


def test_without_timm_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm is not installed; 'pip install timm'"):
        DetectionModel("timm:mobilenetv4_conv_small")
