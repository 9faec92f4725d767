"""The images of a split: which are listed, how they arrive, what stops a run."""

import os

import numpy as np
import pytest
from PIL import Image, features

from tests.utils.image_sets import make_dataset, write_image, write_yaml
from utils.dataset.config import load_dataset
from utils.dataset.images import list_images, load_images
from utils.errors import UserError
from utils.images import load_image

pytestmark = pytest.mark.usefixtures("own_folders")


def test_images_and_labels_arrive_packed(tmp_path):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n2 .4 .4 .1 .1\n", None, "", "1 .1 .1 .3 .1 .3 .5\n"])
    config = load_dataset(write_yaml(root))
    images = load_images(config, "train", workers=1)
    assert (config.names, config.nc, config.root) == ({0: "a", 1: "b", 2: "c"}, 3, root)
    assert [os.path.basename(images.path(i)) for i in range(4)] == ["0.png", "1.png", "2.png", "3.png"]
    assert images.sizes.tolist() == [[40, 30], [41, 30], [42, 30], [43, 30]]
    assert images.offsets.tolist() == [0, 2, 2, 2, 3]
    assert [len(images.labels(i)) for i in range(4)] == [2, 0, 0, 1]
    assert images.labels(0).base is not None  # a view, no copy
    assert [len(images.segments(i)) for i in range(4)] == [0, 0, 0, 1]
    np.testing.assert_allclose(images.segments(3)[0], [[0.1, 0.1], [0.3, 0.1], [0.3, 0.5]], atol=1e-7)
    report = images.report
    assert (report.found, report.missing, report.empty, report.corrupt, report.total) == (2, 1, 1, 0, 4)
    with pytest.raises(IndexError):
        images.path(4)
    assert images.path(-1).endswith("3.png")


def test_dropped_images_leave_no_gap(tmp_path):
    root = make_dataset(
        tmp_path / "d", ["0 .5 .5 .2 .2\n", "0 .1 .1 .3 .1 .3 .5\n", "1 .5 .5 .4 .4\n", "2 9 9 9 9\n"]
    )
    (root / "images" / "train" / "1.png").write_bytes(b"no image")
    images = load_images(load_dataset(write_yaml(root)), "train", workers=1)
    assert [os.path.basename(images.path(i)) for i in range(len(images))] == ["0.png", "2.png"]
    assert images.labels(1)[0, 0] == 1
    assert images.report.corrupt == 2
    assert images.segments(1) == []
    assert any("1.png: is not an image" in m for m in images.report.messages)
    assert any("3.txt, line 1: coordinate 9" in m for m in images.report.messages)


def test_missing_split_folder_and_missing_split(tmp_path):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    config = load_dataset(write_yaml(root, "train: images/none\nval: images/train\nnames: [a]\n"))
    with pytest.raises(UserError, match="images/none: no such folder"):
        load_images(config, "train")
    with pytest.raises(UserError, match="no 'test' images"):
        load_images(config, "test")


def test_folders_lists_and_repeats_mix(tmp_path):
    root = tmp_path / "d"
    for name in (
        "images/a/1.jpg",
        "images/a/sub/2.JPG",
        "images/b/3.png",
        "images/a/.hidden.jpg",
        "x/images/4.bmp",
    ):
        write_image(root / name.replace("JPG", "jpg"))
    (root / "images/a/sub/2.jpg").rename(root / "images/a/sub/2.JPG")
    (root / "list.txt").write_text("./images/b/3.png\nx/images/4.bmp\n\nimages/a/1.jpg\nnotes.txt\n")
    config = load_dataset(write_yaml(root, "train: [images/a, list.txt]\nnames: [a]\n"))
    images = load_images(config, "train", workers=1)
    listed = [os.path.relpath(images.path(i), root) for i in range(len(images))]
    assert listed == ["images/a/1.jpg", "images/a/sub/2.JPG", "images/b/3.png", "x/images/4.bmp"]
    notes = "\n".join(images.report.messages)
    assert "1 images listed more than once" in notes
    assert "list.txt, line 5: 'notes.txt' has no image suffix" in notes


def test_unicode_names_and_images_that_a_list_names_in_vain(tmp_path):
    root = make_dataset(tmp_path / "dätä", ["0 .5 .5 .2 .2\n"])
    write_image(root / "images" / "train" / "日本 é.png")
    (root / "l.txt").write_text("./images/train/日本 é.png\n./images/train/none.jpg\n", encoding="utf-8")
    images = load_images(load_dataset(write_yaml(root, "train: l.txt\nnames: [a]\n")), "train", workers=1)
    assert len(images) == 1
    assert images.path(0).endswith("日本 é.png")
    assert any("none.jpg: no such image" in m for m in images.report.messages)


