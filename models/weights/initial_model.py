"""Build the network that a training starts from."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from models.weights.checkpoint import load_checkpoint, transfer
from models.weights.neck import load_neck
from models.weights.pretrained import check_weights, load_backbone
from models.weights.releases import fetch_missing
from models.yolo import DetectionModel
from utils.device import seeded
from utils.errors import UserError
from utils.files import find_file

LOGGER = logging.getLogger("yolo.train")

DEFAULT_WEIGHTS = "yolov5s.pt"


def starting_weights(cfg: str | Path, weights: str | Path | None) -> str | Path:
    """Return the checkpoint that a run starts from, '' for none.

    It is asked before any data set is fetched. Official weights that are named and not here are fetched.

    Args:
        cfg, weights: as in `start_model`.

    Raises:
        UserError: neither a YAML nor weights, or a file that is not there and cannot be fetched.
    """
    if weights is None and cfg:
        return ""
    if weights is None and not Path(DEFAULT_WEIGHTS).is_file():
        raise UserError(
            f"neither --cfg nor --weights is given and {DEFAULT_WEIGHTS}, the default, is not here; give "
            f"--weights {DEFAULT_WEIGHTS} to fetch it, --weights FILE, or --cfg models/yolov5s.yaml to start "
            "from scratch"
        )
    weights = DEFAULT_WEIGHTS if weights is None else weights
    if not cfg and not weights:
        raise UserError("--weights '' starts from scratch and needs --cfg with a model YAML")
    return fetched(weights) if weights else ""


def fetched(weights: str | Path) -> Path:
    """Return the file of a checkpoint; official weights that are not here are fetched.

    Raises:
        UserError: a file that is not there and cannot be fetched.
    """
    fetch_missing(weights)
    return find_file(weights)


def check_config(cfg: str | Path, backbone_weights: str | None = None) -> None:
    """Refuse a wrong model YAML or missing weights before data are fetched.

    Args:
        cfg: a model YAML; '' for none. backbone_weights: as in `start_model`.

    Raises:
        UserError: what is wrong with it, by row; or the file that is missing.
    """
    if cfg:
        with torch.device("meta"):
            DetectionModel(cfg)
    if backbone_weights:
        check_weights(backbone_weights)


def start_model(
    cfg: str | Path,
    weights: str | Path | None,
    *,
    names: dict[int, str],
    anchors_per_layer: int | None = None,
    seed: int = 0,
    backbone_weights: str | None = None,
    neck_weights: str | None = None,
) -> DetectionModel:
    """Build the network for a data set, with the weights that fit.

    Args:
        cfg: a model YAML; '' takes the network of `weights`.
        weights: a checkpoint, ours or an official one; '' starts from scratch; None is '' with a `cfg`, else
            yolov5s.pt.
        names: the data set's classes; they decide the head.
        anchors_per_layer: instead of the YAML's anchors, this many, to be searched.
        seed: of the initial weights.
        backbone_weights: as in `models.weights.pretrained.load_backbone`; None loads none.
        neck_weights: as in `models.weights.neck.load_neck`; None loads none.

    Raises:
        UserError: neither a YAML nor weights, or one that cannot be used.
    """
    weights = starting_weights(cfg, weights)
    start = load_checkpoint(weights) if weights else None
    with seeded(seed):
        yaml = start.model.yaml if start is not None and not cfg else cfg
        model = DetectionModel(yaml or "", nc=len(names), anchors=anchors_per_layer)
    if model.ch not in (1, 3):
        raise UserError(
            f"{cfg or weights}: ch is {model.ch}, but images have 3 channels (one: their luma); "
            "set ch: 3 or ch: 1"
        )
    if start is not None:
        # Anchors that the YAML or the hyperparameters state are meant; those of the weights are not.
        exclude = ("anchor",) if cfg or anchors_per_layer else ()
        LOGGER.info("%s: %s", weights, transfer(model, start.model.state_dict(), exclude))
        model.licence = start.model.licence
    if backbone_weights:
        LOGGER.info("--backbone-weights %s", load_backbone(model, backbone_weights))
    if neck_weights:
        LOGGER.info("--neck-weights %s", load_neck(model, fetched(neck_weights), names))
    if model.licence:
        LOGGER.info("these weights, and so this network, have the licence %s", model.licence)
    model.names = dict(names)
    return model
