"""From a YAML's rows to layers: rows read and checked, shapes inferred, BatchNorm folded."""
