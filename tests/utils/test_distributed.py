"""utils/distributed.py in one process; tests/test_train.py starts two."""

import torch
from tiny_set import TINY_MODEL
from torch import nn

from models.yolo import DetectionModel
from utils.distributed import idle_parameters


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
