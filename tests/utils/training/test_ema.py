"""The average of weights: what it follows, and shared parameters once."""

from __future__ import annotations

import math

import torch
from torch import nn

from tests.tiny_set import TinyRows
from utils.training.ema import ModelEMA


def test_a_shared_parameter_is_averaged_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    ema = ModelEMA(model, decay=0.5, tau=1e-6)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1
    ema.update()
    torch.testing.assert_close(ema.model[1].weight, start + 0.5)


def test_average_follows_weights_statistics_and_anchors() -> None:
    torch.manual_seed(0)
    model = TinyRows()
    ema = ModelEMA(model)
    keys = ("model.0.0.weight", "model.0.1.running_var", "anchors")
    average = {k: model.state_dict()[k].clone() for k in keys}
    for n in (1, 2, 3):
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value.add_(n)
        ema.update()
        decay = 0.9999 * (1 - math.exp(-n / 2000))
        average = {k: decay * average[k] + (1 - decay) * model.state_dict()[k] for k in keys}
    for key in keys:
        assert torch.allclose(ema.model.state_dict()[key], average[key], rtol=1e-5)
    assert not any(p.requires_grad for p in ema.model.parameters()) and not ema.model.training
