"""Activations by name: every one that a YAML may use, its arguments, and the default of a model."""

import pytest
import torch
from torch import nn

from models.layers.activations import ACTIVATIONS, activation_factory, default_activation, make_activation


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_name_makes_its_module_and_keeps_the_shape(name):
    module = activation_factory(name)()
    assert type(module) is ACTIVATIONS[name]
    x = torch.linspace(-3, 3, 12).view(1, 4, 1, 3)
    assert module(x.clone()).shape == x.shape


def test_arguments_and_prefixes_are_read_and_nothing_is_run():
    assert activation_factory("nn.LeakyReLU(0.1)")().negative_slope == 0.1
    assert isinstance(activation_factory("nn.ReLU6()")(), nn.ReLU6)
    for text in ("__import__('os')", "Conv2d", "LeakyReLU(open('x'))"):
        with pytest.raises(ValueError):
            activation_factory(text)


def test_the_default_is_that_of_the_model_being_built():
    assert isinstance(make_activation(True), nn.SiLU)
    with default_activation("ReLU6"):
        assert isinstance(make_activation(True), nn.ReLU6)
        assert isinstance(make_activation("Hardswish"), nn.Hardswish)
    assert isinstance(make_activation(True), nn.SiLU)
    assert all(isinstance(make_activation(act), nn.Identity) for act in (False, None))
