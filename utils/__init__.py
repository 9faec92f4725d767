"""Everything around the network: data, loss, training, metrics, files and devices."""

from pathlib import Path as _Path

# Scripts from a YOLOv5 checkout import modules that are not in this folder; they are in compat/utils.
__path__.append(str(_Path(__file__).resolve().parents[1] / "compat" / "utils"))
