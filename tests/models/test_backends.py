"""Backends: the same boxes whatever file they come from, a sentence where a file or option cannot serve."""

import json

import numpy as np
import onnx
import pytest
import torch

import export
from models.backends import check_channels, load_backend
from models.formats.base import FORMATS
from models.formats.metadata import Metadata
from models.schema import SCHEMA
from models.weights.checkpoint import save_checkpoint
from models.yolo import DetectionModel
from utils.errors import UserError

TINY = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30], [33, 23, 30, 61]],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]], [-1, 1, "C3", [8]]],
    "head": [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [[5, 3], 1, "Detect", ["nc", "anchors"]],
    ],
}
NAMES = {0: "cat", 1: "dog"}


def tiny(path, seed=0, **overrides):
    torch.manual_seed(seed)
    model = DetectionModel({**TINY, **overrides})
    model.names = {i: NAMES.get(i, f"more{i}") for i in range(model.nc)}
    for name, buffer in model.named_buffers():
        if "running_var" in name:
            buffer.uniform_(0.5, 2)
    save_checkpoint(path, model, meta={})
    return model.eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint with its model, and its exports, free and fixed; a folder name that holds suffixes."""
    folder = tmp_path_factory.mktemp("best.onnx.torchscript")
    model = tiny(folder / "free.pt")
    tiny(folder / "fixed.pt")
    export.run(weights=str(folder / "free.pt"), include=["onnx", "torchscript"], imgsz=[64, 96], dynamic=True)
    export.run(
        weights=str(folder / "fixed.pt"), include=["onnx", "torchscript"], imgsz=[64, 96], batch_size=2
    )
    return folder, model


def reference(model, images):
    with torch.no_grad():
        return model(images / 255 if images.dtype == torch.uint8 else images)[0]


def images(n, height=64, width=96, channels=3):
    return torch.from_numpy(np.random.default_rng(n).integers(0, 256, (n, channels, height, width), np.uint8))


@pytest.mark.parametrize("dnn", [False, True])
@pytest.mark.parametrize(
    "name", ["free.pt", "free.torchscript", "free.onnx", "fixed.torchscript", "fixed.onnx"]
)
def test_every_format_gives_the_models_boxes(files, name, dnn):
    folder, model = files
    if dnn and not name.endswith("onnx"):
        with pytest.raises(UserError, match="--dnn: OpenCV runs .onnx files only"):
            load_backend(folder / name, dnn=True)
        return
    backend = load_backend(folder / name, dnn=dnn)
    assert backend.names == NAMES
    assert backend.nc == 2
    assert backend.stride == 8
    assert backend.pytorch is (backend.model is not None) is name.endswith(".pt")
    for batch in (images(1), images(2), images(5)):  # 5 is padded and split where the batch is fixed at 2
        found = backend.predict(batch)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, reference(model, batch), atol=1e-3, rtol=0)
    torch.testing.assert_close(backend.predict(batch / 255), found)
    backend.warmup((1, 3, 64, 96))


@pytest.mark.parametrize("name", ["free.pt", "free.torchscript", "free.onnx"])
def test_free_files_take_any_size_and_batch(files, name):
    folder, model = files
    backend = load_backend(folder / name)
    assert backend.rect_ok
    assert backend.fixed_size is None
    assert backend.fixed_batch is None
    batch = images(3, 40, 72)
    torch.testing.assert_close(backend.predict(batch), reference(model, batch), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["fixed.torchscript", "fixed.onnx"])
def test_fixed_files_say_their_size(files, name):
    folder, _ = files
    backend = load_backend(folder / name)
    assert not backend.rect_ok
    assert backend.fixed_size == (64, 96)
    assert backend.fixed_batch == 2
    with pytest.raises(UserError, match=r"images of 64x96 \(height x width\), not 96x64; give --imgsz 64 96"):
        backend.predict(images(2, 96, 64))
    backend.warmup((2, 3, 640, 640))


def test_ensemble_puts_boxes_side_by_side(files, tmp_path):
    folder, first = files
    second = tiny(tmp_path / "b.pt", seed=1)
    ensemble = load_backend([str(folder / "free.pt"), str(tmp_path / "b.pt")])
    batch = images(2)
    wanted = torch.cat([reference(first, batch), reference(second, batch)], 1)
    torch.testing.assert_close(ensemble.predict(batch), wanted, atol=1e-3, rtol=0)
    assert ensemble.pytorch
    assert ensemble.model is None
    tiny(tmp_path / "c.pt", nc=3)
    with pytest.raises(UserError, match=r"c\.pt: has 3 classes, .*free\.pt has 2"):
        load_backend([folder / "free.pt", tmp_path / "c.pt"])
    with pytest.raises(UserError, match=r"free\.onnx: an ensemble takes \.pt files only"):
        load_backend([folder / "free.pt", folder / "free.onnx"])


def test_augmentation_is_for_checkpoints(files):
    folder, model = files
    batch = images(1)
    augmented = load_backend(folder / "free.pt").predict(batch, augment=True)
    with torch.no_grad():
        wanted = model(batch / 255, augment=True)[0]
    torch.testing.assert_close(augmented, wanted, atol=1e-3, rtol=0)
    with pytest.raises(UserError, match="--augment needs a .pt checkpoint"):
        load_backend(folder / "free.onnx").predict(batch, augment=True)


def test_fusing_is_optional_and_changes_nothing_that_counts(files):
    folder, _ = files
    fused, plain = load_backend(folder / "free.pt"), load_backend(folder / "free.pt", fuse=False)
    assert fused.model.is_fused
    assert not plain.model.is_fused
    torch.testing.assert_close(fused.predict(images(1)), plain.predict(images(1)), atol=1e-3, rtol=0)


def test_half_needs_cuda(files):
    with pytest.raises(UserError, match="--half: float16 inference needs a CUDA device, not cpu"):
        load_backend(files[0] / "free.pt", half=True)


def test_suffix_decides_and_folders_do_not(files, tmp_path):
    with pytest.raises(
        UserError, match=r"best\.word: no format has a name that ends like this; give one of .*\.onnx, \.pt,"
    ):
        load_backend(tmp_path / "a.pt" / "best.word")
    with pytest.raises(UserError, match="no such file"):
        load_backend(tmp_path / "best.onnx")
    assert set(FORMATS) >= {".pt", ".torchscript", ".onnx"}


@pytest.mark.parametrize(
    ("name", "kind"), [("a.onnx", "an ONNX file"), ("a.torchscript", "a TorchScript file")]
)
def test_damaged_exports_are_sentences(tmp_path, name, kind):
    for content in (b"", b"rubbish" * 100):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: is not {kind} or is damaged"):
            load_backend(tmp_path / name)
    if name.endswith("onnx"):
        with pytest.raises(UserError, match="is not an ONNX file"):
            load_backend(tmp_path / name, dnn=True)


def _with_properties(source, target, properties):
    graph = onnx.load(source)
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, properties)
    onnx.save(graph, target)


def test_file_without_names_needs_them_from_elsewhere(files, tmp_path, log):
    folder, model = files
    path = tmp_path / "bare.onnx"
    _with_properties(folder / "free.onnx", path, {})
    with pytest.raises(UserError, match=r"bare\.onnx: carries no class names.*give --data"):
        load_backend(path)
    backend = load_backend(path, names=["a", "b"])
    assert backend.names == {0: "a", 1: "b"}
    assert "bare.onnx: carries no class names, so those of --data are used" in log.text
    log.clear()
    load_backend(folder / "free.onnx", names=["a", "b"])
    assert not log.records, "its own names are the ones used"
    assert backend.rect_ok, "the graph's own axes say so"
    assert backend.predict(images(1)).shape[-1] == 7
    with pytest.raises(UserError, match="gives 2 classes, but there are 3 names"):
        load_backend(path, names=["a", "b", "c"]).predict(images(1))


@pytest.mark.parametrize("dnn", [False, True])
def test_a_fixed_size_is_the_graphs_whatever_the_metadata_say(files, tmp_path, dnn):
    """Official files of a fixed size do not say that they have one."""
    folder, model = files
    graph = onnx.load(folder / "free.onnx")
    for dim, value in zip(graph.graph.input[0].type.tensor_type.shape.dim, (1, 3, 64, 64)):
        dim.dim_value = value
    onnx.save(graph, tmp_path / "fixed.onnx")
    path = tmp_path / "official.onnx"
    _with_properties(tmp_path / "fixed.onnx", path, {"stride": "8", "names": "{0: 'a', 1: 'b'}"})
    backend = load_backend(path, dnn=dnn)
    assert not backend.rect_ok
    with pytest.raises(UserError, match="64x64"):
        backend.predict(torch.zeros(1, 3, 32, 64))


def test_channels_are_the_graphs_too_and_images_have_three_or_one(tmp_path):
    tiny(tmp_path / "four.pt", ch=4, mean=None, std=None)
    export.run(weights=str(tmp_path / "four.pt"), include=["onnx"], imgsz=[64])
    _with_properties(tmp_path / "four.onnx", tmp_path / "bare.onnx", {"names": "{0: 'a', 1: 'b'}"})
    for name in ("four.pt", "four.onnx", "bare.onnx"):
        with pytest.raises(UserError, match=rf"{name}: takes 4 channels; images have 3 .RGB. or 1"):
            backend = load_backend(tmp_path / name)
            check_channels(backend.path, backend.ch)


@pytest.mark.parametrize("stride", ["0", "-8", "Infinity", "8.5", "1" + "0" * 400])
def test_strides_that_no_network_has_are_refused(files, tmp_path, stride):
    path = tmp_path / "odd.onnx"
    _with_properties(files[0] / "free.onnx", path, {"stride": stride, "names": "{0: 'a', 1: 'b'}"})
    with pytest.raises(UserError, match=r"odd\.onnx: its metadata cannot be read"):
        load_backend(path)


def test_metadata_of_official_files_is_read(files, tmp_path):
    """They hold two entries and no more."""
    path = tmp_path / "official.onnx"
    _with_properties(files[0] / "free.onnx", path, {"stride": "8", "names": "{0: 'it\\'s', 1: 'b'}"})
    backend = load_backend(path)
    assert backend.names == {0: "it's", 1: "b"}
    assert backend.stride == 8


class Foreign(torch.nn.Module):
    """A network of another kind: its output (N, 4 + classes, places) has the layout of YOLOv8."""

    def forward(self, images):
        return images.flatten(2)[:, :1].expand(-1, 6, -1)


def foreign_files(folder):
    """The network in three formats, with the metadata of YOLOv5's own files."""
    network, example = Foreign(), torch.rand(1, 3, 16, 16)
    names = {"stride": 8, "names": {0: "a", 1: "b"}}
    script = torch.jit.trace(network, example)
    script.save(str(folder / "a.torchscript"), _extra_files={"config.txt": json.dumps(names)})
    yield folder / "a.torchscript"
    torch.onnx.export(script, (example,), str(folder / "a.onnx"), dynamo=False, input_names=["images"])
    _with_properties(folder / "a.onnx", folder / "a.onnx", {key: repr(value) for key, value in names.items()})
    yield folder / "a.onnx"
    openvino = pytest.importorskip("openvino", reason="openvino is optional")
    openvino.save_model(openvino.convert_model(str(folder / "a.onnx")), folder / "a.xml")
    (folder / "a.yaml").write_text("stride: 8\nnames: [a, b]\n")
    yield folder / "a.xml"


