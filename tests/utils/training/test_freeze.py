"""Frozen rows: what --freeze takes, what they compute, what is refused."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_set import TinyRows
from utils.errors import UserError
from utils.training.freeze import FrozenLayers


def test_frozen_rows_stand_still() -> None:
    model = TinyRows()
    frozen = FrozenLayers(model, [1])
    frozen.train_rest()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.model[1](model.model[0](torch.randn(2, 3, 9, 9))).sum().backward()
    assert model.model[0][0].weight.grad is None and model.model[1][0].weight.grad is not None
    after = model.state_dict()
    assert torch.equal(before["model.0.1.running_mean"], after["model.0.1.running_mean"])
    assert not torch.equal(before["model.1.1.running_mean"], after["model.1.1.running_mean"])


def test_nothing_of_frozen_rows_is_dropped_at_random() -> None:
    model = TinyRows()
    model.model[1].append(torch.nn.Dropout(0.5))
    frozen = FrozenLayers(model, [0, 1])
    frozen.train_rest()
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(model.model[1](model.model[0](x)), model.eval().model[1](model.model[0](x)))
    assert str(frozen).startswith("frozen: 2 rows, ")


def test_a_frozen_output_still_gives_maps_to_learn_from() -> None:
    model = TinyRows()
    last = len(model.model) - 1
    frozen = FrozenLayers(model, [0, last])
    frozen.train_rest()
    assert [module.training for module in model.model][:: max(last, 1)] == [False, True]


def test_freeze_says_what_it_takes() -> None:
    for spec in (["neck"], ["backbone", "head"]):
        with pytest.raises(
            UserError, match=r"--freeze (neck|head): is no row; give row numbers, or backbone"
        ):
            FrozenLayers(TinyRows(), spec)


@pytest.mark.parametrize(("spec", "numbers"), [([0], []), ([2], [0, 1]), ([0, 3], [0, 3])])
def test_freeze_takes_a_count_or_rows(spec: list[int], numbers: list[int]) -> None:
    assert FrozenLayers(TinyRows(), spec).numbers == numbers


@pytest.mark.parametrize("spec", [[5], [-1], [0, 4], [4]])
def test_freeze_refuses_what_is_not_there(spec: list[int]) -> None:
    with pytest.raises(UserError, match="--freeze"):
        FrozenLayers(TinyRows(), spec)
