"""What int8 takes from a data set: the same images every time, as validation sees them; mAP beside mAP."""

import shutil

import pytest
import torch

import export
from models.backends import load_backend
from models.export_checks import int8_accuracy as quantiser
from models.export_checks.int8_accuracy import Quantiser
from models.weights.checkpoint import save_checkpoint
from models.yolo import DetectionModel
from tests.tiny_set import NAMES, TINY_MODEL, write_set
from utils.dataset.config import load_dataset
from utils.dataset.loader import workers_beside
from utils.errors import UserError


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "best.pt"
    torch.manual_seed(0)
    model = DetectionModel(TINY_MODEL)
    model.names = dict(enumerate(NAMES))
    save_checkpoint(path, model, meta={})
    return path


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_set(tmp_path_factory.mktemp("set"), train=10, val=3))


def test_images_are_spread_over_the_training_list(weights, data):
    four = Quantiser(data, 4, weights, (1, 3, 64, 64), CPU)
    assert [path.rpartition("/")[2] for path in four.paths] == ["0.png", "3.png", "6.png", "9.png"]
    assert all("/train/" in path for path in four.paths)
    first, again = [torch.cat(list(four.batches())) for _ in range(2)]
    assert first.shape == (4, 3, 64, 64)
    assert torch.equal(first, again)
    assert 0 <= first.min() < first.max() <= 1
    assert len(Quantiser(data, 500, weights, (1, 3, 64, 64), CPU).paths) == 10


def test_images_keep_their_aspect_on_grey(weights, data):
    batch = next(Quantiser(data, 1, weights, (1, 3, 32, 96), CPU).batches())
    assert batch.shape == (1, 3, 32, 96)
    assert torch.all(batch[..., :32] == 114 / 255)
    assert batch[..., 32:64].std() > 0.01


def test_batches_are_filled_up(weights, data):
    batches = list(Quantiser(data, 3, weights, (2, 1, 32, 32), CPU).batches())
    assert [tuple(batch.shape) for batch in batches] == [(2, 1, 32, 32)] * 2


def test_checkpoint_against_itself_loses_nothing(weights, data):
    accuracy = Quantiser(data, 1, weights, (1, 3, 64, 64), CPU).accuracy(weights)
    assert (accuracy.map, accuracy.map50) == (accuracy.pytorch_map, accuracy.pytorch_map50)


def test_loader_has_as_many_workers_as_in_validation(weights, data, monkeypatch):
    seen = []
    build = quantiser.build_loader
    monkeypatch.setattr(
        quantiser, "build_loader", lambda *a, **k: seen.append(k["workers"]) or build(*a, **k)
    )
    quantiser.measure(load_backend(weights), load_dataset(data), (64, 64), 1)
    assert seen == [workers_beside(torch.device("cpu"), None)]


def test_what_no_image_has_is_refused(weights, data):
    with pytest.raises(UserError, match="takes 4 channels"):
        Quantiser(data, 1, weights, (1, 4, 32, 32), CPU)


def test_a_fixed_rectangle_is_measured_in_that_rectangle(weights, data, tmp_path, monkeypatch):
    """The file and the checkpoint beside it see the same images."""
    shapes = []
    original = quantiser.evaluate

    def spy(backend, loader, *args):
        shapes.append((backend.path.suffix, {tuple(batch[0].shape) for batch in loader}))
        return original(backend, loader, *args)

    monkeypatch.setattr(quantiser, "evaluate", spy)
    copy = shutil.copy(weights, tmp_path)
    (result,) = export.run(weights=str(copy), include=["onnx"], imgsz=[32, 64])
    Quantiser(data, 1, weights, (1, 3, 32, 64), CPU).accuracy(result.path)
    assert shapes == [(".onnx", {(1, 3, 32, 64)}), (".pt", {(1, 3, 32, 64)})]
