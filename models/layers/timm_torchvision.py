"""Load networks and weights of timm (optional) and torchvision."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from utils.errors import UserError

_PATIENCE = 10  # seconds for the hub's first answer
_FILE = "model.safetensors"  # what timm's repositories on the hub keep weights in


def _installed(package: str) -> bool:
    """Return whether a package is installed, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ValueError, ImportError):  # what is said of a name that is barred
        return False


def import_timm() -> ModuleType:
    """Return timm, which is optional.

    Raises:
        UserError: it is not installed, or something that it needs is not.
    """
    if not _installed("timm"):
        raise UserError("timm is not installed; 'pip install timm' brings its networks")
    try:
        import timm  # here: optional, and importing it costs seconds
    except ImportError as error:
        raise UserError(f"timm cannot be imported ({error}); 'pip install -U timm' mends it") from error
    return timm


def timm_network(name: str, pretrained: bool, **options: object) -> nn.Module:
    """Return a network of timm, with its own weights on request.

    Raises:
        UserError: timm is not installed, or has no such network.
    """
    timm = import_timm()
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.partition('.')[0]}*")[:4] if name else []
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise UserError(f"timm/{name}: timm has no such network; {hint}")
    return timm.create_model(name, pretrained=pretrained, **options)


def timm_state(name: str) -> dict[str, Tensor]:
    """Return a network's weights, fetched by timm or taken from its cache.

    Raises:
        UserError: there is no such network, or it comes without weights.
        Exception: the hub's client has a dozen kinds for a download that fails.
    """
    timm = import_timm()
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is not None and not cfg.has_weights:
        raise UserError(f"timm/{name}: timm has no weights of this network; give a file of them, or train it")
    options = _hub_options(cfg.hf_hub_id, cfg.hf_hub_filename or _FILE) if cfg and cfg.hf_hub_id else {}
    return timm_network(name, pretrained=True, **options).state_dict()


def _hub_options(repository: str, file: str) -> dict[str, object]:
    """Return the options with which timm uses the hub's cache; none to fetch.

    The hub's client tries a dead network for minutes and reports each try, so it is asked once before.
    """
    if not _installed("huggingface_hub"):
        return {}  # timm then takes its other address, or says that it needs the client
    from huggingface_hub import constants, try_to_load_from_cache  # here: comes with timm
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # not in its __all__

    name, _, revision = repository.partition("@")
    cached = try_to_load_from_cache(name, file, revision=revision or None)
    if isinstance(cached, str) and cached.endswith(".safetensors"):
        return {"pretrained_cfg_overlay": {"file": cached}}
    get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    return {}


# Any: torchvision has no types; it is one of its WeightsEnum.
def torchvision_weights(name: str) -> Any:
    """Return torchvision's default weights of a classifier, with their preparation of images.

    Raises:
        UserError: a name torchvision does not have, or one that classifies no images.
    """
    from torchvision.models import get_model_weights, list_models  # here: costs a second, rarely needed

    if name not in list_models(module=_torchvision_classifiers()):
        raise UserError(
            f"torchvision/{name}: torchvision has no such classifier; see torchvision.models.list_models()"
        )
    return get_model_weights(name).DEFAULT


def _torchvision_classifiers() -> ModuleType:
    import torchvision

    return torchvision.models
