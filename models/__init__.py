"""Detectors: blocks, the registry that names them, YAML to layers, checkpoints and backends."""
