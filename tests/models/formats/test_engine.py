"""TensorRT: refused without a GPU, its header read with care; with a GPU it agrees with PyTorch."""

import json

import pytest
import torch

import export
from models.backends import load_backend
from models.formats.engine import profile_shapes, read_engine
from models.formats.exporter import Job
from models.formats.metadata import Metadata
from models.schema import SCHEMA
from tests.models.formats.small import PLAIN, SIZE, save_small
from utils.errors import UserError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="TensorRT needs a CUDA device")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def put(path, entries, plan=b"plan"):
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(4, "little") + header + plan)
    return path


@without_gpu
def test_it_is_refused_without_a_gpu(tmp_path):
    save_small(tmp_path / "best.pt", PLAIN)
    with pytest.raises(UserError, match=r"engine \(TensorRT builds and runs a file on an NVIDIA GPU"):
        export.run(weights=str(tmp_path / "best.pt"), include=["engine"], imgsz=SIZE)
    put(tmp_path / "a.engine", {"names": ["cat"]})
    with pytest.raises(UserError, match=r"a\.engine: TensorRT builds and runs a file on an NVIDIA GPU"):
        load_backend(tmp_path / "a.engine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.engine", "best.pt"]


def test_the_header_is_read(tmp_path):
    assert read_engine(put(tmp_path / "a.engine", {"stride": 8})) == ({"stride": 8}, b"plan")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x02",
        b"\xff\xff\xff\xffplan",
        b"\x04\x00\x00\x00[]  plan",
        b"\x04\x00\x00\x00\xff\xfe\xfd\xfcplan",
        b"\x00\x00\x00\x00plan",
    ],
)
def test_a_file_without_a_header_is_a_sentence(tmp_path, content):
    (tmp_path / "a.engine").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.engine: carries no metadata"):
        load_backend(tmp_path / "a.engine")


def test_later_schemas_and_damaged_plans_are_sentences(tmp_path):
    with pytest.raises(UserError, match="was exported by a later version"):
        load_backend(put(tmp_path / "a.engine", {"names": ["cat"], "schema": SCHEMA + 1}))
    with pytest.raises(UserError, match="is damaged"):
        load_backend(put(tmp_path / "a.engine", {"names": ["cat"], "sha256": "0" * 64}))


def test_a_dynamic_plan_takes_what_val_and_the_check_feed_it(tmp_path):
    metadata = Metadata({0: "cat"}, 32, (64, 96), 4, dynamic=True)
    least, usual, most = profile_shapes(Job(None, torch.zeros(4, 3, 64, 96), metadata))
    assert least == (1, 3, 32, 32)
    assert usual == (4, 3, 64, 96)
    assert most == (4, 3, 128, 128)


@pytest.mark.parametrize("workspace", [0, -1])
def test_a_workspace_of_nothing_is_refused(tmp_path, workspace):
    with pytest.raises(UserError, match="--workspace"):
        export.run(weights=str(tmp_path / "best.pt"), include=["engine"], workspace=workspace)


@needs_gpu
@pytest.mark.parametrize("options", [{}, {"half": True}, {"dynamic": True, "batch_size": 2}])
def test_it_agrees_with_pytorch(tmp_path, options):
    pytest.importorskip("tensorrt", reason="tensorrt is optional")
    save_small(tmp_path / "best.pt", PLAIN)
    (result,) = export.run(
        weights=str(tmp_path / "best.pt"), include=["engine"], imgsz=SIZE, device="0", **options
    )
    assert result.max_score_diff < (2e-2 if options.get("half") else 1e-3)
