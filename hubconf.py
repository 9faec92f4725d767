"""Build models for `torch.hub.load`: from a file of yours, an official one, or anew.

    model = torch.hub.load("path/to/light-yolo", "custom", path="best.pt", source="local")
    results = model(["bus.jpg", "dog.jpg"], size=640)
    results.pandas().xyxy[0]

`custom` takes every format that detect.py takes. There is an entry for each `models/NAME.yaml`, with `_` for
`-`, and for yolov5n6 to yolov5x6: `yolov5n(pretrained=False, classes=3)`.
"""

import copy
import sys
from pathlib import Path

dependencies = ["torch", "torchvision", "numpy", "cv2", "PIL", "yaml", "pandas", "tqdm"]

_HERE = Path(__file__).resolve().parent


def _own_packages():
    """Refuse to continue where a package of the caller has the name of ours."""
    for name in () if __package__ else ("models", "utils"):  # the installed package has them inside itself
        module = sys.modules.get(name)
        places = [Path(place).resolve() for place in getattr(module, "__path__", [])]
        if module is not None and _HERE / name not in places:
            raise ImportError(
                f"another package named {name!r} is imported already ({places or module}); load this model "
                "before it, or in a process of its own"
            )


def _say(what, device):
    """Log one line on standard output, without touching the caller's logging."""
    from utils.cli import LOGGER, setup_logging
    from utils.device import describe

    setup_logging()
    LOGGER.info("%s, on %s", what, describe(device))


def custom(
    path="path/to/model.pt", autoshape=True, _verbose=True, device=None, plugins=(), path_or_model=None
):
    """Return a detector from a file: `.pt` (ours or official) or an exported file.

    Args:
        path: the file, or an official name such as yolov5n.pt, which is fetched when it is not here.
        autoshape: return a `models.hub.HubModel`, to be called on paths, images and arrays; else the plain
            DetectionModel of a `.pt`, to train or to change.
        _verbose: say on standard output what was loaded.
        device: cpu, 0, cuda:1; None: CUDA if there is any.
        plugins: your own .py files with blocks that the `.pt` uses. They are run.
        path_or_model: the older name of `path`; it may be a DetectionModel too, which is copied.
    """
    _own_packages()
    from torch import nn

    from models.backends import load_backend
    from models.hub import HubModel
    from models.plugins import load_plugins
    from models.weights.checkpoint import load_checkpoint
    from models.weights.releases import fetch_missing
    from models.yolo import DetectionModel
    from utils.device import select_device
    from utils.errors import UserError

    path = path if path_or_model is None else path_or_model
    device = select_device("" if device is None else str(device))
    if isinstance(path, nn.Module):
        if not isinstance(path, DetectionModel):
            raise UserError(f"{type(path).__name__}: is no DetectionModel; give one, or a file")
        return _shaped(copy.deepcopy(path), device, autoshape)
    fetch_missing(path)
    load_plugins(plugins)
    if autoshape:
        model = HubModel(load_backend(str(path), device))
    else:
        model = load_checkpoint(path, device).model
    if _verbose:
        _say(f"{path}: {len(model.names)} classes", device)
    return model


def _shaped(network, device, autoshape):
    """Return a network on its device, wrapped to be called on images where `autoshape`."""
    from models.backends import ModelBackend, optimised
    from models.hub import HubModel

    return HubModel(ModelBackend(optimised(network, device), device)) if autoshape else network.to(device)


def _network(name, pretrained, channels, classes):
    """Return a new network and what it started from: official weights, or none."""
    from models.weights.checkpoint import load_checkpoint, transfer
    from models.weights.releases import RELEASED, fetch_missing
    from models.yolo import DetectionModel
    from utils.errors import UserError

    weights, yaml = f"{name}.pt", _HERE / "models" / f"{name}.yaml"
    if pretrained and weights not in RELEASED:
        raise UserError(
            f"{name}: no trained weights are hosted; pass pretrained=False for a new network, or load a file "
            "or official weights by torch.hub.load(..., 'custom', path='yolov5n.pt')"
        )
    if pretrained:
        fetch_missing(weights)
        start = load_checkpoint(weights).model
        network = DetectionModel(start.yaml, ch=channels, nc=classes)
        network.names = start.names if classes == start.nc else network.names
        return network, transfer(network, start.state_dict())
    if not yaml.is_file():
        raise UserError(f"{name}: its YAML is in its weights; pass pretrained=True, which fetches them")
    return DetectionModel(yaml, ch=channels, nc=classes), "a new network"


def _entry(name):
    def create(pretrained=True, channels=3, classes=80, autoshape=True, _verbose=True, device=None):
        _own_packages()
        from utils.device import select_device

        device = select_device("" if device is None else str(device))
        network, origin = _network(name, pretrained, channels, classes)
        if _verbose:
            _say(f"{name}: {network.nc} classes, {origin}", device)
        return _shaped(network, device, autoshape)

    create.__name__ = name.replace("-", "_")
    create.__doc__ = f"""Return the network {name} for `channels` and `classes`.

    `pretrained=True` takes the official weights of this name, and is refused where there are none.
    """
    return create


_P6 = [f"yolov5{size}6" for size in "nsmlx"]  # their YAMLs are in their weights
for _name in [*sorted(_path.stem for _path in (_HERE / "models").glob("*.yaml")), *_P6]:
    globals()[_name.replace("-", "_")] = _entry(_name)
