"""CoreML: refused where it cannot run; what coremltools writes says what it is and has PyTorch's shapes."""

import platform

import pytest
import torch

import export
from models.backends import load_backend
from models.formats.coreml import write_coreml
from models.formats.exporter import Job
from models.formats.metadata import Metadata
from tests.models.formats.small import PLAIN, SIZE, save_small
from utils.errors import UserError

on_a_mac = platform.system() == "Darwin"


@pytest.mark.skipif(on_a_mac, reason="CoreML runs here")
def test_it_is_refused_where_it_cannot_run(tmp_path):
    save_small(tmp_path / "best.pt", PLAIN)
    with pytest.raises(UserError, match=r"coreml \(CoreML runs on macOS alone and this is \w+, so the file"):
        export.run(weights=str(tmp_path / "best.pt"), include=["coreml"], imgsz=SIZE)
    (tmp_path / "a.mlpackage").mkdir()
    with pytest.raises(UserError, match=r"a\.mlpackage: CoreML runs on macOS alone"):
        load_backend(tmp_path / "a.mlpackage")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mlpackage", "best.pt"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_written_says_what_it_is(tmp_path, precision):
    tools = pytest.importorskip("coremltools", reason="coremltools is optional")
    model = save_small(tmp_path / "best.pt", PLAIN).fuse()
    model.detect.export = True
    metadata = Metadata(dict(model.names), 8, SIZE, 1, device="cpu", precision=precision)
    job = Job(model, torch.zeros(1, 3, *SIZE), metadata)
    write_coreml(job, tmp_path / "best.mlpackage")
    written = tools.models.MLModel(str(tmp_path / "best.mlpackage"), skip_model_load=True)
    assert dict(written.user_defined_metadata).items() >= metadata.entries().items()
    (given,) = written.get_spec().description.input
    assert list(given.type.multiArrayType.shape) == [1, 3, *SIZE]
    assert [o.name for o in written.get_spec().description.output] == ["output0"]


@pytest.mark.skipif(not on_a_mac, reason="CoreML runs on macOS alone")
def test_it_agrees_with_pytorch(tmp_path):
    pytest.importorskip("coremltools", reason="coremltools is optional")
    save_small(tmp_path / "best.pt", PLAIN)
    (result,) = export.run(weights=str(tmp_path / "best.pt"), include=["coreml"], imgsz=SIZE)
    assert result.max_score_diff < 1e-3
    assert result.max_box_diff < 0.5
