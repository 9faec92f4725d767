"""Planted label errors are the findings, of their own kind, and right labels are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.utils.dataset_checks.sets import checked
from tests.utils.dataset_checks.shapes import colour_network, text_of, write_shapes
from utils.dataset_checks.suspects import SUSPECTS, check_suspects, suspicion, usual, weigh


def found_with(tmp_path, **changed):
    """The findings of a data set with other labels for some of its images."""
    path, right = write_shapes(tmp_path)
    for stem, change in changed.items():
        rows = change(list(right[stem.strip("_")]))
        (tmp_path / f"labels/train/{stem.strip('_')}.txt").write_text(text_of(rows))
    section = check_suspects(checked(path, 96, colour_network()))
    return right, section


def test_right_labels_are_not_suspicious(tmp_path):
    _, section = found_with(tmp_path)
    assert section.findings == [] and section.facts["mAP50 on train"] > 0.9


def test_each_error_is_found_as_what_it_is(tmp_path):
    def other_class(rows):
        return [rows[0], (1 - rows[1][0], *rows[1][1:]), *rows[2:]]

    def beside(rows):
        c, x, y, w, h = rows[2]
        return [*rows[:2], (c, x + 0.3 * w, y + 0.1 * h, w, h), rows[3]]

    right, section = found_with(
        tmp_path,
        _1=lambda rows: rows[:3],
        _2=other_class,
        _3=beside,
        _4=lambda rows: [(1, 0.5, 0.5, 0.06, 0.06), *rows],
    )
    kinds = section.kinds()
    assert {kind: len(found) for kind, found in kinds.items()} == dict.fromkeys(SUSPECTS, 1)
    where = {kind: (Path(found[0].file).name, found[0].line) for kind, found in kinds.items()}
    assert where == {
        "missing-label": ("1.txt", 0),
        "wrong-class": ("2.txt", 2),
        "shifted-box": ("3.txt", 3),
        "spurious-label": ("4.txt", 1),
    }
    for kind, stem, number in (("missing-label", "1", 3), ("wrong-class", "2", 1), ("shifted-box", "3", 2)):
        row = [float(value) for value in kinds[kind][0].row.split()]
        assert row[0] == right[stem][number][0] and np.allclose(row, right[stem][number], atol=0.015)
    assert kinds["spurious-label"][0].row == "" and kinds["wrong-class"][0].score == pytest.approx(0.9)
    shown = kinds["shifted-box"][0]
    assert [mark.caption.split()[0] for mark in shown.marks] == ["label", "model"]
    assert Path(shown.images[0]).name == "3.png"


def test_lines_are_those_of_the_file(tmp_path):
    path, right = write_shapes(tmp_path)
    rows = [(1 - right["5"][0][0], *right["5"][0][1:]), *right["5"][1:]]
    (tmp_path / "labels/train/5.txt").write_text("nonsense\n\n" + text_of(rows))
    (found,) = check_suspects(checked(path, 96, colour_network())).findings
    assert (found.kind, found.line) == ("wrong-class", 3)


def test_a_split_without_any_label_lacks_them_all(tmp_path):
    path, right = write_shapes(tmp_path, 3)
    for file in (tmp_path / "labels/train").iterdir():
        file.unlink()
    section = check_suspects(checked(path, 96, colour_network()))
    found = section.kinds()["missing-label"]
    assert len(section.findings) == len(found) == sum(map(len, right.values()))
    assert [finding.score for finding in found] == pytest.approx([0.9] * len(found))


def test_without_weights_and_with_unnamed_classes_it_says_why(tmp_path):
    path, _ = write_shapes(tmp_path, 2)
    assert "--weights" in check_suspects(checked(path)).facts["not searched"]
    (tmp_path / "labels/train/0.txt").write_text("5 0.5 0.5 0.2 0.2\n")
    section = check_suspects(checked(path, 96, colour_network()))
    assert "without a name" in section.facts["not searched"] and not section.findings


def det(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)


def test_a_detection_belongs_to_the_label_that_it_overlaps_most():
    labels = torch.tensor([[0.0, 0, 0, 10, 10], [0.0, 6, 0, 16, 10]])
    evidence = weigh(det((0, 0, 10, 10, 0.8, 0), (60, 60, 70, 70, 0.5, 1)), labels)
    assert evidence.box[:, 4].tolist() == pytest.approx([0.8, 0]) and evidence.iou.tolist() == [1, 0]
    assert evidence.unlabelled[:, 4].tolist() == [0.5] and evidence.distance.tolist() == [1]


def test_two_classes_at_one_place_are_one_object():
    labels = torch.tensor([[1.0, 0, 0, 10, 10]])
    evidence = weigh(det((0, 0, 10, 10, 0.6, 0), (0, 0, 10, 10, 0.4, 1)), labels)
    assert evidence.box[0, 4:].tolist() == pytest.approx([0.6, 0]) and evidence.given[0] == pytest.approx(0.4)
    assert len(evidence.unlabelled) == 0
    wrong = suspicion(evidence.labels, np.array([[10, 10]]), evidence)[0, 1]
    assert wrong == pytest.approx(0.6 * 0.6)


@pytest.mark.parametrize("labels", [torch.zeros(0, 5), torch.tensor([[0.0, 50, 50, 60, 60]])])
def test_weak_detections_without_a_label_are_not_kept(labels):
    evidence = weigh(det((0, 0, 10, 10, 0.5, 0), (20, 0, 30, 10, 0.05, 0)), labels)
    assert evidence.unlabelled[:, 4].tolist() == [0.5] and evidence.distance.tolist() == [1]
    assert len(evidence.box) == len(labels)
    assert len(weigh(det(), labels).unlabelled) == 0


def test_what_the_network_rarely_sees_is_not_suspicious():
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1], 40)
    conf = np.where(classes == 0, 0.9, 0.0)
    conf[5] = 0
    typical = usual(np.stack((conf, conf), 1), classes, rng.random(80))
    assert (typical[:40] == 0.9).all() and (typical[40:] == 0).all()


def test_usual_is_by_size():
    areas = np.arange(100.0)
    conf = np.where(areas < 20, 0.1, 0.8)[:, None]
    typical = usual(conf, np.zeros(100), areas).ravel()
    assert (typical[:20] == 0.1).all() and (typical[20:] == 0.8).all()
