"""The model for Python: every form of an image, sizes, NMS attributes, exported files."""

import http.server
import threading
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import detect
import export
from models.hub import BATCH
from tests.hub import folder, load, model, rgb  # noqa: F401 fixtures
from utils.errors import UserError


@pytest.mark.parametrize("name", ["wide.png", "tall.png"])
def test_figures_are_those_of_detect(folder, tmp_path, model, name):
    results = model(str(folder / name), size=128)
    whole = detect.run(
        weights=str(folder / "tiny.pt"),
        source=str(folder / name),
        imgsz=128,
        conf_thres=0.3,
        max_det=20,
        device="cpu",
        nosave=True,
        project=str(tmp_path),
    )
    expected = whole.detections[0].boxes
    assert len(expected) == 20 and len(np.unique(expected[:, 4])) > 10
    np.testing.assert_allclose(results.xyxy[0][:, 4:].numpy(), expected[:, 4:], atol=1e-6)
    assert (
        np.abs(results.xyxy[0][:, :4].numpy() - expected[:, :4]).max() <= 0.501
    )  # detect gives whole pixels


def test_every_form_of_an_image_gives_the_same(folder, model):
    path = folder / "wide.png"
    array = rgb(path)
    reference = model(path, size=128)
    tensor = torch.from_numpy(array.transpose(2, 0, 1).copy())
    with Image.open(path) as picture:
        forms = [str(path), picture, array, array.transpose(2, 0, 1), array / 255.0, tensor, tensor / 255]
        for form in forms:
            results = model(form, size=128)
            assert torch.equal(results.xyxy[0], reference.xyxy[0]), type(form)
    assert results.files == ["image0.jpg"] and reference.files == ["wide.png"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensors_of_half_the_bits_are_images(folder, model, dtype):
    tensor = (torch.from_numpy(rgb(folder / "wide.png").transpose(2, 0, 1).copy()) / 255).to(dtype)
    assert torch.equal(model(tensor, size=128).xyxy[0], model(tensor.float(), size=128).xyxy[0])


def test_networks_of_other_channels_take_tensors_only():
    four = load("yolov5n", pretrained=False, classes=2, channels=4)
    with pytest.raises(UserError, match=r"takes 4 channels; images have 3 .* pass a tensor \(N, 4,"):
        four(np.zeros((32, 32, 3), np.uint8), size=64)
    with pytest.raises(UserError, match=r"it must be \(N, 4, height, width\)"):
        four(torch.zeros(1, 3, 64, 64))
    assert four(torch.zeros(1, 4, 64, 64)).shape == (1, 252, 7)


def test_floats_up_to_255_are_what_they_look_like(folder, model):
    """As YOLOv5 takes them; a value just above 1 is an overshoot and no reason to see a black picture."""
    array = rgb(folder / "wide.png")
    reference = model(array, size=128)
    assert torch.equal(model(array.astype(np.float32), size=128).xyxy[0], reference.xyxy[0])
    overshoot = array / 255.0
    overshoot[0, 0] = 1.02
    array[0, 0] = 255
    assert torch.equal(model(overshoot, size=128).xyxy[0], model(array, size=128).xyxy[0])


def test_batch_of_different_sizes_shares_one_shape(folder, model):
    results = model([folder / "wide.png", rgb(folder / "tall.png")], size=128)
    assert results.s == (2, 3, 128, 128) and len(results) == 2
    assert [im.shape for im in results.ims] == [(75, 130, 3), (90, 60, 3)]
    for image, det in zip(results.ims, results.xyxy):
        limit = torch.tensor([image.shape[1], image.shape[0]] * 2)
        assert len(det) and (det[:, :4] >= 0).all() and (det[:, :4] <= limit).all()
    one, two = results.tolist()
    assert torch.equal(one.xyxy[0], results.xyxy[0]) and two.files == ["image1.jpg"]


def test_a_long_list_is_run_in_batches_and_gives_what_each_image_gives(folder, model, monkeypatch):
    """The network never sees more than `BATCH` images at once, so its memory does not grow with the list."""
    shapes = []
    run = type(model.backend)._run
    spy = lambda self, images, augment: shapes.append(tuple(images.shape)) or run(self, images, augment)  # noqa: E731
    monkeypatch.setattr(type(model.backend), "_run", spy)
    array = rgb(folder / "wide.png")
    images = [np.roll(array, 3 * i, axis=1) for i in range(64)]
    results = model(images, size=128)
    assert shapes == [(BATCH, 3, 80, 128)] * (64 // BATCH)
    assert results.s == (64, 3, 80, 128) and len(results) == 64 and results.files[63] == "image63.jpg"
    assert all(ms > 0 for ms in results.t)
    for i in range(0, 64, 7):
        torch.testing.assert_close(results.xyxy[i], model(images[i], size=128).xyxy[0], atol=1e-3, rtol=0)
    assert not torch.equal(results.xyxy[0], results.xyxy[9])


def test_attributes_that_scripts_for_yolov5_read(folder, model):
    results = model(folder / "wide.png", size=128)
    assert model.pt and not model.fp16 and model.half().fp16
    assert results.imgs is results.ims
    drawn = results.render()
    assert results.imgs is drawn
    assert type(model).__module__ == "models.common"  # SAHI takes no other


def test_batch_tensor_goes_straight_through(folder, model):
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    output = model(images)
    assert output.shape == (2, 2 * (8 * 12 + 4 * 6), 8)
    torch.testing.assert_close(output, model.model(images)[0])
    for shape in ((1, 3, 60, 96), (1, 4, 64, 64), (1, 3, 0, 64)):
        with pytest.raises(UserError, match="multiples of 16"):
            model(torch.zeros(shape))


def test_attributes_reach_nms(folder, model):
    count = lambda: len(model(folder / "wide.png", size=128).xyxy[0])  # noqa: E731
    assert count() == 20
    model.max_det = 3
    assert count() == 3
    model.max_det, model.classes = 300, [1]
    assert set(model(folder / "wide.png", size=128).xyxy[0][:, 5].tolist()) == {1.0}
    model.classes, few = None, count()
    model.multi_label = True
    assert count() > few
    model.classes = 2
    assert set(model(folder / "wide.png", size=128).xyxy[0][:, 5].tolist()) == {2.0}
    model.classes = [3]
    with pytest.raises(UserError, match="model.classes 3: the model has 3 classes"):
        model(folder / "wide.png", size=128)
    model.classes = None
    model.multi_label, model.iou = False, 0.99
    assert count() > few
    model.conf = 1.0
    assert count() == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("conf", "a"), ("conf", None), ("iou", [0.4]), ("max_det", 2.5), ("max_det", "9")),
        *(("classes", "1"), ("classes", [0.5]), ("classes", 1.0)),
    ],
)
def test_an_attribute_of_another_kind_is_a_sentence(folder, model, name, value):
    setattr(model, name, value)
    with pytest.raises(UserError, match=rf"^model\.{name} is .* where .* is expected$"):
        model(folder / "wide.png", size=128)


