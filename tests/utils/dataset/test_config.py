"""The dataset YAML: what is read, and the sentence for each fault."""

import pytest

from tests.utils.image_sets import make_dataset, write_yaml
from utils.dataset.config import check_classes, class_difference, load_dataset
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("own_folders")


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
        (
            "train: images/train\nnc: 1000000000\n",
            "nc is 1000000000 where a number of classes from 1 to 100000",
        ),
        ("train: images/train\nnames: [[a, b], c]\n", "the name of class 0 is ['a', 'b'] where a word"),
        ("train: images/train\nnames:\n  ? " + "9" * 5000 + "\n  : a\n", "999 where 0 to 0 are expected"),
        ("train: images/train\nnames: {0: a, 1: }\n", "the name of class 1 is '' where a word"),
        ("train: 3\nnames: [a]\n", "train has 3"),
        ("names: [a]\n", "no train, val or test key"),
        ("path: 3\ntrain: x\nnames: [a]\n", "path is 3"),
        ("names:\n\t- a\n", "tab"),
    ],
)
def test_a_wrong_yaml_is_one_sentence_with_its_name(tmp_path, text, sentence):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    with pytest.raises(UserError, match="d.yaml") as error:
        load_dataset(write_yaml(root, text))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_names_as_a_mapping_and_an_old_yaml_with_nc_alone(tmp_path):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    config = load_dataset(write_yaml(root, "train: images/train\nnames: {1: b, 0: a}\nnc: 2\n"))
    assert list(config.names.items()) == [(0, "a"), (1, "b")]
    assert load_dataset(write_yaml(root, "train: images/train\nnc: 2\n")).names == {0: "class0", 1: "class1"}


@pytest.mark.parametrize("name", ["coco.yaml", "coco128.yaml", "VOC.yaml", "digits.yaml"])
def test_bundled_yamls_name_their_classes(name):
    config = load_dataset(name, fetch=False)
    counts = {"coco.yaml": 80, "coco128.yaml": 80, "VOC.yaml": 20, "digits.yaml": 10}
    assert config.nc == counts[name]
    assert len(set(config.names.values())) == config.nc


def test_classes_of_a_network_and_of_a_data_set(tmp_path):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    path = write_yaml(root)
    config, one = load_dataset(path), load_dataset(path, single_cls=True)
    same, swapped, fewer = {0: "a", 1: "b", 2: "c"}, {0: "a", 1: "c", 2: "b"}, {0: "a", 1: "b"}
    assert class_difference(same, config, by_name=True) == ""
    assert class_difference(swapped, config) == ""
    assert class_difference(swapped, config, by_name=True) == f"class 1 of {path} is 'b', not 'c'"
    assert class_difference(fewer, config) == f"{path} has 3"
    check_classes(tmp_path / "w.pt", swapped, config)
    check_classes(tmp_path / "w.pt", fewer, one)
    with pytest.raises(
        UserError, match=r"w\.pt: the model has 2 classes and .*d\.yaml has 3; pass the --data"
    ):
        check_classes(tmp_path / "w.pt", fewer, config)
    assert (one.names, one.nc, one.label_names) == ({0: "item"}, 1, same)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[yes, no, on, off]", ["yes", "no", "on", "off"]),
        ("[007, 1:30, 1e3, 0x10, .5]", ["007", "1:30", "1e3", "0x10", ".5"]),
        ("[null, ~, 2024-01-01, true]", ["null", "~", "2024-01-01", "true"]),
        ("['a b', \"c\", 5]", ["a b", "c", "5"]),
        ("{0: yes, 1: 007}", ["yes", "007"]),
        ("{'1': b, '0': off}", ["off", "b"]),
        ("{00: a, 01: b}", ["a", "b"]),
    ],
)
def test_names_are_the_words_as_written(tmp_path, names, expected):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    config = load_dataset(write_yaml(root, f"train: images/train\nnames: {names}\nnc: {len(expected)}\n"))
    assert config.names == dict(enumerate(expected))


def test_a_folder_stands_for_its_yaml(tmp_path, logged, caplog):
    caplog.set_level("INFO", "yolo.datasets")
    root = make_dataset(tmp_path / "My Set.v1", ["0 .5 .5 .2 .2\n"])
    with pytest.raises(UserError, match=r"My Set\.v1: no dataset YAML in it"):
        load_dataset(root)
    path = write_yaml(root, name="mine.yml")
    assert load_dataset(root).path == path
    assert f"the YAML of its data set is {path}" in logged[0]
    write_yaml(root, name="other.yaml")
    with pytest.raises(UserError, match=r"several YAMLs \(mine\.yml, other\.yaml\)"):
        load_dataset(root)
    assert load_dataset(write_yaml(root, name="data.yaml").parent).path == root / "data.yaml"


def test_the_shape_of_keypoints(tmp_path):
    text = "train: images/train\nnames: [a]\nkpt_shape: "
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n"])
    assert load_dataset(write_yaml(root)).keypoints == 0
    assert load_dataset(write_yaml(root, text + "[17, 3]\n")).keypoints == 51
    with pytest.raises(UserError, match=r"kpt_shape is 17 where two numbers"):
        load_dataset(write_yaml(root, text + "17\n"))
