"""What all converters share: files by name, text in any encoding, splits in words."""

import pytest

from tests.utils.image_sets import write_image
from utils.dataset.convert.annotated import FolderIndex, read_class_list, read_text, split_of


@pytest.fixture
def index(tmp_path):
    for name in (
        "day/1.jpg",
        "night/1.jpg",
        "images/train/2.JPG",
        "3.v2.png",
        "4.png",
        "4.jpg",
        ".hidden/5.jpg",
    ):
        write_image(tmp_path / name)
    return FolderIndex(tmp_path)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("day/1", "day/1.jpg"),
        ("data\\set\\night\\1.jpg", "night/1.jpg"),
        ("1.jpg", None),  # two
        ("evening/1.jpg", None),  # another folder
        ("labels/train/2.txt", "images/train/2.JPG"),
        ("2", "images/train/2.JPG"),
        ("/home/x/2.jpg", None),
        ("3.v2", "3.v2.png"),
        ("4.jpg", "4.jpg"),
        ("4", None),
        ("5.jpg", None),
        ("../4.jpg", "4.jpg"),
        ("", None),
        ("x" * 300, None),
    ],
)
def test_a_file_is_found_by_its_name_and_last_folders(index, name, found):
    assert index.find(name) == (found and index.root / found)


def test_text_in_any_encoding(tmp_path):
    path = tmp_path / "classes.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "gb18030"):
        path.write_bytes("猫\r\n\r\n狗\r\n\r\n".encode(encoding))
        assert read_class_list(path) == ["猫", "1", "狗"]
    path.write_bytes(b"\xff\x81\x00x")
    assert read_text(path) == "\xff\x81\x00x"


def test_splits_in_words():
    words = {
        "Validation": "val",
        "instances_train2017": "train",
        "default": "train",
        "obj_test": "test",
        "trainer": "",
    }
    assert {text: split_of(text) for text in words} == words
