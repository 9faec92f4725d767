"""Draw the backgrounds of the digits.

They are crops of a photograph, shaded relief of real terrain, and procedural textures.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np

from utils.files import ROOT

_PHOTOGRAPH = ROOT / "data" / "images" / "grace_hopper.jpg"


@lru_cache(maxsize=1)
def _photograph() -> np.ndarray:
    image = cv2.imread(str(_PHOTOGRAPH))
    if image is None:
        raise FileNotFoundError(f"{_PHOTOGRAPH} is part of the project and missing")
    return image


@lru_cache(maxsize=1)
def _terrain() -> np.ndarray:
    """Return Matplotlib's elevation of the Jacksboro fault, (h, w) float32 in 0..1.

    Without that file it is noise.
    """
    file = Path(matplotlib.get_data_path()) / "sample_data" / "jacksboro_fault_dem.npz"
    if not file.exists():  # some distributions leave the sample data out
        return _noise(np.random.default_rng(0), 344, 403)
    with np.load(file, allow_pickle=False) as data:
        elevation = data["elevation"].astype(np.float32)
    return (elevation - elevation.min()) / np.ptp(elevation)


def ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a background, BGR uint8 (height, width, 3).

    60 % are made from the photograph or the terrain.
    """
    draw = rng.random()
    if draw < 0.45:
        image = _photo_crop(rng, height, width)
    elif draw < 0.60:
        image = _relief(rng, height, width)
    else:
        image = (_gradient, _cloud, _stripes, _tiles)[rng.integers(4)](rng, height, width)
    return _soften(rng, image)


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """Return a colour from all of HSV, BGR float32 (3,)."""
    hue, saturation, value = rng.integers(180), rng.integers(256), rng.integers(20, 256)
    pixel = np.array([[[hue, saturation, value]]], np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def _random_crop(rng: np.random.Generator, source: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a part of the picture, enlarged, flipped or turned by quarters."""
    source = np.rot90(source, int(rng.integers(4)))
    zoom = np.exp(rng.uniform(0, np.log(3)))
    h, w = source.shape[:2]
    fit = min(h / height, w / width) / zoom
    crop_h, crop_w = max(int(height * fit), 8), max(int(width * fit), 8)
    top, left = rng.integers(h - crop_h + 1), rng.integers(w - crop_w + 1)
    crop = source[top : top + crop_h, left : left + crop_w]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return cv2.resize(np.ascontiguousarray(crop), (width, height), interpolation=cv2.INTER_LINEAR)


def _photo_crop(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a part of the photograph in random colours."""
    crop = _random_crop(rng, _photograph(), height, width)
    hsv = cv2.cvtColor(crop, cv2.COLOR_BGR2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(0, 180)) % 180
    hsv[..., 1] *= rng.uniform(0.2, 1.4)
    hsv[..., 2] = hsv[..., 2] * rng.uniform(0.5, 1.1) + rng.uniform(0, 40)
    return cv2.cvtColor(np.clip(hsv, 0, 255).astype(np.uint8), cv2.COLOR_HSV2BGR)


def _relief(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return terrain with hill shading, coloured by elevation.

    The light comes from a random side.
    """
    land = _random_crop(rng, _terrain(), height, width)
    light = rng.uniform(0, 2 * np.pi)
    down, across = np.gradient(land)
    shade = np.cos(light) * across + np.sin(light) * down
    shade = np.clip(0.5 + shade * rng.uniform(6, 14), 0, 1)
    return _blend(0.6 * land + 0.4 * shade, random_colour(rng), random_colour(rng))


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return _blend(
        (np.cos(angle) * x + np.sin(angle) * y) / 2.83 + 0.5, random_colour(rng), random_colour(rng)
    )


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return value noise in four octaves, (height, width) float32 in 0..1."""
    total = np.zeros((height, width), np.float32)
    for octave in range(4):
        cells = 3 * 2**octave
        grid = rng.random((cells, cells), np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    return (total - total.min()) / np.ptp(total)


def _cloud(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return noise between two colours."""
    return _blend(_noise(rng, height, width), random_colour(rng), random_colour(rng))


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return soft or sharp stripes of two related colours."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 60)
    y, x = np.mgrid[:height, :width]
    wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / period) * rng.uniform(1, 4)
    base = random_colour(rng)
    return _blend(np.clip(wave / 2 + 0.5, 0, 1), base, _near(rng, base))


def _tiles(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return rectangles of related colours, as in a tiled wall."""
    rows, columns = rng.integers(3, 12, 2)
    base = random_colour(rng)
    grid = np.stack([_near(rng, base) for _ in range(rows * columns)]).reshape(rows, columns, 3)
    image = cv2.resize(grid, (width, height), interpolation=cv2.INTER_NEAREST)
    return image.astype(np.uint8)


def _near(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    return np.clip(base + rng.normal(0, 30, 3), 0, 255).astype(np.float32)


def _blend(weight: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mix two colours by weights (h, w) in 0..1, as BGR uint8."""
    w = np.clip(weight, 0, 1)[..., None]
    return (first * (1 - w) + second * w).astype(np.uint8)


def _soften(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Reduce the contrast and add noise, so that digits can be read on it."""
    image = image.astype(np.float32)
    mean = image.mean((0, 1))
    image = mean + (image - mean) * rng.uniform(0.45, 0.95)
    image += rng.normal(0, rng.uniform(0, 6), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)