def test_attributes_may_be_numbers_of_numpy_and_torch(folder, model):
    model.conf, model.max_det, model.classes = np.float32(0.1), np.int64(2), torch.tensor([0, 1])
    assert len(model(folder / "wide.png", size=128).xyxy[0]) == 2


def test_size_is_any_whole_number_or_two(folder, model):
    shapes = [model(folder / "wide.png", size=size).s for size in (128, np.int64(128), [128, 128])]
    assert shapes == [(1, 3, 80, 128)] * 3
    assert model(folder / "wide.png").s == (1, 3, 384, 640)
    for size in ("128", 128.5, (1, 2, 3)):
        with pytest.raises(UserError, match="must be one side or height and width, whole numbers"):
            model(folder / "wide.png", size=size)
    with pytest.raises(UserError, match="leave size out"):
        model(torch.zeros(1, 3, 64, 64), size=128)


def test_what_an_exported_file_cannot_do_is_refused(folder):
    (result,) = export.run(weights=str(folder / "tiny.pt"), include=["torchscript"], imgsz=[64, 96])
    fixed = load("custom", path=str(result.path))
    for size in (None, 96, (64, 96), [64, 96]):
        assert fixed(folder / "wide.png", size=size).s == (1, 3, 64, 96)
    for size in (128, (96, 64), "96"):
        with pytest.raises(UserError, match=r"takes images of 64x96 \(height x width\) only"):
            fixed(folder / "wide.png", size=size)
    fixed.amp = True
    for images in (folder / "wide.png", torch.zeros(1, 3, 64, 96)):
        with pytest.raises(UserError, match="leave model.amp False"):
            fixed(images)


