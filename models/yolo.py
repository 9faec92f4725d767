"""Build a detector from a YAML; as a script, print its layers and cost.

python models/yolo.py --cfg models/yolov5-mobilenetv2.yaml --line-profile
"""

from __future__ import annotations

import copy
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # a script's import path starts at its folder, not at ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.build.fusion import fuse_adjacent, replace_modules
from models.build.rows import Row, check_keys, read_rows
from models.build.shapes import build_layer, infer_shapes
from models.common import SameConv2d
from models.heads import Detect
from models.layers.activations import default_activation
from models.layers.timm_torchvision_rows import named_config
from models.plugins import load_plugins
from utils.cli import Options, from_keywords, guard, option, parse
from utils.device import describe, select_device
from utils.errors import UserError, shown
from utils.files import YamlMapping, find_file, load_yaml
from utils.image_size import fit_size
from utils.letterbox import to_luma
from utils.profiling import latency, layer_table, summary, table_lines

__all__ = ["DetectionModel", "Detect", "Row", "parse_model"]

LOGGER = logging.getLogger("yolo.models")

MOST_PARAMETERS = 500_000_000
"""Parameters of a network, counted before a weight takes memory; yolov5x has 87 million."""
_TTA_SCALES = (1.0, 0.83, 0.67)
_TTA_FLIPS = (False, True, False)
_TTA_PAD = 0.447  # grey of the padding, about the mean of ImageNet


def parse_model(
    cfg: YamlMapping, ch: int = 3, source: str = "model YAML", most: int = MOST_PARAMETERS
) -> tuple[nn.Sequential, list[Row]]:
    """Check a model's YAML row by row, then build its layers on torch's default device.

    Args:
        cfg: the YAML as a dict; `nc` and `anchors` must be in it.
        ch: channels of the input image.
        source: what to call it in messages.
        most: parameters that it may have.

    Returns:
        The layers and a `Row` for each.

    Raises:
        UserError: one sentence with file, section, row, what was found and what was expected.
    """
    check_keys(cfg, source)
    rows = read_rows(cfg, source)
    with default_activation(cfg.get("activation")):
        infer_shapes(rows, cfg, ch, source)
        if (total := sum(row.params for row in rows)) > most:
            raise UserError(
                f"{source}: the network has {total} parameters, expected at most {most}; lower "
                "width_multiple or the channels of its rows"
            )
        layers = nn.Sequential(*(build_layer(row) for row in rows))
    return layers, rows


