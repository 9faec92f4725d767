"""Use whole networks of other libraries as one row that gives several maps.

    [-1, 1, Timm, [mobilenetv4_conv_small]]     # 0: a list of maps at strides 8, 16, 32
    [0, 1, Index, [2]]                          # 1: the map at stride 32

Channels and strides are read from the network itself. Nothing is downloaded to build one: weights come by
`train.py --backbone-weights imagenet`. `--cfg timm:NAME` and `--cfg torchvision:NAME` write such a YAML.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.timm_torchvision import import_timm, timm_network, torchvision_weights
from models.registry import Arguments, register_block
from utils.device import seeded
from utils.errors import UserError, first_line
from utils.files import YamlMapping

STRIDES = (8, 16, 32)
_PROBE = 128  # pixels per side of the image a network's strides are read with
_ODD = (64, 96)  # the smallest of training, and a side that only networks of any size take
_NO_MAPS = (RuntimeError, AttributeError, AssertionError, ValueError, TypeError, LookupError)
_MAX_WIDTH = (128, 256, 512)  # of a written neck, per level: YOLOv5s's


@register_block(channels="in", many=True, reference="timm")
class Timm(nn.Module):
    """Give the maps of a network of timm, without its classifier.

    Args:
        c1: channels of the image. name: as timm knows it, with or without a weights' tag.
        strides: of the maps to give, each the last one of its stride.

    Raises:
        UserError: no such network, none of those strides, or one that does not take images of any size.
    """

    def __init__(self, c1: int, name: str, strides: tuple[int, ...] = STRIDES) -> None:
        super().__init__()
        self.strides = tuple(strides)
        options, shapes = _usable(name, c1, self.strides)
        self.net = timm_network(name, **dict(options))
        self.channels_last = "NHWC" in str(getattr(self.net, "output_fmt", ""))
        sizes = [shape[:2] if self.channels_last else shape[1:] for shape in shapes]
        # Networks that pad to patches of their own, or not at all, give maps a cell larger or smaller.
        self.resizes = sizes != [(_ODD[0] // s, _ODD[1] // s) for s in self.strides]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, c1, H, W) to a list of (N, Ci, H/si, W/si)."""
        maps = list(self.net(x))
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        if self.resizes:
            sizes = [(x.shape[2] // s, x.shape[3] // s) for s in self.strides]
            maps = [F.interpolate(m, size, mode="bilinear") for m, size in zip(maps, sizes)]
        return maps


@lru_cache(maxsize=32)  # a detector builds its rows three times: to plan, to check, to have
def _usable(
    name: str, c1: int, strides: tuple[int, ...]
) -> tuple[tuple[tuple[str, Any], ...], list[tuple[int, ...]]]:  # Any: values as in `Arguments`
    """Return timm's options for maps of any image size, and the maps' shapes.

    The shapes are those for an image of _ODD pixels.

    Raises:
        UserError: there are no such maps, or it takes images of one size, or of few, whatever it is told.
    """
    label, why = f"timm/{name}", None
    wanted: Arguments = {"pretrained": False, "in_chans": c1, "features_only": True}
    try:
        with torch.device("meta"):
            info: Any = timm_network(name, **wanted).feature_info  # Any: timm's FeatureInfo
        picked = _last_of_each(label, info.reduction(), strides)
        wanted["out_indices"] = tuple(info.out_indices[i] for i in picked)
    except _NO_MAPS as error:
        raise UserError(f"{label}: gives no feature maps ({first_line(error)})") from None
    for freed in ({}, {"strict_img_size": False}):
        options = wanted | freed
        try:
            try:
                maps = _maps(name, options, c1, "meta")
            except RuntimeError as error:
                if "meta" not in str(error):
                    raise
                with seeded(0):  # the network asks for a tensor's values while it runs
                    maps = _maps(name, options, c1, "cpu")
            return tuple(options.items()), [tuple(m.shape[1:]) for m in maps]
        except _NO_MAPS as error:
            why = why or first_line(error)
    raise UserError(_of_some_sizes(label, why, "mobilenetv4_conv_small"))


def _maps(name: str, options: Arguments, c1: int, device: str) -> list[Tensor]:
    """Return a network's maps of an image of _ODD pixels."""
    with torch.device(device), torch.no_grad():
        return timm_network(name, **options).eval()(torch.zeros(1, c1, *_ODD))


@register_block(channels="in", many=True, reference="torchvision")
class TorchVision(nn.Module):
    """Give the maps of a classifier of torchvision, cut after its last map.

    Args:
        c1: channels of the image, 3. name: as torchvision knows it.
        maps: strides (the last stage of each is given) or names of layers, such as features.13.
    """

    def __init__(self, c1: int, name: str, maps: tuple[int | str, ...] = STRIDES) -> None:
        super().__init__()
        torchvision_weights(name)  # refuses what torchvision does not have
        from torchvision.models import get_model
        from torchvision.models.feature_extraction import create_feature_extractor

        if c1 != 3:
            raise UserError(f"torchvision/{name}: takes images of 3 channels, not {c1}")
        with torch.device("cpu"):
            network = get_model(name, weights=None)
            named = [(m, False) for m in maps if isinstance(m, str)] or _stage_nodes(name, network, maps)
            nodes, self.channels_last = zip(*named)
            try:
                self.net = create_feature_extractor(
                    network, return_nodes={n: str(i) for i, n in enumerate(nodes)}
                )
            except (ValueError, RuntimeError, TypeError) as error:
                raise UserError(f"torchvision/{name}: gives no feature maps ({first_line(error)})") from None
        device = torch.get_default_device()
        if device.type == "meta":
            self.net.to(device)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, 3, H, W) to a list of (N, Ci, H/si, W/si)."""
        found = self.net(x)
        maps = [found[str(i)] for i in range(len(found))]
        return [
            m.permute(0, 3, 1, 2).contiguous() if last else m for m, last in zip(maps, self.channels_last)
        ]


def _check_index(args: Arguments, channels: list[int]) -> str | None:
    """Check that the list has such a map."""
    if not 0 <= args["i"] < len(channels):
        return f"i is {args['i']} but there are {len(channels)} maps, 0 to {len(channels) - 1}"
    return None


@register_block(channels="same", picks=True, check=_check_index)
class Index(nn.Module):
    """Take one map of a list. Example: `[0, 1, Index, [2]]`."""

    def __init__(self, i: int) -> None:
        super().__init__()
        self.i = i

    def forward(self, x: list[Tensor]) -> Tensor:
        """Return the i-th map of a list."""
        return x[self.i]


def _of_some_sizes(label: str, why: str | None, other: str) -> str:
    """Return the sentence on a network that takes images of some sizes only."""
    return (
        f"{label}: does not take images of every size ({why}), which a detector needs; choose one that does, "
        f"such as {other}"
    )


def _last_of_each(label: str, found: list[int], strides: tuple[int, ...]) -> list[int]:
    """Return the positions of the last map of each stride."""
    absent = [s for s in strides if s not in found]
    if absent:
        has = f"strides {', '.join(map(str, found))}" if found else "no whole strides"
        needs = ", ".join(map(str, strides))
        raise UserError(f"{label}: its maps have {has}, none {absent[0]}; a detector's neck needs {needs}")
    return [max(i for i, stride in enumerate(found) if stride == wanted) for wanted in strides]


def _stages(network: nn.Module, every: bool) -> list[tuple[str, nn.Module]]:
    """Return a classifier's stages.

    They are its children; those of `features`, or of every Sequential, are taken one by one.
    """
    stages = []
    for name, child in network.named_children():
        if isinstance(child, nn.Sequential) and (every or name == "features"):
            stages += [(f"{name}.{inner}", stage) for inner, stage in child.named_children()]
        else:
            stages.append((name, child))
    return stages


# Any: strides alone, which the type of `maps` does not say.
def _stage_nodes(name: str, network: nn.Module, strides: tuple[Any, ...]) -> list[tuple[str, bool]]:
    """Return the last stage of each stride, and whether its channels are the last axis.

    Raises:
        UserError: it does not take images of every size, or has no stage of one of the strides.
    """
    for every in (False, True):
        found = _stage_strides(name, network, _stages(network, every))
        if {stride for stride, _ in found.values()} >= set(strides):
            break
    names, seen = list(found), list(found.values())
    picked = _last_of_each(f"torchvision/{name}", [stride for stride, _ in seen], tuple(strides))
    return [(names[i], seen[i][1]) for i in picked]


def _stage_strides(
    name: str, network: nn.Module, stages: list[tuple[str, nn.Module]]
) -> OrderedDict[str, tuple[int, bool]]:
    """Return each stage's stride, and whether its channels are its last axis."""
    height, width = _PROBE, _PROBE * 3 // 2  # no square, which would not show the axes
    found: OrderedDict[str, tuple[int, bool]] = OrderedDict()
    handles = []
    for stage, module in stages:

        def note(module: nn.Module, args: tuple[object, ...], result: object, stage: str = stage) -> None:
            if not isinstance(result, Tensor) or result.ndim != 4:
                return
            for last, (h, w) in ((False, result.shape[2:]), (True, result.shape[1:3])):
                if h > 1 and height % h == 0 and height * w == width * h:
                    found[stage] = (height // h, last)
                    return

        handles.append(module.register_forward_hook(note))
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, height, width))
    except _NO_MAPS as error:
        raise UserError(_of_some_sizes(f"torchvision/{name}", first_line(error), "resnet18")) from None
    finally:
        for handle in handles:
            handle.remove()
    network.train()
    return found


