"""Fetch official YOLOv5 weights by name, when the user asks for them.

Only a name that the user typed is fetched, and never at import. The weights are not part of this project:
their licence is AGPL-3.0, which the log says. Reading them runs nothing of them
(`models/weights/official.py`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from models.weights.official import OFFICIAL_LICENCE
from utils.downloads import fetch
from utils.files import ROOT

LOGGER = logging.getLogger("yolo.models")

RELEASE_URL = "https://github.com/ultralytics/yolov5/releases/download/v7.0"


class Asset(NamedTuple):
    """State a published file's size in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


RELEASED = {
    "yolov5n.pt": Asset(4062133, "4f180cf23ba0717ada0badd6c685026d73d48f184d00fc159c2641284b2ac0a3"),
    "yolov5s.pt": Asset(14808437, "8b3b748c1e592ddd8868022e8732fde20025197328490623cc16c6f24d0782ee"),
    "yolov5m.pt": Asset(42806829, "61d933360ba5a7733a36764996c800287d973889d875227f5beedd2473a97a56"),
    "yolov5l.pt": Asset(93622629, "2f603b7354c25454d1270663a14d8ddc1eea98e5eebc1d84ce0c6e3150fa155f"),
    "yolov5x.pt": Asset(174114333, "9f27a794fa0308e2606f90565164571d6f0a0ba18a3ce2e5e5d323b71c157859"),
    "yolov5n6.pt": Asset(7190229, "496c05a2b991da15acc6c4408c63da287f2513a46c6756618776d4dd71170781"),
    "yolov5s6.pt": Asset(25978837, "95bda9019ada63f37338308d0c81a66047a6fbaba061abaff271ba9334cf2a6f"),
    "yolov5m6.pt": Asset(72308357, "7afe7fa0f29a8351467200a2a5a33c7996d1155ed6636c7edd8ca70b14951c64"),
    "yolov5l6.pt": Asset(154521589, "b357b77f646b0190912985937c44e2923441369d5fda69ba86da2aa919212618"),
    "yolov5x6.pt": Asset(282720357, "257c991b216d625427dc4d9c7c76d6c6d93cf3732797538da34bdc02f97bfef0"),
}
"""The detection weights of release v7.0 by file name."""


def fetch_missing(*weights: str | Path) -> None:
    """Fetch each official file that is named and is not here.

    A file goes into the working folder under its own name, as in YOLOv5. Other names are left alone, and so
    is a file that is in the working folder or in the project already.

    Args:
        weights: what the user gave as weights, each a path.

    Raises:
        UserError: no network, or what came is not the published file; it says where to put the file.

    Example:
        fetch_missing("yolov5n.pt")
    """
    for name in map(str, weights):
        if name in RELEASED and not Path(name).exists() and not (ROOT / name).exists():
            _fetch(name)


def _fetch(name: str) -> None:
    asset, url, place = RELEASED[name], f"{RELEASE_URL}/{name}", Path.cwd() / name
    LOGGER.info(
        "%s is not here: fetching %.1f MB from %s to %s; the licence of these weights is %s",
        *(name, asset.size / 1e6, url, place, OFFICIAL_LICENCE),
    )
    fetch(url, place, asset.size, f"sha256:{asset.sha256}", limit=asset.size)
