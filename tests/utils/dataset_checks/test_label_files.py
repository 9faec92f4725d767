"""Bad lines are found with file, line and value; classes without a name end nothing."""

from __future__ import annotations

from pathlib import Path

from tests.utils.dataset_checks.sets import checked, noise, write_data, write_split
from utils.dataset_checks.label_files import check_label_files, label_line

LABELS = "0 0.5 0.5 0.2 0.2\n\n0 0.5 0.5 1.2 0.2\n0 0.5 0.5 0.2 0.2\n1 0.1 0.2 0.3\n1 0.5 0.5 0.4 0.4\n"


def test_each_bad_line_is_a_finding(tmp_path):
    write_split(tmp_path, "train", {"a.png": noise(0), "b.png": noise(1, (9, 40))}, {"a": LABELS})
    section = check_label_files(checked(write_data(tmp_path)))
    lines = {f.line: (Path(f.file).name, f.value) for f in section.kinds()["bad-line"]}
    assert set(lines) == {3, 4, 5} and {name for name, _ in lines.values()} == {"a.txt"}
    assert "coordinate 1.2 is outside 0..1" in lines[3][1]
    assert lines[4][1] == "same row as line 1" and "4 columns" in lines[5][1]
    (image,) = section.kinds()["bad-image"]
    assert (Path(image.file).name, image.value, image.line) == ("b.png", "9 x 40 pixels, under 10", 0)
    assert section.facts["train"].startswith("2 images: 1 labelled")


def test_labels_are_found_again_in_their_file(tmp_path):
    write_split(tmp_path, "train", {"a.png": noise(0)}, {"a": "\ufeff" + LABELS})
    data = checked(write_data(tmp_path))
    (file,) = data.label_files["train"]
    assert [label_line(data, file, number) for number in range(3)] == [1, 6, 0]
    assert label_line(data, str(tmp_path / "gone.txt"), 0) == 0


def test_surprises_of_a_whole_split_are_notes(tmp_path):
    write_split(tmp_path, "train", {"a.png": noise(0)}, {"a": LABELS})
    (tmp_path / "labels/train/a.txt").rename(tmp_path / "images/train/a.txt")
    data = checked(write_data(tmp_path))
    (note,) = check_label_files(data).kinds()["note"]
    assert "not where they are expected" in note.value and note.file.endswith("d.yaml")
    assert {f.file for f in check_label_files(data).kinds()["bad-line"]} == {data.label_files["train"][0]}
    assert data.label_files["train"] == [str(tmp_path / "images/train/a.txt")]


def test_every_class_without_a_name_is_reported(tmp_path):
    texts = {"a": "0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n", "b": "2 0.5 0.5 0.2 0.2\n"}
    write_split(tmp_path, "train", {"a.png": noise(0), "b.png": noise(1)}, texts)
    found = check_label_files(checked(write_data(tmp_path))).kinds()["unknown-class"]
    assert [(Path(f.file).name, f.line, f.value[:7]) for f in found] == [
        ("a.txt", 2, "class 7"),
        ("b.txt", 1, "class 2"),
    ]
    assert "0 to 1" in found[0].remedy


def test_a_missing_split_is_a_finding(tmp_path):
    write_split(tmp_path, "train", {"a.png": noise(0)}, {})
    path = write_data(tmp_path)
    path.write_text(path.read_text() + "test: images/nowhere\n")
    (found,) = check_label_files(checked(path)).kinds()["missing-split"]
    assert found.split == "test" and "nowhere" in found.value
