"""Pascal VOC: coordinates to the digit, and what is left out."""

import pytest

from tests.utils.dataset.convert.annotations import read_rows, run_convert, voc_folder, voc_object
from utils.dataset.config import load_dataset
from utils.dataset.images import load_images
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("own_folders")


def test_voc_pixels_count_from_one_and_include_both_ends(tmp_path):
    root = voc_folder(
        tmp_path / "voc", {"a": [voc_object("cat", (1, 1, 100, 50)), voc_object("dog", (11, 6, 20, 25))]}
    )
    run_convert("voc", root, tmp_path / "out")
    rows = read_rows(tmp_path / "out/labels/train/a.txt")
    assert rows == [[0, 0.5, 0.5, 1, 1], [1, 0.15, 0.3, 0.1, 0.4]]
    run_convert("voc", root, tmp_path / "zero", "--zero-based")
    assert read_rows(tmp_path / "zero/labels/train/a.txt")[1] == [1, 0.155, 0.31, 0.09, 0.38]


def test_voc_result_is_a_data_set_that_loads(tmp_path):
    items = {"a": [voc_object("cat", (1, 1, 9, 9))], "b": [voc_object("dog", (1, 1, 9, 9))], "c": []}
    root = voc_folder(tmp_path / "voc", items, {"train": "ab", "val": "c"})
    reports = run_convert("voc", root, tmp_path / "out", "--names", "dog", "cat", "--name", "pets")
    config = load_dataset(tmp_path / "out" / "pets.yaml")
    assert config.names == {0: "dog", 1: "cat"}
    images = load_images(config, "train", workers=1)
    assert images.all_labels[:, 0].tolist() == [1, 0]
    assert images.report.messages == []
    assert load_images(config, "val", workers=1).report.empty == 1
    assert {s: (r.images, r.boxes.total()) for s, r in reports.items()} == {"train": (2, 2), "val": (1, 0)}


def test_voc_boxes_without_area_go_and_those_over_the_edge_are_clipped(tmp_path):
    objects = [
        voc_object("cat", (50, 10, 50, 10)),
        voc_object("cat", (30, 10, 20, 20)),
        voc_object("cat", (91, -4, 140, 25)),
        voc_object("cat", (150, 10, 170, 20)),
        voc_object("cat", ("x", 1, 2, 3)),
    ]
    reports = run_convert("voc", voc_folder(tmp_path / "voc", {"a": objects}), tmp_path / "out")
    assert read_rows(tmp_path / "out/labels/train/a.txt") == [[0, 0.95, 0.25, 0.1, 0.5]]
    messages = "\n".join(reports["train"].messages)
    assert messages.count("no area") == 3
    assert "a.xml: cat box 50 10 50 10 has no area" in messages
    assert "not four numbers" in messages


def test_voc_difficult_objects_stay_unless_dropped(tmp_path):
    root = voc_folder(
        tmp_path / "voc", {"a": [voc_object("cat", (1, 1, 9, 9), 1), voc_object("cat", (1, 1, 20, 20))]}
    )
    assert run_convert("voc", root, tmp_path / "keep")["train"].boxes.total() == 2
    assert run_convert("voc", root, tmp_path / "drop", "--drop-difficult")["train"].boxes.total() == 1


def test_voc_unknown_class_names_the_file_and_leaves_nothing(tmp_path):
    root = voc_folder(
        tmp_path / "voc", {"a": [voc_object("cat", (1, 1, 9, 9))], "b": [voc_object("bird", (1, 1, 9, 9))]}
    )
    with pytest.raises(UserError, match=r"b.xml: class 'bird' is not among cat; add it to --names"):
        run_convert("voc", root, tmp_path / "out", "--names", "cat")
    assert not list((tmp_path / "out").iterdir())


def test_voc_unusable_files_cost_their_image(tmp_path):
    good = [voc_object("cat", (1, 1, 9, 9))]
    root = voc_folder(tmp_path / "voc", dict.fromkeys("abcde", good), {"train": "abcdef"})
    (root / "Annotations/b.xml").write_text("<annotation>")
    (root / "Annotations/c.xml").write_text('<!DOCTYPE x [<!ENTITY e "x">]><annotation>&e;</annotation>')
    (root / "JPEGImages/d.jpg").write_bytes(b"")
    (root / "JPEGImages/e.jpg").unlink()
    reports = run_convert("voc", root, tmp_path / "out", "--names", "cat")
    assert reports["train"].images == 1
    assert len(reports["train"].messages) == 5


@pytest.mark.parametrize("copy", [[], ["--copy"]])
@pytest.mark.parametrize("line", ["../../../victim", "{tmp}/victim", "C:\\victim", "..\\victim"])
def test_voc_lists_do_not_lead_out_of_the_folder(tmp_path, line, copy):
    root = voc_folder(tmp_path / "top" / "voc", {"victim": [voc_object("cat", (1, 1, 9, 9))]})
    (tmp_path / "victim.xml").write_bytes((root / "Annotations" / "victim.xml").read_bytes())
    (tmp_path / "victim.jpg").write_text("precious")
    (tmp_path / "victim.txt").write_text("precious")
    stem = line.format(tmp=tmp_path)
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"{stem}\nvictim\n")
    # Three folders up lies tmp_path, from Annotations as from the temporary images and labels in OUT.
    report = run_convert("voc", root, tmp_path / "out", *copy)["train"]
    assert report.images == 1
    assert report.messages == [
        f"{root / 'ImageSets' / 'Main' / 'train.txt'}: the image name {stem!r} leads out of the folder; "
        "image left out"
    ]
    assert (tmp_path / "victim.jpg").read_text() == (tmp_path / "victim.txt").read_text() == "precious"


def test_voc_lists_and_folders_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="no train.txt"):
        run_convert("voc", tmp_path, tmp_path / "out")
    root = voc_folder(tmp_path / "voc", {"a": [voc_object("cat", (1, 1, 9, 9))]})
    with pytest.raises(UserError, match="none.txt: list of images cannot be read"):
        run_convert("voc", root, tmp_path / "out", "--split", "train=none.txt")
    with pytest.raises(UserError, match="expected NAME=LIST"):
        run_convert("voc", root, tmp_path / "out", "--split", "train")
    (root / "cats.txt").write_text("a  1\nb -1\n")
    assert run_convert("voc", root, tmp_path / "out", "--split", "val=cats.txt")["val"].images == 1
