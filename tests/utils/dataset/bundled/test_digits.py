"""The bundled digits: the same every time, boxes on the ink, legible, whole or not there."""

import os

import numpy as np
import pytest

from utils.dataset.bundled import digits
from utils.dataset.bundled.glyphs import FONTS, HELD_OUT
from utils.dataset.config import load_dataset
from utils.dataset.images import load_images
from utils.errors import UserError


def test_a_scene_depends_on_seed_split_and_index_alone():
    image, labels = digits.scene(0, "train", 3)
    again, same = digits.scene(0, "train", 3)
    assert np.array_equal(image, again)
    assert np.array_equal(labels, same)
    for other in ((1, "train", 3), (0, "val", 3), (0, "train", 4)):
        assert not np.array_equal(labels, digits.scene(*other)[1])


def test_scenes_hold_what_is_promised():
    every = [digits.scene(0, "train", i) for i in range(24)]
    counts = [len(labels) for _, labels in every]
    assert min(counts) >= 5
    assert max(counts) <= 11
    assert set(np.concatenate([labels[:, 0] for _, labels in every]).astype(int)) == set(range(10))
    for image, labels in every:
        assert image.dtype == np.uint8
        assert all(256 <= side <= 384 for side in image.shape[:2])
        low, high = labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 1:3] + labels[:, 3:] / 2
        assert low.min() >= 0
        assert high.max() <= 1
    heights = np.concatenate([labels[:, 4] * image.shape[0] for image, labels in every])
    assert heights.min() < 30
    assert heights.max() > 100


@pytest.fixture
def painted(monkeypatch):
    """For each digit or letter painted: its mask, the ground before, the window after."""
    seen = []
    real = digits._paint

    def spy(rng, window, mask, ground_pixels):
        before = window.copy()
        around = ground_pixels.copy()
        real(rng, window, mask, ground_pixels)
        seen.append((mask, around, before, window.copy()))

    monkeypatch.setattr(digits, "_paint", spy)
    return seen


def test_digits_stand_out_from_their_ground(painted):
    for i in range(12):
        digits.scene(0, "train", i)
    assert len(painted) > 80
    contrasts = []
    for mask, around, _, after in painted:
        ink = digits._luminance(after[mask > 0.9]).mean() if (mask > 0.9).any() else None
        if ink is not None:
            contrasts.append(abs(ink - digits._luminance(around).mean()))
    assert min(contrasts) > 35
    assert np.percentile(contrasts, 10) > 50


def test_boxes_fit_the_ink(monkeypatch):
    """The pixels that placing a digit changes span its box to within a pixel."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        image = np.full((300, 300, 3), 90, np.float32)
        placed = []
        digits._place_digit(rng, image, placed, list(FONTS), 60)
        rows = np.flatnonzero((np.abs(image - 90) > 30).any((1, 2)))
        columns = np.flatnonzero((np.abs(image - 90) > 30).any((0, 2)))
        _, xc, yc, w, h = digits._label(placed[0], 300, 300)
        ink = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        box = np.array([xc - w / 2, yc - h / 2, xc + w / 2, yc + h / 2]) * 300
        assert np.abs(ink - box).max() <= 1.5


def test_no_digit_is_hidden_by_later_ones(monkeypatch):
    kept = []
    real = digits._label
    monkeypatch.setattr(digits, "_label", lambda p, w, h: kept.append(p) or real(p, w, h))
    for i in range(15):
        digits.scene(0, "train", i)
    visible = [p.visible.sum() / (p.mask > 0.5).sum() for p in kept]
    assert min(visible) >= 1 - digits.MAX_COVER
    assert min(visible) < 1  # they do overlap


def test_held_out_fonts_never_reach_the_training_images(monkeypatch):
    used = {"train": set(), "val": set()}
    real, split = digits.draw, "train"

    def spy(font, *args):
        used[split].add(font)
        return real(font, *args)

    monkeypatch.setattr(digits, "draw", spy)
    for split in ("train", "val"):
        for i in range(25):
            digits.scene(0, split, i)
    assert not used["train"] & set(HELD_OUT)
    assert used["val"] & set(HELD_OUT)
    assert len(used["train"]) >= 18


def test_generated_set_loads_and_is_the_same_with_any_number_of_processes(tmp_path, monkeypatch):
    one = digits.generate(tmp_path / "one", train=5, val=2, workers=1)
    two = digits.generate(tmp_path / "two", train=9, val=2, workers=2)
    for path in sorted(one.rglob("*.*")):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
    assert len(list(two.rglob("*.jpg"))) == 11
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    (tmp_path / "d.yaml").write_text(f"path: {two}\ntrain: images/train\nval: images/val\nnc: 10\n")
    images = load_images(load_dataset(tmp_path / "d.yaml"), "train", workers=1)
    assert images.report.messages == []
    np.testing.assert_allclose(images.labels(8), digits.scene(0, "train", 8)[1], atol=1e-6)


def test_the_bundled_yaml_makes_its_set_in_the_datasets_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "sets"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits.generate, "__defaults__", (0, 3, 2))
    config = load_dataset("digits.yaml")
    assert config.root == tmp_path / "sets" / "digits"
    assert list(config.names.values()) == list("0123456789")
    assert len(load_images(config, "val", workers=1)) == 2


def test_the_default_set_is_large_enough():
    _, train, val = digits.generate.__defaults__
    assert train >= 600
    assert val >= 150


def test_a_failure_leaves_nothing_and_an_occupied_folder_is_refused(tmp_path, monkeypatch):
    def fail(job):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(digits, "_write", fail)
        with pytest.raises(OSError, match="No space"):
            digits.generate(tmp_path / "d", train=2, val=1, workers=1)
    assert os.listdir(tmp_path) == []
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists, but is not the whole digits data set"):
        digits.generate(tmp_path / "d", train=1, val=1, workers=1)
    assert os.listdir(tmp_path / "d") == ["mine.txt"]
