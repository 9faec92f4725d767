"""utils/training/distributed.py in one process; tests/test_train.py starts two."""

import pytest
import torch
from torch import nn

from models.yolo import DetectionModel
from tests.tiny_set import TINY_MODEL
from utils.errors import UserError
from utils.training.distributed import idle_parameters, synchronise_norms


def test_parameters_without_a_gradient_are_found_and_the_model_is_left_as_it_was():
    model = DetectionModel(TINY_MODEL).eval()
    assert idle_parameters(model) == []
    model.model[1].idle = nn.Linear(4, 4)
    model.model[0].conv.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert idle_parameters(model) == ["model.1.idle.weight", "model.1.idle.bias"]
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(False)
    assert idle_parameters(model) == []


def test_synchronised_norms_compute_what_the_norms_did():
    images = torch.rand(2, 3, 64, 64)
    model = DetectionModel(TINY_MODEL).eval()
    wanted, names = model(images)[0], list(model.state_dict())
    synchronise_norms(model)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in model.modules()) == 4
    assert torch.equal(model(images)[0], wanted) and list(model.state_dict()) == names


def test_the_activation_inside_timms_norms_is_kept():
    timm = pytest.importorskip("timm", reason="timm, which is optional, is not installed")
    net = timm.create_model("mobilenetv3_small_050", pretrained=False, features_only=True).eval()
    images = torch.rand(1, 3, 64, 64)
    wanted = net(images)
    synchronise_norms(net)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in net.modules()) > 30
    assert all(torch.equal(a, b) for a, b in zip(net(images), wanted))


def test_a_norm_that_does_more_is_not_replaced():
    class Cube(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) ** 3

    with pytest.raises(UserError, match="--sync-bn: 1 is a Cube, which has no synchronised form"):
        synchronise_norms(nn.Sequential(nn.Conv2d(3, 4, 1), Cube(4)))
