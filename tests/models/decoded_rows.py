"""Decoded rows that are hard on NMS, and how its outputs are compared."""

from __future__ import annotations

import torch


def rows(seed, images=2, boxes=60, nc=3):
    """Decoded rows (N, boxes, 5 + nc) on a coarse grid: equal scores, equal boxes and IoUs of a threshold
    abound."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 8, (images, boxes, 2), generator=generator) * 5.0
    size = torch.randint(1, 5, (images, boxes, 2), generator=generator) * 5.0
    scores = torch.randint(0, 21, (images, boxes, 1 + nc), generator=generator) / 20
    return torch.cat((corner + size / 2, size, scores), 2)


def assert_same(outputs, wanted, size, atol=0.0):
    """output0 and counts against per image (n, 6)."""
    output0, counts = outputs
    assert output0.shape == (len(wanted), size, 6)
    assert output0.dtype == torch.float32
    assert counts.dtype == torch.int64
    assert counts.tolist() == [len(image) for image in wanted]
    for found, image in zip(output0, wanted):
        torch.testing.assert_close(found[: len(image)], image, atol=atol, rtol=0)
        assert not found[len(image) :].any(), "padded with zeros"
