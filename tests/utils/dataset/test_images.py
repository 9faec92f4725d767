"""The images of a split: which are listed, how they arrive, what stops a run."""

import os

import numpy as np
import pytest

from tests.utils.image_sets import make_dataset, write_image, write_yaml
from utils.dataset.config import load_dataset
from utils.dataset.images import list_images, load_images
from utils.errors import UserError

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
