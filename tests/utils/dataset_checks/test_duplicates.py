"""The same files and nearly the same pictures are found, within and between splits; others are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.utils.dataset_checks.sets import checked, noise, write_data, write_split
from utils.dataset_checks import duplicates
from utils.dataset_checks.duplicates import alike_pictures, check_duplicates, fingerprint_of


def found_in(tmp_path):
    """Kind, file and the other file of each finding."""
    findings = check_duplicates(checked(write_data(tmp_path))).findings
    return [(f.kind, Path(f.file).name, Path(f.images[1]).name, f) for f in findings]


def test_the_same_file_twice(tmp_path):
    write_split(tmp_path, "train", {"a.png": noise(0), "b.png": noise(1)}, {"a": "0 0.5 0.5 0.2 0.2\n"})
    write_split(tmp_path, "val", {"c.png": noise(2)}, {})
    shutil.copy(tmp_path / "images/train/a.png", tmp_path / "images/train/z.png")
    shutil.copy(tmp_path / "images/train/b.png", tmp_path / "images/val/y.png")
    first, second = found_in(tmp_path)
    assert first[:3] == ("duplicate", "z.png", "a.png") and first[3].value.endswith("with other labels")
    assert second[:3] == ("leak", "y.png", "b.png") and second[3].value.endswith("b.png (train)")


@pytest.mark.parametrize(
    "change",
    [
        lambda image: cv2.resize(image, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA),
        lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 20])[1], 1),
        lambda image: np.clip(image.astype(float) * 0.7 + 40, 0, 255).astype(np.uint8),
        lambda image: image[2:-2, 3:-3],
    ],
    ids=["smaller", "saved anew", "brighter", "cut"],
)
def test_nearly_the_same_picture(tmp_path, change):
    image = noise(0, (160, 120))
    write_split(tmp_path, "train", {f"{i}.png": noise(i, (160, 120)) for i in range(6)}, {})
    write_split(tmp_path, "val", {"y.png": change(image)}, {})
    ((kind, name, other, finding),) = found_in(tmp_path)
    assert (kind, name, other) == ("leak", "y.png", "0.png")
    assert "nearly the same picture" in finding.value and duplicates.ALIKE <= finding.score < 1


def test_flat_images_are_like_nothing_but_their_copies(tmp_path):
    flat = {f"{grey}.png": np.full((40, 40, 3), grey, np.uint8) for grey in (0, 99, 100, 255)}
    write_split(tmp_path, "train", flat, {})
    assert found_in(tmp_path) == []


def test_blocks_give_what_one_product_gives(monkeypatch):
    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 255, (40, 256)).astype(np.uint8)
    thumbs[[7, 21, 39]] = thumbs[3]
    thumbs[30] = thumbs[12]
    splits = np.repeat([0, 1], 20)
    whole = alike_pictures(thumbs, splits)
    monkeypatch.setattr(duplicates, "_BLOCK", 6)
    parts = alike_pictures(thumbs, splits)
    assert (whole[0] == parts[0]).all() and np.allclose(whole[1], parts[1])
    assert {j: i for j, i in enumerate(whole[0].tolist()) if i >= 0} == {7: 3, 21: 3, 30: 12, 39: 3}


def test_another_split_goes_before_a_more_alike_picture_of_the_same(monkeypatch):
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 200, 256).astype(np.uint8)
    near = picture + rng.integers(0, 12, 256).astype(np.uint8)
    thumbs, splits = np.stack([near, picture, picture]), np.array([0, 1, 1])
    for block in (1, 2, 3):
        monkeypatch.setattr(duplicates, "_BLOCK", block)
        partner, likeness = alike_pictures(thumbs, splits)
        assert partner.tolist() == [-1, 0, 0] and (likeness[1:] < 1).all() and (likeness[1:] > 0.95).all()


def test_a_file_that_is_damaged_or_gone_is_a_fault(tmp_path):
    bad = tmp_path / "a.png"
    bad.write_bytes(b"no image")
    assert "not an image" in fingerprint_of(str(bad)).fault
    assert "No such file" in fingerprint_of(str(tmp_path / "gone.png")).fault
    assert fingerprint_of(str(bad)).digest != fingerprint_of(str(tmp_path / "gone.png")).digest