def test_file_with_nms_inside_is_called_as_any_other(folder, model):
    options = {"weights": str(folder / "tiny.pt"), "imgsz": [128], "conf_thres": 0.3, "max_det": 20}
    (result,) = export.run(include=["torchscript"], nms=True, dynamic=True, **options)
    inside = load("custom", path=str(result.path))
    inside.conf, inside.max_det = 0.3, 20
    for name in ("wide.png", "tall.png"):
        expected = model(folder / name, size=128).xyxy[0]
        torch.testing.assert_close(inside(folder / name, size=128).xyxy[0], expected, atol=1e-3, rtol=1e-4)
    inside.multi_label = True
    with pytest.raises(UserError, match="its NMS gives a box one class"):
        inside(folder / "wide.png", size=128)


@pytest.mark.parametrize(
    ("item", "word"),
    [
        (np.zeros((6, 5, 7), np.uint8), "shape"),
        (np.zeros((4, 5, 3), np.int64), "int64"),
        (3, "int"),
        ([], "no image"),
        ("no/such.jpg", "such.jpg"),
    ],
)
def test_what_is_no_image_is_refused(model, item, word):
    with pytest.raises(UserError, match=word):
        model(item)


def test_it_is_a_module_that_detects_only(folder, model):
    assert model.to("cpu") is model and model.eval() is model and model.half().backend.half
    assert not model.float().backend.half
    with pytest.raises(UserError, match="autoshape=False"):
        model.train()
    with pytest.raises(UserError, match="amp"):
        model.to(torch.bfloat16)


def test_amp_is_close(folder, model):
    plain = model(folder / "wide.png", size=128)
    model.amp = True
    fast = model(folder / "wide.png", size=128)
    assert len(fast.xyxy[0]) == len(plain.xyxy[0])
    assert abs(float(fast.xyxy[0][0, 4] - plain.xyxy[0][0, 4])) < 0.02


def test_address_of_an_image(folder, model):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        results = model(f"http://127.0.0.1:{server.server_address[1]}/tall.png", size=128)
        server.shutdown()
    assert torch.equal(results.xyxy[0], model(folder / "tall.png", size=128).xyxy[0])
    assert results.files == ["tall.png"]


def test_tiles_are_set_by_attributes_and_are_those_of_detect(folder, tmp_path, model):
    model.tile, model.overlap, model.max_det = 64, 0.5, 300
    results = model(folder / "wide.png", size=64)
    found = detect.run(
        weights=str(folder / "tiny.pt"),
        source=str(folder / "wide.png"),
        imgsz=64,
        conf_thres=0.3,
        max_det=300,
        tile=True,
        overlap=0.5,
        device="cpu",
        nosave=True,
        project=str(tmp_path),
    )
    expected = found.detections[0].boxes
    assert len(expected) > 20 and results.s == (1, 3, 64, 64)
    np.testing.assert_allclose(results.xyxy[0][:, 4:].numpy(), expected[:, 4:], atol=1e-6)
    assert np.abs(results.xyxy[0][:, :4].numpy() - expected[:, :4]).max() <= 0.501
    model.tiles_only = True
    several = model([folder / "wide.png", folder / "tall.png"], size=64)
    assert len(several.xyxy) == 2 and several.s == (2, 3, 64, 64)
    for name, value, message in (
        ("overlap", 1, "model.overlap 1.0: must lie between 0 and 0.9"),
        ("tile", 1.5, "model.tile is 1.5 where True, False or a whole number of pixels is expected"),
        ("tile", 3, "model.tile 3: must be at least 32 pixels"),
    ):
        setattr(model, name, value)
        with pytest.raises(UserError, match=message):
            model(folder / "wide.png")
        setattr(model, name, {"tile": 64, "overlap": 0.5}[name])
    with pytest.raises(UserError, match="goes straight through the network and is not cut into tiles"):
        model(torch.zeros(1, 3, 64, 64))