def is_named(text: object) -> bool:
    """Return whether a text names a network of another library, not a file."""
    return str(text).startswith(("timm:", "torchvision:"))


def named_config(text: str) -> YamlMapping | None:
    """Return the YAML that `timm:NAME` or `torchvision:NAME` means, else None.

    The neck is YOLOv5's, as wide as the maps allow and never wider than YOLOv5s's.
    """
    if not is_named(text):
        return None
    source, _, name = str(text).partition(":")
    blocks = {"timm": Timm, "torchvision": TorchVision}
    mean, std = _statistics(source, name)
    with seeded(0):
        layer = blocks[source](3, name).eval()
    channels = _channels(layer)
    widths = [
        max(8, round(min(c if i < 2 else c / 2, most) / 8) * 8)
        for i, (c, most) in enumerate(zip(channels, _MAX_WIDTH))
    ]
    return _neck(type(layer).__name__, name, widths) | {
        "pretrained": f"{source}/{name}",
        "mean": [float(v) for v in mean],
        "std": [float(v) for v in std],
    }


def _channels(layer: nn.Module) -> list[int]:
    """Return the channels of a wrapper's maps."""
    with torch.no_grad():
        return [m.shape[1] for m in layer(torch.zeros(1, 3, _PROBE, _PROBE))]


