"""benchmarks/doctor.py: what it plants is what it says, and what counts as found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.doctor import SHIFTED, Planted, free_box, is_found, overlaps, plant, shift
from tests.utils.dataset_checks.sets import checked
from tests.utils.dataset_checks.shapes import write_shapes
from utils.dataset_checks.findings import Finding
from utils.dataset_checks.suspects import SUSPECTS


def rows_of(path: Path) -> list[list[float]]:
    return [[float(value) for value in line.split()] for line in path.read_text().splitlines()]


def test_each_kind_is_planted_in_its_share_of_the_labels(tmp_path):
    yaml_path, right = write_shapes(tmp_path, 15)
    images = checked(yaml_path).splits["train"]
    planted = plant(images, tmp_path / "out", "train", 0.1, 0, 2)
    assert Counter(error.kind for error in planted) == dict.fromkeys(SUSPECTS, 6)
    written = sorted((tmp_path / "out/labels/train").iterdir())
    assert len(written) == len(list((tmp_path / "out/images/train").iterdir())) == 15
    changed = 0
    for index, file in enumerate(written):
        old = np.array(right[Path(images.path(index)).stem])
        new = np.array(rows_of(file)).reshape(-1, 5)
        kept = [row for row in new.tolist() if any(np.allclose(row, other, atol=2e-6) for other in old)]
        mine = [error for error in planted if error.file == str(file)]
        assert len(old) - len(kept) == sum(error.kind != "spurious-label" for error in mine)
        assert len(new) - len(kept) == sum(error.kind != "missing-label" for error in mine)
        for error in mine:
            iou = overlaps(np.array(error.row[1:]), old[:, 1:])[0]
            if error.line:
                assert np.allclose(new[error.line - 1], error.row, atol=2e-6)
            if error.kind == "wrong-class":
                assert iou.max() > 0.999 and old[iou.argmax(), 0] == 1 - error.row[0]
            elif error.kind == "shifted-box":
                assert SHIFTED[0] - 1e-4 <= iou.max() <= SHIFTED[1] + 1e-4
            elif error.kind == "spurious-label":
                assert iou.max() < 0.5
        changed += len(mine)
    assert changed == len(planted) == 24
    again = plant(images, tmp_path / "again", "train", 0.1, 0, 2)
    other = plant(images, tmp_path / "other", "train", 0.1, 1, 2)
    assert [(e.kind, e.row) for e in again] == [(e.kind, e.row) for e in planted]
    assert [(e.kind, e.row) for e in other] != [(e.kind, e.row) for e in planted]


def test_shifts_have_the_asked_iou():
    rng = np.random.default_rng(0)
    row = (0.0, 0.4, 0.6, 0.2, 0.3)
    found = [overlaps(np.array(shift(row, rng)[1:]), np.array(row[1:]))[0, 0] for _ in range(300)]
    assert SHIFTED[0] <= min(found) < 0.35 and 0.65 < max(found) <= SHIFTED[1] + 1e-9


def test_a_spurious_box_keeps_clear_of_labels():
    rng = np.random.default_rng(0)
    labels = np.array([[0, 0.25, 0.5, 0.5, 1.0]])
    boxes = np.array([free_box((1.0, 0.5, 0.5, 0.2, 0.2), labels, rng)[1:] for _ in range(50)])
    assert overlaps(boxes, labels[:, 1:]).max() <= 0.1 and boxes[:, 0].std() > 0.02
    assert len(free_box((1.0, 0.5, 0.5, 1.0, 1.0), labels, rng)) == 5  # nowhere is free


def test_what_counts_as_found():
    wrong = Planted("wrong-class", "a.txt", 2, (1, 0.5, 0.5, 0.2, 0.2))
    assert is_found(wrong, [Finding("wrong-class", "a.txt", "", "", line=2)])
    assert not is_found(wrong, [Finding("wrong-class", "a.txt", "", "", line=1)])
    assert not is_found(wrong, [Finding("wrong-class", "b.txt", "", "", line=2)])
    spurious = [Finding("spurious-label", "a.txt", "", "", line=2)]
    assert not is_found(wrong, spurious) and is_found(wrong, spurious, same_kind=False)
    gone = Planted("missing-label", "a.txt", 0, (1, 0.5, 0.5, 0.2, 0.2))
    assert is_found(gone, [Finding("missing-label", "a.txt", "", "", row="0 0.52 0.5 0.2 0.2")])
    assert not is_found(gone, [Finding("missing-label", "a.txt", "", "", row="1 0.7 0.5 0.2 0.2")])
