"""What int8 takes from a data set: the same images every time, as validation sees them; mAP beside mAP."""

import pytest
import torch

from models import quantiser
from models.backends import load_backend
from models.checkpoint import save_checkpoint
from models.quantiser import Quantiser
from models.yolo import DetectionModel
from tests.tiny_set import NAMES, TINY_MODEL, write_set
from utils.dataloaders import workers_beside
from utils.datasets import load_dataset
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
    batch = next(Quantiser(data, 1, weights, (1, 3, 32, 96), CPU, dynamic=True).batches())
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


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [((1, 4, 32, 32), "takes 4 channels"), ((1, 3, 32, 64), "--imgsz 32 64: mAP, .* measured on squares")],
)
def test_what_cannot_be_measured_is_refused_before_any_work(weights, data, shape, sentence):
    with pytest.raises(UserError, match=sentence):
        Quantiser(data, 1, weights, shape, CPU)


def test_a_free_size_is_measured_on_rectangles(weights, data):
    assert Quantiser(data, 1, weights, (1, 3, 32, 64), CPU, dynamic=True).accuracy(weights).map >= 0