def test_a_folder_without_images_and_one_with_only_broken_ones(tmp_path):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    (root / "images" / "none").mkdir()
    with pytest.raises(UserError, match="images/none: no images in it"):
        load_images(load_dataset(write_yaml(root, "train: images/none\nnames: [a]\n")), "train")
    (root / "images" / "train" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 train images is usable.*empty file"):
        load_images(load_dataset(write_yaml(root)), "train")


def test_a_ring_of_links_ends(tmp_path):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    (root / "images" / "train" / "loop").symlink_to(root / "images", target_is_directory=True)
    images, _ = list_images([root / "images" / "train"], root)
    assert len(images) <= 2


def test_class_beyond_the_names_names_file_line_value_and_what_is_allowed(tmp_path):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n", "\n1 .5 .5 .2 .2\n3 .5 .5 .2 .2\n"])
    with pytest.raises(UserError) as error:
        load_images(load_dataset(write_yaml(root)), "train")
    assert f"{root / 'labels/train/1.txt'}, line 3: class 3" in str(error.value)
    assert "0 to 2 are allowed" in str(error.value)
    with pytest.raises(UserError, match="class 3"):  # the cache changes nothing about it
        load_images(load_dataset(write_yaml(root)), "train")


def test_no_labels_at_all_stops_training_only(tmp_path):
    root = make_dataset(tmp_path / "d", [None, None])
    config = load_dataset(write_yaml(root))
    with pytest.raises(UserError, match=r"no labels .* expected in .*labels/train/0.txt"):
        load_images(config, "train", require_labels=True)
    assert len(load_images(config, "train")) == 2


def test_single_cls_makes_every_label_class_0_and_still_checks_the_file(tmp_path):
    root = make_dataset(tmp_path / "d", ["2 .5 .5 .2 .2\n"])
    config = load_dataset(write_yaml(root), single_cls=True)
    assert (config.names, config.nc) == ({0: "item"}, 1)
    assert load_images(config, "train").all_labels[:, 0].tolist() == [0]
    assert load_images(load_dataset(write_yaml(root)), "train").all_labels[:, 0].tolist() == [2]
    (root / "labels/train/0.txt").write_text("3 .5 .5 .2 .2\n")
    with pytest.raises(UserError, match="class 3"):
        load_images(config, "train")


def test_every_suffix_that_pillow_reads_is_read_and_the_others_are_counted(tmp_path, logged):
    root, picture = (
        make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n"]),
        Image.new("RGB", (50, 40), (90, 20, 30)),
    )
    suffixes = ["jfif", "jp2", "gif", "ppm", "bmp", "tiff", "webp"] + ["avif"] * features.check("avif")
    for suffix in suffixes:
        picture.save(root / f"images/train/{suffix}.{suffix}")
    for name in ("x.jxl", "y.jxl", "z.svg", "notes.md", ".DS_Store", "w.json"):
        (root / "images/train" / name).touch()
    images = load_images(load_dataset(write_yaml(root)), "train", workers=1)
    assert len(images) == len(suffixes) + 1
    assert {tuple(size) for size in images.sizes[:-1].tolist()} <= {(50, 40), (40, 30)}
    assert any("3 files of other suffixes left out (2 .jxl, 1 .svg)" in line for line in logged)


def test_heic_is_read_with_its_plug_in(tmp_path):
    pytest.importorskip("pillow_heif")
    root = make_dataset(tmp_path / "d", [])
    (root / "images/train").mkdir(parents=True)
    Image.new("RGB", (50, 40), (200, 20, 30)).save(root / "images/train/a.heic")
    images = load_images(load_dataset(write_yaml(root)), "train", workers=1)
    assert images.sizes.tolist() == [[50, 40]]
    assert load_image(images.path(0))[20, 20].tolist() == pytest.approx([30, 20, 200], abs=6)


def test_a_folder_of_other_files_says_what_lies_there(tmp_path):
    root = make_dataset(tmp_path / "d", [])
    (root / "images/train").mkdir(parents=True)
    (root / "images/train/a.jxl").touch()
    with pytest.raises(
        UserError, match=r"no images in it .*; .*1 files of other suffixes left out \(1 \.jxl\)"
    ):
        load_images(load_dataset(write_yaml(root)), "train")


def test_labels_beside_the_images_are_read_and_said(tmp_path, logged):
    root = make_dataset(tmp_path / "d", [None, None])
    (root / "images/train/0.txt").write_text("2 .5 .5 .2 .2\n")
    (root / "images/train/1.TXT").write_text("3 .5 .5 .2 .2\n")
    config = load_dataset(write_yaml(root, "train: images/train\nnames: [a, b, c, d]\n"))
    assert load_images(config, "train").all_labels[:, 0].tolist() == [2, 3]
    assert sum("2 label files are not where they are expected" in line for line in logged) == 1
    with pytest.raises(UserError, match=r"images/train/1\.TXT, line 1: class 3"):
        load_images(load_dataset(write_yaml(root)), "train")


def test_keypoints_of_the_yaml_reach_the_labels_and_their_cache(tmp_path):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2 .1 .1 .9 .9\n"])
    text = "train: images/train\nnames: [a]\n"
    for more, width in (("", 0.8), ("kpt_shape: [2, 2]\n", 0.2), ("", 0.8)):
        images = load_images(load_dataset(write_yaml(root, text + more)), "train", workers=1)
        assert images.all_labels[0, 3] == pytest.approx(width)


def test_lists_of_other_systems_are_read_and_said(tmp_path):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n"] * 3)
    (root / "l.txt").write_text(".\\images\\train\\0.png\r\ndata/images/train/1.png\nimages/train/2.png\n")
    images, (note,) = list_images([root / "l.txt"], root)
    assert [os.path.relpath(image, root) for image in images] == [f"images/train/{i}.png" for i in range(3)]
    assert f"{root / 'l.txt'}: 2 paths are not there as written, such as line 1" in note
