"""Archives that are data sets: which folder each gets, and that nobody's work there is lost."""

import hashlib
import json
import os
import shutil
import zipfile

import pytest

from utils.dataset import archives
from utils.dataset.archives import STAMP
from utils.dataset.config import load_dataset
from utils.errors import UserError


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "sets"))
    monkeypatch.chdir(tmp_path)


def _zip(path, names="[a]", images=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.yaml", f"train: i\nval: i\nnames: {names}\n")
        for number in range(images):
            archive.writestr(f"i/{number}.png", "")
    return path


def _sets(tmp_path):
    return sorted(p.name for p in (tmp_path / "sets").iterdir())


def test_a_zip_is_a_data_set_too(tmp_path):
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("m/data.yaml", "train: i\nval: i\nnames: [a]\n")
        archive.writestr("m/i/a.txt", "")
    for _ in range(2):
        assert load_dataset(tmp_path / "mine.zip").root == tmp_path / "sets" / "mine" / "m"
    assert _sets(tmp_path) == ["mine"]


def test_the_whole_name_counts_up_to_the_suffix(tmp_path):
    for version, names in ((1, ["a"]), (2, ["a", "b"])):
        archive = _zip(tmp_path / f"Helmets.v{version}i.yolov5pytorch.zip", names)
        assert list(load_dataset(archive).names.values()) == names
    assert _sets(tmp_path) == ["Helmets.v1i.yolov5pytorch", "Helmets.v2i.yolov5pytorch"]


@pytest.mark.parametrize("name", ["...zip", ".zip"])
def test_a_name_of_dots_does_not_lead_out(tmp_path, name):
    assert load_dataset(_zip(tmp_path / name)).root == tmp_path / "sets" / "archive"


def test_archives_of_one_name_in_two_folders_are_two_data_sets(tmp_path):
    for folder in ("a", "b", "a"):
        assert load_dataset(_zip(tmp_path / folder / "data.zip", f"[{folder}]")).names == {0: folder}


def test_an_archive_that_was_exported_again_is_unpacked_again_and_nothing_is_lost(tmp_path):
    archive = _zip(tmp_path / "data.zip")
    (load_dataset(archive).root / "i" / "0.txt").write_text("mine")
    assert load_dataset(archive).root == tmp_path / "sets" / "data"  # changed by the user, and still in use
    _zip(archive, images=3)
    again = load_dataset(archive)
    assert again.root == tmp_path / "sets" / "data2"
    assert len(list((again.root / "i").iterdir())) == 3
    assert (tmp_path / "sets" / "data" / "i" / "0.txt").read_text() == "mine"
    assert load_dataset(archive).root == again.root
    assert _sets(tmp_path) == ["data", "data2"]


def test_a_copy_of_the_archive_is_the_same_data_set(tmp_path):
    archive = _zip(tmp_path / "data.zip")
    first = load_dataset(archive).root
    (tmp_path / "moved").mkdir()
    copy = shutil.copy(archive, tmp_path / "moved" / "data.zip")
    os.utime(copy, ns=(1, 1))
    assert load_dataset(copy).root == first
    assert _sets(tmp_path) == ["data"]


@pytest.mark.parametrize("stamp", [None, "{", "[]", '{"path": "x"}'])
def test_a_folder_of_the_users_is_not_taken_for_the_archives(tmp_path, stamp):
    mine = tmp_path / "sets" / "data"
    mine.mkdir(parents=True)
    (mine / "mine.yaml").write_text("names: [other]\n")
    if stamp:
        (mine / STAMP).write_text(stamp)
    assert load_dataset(_zip(tmp_path / "data.zip")).root == tmp_path / "sets" / "data2"
    assert (mine / "mine.yaml").read_text() == "names: [other]\n"


def test_an_archive_without_a_yaml_leaves_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("i/a.png", "")
    with pytest.raises(UserError, match=r"data\.zip: no dataset YAML in it"):
        load_dataset(tmp_path / "data.zip")
    assert _sets(tmp_path) == []


def test_what_is_unpacked_already_needs_no_writing(tmp_path, monkeypatch):
    archive = _zip(tmp_path / "data.zip")
    first = load_dataset(archive).root

    def refuse(*_):
        raise AssertionError("a lock is a file, and the folder may be read-only")

    monkeypatch.setattr(archives, "exclusive", refuse)
    assert load_dataset(archive).root == first


def test_what_macos_adds_to_a_zip_is_not_its_yaml(tmp_path):
    archive = _zip(tmp_path / "data.zip")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("._a.yaml", "\0\5\x16\7")
        opened.writestr("__MACOSX/._data.yaml", "\0\5\x16\7")
    assert load_dataset(archive).path.name == "data.yaml"


def test_several_yamls_in_an_archive_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for name in ("a.yaml", "b.yaml"):
            archive.writestr(f"m/{name}", "train: i\nval: i\nnames: [a]\n")
    with pytest.raises(UserError, match=r"data\.zip: holds several YAMLs \(m/a\.yaml, m/b\.yaml\)"):
        load_dataset(tmp_path / "data.zip")
    assert _sets(tmp_path) == []


def test_a_stamp_of_an_earlier_version_still_counts(tmp_path):
    archive = _zip(tmp_path / "data.zip")
    first = load_dataset(archive).root
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (first / STAMP).write_text(json.dumps({"path": "x", "size": 1, "time": 1, "sha256": digest}))
    assert load_dataset(archive).root == first


def test_a_folder_s_yaml_may_end_in_capitals_and_a_folder_is_none(tmp_path):
    (tmp_path / "old.yaml").mkdir()
    (tmp_path / "Set.YAML").write_text("names: [cat]\n")
    assert archives.folder_yaml(tmp_path, tmp_path) == tmp_path / "Set.YAML"
