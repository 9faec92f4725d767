"""Detectors: blocks, the registry that names them, YAML to layers, checkpoints and backends."""

from pathlib import Path as _Path

# Scripts from a YOLOv5 checkout import modules that are not in this folder; they are in compat/models.
__path__.append(str(_Path(__file__).resolve().parents[1] / "compat" / "models"))
