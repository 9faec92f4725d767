"""A user's own files: run once, their blocks registered; a file that fails is named and undone."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from models import plugins, registry
from models.plugins import load_plugins
from models.registry import lookup
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.files import ROOT, load_yaml

PLUGIN = """
import torch
from torch import nn
from models.registry import register_block


@register_block
class PluginPlain(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(c1, c2, k, s, k // 2, bias=False), nn.BatchNorm2d(c2), nn.ReLU())

    def forward(self, x):
        return self.body(x)


@register_block(name="PluginStage", repeat="inside", scale_width=False)
class Stage(nn.Module):
    def __init__(self, c1: int, c2: int, n: int = 1):
        super().__init__()
        self.n = n
        self.conv = nn.Conv2d(c1, c2, 1)

    def forward(self, x):
        if x.sum().item() != x.sum().item():  # needs real numbers: shapes alone do not do
            return x
        return self.conv(x)
"""


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch):
    kept = dict(registry.REGISTRY)
    monkeypatch.setattr(plugins, "_loaded", {})
    yield
    registry.REGISTRY.clear()
    registry.REGISTRY.update(kept)


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "my_blocks.py"
    path.write_text(PLUGIN)
    return path


def small_yaml(row):
    cfg = copy.deepcopy(load_yaml(ROOT / "models/yolov5n.yaml"))
    cfg["backbone"][2] = row
    return cfg


def test_a_plugin_block_builds_repeats_and_fuses(plugin):
    assert load_plugins([plugin]) == [str(plugin)]
    model = DetectionModel(small_yaml([-1, 9, "PluginPlain", [128, 3, 1]]), nc=2)
    assert model.rows[2].number == 3
    assert isinstance(model.model[2], nn.Sequential)
    assert model.plugins == [str(plugin)]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.fuse().modules())


def test_repeats_inside_and_unscaled_width(plugin):
    load_plugins(plugin)
    state = torch.random.get_rng_state()
    model = DetectionModel(small_yaml([-1, 9, "PluginStage", [20]]), nc=2)
    assert (model.model[2].n, model.rows[2].out_channels) == (3, 20)
    torch.random.set_rng_state(state)
    again = DetectionModel(small_yaml([-1, 9, "PluginStage", [20]]), nc=2)
    assert torch.equal(model.model[0].conv.weight, again.model[0].conv.weight)


def test_a_plugin_is_run_once(plugin):
    load_plugins([plugin, plugin])
    load_plugins([plugin])
    assert lookup("PluginPlain").source == str(plugin)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def broken(:", ["line 1", "SyntaxError"]),
        ("import torch\nimport no_such_module_at_all", ["line 2", "no_such_module_at_all"]),
        (PLUGIN.replace('name="PluginStage"', 'name="C3"'), ["C3", "taken"]),
        (PLUGIN.replace('repeat="inside"', 'repeat="around"'), ["around", "outside"]),
        (PLUGIN.replace("scale_width=False", 'scale_also=["mid"]'), ["PluginStage", "'mid'", "no parameter"]),
    ],
)
def test_a_plugin_that_fails_is_named_and_undone(tmp_path, text, words):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_plugins([path])
    assert all(word in str(error.value) for word in [str(path), *words])
    assert lookup("PluginPlain") is None
    path.write_text(PLUGIN)
    load_plugins([path])
    assert lookup("PluginPlain") is not None


def test_a_missing_plugin_is_refused(tmp_path):
    for name in ("missing.py", "notes.txt"):
        with pytest.raises(UserError, match=name):
            load_plugins([tmp_path / name])


def test_two_plugins_cannot_share_a_name(plugin, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(PLUGIN)
    load_plugins([plugin])
    with pytest.raises(UserError, match="my_blocks.py"):
        load_plugins([other])


def test_blocks_that_a_plugin_imports_stay_ours(tmp_path):
    # In a process of its own, where nothing has registered our blocks before the plug-in is run.
    path = tmp_path / "mine.py"
    path.write_text(
        "from models.common import Conv\n"
        "from models.registry import register_block\n"
        "@register_block\n"
        "class Mine(Conv):\n"
        "    pass\n"
    )
    program = (
        "from models.plugins import load_plugins\n"
        f"load_plugins({str(path)!r})\n"
        "from models.registry import REGISTRY\n"
        "print(*sorted(name for name, spec in REGISTRY.items() if spec.source))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("Mine\n", "")