def _statistics(source: str, name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of the input that weights were trained with."""
    if source == "torchvision":
        rules = torchvision_weights(name).transforms()
        return rules.mean, rules.std
    timm = import_timm()
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:
        timm_network(name, pretrained=False)  # says that there is none
    return cfg.mean, cfg.std


def _neck(block: str, name: str, widths: list[int]) -> YamlMapping:
    """Return YOLOv5's PAN over a wrapper's three maps.

    The anchors are YOLOv5's for COCO.
    """
    p3, p4, p5 = widths
    up = [-1, 1, "nn.Upsample", ["None", 2, "nearest"]]
    return {
        "nc": 80,
        "depth_multiple": 0.33,  # one repeat of each C3, as in YOLOv5n and YOLOv5s
        "width_multiple": 1.0,
        "anchors": [
            [10, 13, 16, 30, 33, 23],
            [30, 61, 62, 45, 59, 119],
            [116, 90, 156, 198, 373, 326],
        ],
        "backbone": [
            [-1, 1, block, [name]],
            [0, 1, "Index", [0]],
            [0, 1, "Index", [1]],
            [0, 1, "Index", [2]],
        ],
        "head": [
            [-1, 1, "SPPF", [p5, 5]],
            [-1, 1, "Conv", [p4, 1, 1]],
            up,
            [[-1, 2], 1, "Concat", [1]],
            [-1, 3, "C3", [p4, False]],
            [-1, 1, "Conv", [p3, 1, 1]],
            up,
            [[-1, 1], 1, "Concat", [1]],
            [-1, 3, "C3", [p3, False]],
            [-1, 1, "Conv", [p3, 3, 2]],
            [[-1, 9], 1, "Concat", [1]],
            [-1, 3, "C3", [p4, False]],
            [-1, 1, "Conv", [p4, 3, 2]],
            [[-1, 5], 1, "Concat", [1]],
            [-1, 3, "C3", [p5, False]],
            [[12, 15, 18], 1, "Detect", ["nc", "anchors"]],
        ],
    }