class DetectionModel(nn.Module):
    """Build a detector from a YAML.

    Args:
        cfg: a model YAML (a bare name is searched under models/), its contents, or 'timm:NAME' or
            'torchvision:NAME' for that network under YOLOv5's neck.
        ch: channels of the image, unless the YAML has `ch`.
        nc, anchors: instead of the YAML's; anchors as lists per level or as a number per level.
        most: parameters that it may have.

    Attributes:
        yaml: the YAML as a dict with `ch`, `nc` and `anchors` as given; it builds the same network again.
        source: what the YAML is called in messages.
        rows: a `Row` per layer. model: the layers; their state_dict keys are YOLOv5's, 'model.N....'.
        names: class index -> name. nc, ch: classes, channels of the image.
        licence: of weights of others that it was given, such as AGPL-3.0; '' for none that is known.
        mean, std: buffers (1, ch, 1, 1) that the input is normalised with; None where the YAML has none.
        is_fused: whether `fuse` was called.

    Raises:
        UserError: the YAML cannot be built; the sentence names the row and what was expected.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        cfg: str | Path | YamlMapping,
        ch: int = 3,
        nc: int | None = None,
        anchors: Any = None,  # Any: lists, a number, an array or a tensor
        most: int = MOST_PARAMETERS,
    ) -> None:
        super().__init__()
        self.yaml, self.source = _read_config(cfg)
        self.yaml["ch"] = self.yaml.get("ch", ch)
        if nc is not None:
            self.yaml["nc"] = nc
        if anchors is not None:
            self.yaml["anchors"] = anchors.tolist() if hasattr(anchors, "tolist") else copy.deepcopy(anchors)
        self.model, self.rows = parse_model(self.yaml, self.yaml["ch"], self.source, most)
        self.ch: int = self.yaml["ch"]
        self.nc: int = self.yaml["nc"]
        self.names = {i: f"class{i}" for i in range(self.nc)}
        self.licence = ""
        self.is_fused = False
        self._kept = {s for row in self.rows for s in row.sources if s != row.index - 1}
        for key in ("mean", "std"):
            self.register_buffer(key, self._statistics(key), persistent=False)
        self._set_strides()

    def _statistics(self, key: str) -> Tensor | None:
        """Return the YAML's mean or std of the input, (1, ch, 1, 1)."""
        values = self.yaml.get(key)
        if values is None:
            return None
        numbers = isinstance(values, list | tuple) and all(
            isinstance(v, int | float) and math.isfinite(v) for v in values
        )
        if not numbers or len(values) != self.ch or (key == "std" and min(values) <= 0):
            raise UserError(
                f"{self.source}: {key}: {shown(values)}, expected {self.ch} numbers"
                f"{' above 0' if key == 'std' else ''}, one per channel of the image in 0..1"
            )
        return torch.tensor(values).float().view(1, -1, 1, 1)

    def _set_strides(self) -> None:
        """Give the head its strides, and sort its anchors by size as the strides are."""
        row = self.rows[-1]
        strides = [self.rows[s].stride for s in row.sources]
        if hasattr(self.detect, "anchors"):
            areas = [sum(w * h for w, h in zip(level[::2], level[1::2])) for level in row.args[1]]
            if (areas[-1] - areas[0]) * (strides[-1] - strides[0]) < 0:
                LOGGER.warning("%s: anchors run against the strides; their order is reversed", self.source)
                self.detect.anchors.copy_(self.detect.anchors.flip(0))
        self.detect.set_stride(strides)

    @property
    def detect(self) -> Detect:
        """Return the detection head."""
        head: Any = self.model[-1]  # Any: a plug-in's head need not be a Detect, only work like one
        return head

    @property
    def stride(self) -> Tensor:
        """Return the pixels per cell of each level, (nl,)."""
        return self.detect.stride

    @property
    def plugins(self) -> list[str]:
        """Return the plug-in files whose blocks this model uses."""
        return sorted({row.spec.source for row in self.rows if row.spec.source})

    # Any: a list of maps in training, boxes and maps in evaluation; callers know which of the two they asked.
    def forward(self, x: Tensor, augment: bool = False) -> Any:
        """Return the head's maps in training and its boxes in evaluation.

        Args:
            x: (N, ch, H, W) float RGB in 0..1, H and W multiples of the largest stride. A model of one
                channel takes RGB too and sees its luma.
            augment: test-time augmentation, in evaluation only.

        Returns:
            As `Detect.forward`; with `augment` (decoded rows of all passes, None).
        """
        return self._forward_augmented(x) if augment else self._forward_once(x)

    def _forward_once(self, x: Tensor) -> Any:  # Any: as `forward`
        """Run each layer on the results of its sources; narrow images in float32."""
        if self._is_narrow(x):
            with torch.autocast("cpu", enabled=False):
                return self._run_rows(x)
        return self._run_rows(x)

    def _is_narrow(self, x: Tensor) -> bool:
        """Return whether a CPU's bfloat16 would give wrong values for images of this width.

        oneDNN reads memory that was never written where a strided convolution's result is one pixel wide:
        docs/bf16-fault.md. Twice the largest stride of any row is wide enough for two pixels everywhere.
        """
        return torch.is_autocast_enabled("cpu") and x.shape[3] < 2 * max(row.stride for row in self.rows)

    def _run_rows(self, x: Tensor) -> Any:  # Any: as `forward`
        x = self._prepare(x)
        kept: dict[int, Tensor] = {}
        for row, layer in zip(self.rows, self.model):
            inputs = [x if s == row.index - 1 else kept[s] for s in row.sources]
            x = layer(inputs if row.spec.joins else inputs[0])
            if row.index in self._kept:
                kept[row.index] = x
        return x

    def _prepare(self, x: Tensor) -> Tensor:
        """Normalise by mean and std; one channel gets the luma of RGB."""
        if self.ch == 1 and x.shape[1] == 3:
            x = to_luma(x)
        if self.mean is not None:
            x = x - self.mean.to(x.dtype)
        if self.std is not None:
            x = x / self.std.to(x.dtype)
        return x

    def _forward_augmented(self, x: Tensor) -> tuple[Tensor, None]:
        """Join the boxes of three passes: full size, mirrored at 0.83, and 0.67.

        All are in the full image's pixels. The full pass drops its coarsest level and the smallest pass its
        finest: large objects are found better in the small image and small ones in the large. A head of one
        level keeps it in every pass.
        """
        if self.training or self.detect.export:
            raise ValueError("augment=True needs a model in eval mode that is not being exported")
        height, width = x.shape[2:]
        by_stride = self.stride.argsort().tolist()
        dropped = (by_stride[-1], None, by_stride[0]) if len(by_stride) > 1 else (None, None, None)
        passes = []
        for scale, flip, drop in zip(_TTA_SCALES, _TTA_FLIPS, dropped):
            image, (ratio_h, ratio_w) = _scaled(x.flip(3) if flip else x, scale, int(self.stride.max()))
            decoded, raws = self._forward_once(image)
            sizes = [math.prod(raw.shape[1:4]) for raw in raws]
            levels = decoded.split(sizes, 1)
            rows = torch.cat([level for i, level in enumerate(levels) if i != drop], 1)
            xywh = rows[..., :4] / rows.new_tensor([ratio_w, ratio_h, ratio_w, ratio_h])
            if flip:
                xywh = torch.cat((width - xywh[..., :1], xywh[..., 1:]), -1)
            passes.append(torch.cat((xywh, rows[..., 4:]), -1))
        return torch.cat(passes, 1), None

    def fuse(self) -> DetectionModel:
        """Fold every BatchNorm that directly follows a convolution, in place, and set eval mode."""
        self.eval()
        if not self.is_fused:
            weight = next(self.detect.parameters())
            side = int(max(row.stride for row in self.rows)) * 2
            fuse_adjacent(self, weight.new_zeros(1, self.ch, side, side))
            self.is_fused = True
        return self

    def optimise(self) -> DetectionModel:
        """Fuse, and pad kernels instead of maps, in place: for detection and export."""
        self.fuse()
        replace_modules(
            self, lambda module: module.with_padded_kernel() if isinstance(module, SameConv2d) else None
        )
        return self


