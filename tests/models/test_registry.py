"""Registration: what a block says of itself, and what is refused."""

import pytest
from torch import nn

import models.common  # noqa: F401 registers our blocks
from models import registry
from models.registry import lookup, register_block
from utils.errors import UserError


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))


def test_our_blocks_come_from_no_plugin():
    assert lookup("C3").source is None
    assert lookup("torch.nn.Upsample") is lookup("nn.Upsample") is not None


def test_a_registered_class_stays_itself():
    class Block(nn.Module):
        pass

    assert register_block(Block, "Called") is register_block(Block) is Block
    assert register_block(name="Decorated", repeat="inside")(Block) is Block
    assert [lookup(name).cls for name in ("Called", "Block", "Decorated")] == [Block] * 3
    with pytest.raises(UserError, match="block Other: chanels is no rule; use those of channels, check"):
        register_block(Block, "Other", chanels="same")


def test_what_is_no_module_is_refused():
    with pytest.raises(UserError, match="Module"):
        register_block(dict, "NotAModule")
    with pytest.raises(UserError, match="channels"):
        register_block(nn.Tanhshrink, channels="many")
