"""A shipped YAML with rows and keys replaced, and the check of the sentence that follows."""

import copy

import pytest

from models.yolo import DetectionModel
from utils.errors import UserError
from utils.files import ROOT, load_yaml, save_yaml

BASE = load_yaml(ROOT / "models/yolov5n.yaml")


def broken(**changes):
    """yolov5n with rows replaced: backbone_2=[...] is the third row of the backbone; None deletes a key."""
    cfg = copy.deepcopy(BASE)
    for name, value in changes.items():
        section, _, row = name.rpartition("_")
        if row.isdigit():
            cfg[section][int(row)] = value
        elif value is None:
            del cfg[name]
        else:
            cfg[name] = value
    return cfg


def assert_refused(path, changes, words):
    """The changed model is refused in one sentence that names the file and holds all words."""
    save_yaml(path, broken(**changes))
    with pytest.raises(UserError) as error:
        DetectionModel(path)
    sentence = str(error.value)
    assert "\n" not in sentence
    for word in [path.name, *words]:
        assert word in sentence, sentence
