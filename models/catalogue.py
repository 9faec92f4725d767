"""Which blocks a YAML row may name: ours and the few of torch.nn that detectors use, each with its rules."""

from __future__ import annotations

from typing import Any

from torch import nn

from models import common, wrappers
from models.activations import ACTIVATIONS
from models.head import Detect
from models.registry import register_block


def _divides(name: str, value: int, what: str, divisor: int) -> str | None:
    if value % divisor:
        return f"{what} {value} cannot be divided by {name} {divisor}"
    return None


def _check_groups(args: dict[str, Any], channels: list[int]) -> str | None:
    """A grouped convolution needs both channel numbers to be multiples of its groups."""
    groups = args.get("g", args.get("groups", 1))
    c2 = args.get("c2", args.get("out_channels"))
    return _divides("groups", channels[0], "input channels", groups) or _divides(
        "groups", c2, "output channels", groups
    )


def _check_focus(args: dict[str, Any], channels: list[int]) -> str | None:
    return _check_groups(args, [4 * channels[0]])


def _check_transformer(args: dict[str, Any], channels: list[int]) -> str | None:
    return _divides("heads", args["c2"], "output channels", args["heads"])


def _check_c3tr(args: dict[str, Any], channels: list[int]) -> str | None:
    return _divides("heads", int(args["c2"] * args["e"]), "hidden channels", 4)


def _check_expand(args: dict[str, Any], channels: list[int]) -> str | None:
    return _divides("gain squared", channels[0], "input channels", args["gain"] ** 2)


def _check_sum(args: dict[str, Any], channels: list[int]) -> str | None:
    if len(channels) != args["n"]:
        return f"n says {args['n']} maps but `from` lists {len(channels)}"
    if len(set(channels)) > 1:
        return f"maps of {', '.join(map(str, channels))} channels cannot be added; all need one number"
    return None


def _check_concat(args: dict[str, Any], channels: list[int]) -> str | None:
    if args["dimension"] != 1:
        return f"dimension {args['dimension']} is not the channels'; write [1]"
    return None


def _check_kernel(args: dict[str, Any], channels: list[int]) -> str | None:
    """A kernel whose padding keeps the size, and which leaves no pixel out."""
    if args["k"] % 2 == 0 or args["k"] < args["s"]:
        return f"kernel {args['k']} at stride {args['s']}: expected an odd kernel, at least the stride"
    return None


def _check_mbconv(args: dict[str, Any], channels: list[int]) -> str | None:
    if not 0 <= args["drop_connect_rate"] < 1:
        return f"drop_connect_rate is {args['drop_connect_rate']}, expected a share from 0 to below 1"
    return _check_kernel(args, channels)


for block in (common.Conv, common.GhostConv, common.ConvBNReLU):
    register_block(block, check=_check_groups)
for block in (
    common.Bottleneck,
    common.CrossConv,
    common.DWConv,
    common.DWConvTranspose2d,
    common.GhostBottleneck,
    common.InvertedResidual,
    common.MixConv2d,
    common.SPP,
    common.SPPF,
    common.C3SPP,
    common.Classify,
):
    register_block(block)
for block in (common.BottleneckCSP, common.C3, common.C3x, common.C3Ghost):
    register_block(block, repeat="inside")
register_block(common.C3TR, repeat="inside", check=_check_c3tr)
register_block(common.Focus, check=_check_focus)
register_block(common.TransformerBlock, check=_check_transformer)
register_block(common.Contract, channels="same")
register_block(common.Expand, channels="same", check=_check_expand)
register_block(common.Concat, channels="same", joins=True, check=_check_concat)
register_block(common.Sum, channels="same", joins=True, check=_check_sum)
# EfficientNet
register_block(common.stem)
register_block(common.MBConvBlock, check=_check_mbconv)
register_block(common.SeBlock, channels="in")
# MobileNetV3
register_block(common.MobileNetV3Conv, check=_check_groups)
register_block(common.MobileNetV3Block, check=_check_kernel)
# YOLOv7's neck
register_block(common.ELAN, repeat="inside")
register_block(common.SPPCSPC)

register_block(Detect, channels="sources", joins=True, output=True)


# Whole networks of other libraries
def _check_index(args: dict[str, Any], channels: list[int]) -> str | None:
    if not 0 <= args["i"] < len(channels):
        return f"i is {args['i']} but there are {len(channels)} maps, 0 to {len(channels) - 1}"
    return None


register_block(wrappers.Timm, channels="in", many=True, reference="timm")
register_block(wrappers.TorchVision, channels="in", many=True, reference="torchvision")
register_block(wrappers.Index, channels="same", picks=True, check=_check_index)

register_block(nn.Conv2d, "nn.Conv2d", check=_check_groups)
register_block(nn.ConvTranspose2d, "nn.ConvTranspose2d", check=_check_groups)
register_block(nn.BatchNorm2d, "nn.BatchNorm2d", channels="in")
for block in (nn.Upsample, nn.MaxPool2d, nn.AvgPool2d, nn.ZeroPad2d, nn.Identity, nn.Dropout):
    register_block(block, f"nn.{block.__name__}", channels="same")
for activation in ACTIVATIONS.values():
    if activation is not nn.Identity:
        register_block(activation, f"nn.{activation.__name__}", channels="same")
