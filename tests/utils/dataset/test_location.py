"""The folder of a data set: where it is searched, and what may be fetched."""

import os

import pytest

from tests.utils.image_sets import make_dataset, write_yaml
from utils.dataset import location
from utils.dataset.config import load_dataset
from utils.errors import UserError
from utils.files import save_yaml

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.mark.parametrize("place", ["yaml", "cwd", "datasets"])
def test_path_is_looked_for_beside_the_yaml_then_here_then_in_the_datasets_folder(tmp_path, place):
    parent = {"yaml": tmp_path / "conf", "cwd": tmp_path, "datasets": tmp_path / "fetched"}[place]
    make_dataset(parent / "set", ["0 .5 .5 .2 .2\n"])
    text = "path: set\ntrain: images/train\nval: images/train\nnames: [a]\n"
    assert load_dataset(write_yaml(tmp_path / "conf", text)).root == parent / "set"


def test_path_relative_to_the_project(tmp_path, monkeypatch):
    monkeypatch.setattr(location, "WORK", tmp_path / "project")
    make_dataset(tmp_path / "sets" / "s", ["0 .5 .5 .2 .2\n"])
    (tmp_path / "project").mkdir()
    monkeypatch.chdir("/")
    text = "path: ../sets/s\ntrain: images/train\nval: images/train\nnames: [a]\n"
    assert load_dataset(write_yaml(tmp_path / "a" / "b", text)).root == tmp_path / "sets" / "s"


def test_a_set_datasets_folder_goes_before_one_beside_the_project(tmp_path, monkeypatch):
    for parent in ("fetched", "datasets"):
        make_dataset(tmp_path / parent / "s", ["0 .5 .5 .2 .2\n"])
    text = "path: ../datasets/s\ntrain: images/train\nval: images/train\nnames: [a]\n"
    path = write_yaml(tmp_path / "project", text)
    assert load_dataset(path).root == tmp_path / "fetched" / "s"
    monkeypatch.delenv("YOLOV5_DATASETS_DIR")
    assert load_dataset(path).root == tmp_path / "datasets" / "s"


def test_missing_folder_says_where_it_looked(tmp_path):
    path = write_yaml(tmp_path / "conf", "path: nowhere\ntrain: a\nval: b\nnames: [a]\n")
    with pytest.raises(UserError) as error:
        load_dataset(path)
    for place in (tmp_path / "conf" / "nowhere", tmp_path / "nowhere", tmp_path / "fetched" / "nowhere"):
        assert str(place) in str(error.value)
    assert load_dataset(path, fetch=False).names == {0: "a"}


def test_leading_dots_of_some_exporters_are_forgiven(tmp_path):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    config = load_dataset(write_yaml(root, "train: ../images/train\nval: ../images/train\nnames: [a]\n"))
    assert config.splits["val"] == [root / "images" / "train"]


@pytest.mark.parametrize("how", ["bash data/get.sh", "import os\nos.mkdir('ran')\n", "coco2"])
def test_download_scripts_are_refused_and_not_run(tmp_path, how):
    path = tmp_path / "d.yaml"
    save_yaml(path, {"path": "nowhere", "train": "a", "val": "a", "names": ["x"], "download": how})
    with pytest.raises(UserError, match="scripts are not run"):
        load_dataset(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("path", "entry"),
    [
        ("", "images\\train"),
        ("", ".\\images\\train"),
        ("", "data/images/train"),
        ("", "data\\images\\train"),
        ("sets\\d", "images/train"),
    ],
)
def test_backslashes_and_a_leading_data_are_forgiven_and_said(tmp_path, path, entry, logged, caplog):
    caplog.set_level("INFO", "yolo.datasets")
    root = make_dataset(tmp_path / "sets" / "d", ["0 .5 .5 .2 .2\n"])
    text = f"path: {path}\ntrain: {entry}\nval: images/train\nnames: [a]\n"
    config = load_dataset(write_yaml(tmp_path if path else root, text))
    assert config.splits["train"] == [root / "images" / "train"]
    assert sum("is not there" in line for line in logged) == 1
    assert (path or entry) in logged[0]


@pytest.mark.skipif(os.sep != "/", reason="elsewhere it is a path")
@pytest.mark.parametrize("path", ["C:\\sets\\mine", "C:/sets/mine"])
def test_a_path_of_windows_has_its_own_remedy(tmp_path, path):
    save_yaml(tmp_path / "d.yaml", {"path": path, "train": "images", "val": "images", "names": ["a"]})
    with pytest.raises(UserError, match=r"data set missing .*path of Windows.*\(in WSL /mnt/c/sets/mine\)$"):
        load_dataset(tmp_path / "d.yaml")