@pytest.mark.filterwarnings("ignore")  # about tracing
def test_networks_of_other_kinds_are_refused_as_what_they_are(tmp_path):
    for path in foreign_files(tmp_path):
        backend = load_backend(path)
        with pytest.raises(UserError, match=r"output .1, 6, 256. is that of a YOLOv8 or YOLO11 head"):
            backend.warmup((1, 3, 16, 16))
    with pytest.raises(UserError, match=r"a\.onnx: its output .1, 6, 256. is that of a YOLOv8"):
        load_backend(tmp_path / "a.onnx", dnn=True).predict(torch.rand(1, 3, 16, 16))


def test_later_schema_and_other_task_are_refused(files, tmp_path):
    path = tmp_path / "later.onnx"
    names = {"names": json.dumps({"0": "a", "1": "b"})}
    _with_properties(files[0] / "free.onnx", path, {**names, "schema": str(SCHEMA + 1)})
    with pytest.raises(
        UserError, match=rf"later version \(schema {SCHEMA + 1}, this version reads up to {SCHEMA}\)"
    ):
        load_backend(path)
    _with_properties(files[0] / "free.onnx", path, {**names, "task": "segment"})
    with pytest.raises(UserError, match="exported for the task 'segment'"):
        load_backend(path)
    _with_properties(files[0] / "free.onnx", path, {**names, "stride": "wide"})
    with pytest.raises(UserError, match="its metadata cannot be read"):
        load_backend(path)


def test_file_traced_elsewhere_is_refused(files, tmp_path):
    script = torch.jit.load(str(files[0] / "free.torchscript"))
    metadata = Metadata(NAMES, 8, (64, 96), 1, device="cuda").entries()
    script.save(str(tmp_path / "gpu.torchscript"), _extra_files={"config.txt": json.dumps(metadata)})
    with pytest.raises(UserError, match="was exported for cuda and cannot run on cpu"):
        load_backend(tmp_path / "gpu.torchscript")


def test_one_channel_files_take_colour_images(tmp_path):
    model = tiny(tmp_path / "grey.pt", ch=1, mean=None, std=None)
    export.run(weights=str(tmp_path / "grey.pt"), include=["onnx"], imgsz=[64])
    batch = images(1, 64, 64)
    for name in ("grey.pt", "grey.onnx"):
        found = load_backend(tmp_path / name).predict(batch)
        torch.testing.assert_close(found, reference(model, batch), atol=1e-3, rtol=0)


def test_result_may_be_changed_in_place(files):
    output = load_backend(files[0] / "free.pt").predict(images(1))
    output[..., 5:] *= output[..., 4:5]
    assert not output.requires_grad
