"""Pairs of layers by structure."""

from __future__ import annotations

import torch

from models.weights.matching import leaves, pair


def test_pairs_skip_what_only_one_side_has():
    a, b, c = torch.zeros(4, 3, 1, 1), torch.zeros(5, 4, 3, 3), torch.zeros(5)
    own = leaves({"x.weight": a, "y.weight": b, "z.bias": c})
    other = leaves({"p.weight": b, "q.weight": torch.zeros(4, 3), "r.weight": b, "s.bias": c})
    assert [(o.name, r.name) for o, r in pair(own, other)] == [("x", "q"), ("y", "r"), ("z", "s")]
