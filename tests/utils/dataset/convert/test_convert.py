"""Converters: coordinates to the digit, what is left out, and that the source is never touched."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile

import cv2
import numpy as np
import pytest

from data import convert
from utils.dataset.bundled import published
from utils.dataset.config import load_dataset
from utils.dataset.convert.convert import _place_image
from utils.dataset.images import load_images
from utils.errors import UserError
from utils.files import ROOT


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _image(path, size=(100, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), 77, np.uint8))


def _object(name, box, difficult=0):
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def _voc(root, items, lists=None, size=(100, 50)):
    """A VOC folder: stem -> objects; every image is 100 x 50, whatever the XML says."""
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for stem, objects in items.items():
        _image(root / "JPEGImages" / f"{stem}.jpg")
        width, height = size
        (root / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><filename>{stem}.jpg</filename><size><width>{width}</width><height>{height}</height>"
            f"</size>{''.join(objects)}</annotation>"
        )
    for split, stems in (lists or {"train": items}).items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return root


def _run(*argv):
    return convert.run(convert.build_parser().parse_args([str(a) for a in argv]))


def _rows(path):
    return [[float(v) for v in line.split()] for line in path.read_text().splitlines()]


def test_voc_pixels_count_from_one_and_include_both_ends(tmp_path):
    root = _voc(tmp_path / "voc", {"a": [_object("cat", (1, 1, 100, 50)), _object("dog", (11, 6, 20, 25))]})
    _run("voc", root, tmp_path / "out")
    rows = _rows(tmp_path / "out/labels/train/a.txt")
    assert rows == [[0, 0.5, 0.5, 1, 1], [1, 0.15, 0.3, 0.1, 0.4]]
    _run("voc", root, tmp_path / "zero", "--zero-based")
    assert _rows(tmp_path / "zero/labels/train/a.txt")[1] == [1, 0.155, 0.31, 0.09, 0.38]


def test_voc_result_is_a_data_set_that_loads(tmp_path):
    items = {"a": [_object("cat", (1, 1, 9, 9))], "b": [_object("dog", (1, 1, 9, 9))], "c": []}
    root = _voc(tmp_path / "voc", items, {"train": "ab", "val": "c"})
    reports = _run("voc", root, tmp_path / "out", "--names", "dog", "cat", "--name", "pets")
    config = load_dataset(tmp_path / "out" / "pets.yaml")
    assert config.names == {0: "dog", 1: "cat"}
    images = load_images(config, "train", workers=1)
    assert images.all_labels[:, 0].tolist() == [1, 0]
    assert images.report.messages == []
    assert load_images(config, "val", workers=1).report.empty == 1
    assert {s: (r.images, r.boxes.total()) for s, r in reports.items()} == {"train": (2, 2), "val": (1, 0)}


def test_voc_boxes_without_area_go_and_those_over_the_edge_are_clipped(tmp_path):
    objects = [
        _object("cat", (50, 10, 50, 10)),
        _object("cat", (30, 10, 20, 20)),
        _object("cat", (91, -4, 140, 25)),
        _object("cat", (150, 10, 170, 20)),
        _object("cat", ("x", 1, 2, 3)),
    ]
    reports = _run("voc", _voc(tmp_path / "voc", {"a": objects}), tmp_path / "out")
    assert _rows(tmp_path / "out/labels/train/a.txt") == [[0, 0.95, 0.25, 0.1, 0.5]]
    messages = "\n".join(reports["train"].messages)
    assert messages.count("no area") == 3
    assert "a.xml: cat box 50 10 50 10 has no area" in messages
    assert "not four numbers" in messages


def test_voc_difficult_objects_stay_unless_dropped(tmp_path):
    root = _voc(tmp_path / "voc", {"a": [_object("cat", (1, 1, 9, 9), 1), _object("cat", (1, 1, 20, 20))]})
    assert _run("voc", root, tmp_path / "keep")["train"].boxes.total() == 2
    assert _run("voc", root, tmp_path / "drop", "--drop-difficult")["train"].boxes.total() == 1


@pytest.mark.parametrize("size", [(0, 0), (640, 480)])
def test_the_size_of_the_image_counts(tmp_path, size):
    root = _voc(tmp_path / "voc", {"a": [_object("cat", (1, 1, 100, 50))]}, size=size)
    reports = _run("voc", root, tmp_path / "out")
    assert _rows(tmp_path / "out/labels/train/a.txt") == [[0, 0.5, 0.5, 1, 1]]
    assert len(reports["train"].messages) == (size != (0, 0))


def test_voc_unknown_class_names_the_file_and_leaves_nothing(tmp_path):
    root = _voc(tmp_path / "voc", {"a": [_object("cat", (1, 1, 9, 9))], "b": [_object("bird", (1, 1, 9, 9))]})
    with pytest.raises(UserError, match=r"b.xml: class 'bird' is not among cat; add it to --names"):
        _run("voc", root, tmp_path / "out", "--names", "cat")
    assert not list((tmp_path / "out").iterdir())


def test_voc_unusable_files_cost_their_image(tmp_path):
    good = [_object("cat", (1, 1, 9, 9))]
    root = _voc(tmp_path / "voc", dict.fromkeys("abcde", good), {"train": "abcdef"})
    (root / "Annotations/b.xml").write_text("<annotation>")
    (root / "Annotations/c.xml").write_text('<!DOCTYPE x [<!ENTITY e "x">]><annotation>&e;</annotation>')
    (root / "JPEGImages/d.jpg").write_bytes(b"")
    (root / "JPEGImages/e.jpg").unlink()
    reports = _run("voc", root, tmp_path / "out", "--names", "cat")
    assert reports["train"].images == 1
    assert len(reports["train"].messages) == 5


def test_the_source_is_read_only_and_copies_are_independent(tmp_path):
    root = _voc(tmp_path / "voc", {"a": [_object("cat", (1, 1, 9, 9))]})
    source = root / "JPEGImages" / "a.jpg"
    before = source.read_bytes()
    _run("voc", root, tmp_path / "link")
    _run("voc", root, tmp_path / "copy", "--copy")
    assert source.read_bytes() == before
    assert os.path.samefile(source, tmp_path / "link/images/train/a.jpg")
    assert not os.path.samefile(source, tmp_path / "copy/images/train/a.jpg")
    with pytest.raises(UserError, match="is there already"):
        _run("voc", root, tmp_path / "copy")


@pytest.mark.parametrize("copy", [[], ["--copy"]])
@pytest.mark.parametrize("line", ["../../../victim", "{tmp}/victim", "C:\\victim", "..\\victim"])
def test_voc_lists_do_not_lead_out_of_the_folder(tmp_path, line, copy):
    root = _voc(tmp_path / "top" / "voc", {"victim": [_object("cat", (1, 1, 9, 9))]})
    (tmp_path / "victim.xml").write_bytes((root / "Annotations" / "victim.xml").read_bytes())
    (tmp_path / "victim.jpg").write_text("precious")
    (tmp_path / "victim.txt").write_text("precious")
    stem = line.format(tmp=tmp_path)
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"{stem}\nvictim\n")
    # Three folders up lies tmp_path, from Annotations as from the temporary images and labels in OUT.
    report = _run("voc", root, tmp_path / "out", *copy)["train"]
    assert report.images == 1
    assert report.messages == [
        f"{root / 'ImageSets' / 'Main' / 'train.txt'}: the image name {stem!r} leads out of the folder; "
        "image left out"
    ]
    assert (tmp_path / "victim.jpg").read_text() == (tmp_path / "victim.txt").read_text() == "precious"


def test_an_image_is_never_put_over_another_file(tmp_path):
    _image(tmp_path / "a.jpg")
    (tmp_path / "mine.jpg").write_text("mine")
    for copy in (False, True):
        with pytest.raises(FileExistsError):
            _place_image(tmp_path / "a.jpg", tmp_path / "mine.jpg", copy)
    assert (tmp_path / "mine.jpg").read_text() == "mine"


def test_voc_lists_and_folders_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="no train.txt"):
        _run("voc", tmp_path, tmp_path / "out")
    root = _voc(tmp_path / "voc", {"a": [_object("cat", (1, 1, 9, 9))]})
    with pytest.raises(UserError, match="none.txt: list of images cannot be read"):
        _run("voc", root, tmp_path / "out", "--split", "train=none.txt")
    with pytest.raises(UserError, match="expected NAME=LIST"):
        _run("voc", root, tmp_path / "out", "--split", "train")
    (root / "cats.txt").write_text("a  1\nb -1\n")
    assert _run("voc", root, tmp_path / "out", "--split", "val=cats.txt")["val"].images == 1


def test_the_command_line_ends_in_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "data/convert.py", "voc", tmp_path / "none", tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "no train.txt" in done.stderr


# COCO


def _coco(tmp_path, annotations, images=None, categories=None):
    for name in ("a.jpg", "sub/b.jpg"):
        _image(tmp_path / "pictures" / name)
    data = {
        "images": images
        or [
            {"id": 7, "file_name": "a.jpg", "width": 100, "height": 50},
            {"id": 9, "file_name": "sub/b.jpg", "width": 100, "height": 50},
        ],
        "categories": categories or [{"id": 90, "name": "brush"}, {"id": 3, "name": "car"}],
        "annotations": annotations,
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(data))
    return path


def _annotation(box, image=7, category=3, **more):
    return {"id": 1, "image_id": image, "category_id": category, "bbox": box} | more


def test_coco_ids_become_contiguous_and_boxes_centred(tmp_path):
    found = [_annotation([10, 5, 20, 30]), _annotation([0, 0, 100, 50], image=9, category=90)]
    _run("coco", _coco(tmp_path, found), tmp_path / "pictures", tmp_path / "out")
    config = load_dataset(tmp_path / "out" / "out.yaml")
    assert config.names == {0: "car", 1: "brush"}
    images = load_images(config, "train", workers=1)
    np.testing.assert_allclose(images.labels(0), [[0, 0.2, 0.4, 0.2, 0.6]], atol=1e-6)
    np.testing.assert_allclose(images.labels(1), [[1, 0.5, 0.5, 1, 1]], atol=1e-6)
    assert images.path(1).endswith("images/train/sub/b.jpg")


def test_coco_crowds_and_boxes_without_area_go(tmp_path):
    found = [
        _annotation([0, 0, 50, 50], iscrowd=1),
        _annotation([10, 5, 0, 30]),
        _annotation([10, 5, 20]),
        _annotation([90, 40, 50, 50]),
        _annotation([0, 0, 5, 5], image=1234),
    ]
    report = _run("coco", _coco(tmp_path, found), tmp_path / "pictures", tmp_path / "out")["train"]
    assert _rows(tmp_path / "out/labels/train/a.txt") == [[0, 0.95, 0.9, 0.1, 0.2]]
    text = "\n".join(report.messages)
    for part in ("1 crowds", "no area", "has the bbox [10, 5, 20]", "1 unknown images, as 1234"):
        assert part in text


def test_coco_segments_are_polygons_with_their_parts_joined(tmp_path):
    square, far = [0, 0, 10, 0, 10, 10, 0, 10], [50, 0, 60, 0, 60, 10, 50, 10]
    found = [
        _annotation([0, 0, 10, 10], segmentation=[square]),
        _annotation([0, 0, 60, 10], segmentation=[square, far]),
        _annotation([20, 20, 10, 10], segmentation={"counts": "abc", "size": [50, 100]}),
    ]
    _run("coco", _coco(tmp_path, found), tmp_path / "pictures", tmp_path / "out", "--segments")
    images = load_images(load_dataset(tmp_path / "out" / "out.yaml"), "train", workers=1)
    expected = [[0, 0.05, 0.1, 0.1, 0.2], [0, 0.3, 0.1, 0.6, 0.2], [0, 0.25, 0.5, 0.1, 0.2]]
    np.testing.assert_allclose(images.labels(0), expected, atol=1e-6)
    assert [len(s) for s in images.segments(0)] == [4, 10, 4]
    joined = (images.segments(0)[1] * (100, 50)).round(3).astype(np.float32)
    assert cv2.contourArea(joined) == pytest.approx(200)  # both squares, and a bridge without an area


def test_coco_splits_gather_in_one_yaml_with_the_same_classes(tmp_path):
    path = _coco(tmp_path, [_annotation([0, 0, 9, 9])])
    for split in ("train", "val"):
        _run("coco", path, tmp_path / "pictures", tmp_path / "out", "--split", split)
    assert set(load_dataset(tmp_path / "out" / "out.yaml").splits) == {"train", "val"}
    other = _coco(tmp_path, [_annotation([0, 0, 9, 9])], categories=[{"id": 3, "name": "bus"}])
    with pytest.raises(UserError, match="has other classes"):
        _run("coco", other, tmp_path / "pictures", tmp_path / "out", "--split", "test")
    assert not list((tmp_path / "out").rglob("test"))
    path = _coco(tmp_path, [_annotation([0, 0, 9, 9])])  # mended, it is converted as if nothing had been
    assert _run("coco", path, tmp_path / "pictures", tmp_path / "out", "--split", "test")["test"].images == 2


def test_voc_splits_of_other_classes_are_refused_before_they_are_written(tmp_path):
    items = {"a": [_object("cat", (1, 1, 9, 9))], "b": [_object("dog", (1, 1, 9, 9))]}
    root = _voc(tmp_path / "voc", items, {"train": ["a"], "val": ["b"]})
    lists = [f"{s}=ImageSets/Main/{s}.txt" for s in ("train", "val")]
    _run("voc", root, tmp_path / "out", "--split", lists[0])
    with pytest.raises(UserError, match="has other classes"):
        _run("voc", root, tmp_path / "out", "--split", lists[1])
    assert not list((tmp_path / "out").rglob("val"))


def test_coco_file_names_stay_below_the_images(tmp_path):
    names = ("../a.jpg", "/etc/passwd", "C:\\a.jpg", "")
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    report = _run("coco", _coco(tmp_path, [], images), tmp_path / "pictures", tmp_path / "out")["train"]
    assert report.images == 0
    assert len(report.messages) == 4


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "is not JSON"), ("[]", "holds a list"), ('{"images": []}', "not a COCO detection file")],
)
def test_coco_files_that_are_none(tmp_path, text, sentence):
    path = _coco(tmp_path, [])
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        _run("coco", path, tmp_path / "pictures", tmp_path / "out")


def test_coco_undefined_category(tmp_path):
    with pytest.raises(UserError, match="category_id 5, which its categories do not define"):
        _run(
            "coco",
            _coco(tmp_path, [_annotation([0, 0, 9, 9], category=5)]),
            tmp_path / "pictures",
            tmp_path / "o",
        )


# the published archives, with stand-ins for the network


def test_voc_archives_become_the_data_set_that_its_yaml_names(tmp_path, monkeypatch):
    for year, splits in ((2007, ("train", "val", "test")), (2012, ("train", "val"))):
        items = {
            f"{year}_{s}": [_object("cat", (1, 1, 9, 9)), _object("dog", (1, 1, 9, 9), 1)] for s in splits
        }
        _voc(tmp_path / "VOCdevkit" / f"VOC{year}", items, {s: [f"{year}_{s}"] for s in splits})
    asked = []

    def fetch(url, dest, size, md5):
        asked.append(url)
        with tarfile.open(dest, "w") as archive:
            archive.add(tmp_path / "VOCdevkit", "VOCdevkit")
        return dest

    monkeypatch.setattr(published, "fetch", fetch)
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "fetched"))
    monkeypatch.chdir(tmp_path)
    config = load_dataset("VOC.yaml")
    assert len(asked) == 3
    images = load_images(config, "train", workers=1)
    assert len(images) == 4
    assert {config.names[int(c)] for c in images.all_labels[:, 0]} == {"cat"}  # the dogs were difficult
    assert len(load_images(config, "val", workers=1)) == 1
    assert [p.name for p in (tmp_path / "fetched").iterdir()] == ["VOC"]


def test_coco_archives_are_taken_up_where_an_earlier_run_stopped(tmp_path, monkeypatch):
    png = cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    contents = {
        "coco2017labels.zip": {f"coco/{s}2017.txt": f"./images/{s}2017/1.png\n" for s in ("train", "val")}
        | {f"coco/labels/{s}2017/1.txt": "79 .5 .5 .5 .5\n" for s in ("train", "val")},
        "train2017.zip": {"train2017/1.png": png},
        "val2017.zip": {"val2017/1.png": png},
    }
    asked, failing = [], ["train2017.zip"]

    def fetch(url, dest, size, md5):
        asked.append(dest.name)
        if dest.name in failing:
            raise UserError(f"{url}: cannot be fetched")
        with zipfile.ZipFile(dest, "w") as archive:
            for name, data in contents[dest.name].items():
                archive.writestr(name, data)
        return dest

    monkeypatch.setattr(published, "fetch", fetch)
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "fetched"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="cannot be fetched; or put the images in .*/fetched/coco/images/train2017"
    ):
        load_dataset("coco.yaml")
    failing.clear()
    config = load_dataset("coco.yaml")
    assert asked == ["coco2017labels.zip", "val2017.zip", "train2017.zip", "train2017.zip"]
    assert load_images(config, "val", workers=1).all_labels[:, 0].tolist() == [79]
