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
    assert run_convert("voc", root, tmp_path / "one")["train"].messages == []
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
    root = voc_folder(tmp_path / "voc", {"a": objects})
    with pytest.raises(
        UserError, match=r"4 of 5 boxes of train are lost \(3 without area .*1 that are not a box"
    ):
        run_convert("voc", root, tmp_path / "out")
    reports = run_convert("voc", root, tmp_path / "out", "--allow-loss")
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
    assert not (tmp_path / "out").exists()


def test_voc_unusable_files_cost_their_image(tmp_path):
    good = [voc_object("cat", (1, 1, 9, 9))]
    root = voc_folder(tmp_path / "voc", dict.fromkeys("abcde", good), {"train": "abcdef"})
    (root / "Annotations/b.xml").write_text("<annotation>")
    (root / "Annotations/c.xml").write_text('<!DOCTYPE x [<!ENTITY e "x">]><annotation>&e;</annotation>')
    (root / "JPEGImages/d.jpg").write_bytes(b"")
    (root / "JPEGImages/e.jpg").unlink()
    with pytest.raises(
        UserError, match="5 of 6 images of train are lost .*IMAGES, or write the rest with --allow"
    ):
        run_convert("voc", root, tmp_path / "out", "--names", "cat")
    assert not (tmp_path / "out").exists()
    report = run_convert("voc", root, tmp_path / "out", "--names", "cat", "--allow-loss")["train"]
    assert report.images == 1
    assert len(report.messages) == 5
    reasons = {"that cannot be read": 3, "without an XML": 1, "without an image of that name": 1}
    assert report.lost_images == reasons
    assert report.lost_boxes.total() == 2  # of the images whose XML could be read


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
    with pytest.raises(UserError, match="no XML file in it"):
        run_convert("voc", tmp_path, tmp_path / "out")
    root = voc_folder(tmp_path / "voc", {"a": [voc_object("cat", (1, 1, 9, 9))]})
    with pytest.raises(UserError, match="none.txt: list of images cannot be read"):
        run_convert("voc", root, tmp_path / "out", "--split", "train=none.txt")
    with pytest.raises(UserError, match="expected NAME or NAME=LIST"):
        run_convert("voc", root, tmp_path / "out", "--split", "train=")
    with pytest.raises(UserError, match="several splits need a list each"):
        run_convert("voc", root, tmp_path / "out", "--split", "train", "val=cats.txt")
    (root / "cats.txt").write_text("a  1\nb -1\n")
    assert run_convert("voc", root, tmp_path / "out", "--split", "val=cats.txt")["val"].images == 1


def test_names_with_spaces_are_whole_lines(tmp_path):
    stems = ["street 1", "street 2", "street", "plain"]
    root = voc_folder(tmp_path / "voc", {s: [voc_object("cat", (1, 1, 9, 9))] for s in stems}, {"train": []})
    (root / "ImageSets/Main/train.txt").write_text("street 1\nstreet 2\n\nstreet -1\nplain  1\nplain 0\n")
    report = run_convert("voc", root, tmp_path / "out")["train"]
    assert sorted(p.stem for p in (tmp_path / "out/labels/train").iterdir()) == [
        "plain",
        "street 1",
        "street 2",
    ]
    assert (report.boxes.total(), report.lost_images.total()) == (3, 0)


def test_subfolders_keep_equal_names_apart(tmp_path):
    sizes = {"day/1": (1, 1, 10, 10), "night/1": (1, 1, 50, 10), "day/2": (1, 1, 100, 10)}
    root = voc_folder(
        tmp_path / "voc", {s: [voc_object("cat", box)] for s, box in sizes.items()}, {"default": sizes}
    )
    assert (
        run_convert("voc", root, tmp_path / "out")["train"].images == 3
    )  # CVAT calls the only subset default
    for stem, box in sizes.items():
        assert read_rows(tmp_path / f"out/labels/train/{stem}.txt")[0][3] == box[2] / 100
        assert (tmp_path / f"out/images/train/{stem}.jpg").samefile(root / f"JPEGImages/{stem}.jpg")


@pytest.mark.parametrize("folder", [".", "annotations"])
def test_xml_beside_the_images_needs_no_lists(tmp_path, folder):
    root = voc_folder(tmp_path / "made", {s: [voc_object("cat", (1, 1, 9, 9))] for s in "abc"})
    flat = tmp_path / "flat"
    (flat / folder).mkdir(parents=True)
    for stem in "abc":
        (root / f"JPEGImages/{stem}.jpg").rename(flat / f"{stem}.jpg")
        (root / f"Annotations/{stem}.xml").rename(flat / folder / f"{stem}.xml")
    assert run_convert("voc", flat, tmp_path / "out", "--split", "val")["val"].boxes.total() == 3
    (tmp_path / "list.txt").write_text("a\nc.jpg\n")
    listed = run_convert("voc", flat, tmp_path / "listed", "--split", "train=list.txt")["train"]
    assert (listed.images, listed.boxes.total()) == (2, 2)


@pytest.mark.parametrize(
    ("declared", "written"),
    [
        ("gbk", "gbk"),
        ("gb2312", "gb18030"),
        ("Shift_JIS", "shift_jis"),
        ("utf-16", "utf-8"),
        ("utf-16", "utf-16"),
        ("cp65001x", "utf-8"),
        (None, "gbk"),
    ],
)
def test_xml_in_other_encodings(tmp_path, declared, written):
    root = voc_folder(tmp_path / "voc", {"a": [voc_object("自転車", (1, 1, 9, 9))]})
    text = (root / "Annotations/a.xml").read_text(encoding="utf-8")
    head = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
    (root / "Annotations/a.xml").write_bytes((head + text).encode(written))
    run_convert("voc", root, tmp_path / "out")
    assert load_dataset(tmp_path / "out" / "out.yaml").names == {0: "自転車"}


def test_entities_are_refused_in_every_encoding(tmp_path):
    root = voc_folder(tmp_path / "voc", {"a": [voc_object("cat", (1, 1, 9, 9))]})
    text = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e "x">]><annotation>&e;</annotation>'
    (root / "Annotations/a.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(UserError, match=r"1 of 1 images of train are lost \(1 that cannot be read\)"):
        run_convert("voc", root, tmp_path / "out", "--names", "cat")


def test_corners_that_count_from_zero_are_said_once(tmp_path):
    root = voc_folder(tmp_path / "voc", {s: [voc_object("cat", (0.0, 5.0, 30.0, 36.0))] for s in "ab"})
    messages = run_convert("voc", root, tmp_path / "out")["train"].messages
    assert len(messages) == 1
    assert "--zero-based" in messages[0]
    assert run_convert("voc", root, tmp_path / "zero", "--zero-based")["train"].messages == []
    assert read_rows(tmp_path / "zero/labels/train/a.txt") == [[0, 0.15, 0.41, 0.3, 0.62]]