def _scaled(x: Tensor, scale: float, multiple: int) -> tuple[Tensor, tuple[float, float]]:
    """Scale a batch and pad it at the right and bottom to a multiple.

    Returns:
        The batch, and the scale that whole pixels allowed (h, w).
    """
    if scale == 1.0:
        return x, (1.0, 1.0)
    height, width = x.shape[2:]
    h, w = int(height * scale), int(width * scale)
    x = F.interpolate(x, size=(h, w), mode="bilinear", align_corners=False)
    padding = (0, -w % multiple, 0, -h % multiple)
    return F.pad(x, padding, value=_TTA_PAD), (h / height, w / width)


def _read_config(cfg: str | Path | YamlMapping) -> tuple[YamlMapping, str]:
    """Return a copy of the YAML's contents, and what to call it in messages."""
    if isinstance(cfg, dict):
        return copy.deepcopy(cfg), "model configuration"
    named = named_config(str(cfg))
    if named is not None:
        return named, str(cfg)
    path = find_file(cfg, "models")
    return load_yaml(path), str(path)


@dataclass(frozen=True)
class ModelOptions(Options):
    """Build a model from its YAML and print its layers and what they cost."""

    REFUSED = {
        "--batch-size": "layers are counted and timed on one image; leave it out",
        "--test": "one YAML is built at a time; name it with --cfg",
    }

    cfg: str = option("yolov5s.yaml", help="model YAML (searched in models/) or timm:NAME")
    nc: int | None = option(None, help="classes, instead of the YAML's")
    imgsz: list[int] = option([640], flags=("--img", "--img-size"), help="pixels (h w)")
    device: str = option("cpu", type=str, help="where --profile and --line-profile measure")
    profile: bool = option(False, help="measure a forward pass and a training step")
    line_profile: bool = option(False, help="GFLOPs and milliseconds of every layer")
    plugins: list[str] = option([], metavar="FILE", help="your own .py files with blocks")


def parse_opt(argv: Sequence[str] | None = None) -> ModelOptions:
    """Return the options of a command line, with all defaults."""
    return parse(ModelOptions, argv)


def run(**options: object) -> DetectionModel:
    """Print a model's layers and cost, and return the model.

    Options are those of the command line, with underscores.

    Raises:
        UserError: an option or a YAML that cannot be used.
    """
    return _report(from_keywords(ModelOptions, options))


def _report(opt: ModelOptions) -> DetectionModel:
    """Build the model and log its layers, its cost and on request its times."""
    load_plugins(opt.plugins)
    device = select_device(opt.device)
    model = DetectionModel(opt.cfg, nc=opt.nc).to(device)
    imgsz = list(fit_size(opt.imgsz, int(model.stride.max())))
    for line in table_lines(layer_table(model, imgsz, timed=opt.line_profile)):
        LOGGER.info(line)
    cost = summary(model, imgsz)
    work = "GFLOPs not counted" if cost["gflops"] is None else f"{cost['gflops']:.2f} GFLOPs"
    LOGGER.info(
        f"{Path(model.source).stem}: {cost['layers']} layers, {cost['parameters']:,} parameters "
        f"({cost['parameters_fused']:,} fused), {work} at {imgsz[0]}x{imgsz[1]}"
    )
    if opt.profile:
        _log_profile(model, imgsz, device)
    return model


def _log_profile(model: DetectionModel, imgsz: list[int], device: torch.device) -> None:
    """Log the milliseconds of one image: forward as built, fused, and with backward."""
    image = torch.full((1, model.ch, *imgsz), 0.5, device=device)
    fused = copy.deepcopy(model).fuse()
    trained = copy.deepcopy(model).train()

    def step() -> None:
        torch.stack([raw.square().mean() for raw in trained(image)]).sum().backward()
        trained.zero_grad()

    model.eval()
    with torch.no_grad():
        times = {
            "forward": latency(lambda: model(image), device=device),
            "forward, fused": latency(lambda: fused(image), device=device),
        }
    times["forward and backward"] = latency(step, repeats=10, warmup=2, device=device)
    for name, t in times.items():
        LOGGER.info(f"{name}: median {t['median']:.1f} ms, p90 {t['p90']:.1f}, p95 {t['p95']:.1f} (batch 1)")
    LOGGER.info(f"on {describe(device)}, float32")


def main() -> None:
    """Print the model that the command line names."""
    _report(parse_opt())


if __name__ == "__main__":
    from models.yolo import main as run_as_module  # not this copy: classes and registry must exist once

    guard(run_as_module)
