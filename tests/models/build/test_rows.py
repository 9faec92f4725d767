"""Keys and rows of a YAML are checked for their form, and what is wrong is said with its place."""

import pytest

from models import common
from models.build import rows
from models.build.rows import MOST_LAYERS, check_keys, read_rows
from models.registry import lookup
from models.yolo import DetectionModel, parse_model
from tests.models.build.broken import BASE, assert_refused, broken
from utils.errors import UserError
from utils.files import ROOT, load_yaml, save_yaml

POSTS = ROOT / "tests/fixtures/posts"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone_2": [-1, 3, "C33", [128]]}, ["backbone row 3", "layer 2", "C33", "C3"]),
        ({"backbone_2": [-1, 3, "os.system", ["ls"]]}, ["backbone row 3", "unknown block"]),
        ({"backbone_2": [-1, 3, 7, [128]]}, ["backbone row 3", "number 7", "name of a block"]),
        ({"backbone_2": [-1, 3, "C3"]}, ["backbone row 3", "four entries"]),
        ({"backbone_2": "C3"}, ["backbone row 3", "'C3'", "four entries"]),
        ({"backbone_2": [2, 3, "C3", [128]]}, ["backbone row 3", "from 2", "-2 to 1"]),
        ({"backbone_2": [-4, 3, "C3", [128]]}, ["backbone row 3", "from -4", "out of range"]),
        ({"backbone_0": [0, 1, "Conv", [64]]}, ["backbone row 1", "from 0", "-1 (the image)"]),
        ({"backbone_2": ["a", 3, "C3", [128]]}, ["backbone row 3", "from is 'a'"]),
        ({"backbone_2": [[-1, 0], 3, "C3", [128]]}, ["backbone row 3", "one layer"]),
        ({"head_2": [-1, 1, "Concat", [1]]}, ["head row 3", "layer 12", "list of layers"]),
        ({"backbone_2": [-1, 0, "C3", [128]]}, ["backbone row 3", "number is 0"]),
        ({"backbone_2": [-1, 10**9, "C3", [128]]}, ["backbone row 3", "repeats 330000000 times"]),
        ({"backbone_2": [-1, "3", "C3", [128]]}, ["backbone row 3", "number is '3'"]),
        ({"backbone_2": [-1, 3, "C3", 128]}, ["backbone row 3", "args is number 128"]),
        ({"head_14": [-1, 1, "Conv", [64]]}, ["head row 15", "no row is Detect"]),
        ({"head_13": [[9], 1, "Detect", ["nc", "anchors"]]}, ["head row 14", "last"]),
        ({"nc": None}, ["'nc' is missing"]),
        ({"anchors": None}, ["'anchors' is missing"]),
        ({"head": None}, ["'head' is missing"]),
        ({"nc": "eighty"}, ["nc: 'eighty'", "whole number"]),
        ({"nc": True}, ["nc: True"]),
        ({"width_multiple": 0}, ["width_multiple: 0"]),
        ({"depth_multiple": "deep"}, ["depth_multiple: 'deep'"]),
        ({"widht_multiple": 1.0}, ["widht_multiple", "width_multiple"]),
        ({"Mean": [0.5, 0.5, 0.5]}, ["'Mean'", "did you mean 'mean'"]),
        ({"STD": [0.5, 0.5, 0.5]}, ["'STD'", "did you mean 'std'"]),
        ({"activation": "exit()"}, ["activation", "exit"]),
        ({"activation": 3}, ["activation: 3"]),
        ({"backbone": "rows"}, ["'backbone' is text"]),
    ],
)
def test_a_wrong_key_or_row_is_one_sentence_with_its_place(tmp_path, changes, words):
    assert_refused(tmp_path / "model.yaml", changes, words)


def test_an_unknown_key_is_said_once_and_known_files_make_no_noise(tmp_path, log):
    save_yaml(tmp_path / "mine.yaml", BASE | {"stdev": [0.5, 0.5, 0.5]})
    for _ in range(2):
        DetectionModel(tmp_path / "mine.yaml")
    messages = {id(record): record.getMessage() for record in log.records}.values()
    assert [m.partition(" is not known")[0] for m in messages] == [f"{tmp_path / 'mine.yaml'}: key 'stdev'"]
    log.clear()
    for file in [*(ROOT / "models").glob("*.yaml"), *POSTS.glob("*.yaml")]:
        cfg = load_yaml(file)
        rows.check_keys(cfg | {"anchors": cfg.get("anchors") or 3}, str(file))
    assert not log.records


def test_names_stand_for_values_and_other_text_for_itself():
    cfg = broken(head_1=["-1", 1, "nn.Upsample", ["None", 2, "nearest"]])
    with pytest.raises(UserError, match="from is '-1'"):
        parse_model(cfg)
    cfg = broken(head_1=[-1, 1, "nn.Upsample", ["None", 2, "__import__('os').system('false')"]])
    with pytest.raises(UserError, match="head row 2"):
        parse_model(cfg)
    cfg = broken(head_3=[-1, 3, "C3", [512, "False"]])
    assert not parse_model(cfg)[0][13].m[0].add


NAMES = [
    *("Conv", "DWConv", "DWConvTranspose2d", "Bottleneck", "BottleneckCSP", "C3", "C3x", "C3TR", "C3Ghost"),
    *("C3SPP", "CrossConv", "SPP", "SPPF", "Focus", "GhostConv", "GhostBottleneck", "MixConv2d"),
    *("TransformerBlock", "Contract", "Expand", "Concat", "Sum", "Classify", "Detect", "ConvBNReLU"),
    *(
        "InvertedResidual",
        "stem",
        "MBConvBlock",
        "SeBlock",
        "nn.Conv2d",
        "nn.ConvTranspose2d",
        "nn.BatchNorm2d",
        "nn.Upsample",
    ),
]


def test_every_block_of_the_fact_sheet_can_be_named():
    for name in NAMES:
        assert lookup(name) is not None
    assert lookup("C3").cls is common.C3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nc": 10**9}, ["nc: 1000000000", "up to 100000"]),
        ({"width_multiple": 1e300}, ["width_multiple: 1e+300", "up to 100"]),
        ({"backbone_0": [-1, 1, "Conv", [10**6, 3, 2]]}, ["args has 1000000", "up to 65536"]),
        ({"backbone_0": [-1, 1, "Conv", [[8] * 2000]]}, ["a list of 2000 entries", "at most 1000"]),
        ({"head_14": [[17, 20, 23], 2, "Detect", ["nc", "anchors"]]}, ["Detect): number is 2, expected 1"]),
        ({"backbone_0": [-1, 16**5000, "Conv", [8]]}, ["number is a number of 20001 bits"]),
    ],
)
def test_numbers_that_no_network_has_are_refused_before_building(change, words):
    cfg = load_yaml(ROOT / "models/yolov5n.yaml")
    for key, value in change.items():
        section, _, number = key.partition("_")
        if number.isdecimal():
            cfg[section][int(number)] = value
        else:
            cfg[key] = value
    with pytest.raises(UserError) as caught:
        check_keys(cfg, "a.yaml")
        read_rows(cfg, "a.yaml")
    assert all(word in str(caught.value) for word in words), caught.value


def test_rows_that_repeat_too_often_together_are_refused():
    cfg = load_yaml(ROOT / "models/yolov5n.yaml")
    cfg["depth_multiple"] = 1.0
    cfg["backbone"][2][1] = cfg["backbone"][4][1] = 100
    with pytest.raises(UserError, match=f"repeat .* times together, expected at most {MOST_LAYERS}"):
        read_rows(cfg, "a.yaml")
