"""Build models for `torch.hub.load`: a file of yours, or a new bundled network.

    model = torch.hub.load("path/to/light-yolo", "custom", path="best.pt", source="local")
    results = model(["bus.jpg", "dog.jpg"], size=640)
    results.pandas().xyxy[0]

`custom` takes every format that detect.py takes. For each `models/NAME.yaml` there is an entry of that name,
with `_` for `-`: `yolov5n(pretrained=False, classes=3)`.
"""

import sys
from pathlib import Path

dependencies = ["torch", "torchvision", "numpy", "cv2", "PIL", "yaml", "pandas", "tqdm"]

_HERE = Path(__file__).resolve().parent


def _own_packages():
    """Refuse to continue where a package of the caller has the name of ours."""
    for name in ("models", "utils"):
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


def custom(path="path/to/model.pt", autoshape=True, _verbose=True, device=None, plugins=()):
    """Return a detector from a file: `.pt` (ours or official) or an exported file.

    Args:
        path: the file, or an official name such as yolov5n.pt, which is fetched when it is not here.
        autoshape: return a `models.hub.HubModel`, to be called on paths, images and arrays; else the plain
            DetectionModel of a `.pt`, to train or to change.
        _verbose: say on standard output what was loaded.
        device: cpu, 0, cuda:1; None: CUDA if there is any.
        plugins: your own .py files with blocks that the `.pt` uses. They are run.
    """
    _own_packages()
    from models.backends import load_backend
    from models.hub import HubModel
    from models.plugins import load_plugins
    from models.weights.checkpoint import load_checkpoint
    from models.weights.releases import fetch_missing
    from utils.device import select_device

    fetch_missing(path)
    load_plugins(plugins)
    device = select_device("" if device is None else str(device))
    if autoshape:
        model = HubModel(load_backend(str(path), device))
    else:
        model = load_checkpoint(path, device).model
    if _verbose:
        _say(f"{path}: {len(model.names)} classes", device)
    return model


def _create(name, pretrained, channels, classes, autoshape, verbose, device):
    """A new network from models/<name>.yaml."""
    _own_packages()
    from models.backends import ModelBackend, optimised
    from models.hub import HubModel
    from models.yolo import DetectionModel
    from utils.device import select_device
    from utils.errors import UserError

    if pretrained:
        raise UserError(
            f"{name}: no trained weights are hosted; pass pretrained=False for a new network, or load "
            "a file, or official weights by their name, with torch.hub.load(..., 'custom', path='yolov5n.pt')"
        )
    device = select_device("" if device is None else str(device))
    network = DetectionModel(_HERE / "models" / f"{name}.yaml", ch=channels, nc=classes)
    if verbose:
        _say(f"{name}: a new network of {network.nc} classes", device)
    return HubModel(ModelBackend(optimised(network, device), device)) if autoshape else network.to(device)


def _entry(name):
    def create(pretrained=True, channels=3, classes=80, autoshape=True, _verbose=True, device=None):
        return _create(name, pretrained, channels, classes, autoshape, _verbose, device)

    create.__name__ = name.replace("-", "_")
    create.__doc__ = f"""A new network from models/{name}.yaml, for `channels` and `classes`.

    `pretrained=True`, YOLOv5's default, is refused: there are no hosted weights; see `custom`.
    """
    return create


for _path in sorted((_HERE / "models").glob("*.yaml")):
    globals()[_path.stem.replace("-", "_")] = _entry(_path.stem)
