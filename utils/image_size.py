"""Round image sizes to whole strides of the network.

A network halves its image several times. Both sides must therefore be multiples of its largest stride.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from operator import index

from utils.errors import UserError

LOGGER = logging.getLogger("yolo.image_size")


def whole_strides(side: int, stride: int, least: int = 1) -> int:
    """Round a side up to a multiple of the stride.

    Args:
        side: pixels.
        stride: pixels.
        least: how many strides the result has at least.

    >>> whole_strides(500, 32)
    512
    >>> whole_strides(20, 32, least=2)
    64
    """
    return max(-(-side // stride), least) * stride


def read_size(imgsz: int | Sequence[int], option: str = "--imgsz") -> tuple[int, int]:
    """Return (height, width) of one side or of two.

    Args:
        imgsz: one side for a square, or height and width, in pixels.
        option: what the value is called in the error.

    Raises:
        UserError: not one or two whole numbers above 0.

    >>> read_size(640), read_size([384, 640])
    ((640, 640), (384, 640))
    """
    try:
        sides = [index(side) for side in ([imgsz] if hasattr(imgsz, "__index__") else imgsz)]
    except TypeError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        shown = " ".join(map(repr, imgsz)) if isinstance(imgsz, list | tuple) else repr(imgsz)
        raise UserError(f"{option} {shown}: must be one side or height and width, whole numbers above 0")
    return sides[0], sides[-1]


def fit_size(
    imgsz: int | Sequence[int], stride: int, *, only: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Return the (height, width) nearest to `--imgsz` that the network can take.

    Warns when it is another.

    Args:
        imgsz: one side for a square, or height and width, in pixels.
        stride: the largest stride of the network, in pixels.
        only: the one (height, width) that an exported file takes; None when it takes any.

    Raises:
        UserError: not one or two whole numbers above 0.

    >>> fit_size(640, 32)
    (640, 640)
    >>> fit_size([350, 640], 32)
    (352, 640)
    >>> fit_size(640, 32, only=(320, 320))
    (320, 320)
    """
    size = read_size(imgsz)
    fitted = only or (whole_strides(size[0], stride), whole_strides(size[1], stride))
    if fitted != size:
        _say_changed(size, fitted, stride, only)
    return fitted


def fit_side(imgsz: int, stride: int, *, only: tuple[int, int] | None = None, least: int = 1) -> int:
    """Return the long side nearest to `--imgsz` that the network can take.

    Warns when it is another.

    The images of training and validation share a long side; their shapes differ.

    Args:
        imgsz: the long side in pixels.
        stride, only: as for `fit_size`.
        least: how many strides the side has at least.

    Raises:
        UserError: not a whole number above 0.

    >>> fit_side(600, 32)
    608
    >>> fit_side(640, 32, only=(192, 320))
    320
    """
    long = max(read_size(imgsz))
    fitted = max(only) if only else whole_strides(long, stride, least)
    if fitted != long:
        _say_changed((long,), (fitted,), stride, only)
    return fitted


def _say_changed(
    size: tuple[int, ...], fitted: tuple[int, ...], stride: int, only: tuple[int, int] | None
) -> None:
    """Warn that another size is used; the one message of every script."""
    reason = f"the file takes {only[0]}x{only[1]} only" if only else f"sides are multiples of stride {stride}"
    asked, used = (" ".join(map(str, sides)) for sides in (size, fitted))
    LOGGER.warning("--imgsz %s: using %s, %s", asked, used, reason)
