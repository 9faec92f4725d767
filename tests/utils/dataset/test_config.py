"""Dataset YAML to packed images: where things are looked for, the cache, what stops a run."""

import logging
import os
import pickle

import cv2
import numpy as np
import pytest
import torch

from utils.dataset import location
from utils.dataset import verification as scan
from utils.dataset.config import load_dataset
from utils.dataset.image_set import Packed, Record, take_ragged
from utils.dataset.images import list_images, load_images
from utils.errors import UserError
from utils.files import save_yaml


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Caches and data sets of a test stay in its own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "fetched"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def logged():
    """Messages of the room's logger, whoever else listens to it."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    scan.LOGGER.addHandler(handler)
    yield lines
    scan.LOGGER.removeHandler(handler)


def _image(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), 99, np.uint8))


def _make(root, labels, split="train"):
    """A data set with one image per entry of `labels`; None has no label file."""
    for i, text in enumerate(labels):
        _image(root / "images" / split / f"{i}.png", (40 + i, 30))
        if text is not None:
            path = root / "labels" / split / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return root


def _yaml(root, text="train: images/train\nval: images/train\nnames: [a, b, c]\n", name="d.yaml"):
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return root / name


def test_images_and_labels_arrive_packed(tmp_path):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n2 .4 .4 .1 .1\n", None, "", "1 .1 .1 .3 .1 .3 .5\n"])
    config = load_dataset(_yaml(root))
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
    root = _make(
        tmp_path / "d", ["0 .5 .5 .2 .2\n", "0 .1 .1 .3 .1 .3 .5\n", "1 .5 .5 .4 .4\n", "2 9 9 9 9\n"]
    )
    (root / "images" / "train" / "1.png").write_bytes(b"no image")
    images = load_images(load_dataset(_yaml(root)), "train", workers=1)
    assert [os.path.basename(images.path(i)) for i in range(len(images))] == ["0.png", "2.png"]
    assert images.labels(1)[0, 0] == 1
    assert images.report.corrupt == 2
    assert images.segments(1) == []
    assert any("1.png: is not an image" in m for m in images.report.messages)
    assert any("3.txt, line 1: coordinate 9" in m for m in images.report.messages)


def test_an_image_set_pickles_small_and_whole(tmp_path):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n", "0 .1 .1 .3 .1 .3 .5\n"])
    images = load_images(load_dataset(_yaml(root)), "train", workers=1)
    copy = pickle.loads(pickle.dumps(images))
    assert copy.path(1) == images.path(1)
    assert copy.labels(1).tolist() == images.labels(1).tolist()
    assert copy.segments(1)[0].tolist() == images.segments(1)[0].tolist()
    again = pickle.loads(pickle.dumps(copy))
    assert again.path(0) == images.path(0)


def test_a_spawned_worker_reads_the_set_from_shared_memory(tmp_path):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n", "1 .5 .5 .2 .2\n"])
    images = load_images(load_dataset(_yaml(root)), "train", workers=1)
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(type(images).path, (images, 1)) == images.path(1)
    arrays = images.__getstate__()["arrays"]
    assert all(tensor.is_shared() for tensor in arrays.values() if tensor.numel())


def test_packing_and_taking_are_inverse():
    rng = np.random.default_rng(0)
    records = []
    for i in range(50):
        k = int(rng.integers(0, 4))
        segments = [rng.random((int(rng.integers(3, 6)), 2), np.float32) for _ in range(k)] if i % 3 else []
        labels = rng.random((k, 5), np.float32)
        records.append(Record(i % 4, i, 2 * i, labels, segments, ["x"] * (i % 2)))
    packed = Packed.from_records([f"pfad/ä{i}.jpg" for i in range(50)], records)
    order = rng.permutation(50)[:30]
    taken = packed.take(order)
    for new, old in enumerate(order):
        a, b = taken.record(new), records[old]
        assert (a.status, a.width, a.height, a.messages) == (b.status, b.width, b.height, b.messages)
        np.testing.assert_array_equal(a.labels, b.labels)
        assert len(a.segments) == len(b.segments)
        assert all(np.array_equal(x, y) for x, y in zip(a.segments, b.segments))


def test_take_ragged_of_nothing():
    values, offsets = take_ragged(np.arange(6), np.array([0, 2, 6]), np.array([], int))
    assert (values.tolist(), offsets.tolist()) == ([], [0])


# the YAML


@pytest.mark.parametrize("place", ["yaml", "cwd", "datasets"])
def test_path_is_looked_for_beside_the_yaml_then_here_then_in_the_datasets_folder(tmp_path, place):
    parent = {"yaml": tmp_path / "conf", "cwd": tmp_path, "datasets": tmp_path / "fetched"}[place]
    _make(parent / "set", ["0 .5 .5 .2 .2\n"])
    text = "path: set\ntrain: images/train\nval: images/train\nnames: [a]\n"
    assert load_dataset(_yaml(tmp_path / "conf", text)).root == parent / "set"


def test_path_relative_to_the_project(tmp_path, monkeypatch):
    monkeypatch.setattr(location, "ROOT", tmp_path / "project")
    _make(tmp_path / "sets" / "s", ["0 .5 .5 .2 .2\n"])
    (tmp_path / "project").mkdir()
    monkeypatch.chdir("/")
    text = "path: ../sets/s\ntrain: images/train\nval: images/train\nnames: [a]\n"
    assert load_dataset(_yaml(tmp_path / "a" / "b", text)).root == tmp_path / "sets" / "s"


def test_a_set_datasets_folder_goes_before_one_beside_the_project(tmp_path, monkeypatch):
    for parent in ("fetched", "datasets"):
        _make(tmp_path / parent / "s", ["0 .5 .5 .2 .2\n"])
    text = "path: ../datasets/s\ntrain: images/train\nval: images/train\nnames: [a]\n"
    path = _yaml(tmp_path / "project", text)
    assert load_dataset(path).root == tmp_path / "fetched" / "s"
    monkeypatch.delenv("YOLOV5_DATASETS_DIR")
    assert load_dataset(path).root == tmp_path / "datasets" / "s"


def test_missing_folder_says_where_it_looked(tmp_path):
    path = _yaml(tmp_path / "conf", "path: nowhere\ntrain: a\nval: b\nnames: [a]\n")
    with pytest.raises(UserError) as error:
        load_dataset(path)
    for place in (tmp_path / "conf" / "nowhere", tmp_path / "nowhere", tmp_path / "fetched" / "nowhere"):
        assert str(place) in str(error.value)
    assert load_dataset(path, fetch=False).names == {0: "a"}


def test_missing_split_folder_and_missing_split(tmp_path):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    config = load_dataset(_yaml(root, "train: images/none\nval: images/train\nnames: [a]\n"))
    with pytest.raises(UserError, match="images/none: no such folder"):
        load_images(config, "train")
    with pytest.raises(UserError, match="no 'test' images"):
        load_images(config, "test")


def test_leading_dots_of_some_exporters_are_forgiven(tmp_path):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    config = load_dataset(_yaml(root, "train: ../images/train\nval: ../images/train\nnames: [a]\n"))
    assert config.splits["val"] == [root / "images" / "train"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: images/train\nnames: [a, b]\nnc: 3\n", "nc is 3 but names lists 2"),
        ("train: images/train\nnames: {0: a, 2: b}\n", "keys 0, 2 where 0 to 1"),
        ("train: images/train\nnames: {a: 0}\n", "keys a where 0 to 0"),
        ("train: images/train\nnames: cat\n", "'cat' where a list"),
        ("train: images/train\nnames: []\n", "names is empty"),
        ("train: images/train\n", "no names key"),
        ("train: images/train\nnc: many\n", "nc is 'many'"),
        ("train: 3\nnames: [a]\n", "train has 3"),
        ("names: [a]\n", "no train, val or test key"),
        ("path: 3\ntrain: x\nnames: [a]\n", "path is 3"),
        ("names:\n\t- a\n", "tab"),
    ],
)
def test_a_wrong_yaml_is_one_sentence_with_its_name(tmp_path, text, sentence):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    with pytest.raises(UserError, match="d.yaml") as error:
        load_dataset(_yaml(root, text))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_names_as_a_mapping_and_an_old_yaml_with_nc_alone(tmp_path):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    config = load_dataset(_yaml(root, "train: images/train\nnames: {1: b, 0: a}\nnc: 2\n"))
    assert list(config.names.items()) == [(0, "a"), (1, "b")]
    assert load_dataset(_yaml(root, "train: images/train\nnc: 2\n")).names == {0: "class0", 1: "class1"}


@pytest.mark.parametrize("how", ["bash data/get.sh", "import os\nos.mkdir('ran')\n", "coco2"])
def test_download_scripts_are_refused_and_not_run(tmp_path, how):
    path = tmp_path / "d.yaml"
    save_yaml(path, {"path": "nowhere", "train": "a", "val": "a", "names": ["x"], "download": how})
    with pytest.raises(UserError, match="scripts are not run"):
        load_dataset(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["coco.yaml", "coco128.yaml", "VOC.yaml", "digits.yaml"])
def test_bundled_yamls_name_their_classes(name):
    config = load_dataset(name, fetch=False)
    counts = {"coco.yaml": 80, "coco128.yaml": 80, "VOC.yaml": 20, "digits.yaml": 10}
    assert config.nc == counts[name]
    assert len(set(config.names.values())) == config.nc


# the lists


def test_folders_lists_and_repeats_mix(tmp_path):
    root = tmp_path / "d"
    for name in (
        "images/a/1.jpg",
        "images/a/sub/2.JPG",
        "images/b/3.png",
        "images/a/.hidden.jpg",
        "x/images/4.bmp",
    ):
        _image(root / name.replace("JPG", "jpg"))
    (root / "images/a/sub/2.jpg").rename(root / "images/a/sub/2.JPG")
    (root / "list.txt").write_text("./images/b/3.png\nx/images/4.bmp\n\nimages/a/1.jpg\nnotes.txt\n")
    config = load_dataset(_yaml(root, "train: [images/a, list.txt]\nnames: [a]\n"))
    images = load_images(config, "train", workers=1)
    listed = [os.path.relpath(images.path(i), root) for i in range(len(images))]
    assert listed == ["images/a/1.jpg", "images/a/sub/2.JPG", "images/b/3.png", "x/images/4.bmp"]
    notes = "\n".join(images.report.messages)
    assert "1 images listed more than once" in notes
    assert "list.txt, line 5: 'notes.txt' has no image suffix" in notes


def test_unicode_names_and_images_that_a_list_names_in_vain(tmp_path):
    root = _make(tmp_path / "dätä", ["0 .5 .5 .2 .2\n"])
    _image(root / "images" / "train" / "日本 é.png")
    (root / "l.txt").write_text("./images/train/日本 é.png\n./images/train/none.jpg\n", encoding="utf-8")
    images = load_images(load_dataset(_yaml(root, "train: l.txt\nnames: [a]\n")), "train", workers=1)
    assert len(images) == 1
    assert images.path(0).endswith("日本 é.png")
    assert any("none.jpg: no such image" in m for m in images.report.messages)


def test_a_folder_without_images_and_one_with_only_broken_ones(tmp_path):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    (root / "images" / "none").mkdir()
    with pytest.raises(UserError, match="images/none: no images in it"):
        load_images(load_dataset(_yaml(root, "train: images/none\nnames: [a]\n")), "train")
    (root / "images" / "train" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 train images is usable.*empty file"):
        load_images(load_dataset(_yaml(root)), "train")


def test_a_ring_of_links_ends(tmp_path):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    (root / "images" / "train" / "loop").symlink_to(root / "images", target_is_directory=True)
    images, _ = list_images([root / "images" / "train"], root)
    assert len(images) <= 2


# what stops a run


def test_class_beyond_the_names_names_file_line_value_and_what_is_allowed(tmp_path):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n", "\n1 .5 .5 .2 .2\n3 .5 .5 .2 .2\n"])
    with pytest.raises(UserError) as error:
        load_images(load_dataset(_yaml(root)), "train")
    assert f"{root / 'labels/train/1.txt'}, line 3: class 3" in str(error.value)
    assert "0 to 2 are allowed" in str(error.value)
    with pytest.raises(UserError, match="class 3"):  # the cache changes nothing about it
        load_images(load_dataset(_yaml(root)), "train")


def test_no_labels_at_all_stops_training_only(tmp_path):
    root = _make(tmp_path / "d", [None, None])
    config = load_dataset(_yaml(root))
    with pytest.raises(UserError, match=r"no labels .* expected in .*labels/train/0.txt"):
        load_images(config, "train", require_labels=True)
    assert len(load_images(config, "train")) == 2


def test_single_cls_makes_every_label_class_0_and_still_checks_the_file(tmp_path):
    root = _make(tmp_path / "d", ["2 .5 .5 .2 .2\n"])
    config = load_dataset(_yaml(root), single_cls=True)
    assert (config.names, config.nc) == ({0: "item"}, 1)
    assert load_images(config, "train").all_labels[:, 0].tolist() == [0]
    assert load_images(load_dataset(_yaml(root)), "train").all_labels[:, 0].tolist() == [2]
    (root / "labels/train/0.txt").write_text("3 .5 .5 .2 .2\n")
    with pytest.raises(UserError, match="class 3"):
        load_images(config, "train")


# the cache


@pytest.fixture
def verified(monkeypatch):
    """Names of the images that are really looked at."""
    seen = []
    real = scan.verify
    monkeypatch.setattr(scan, "verify", lambda i, lab: seen.append(os.path.basename(i)) or real(i, lab))
    return seen


def test_only_what_changed_is_verified_again(tmp_path, verified):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n", "1 .5 .5 .2 .2\n", None])
    config = load_dataset(_yaml(root))
    first = load_images(config, "train", workers=1)
    assert (root / "labels" / "train.cache.npz").is_file()
    assert len(verified) == 3
    second = load_images(config, "train", workers=1)
    assert len(verified) == 3
    assert second.all_labels.tolist() == first.all_labels.tolist()
    (root / "labels/train/1.txt").write_text("2 .5 .5 .2 .2\n")  # same size, other content
    os.utime(root / "labels/train/1.txt", ns=(1, 1))
    (root / "labels/train/2.txt").write_text("0 .5 .5 .2 .2\n")
    third = load_images(config, "train", workers=1)
    assert verified[3:] == ["1.png", "2.png"]
    assert third.all_labels[:, 0].tolist() == [0, 2, 0]
    (root / "images/train/0.png").unlink()
    assert len(load_images(config, "train", workers=1)) == 2
    assert len(verified) == 5
    load_images(config, "train", workers=1, use_cache=False)
    assert len(verified) == 7


def test_broken_or_foreign_cache_is_made_anew(tmp_path, verified):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    config = load_dataset(_yaml(root))
    load_images(config, "train", workers=1)
    cache = root / "labels" / "train.cache.npz"
    good = cache.read_bytes()
    cache.write_bytes(good[: len(good) // 2])
    assert len(load_images(config, "train", workers=1)) == 1
    with np.load(cache) as file:
        arrays = dict(file)
    for change in ({"offsets": np.array([0, 99])}, {"version": np.int64(0)}):
        np.savez(cache, **(arrays | change))
        assert load_images(config, "train", workers=1).all_labels.shape == (1, 5)
    assert len(verified) == 4
    np.savez(cache, **{k: np.array([{"a": 1}], object) if k == "labels" else v for k, v in arrays.items()})
    assert len(load_images(config, "train", workers=1)) == 1  # pickled objects are not even looked at


def test_read_only_data_is_cached_elsewhere_and_left_alone(tmp_path, verified, logged):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    config = load_dataset(_yaml(root))
    before = sorted(p.name for p in (root / "labels").iterdir())
    (root / "labels").chmod(0o555)
    try:
        for _ in range(2):
            load_images(config, "train", workers=1)
    finally:
        (root / "labels").chmod(0o755)
    assert sorted(p.name for p in (root / "labels").iterdir()) == before
    assert len(verified) == 1
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1
    assert any("read-only folder" in line for line in logged)


def test_no_place_for_a_cache_is_a_warning(tmp_path, monkeypatch, logged):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n"])

    def refuse(path, write):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(scan, "atomic_write", refuse)
    assert len(load_images(load_dataset(_yaml(root)), "train", workers=1)) == 1
    assert "could not be written" in logged[0]


def test_processes_find_what_one_process_finds(tmp_path):
    root = _make(tmp_path / "d", [f"{i % 3} .5 .5 .2 .{1 + i % 8}\nx\n" for i in range(70)])
    config = load_dataset(_yaml(root))
    one = load_images(config, "train", workers=1, use_cache=False)
    two = load_images(config, "train", workers=2, use_cache=False)
    assert one.all_labels.tolist() == two.all_labels.tolist()
    assert one.report == two.report
    assert len(one.report.messages) == 70


def test_the_log_shows_the_first_findings_and_counts_the_rest(tmp_path, logged):
    root = _make(tmp_path / "d", ["0 .5 .5 .2 .2\n" + "x\n" * 25])
    images = load_images(load_dataset(_yaml(root)), "train", workers=1)
    assert sum("is not a number" in line for line in logged) == 20
    assert "and 5 more" in logged[-1]
    assert len(images.report.messages) == 25
