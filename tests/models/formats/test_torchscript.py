"""TorchScript: the file carries its metadata; others are refused in a sentence."""

import json

import pytest
import torch

import export
from models.backends import load_backend
from tests.tiny_checkpoint import write_checkpoint
from utils.errors import UserError


@pytest.fixture
def weights(tmp_path):
    return write_checkpoint(tmp_path)


def test_torchscript_carries_its_metadata(weights):
    export.run(weights=str(weights), imgsz=[32, 64])
    extra = {"config.txt": ""}
    torch.jit.load(str(weights.with_suffix(".torchscript")), _extra_files=extra)
    metadata = json.loads(extra["config.txt"])
    assert metadata["shape"] == [1, 3, 32, 64]
    assert metadata["names"] == {"0": "cat", "1": "dog"}
    assert metadata["stride"] == 4


def test_a_file_that_is_no_torchscript_is_a_sentence(tmp_path):
    (tmp_path / "a.torchscript").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"a\.torchscript: is not a TorchScript file or is damaged"):
        load_backend(tmp_path / "a.torchscript")


def test_a_foreign_file_without_metadata_needs_names(tmp_path):
    script = torch.jit.trace(torch.nn.ReLU(), torch.zeros(2))
    script.save(str(tmp_path / "a.torchscript"), _extra_files={"config.txt": "[1, 2]"})
    with pytest.raises(UserError, match="carries no class names"):
        load_backend(tmp_path / "a.torchscript")
