"""Arguments, channels and strides are inferred before anything is built; what cannot work is refused."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from models.build import shapes
from models.build.shapes import pixel_anchors
from models.yolo import DetectionModel, parse_model
from tests.models.build.broken import BASE, assert_refused, broken
from utils.errors import UserError
from utils.files import ROOT

POSTS = ROOT / "tests/fixtures/posts"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_2": [[-1, 4], 1, "Concat", [1]]}, ["head row 3", "stride", "layer 11", "16", "layer 4", "8"]),
        ({"head_2": [[-1, 6], 1, "Concat", [2]]}, ["head row 3", "dimension 2"]),
        ({"head_2": [[-1, 6], 1, "Concat", ["x"]]}, ["head row 3", "dimension is text 'x'", "whole number"]),
        ({"head_2": [[-1, 6], 1, "Sum", [3]]}, ["head row 3", "n says 3", "lists 2"]),
        ({"head_2": [[10, 9], 1, "Sum", [2]]}, ["head row 3", "128, 256 channels"]),
        ({"backbone_2": [-1, 3, "C3", []]}, ["backbone row 3", "no argument", "output channels"]),
        ({"backbone_2": [-1, 3, "C3", ["128"]]}, ["backbone row 3", "'128'", "output channels"]),
        (
            {"backbone_2": [-1, 3, "C3", [128, True, 1, 0.5, 9]]},
            ["backbone row 3", "5 arguments", "[c2, shortcut"],
        ),
        (
            {"backbone_2": [-1, 3, "C3", [128, 3]]},
            ["backbone row 3", "shortcut is number 3", "True or False"],
        ),
        ({"backbone_1": [-1, 1, "Conv", [128, "3", 2]]}, ["backbone row 2", "k is text '3'", "whole number"]),
        ({"backbone_1": [-1, 1, "Conv", [128, 3, 0]]}, ["backbone row 2", "s is 0", "above 0"]),
        ({"backbone_1": [-1, 1, "Conv", [128, 3, 2, None, 5]]}, ["backbone row 2", "16", "groups 5"]),
        ({"backbone_1": [-1, 1, "Conv", [128, 3, 2, None, 1, 1, "nn.Evil()"]]}, ["backbone row 2", "Evil"]),
        ({"backbone_1": [-1, 1, "InvertedResidual", []]}, ["backbone row 2", "output channels"]),
        (
            {"backbone_1": [-1, 1, "TransformerBlock", [128]]},
            ["backbone row 2", "1 argument;", "heads, layers"],
        ),
        ({"backbone_1": [-1, 1, "Expand", [5]]}, ["backbone row 2", "16", "25"]),
        ({"backbone_9": [-1, 1, "Classify", [1024]]}, ["backbone row 10", "no map"]),
        ({"head_1": [-1, 1, "nn.Upsample", [None, 2, "neerest"]]}, ["head row 2", "neerest"]),
        (
            {"head_14": [[17, 20], 1, "Detect", ["nc", "anchors"]]},
            ["head row 15", "found 3 lists", "expected 2"],
        ),
        ({"head_14": [[17, 20, 23], 1, "Detect", [80]]}, ["head row 15", "1 argument;", "[nc, anchors]"]),
        ({"head_14": [[17, 20, 23], 1, "Detect", [3, "anchors"]]}, ["head row 15", "nc is 3", "80"]),
        ({"anchors": [[1, 2], [3, 4], [5]]}, ["head row 15", "list 3", "[5]"]),
        ({"anchors": [[1, 2], [3, 4], [5, 6, 7, 8]]}, ["head row 15", "list 3", "4 values", "expected 2"]),
        ({"anchors": [[1, 2], [3, -4], [5, 6]]}, ["head row 15", "list 2", "above 0"]),
        ({"anchors": "many"}, ["head row 15", "anchors is 'many'"]),
        ({"anchors": 0}, ["head row 15", "at least one"]),
        ({"mean": [0.5]}, ["mean: [0.5]", "3 numbers"]),
        ({"std": [0.5, 0, 1]}, ["std", "above 0"]),
    ],
)
def test_a_row_that_cannot_work_is_one_sentence_with_its_place(tmp_path, changes, words):
    assert_refused(tmp_path / "model.yaml", changes, words)


def test_options_that_are_left_out_have_defaults():
    DetectionModel(broken(backbone_1=[-1, 1, "InvertedResidual", [24]]))


def test_nothing_is_built_when_a_later_row_is_wrong(monkeypatch):
    def on_a_real_device(*args, **kwargs):
        raise AssertionError("weights were allocated")

    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda t, **k: t if t.is_meta else on_a_real_device())
    with pytest.raises(UserError, match="head row 3"):
        DetectionModel(broken(head_2=[[-1, 4], 1, "Concat", [1]]))


def test_the_posts_models_build_unchanged_and_the_incomplete_one_is_refused():
    for name, nc, parameters in (
        ("yolov5-mobilenetv2", 1, 2_917_046),
        ("yolov5-mobilenetv2", 20, 2_949_137),
        ("yolov5-mobilenetv2", 80, 3_050_477),
        ("yolov5s-ghost-backbone", 1, 5_088_078),
        ("yolov5s-ghost-backbone", 5, 5_098_866),
        ("yolov5s-ghost-backbone", 80, 5_301_141),
    ):
        with torch.device("meta"):
            model = DetectionModel(POSTS / f"{name}.yaml", nc=nc)
        assert sum(p.numel() for p in model.parameters()) == parameters
    with pytest.raises(UserError, match=r"yolov5-efficient\.yaml: head row 8 .*no row is Detect"):
        DetectionModel(POSTS / "yolov5-efficient.yaml")


def test_repeats_with_a_stride_and_new_channels():
    cfg = broken(backbone_1=[-1, 6, "Conv", [128, 3, 2]])
    row, layer = _second(cfg)
    assert [tuple(m.conv.stride) for m in layer] == [(2, 2), (1, 1)]
    assert [(m.conv.in_channels, m.conv.out_channels) for m in layer] == [(16, 32), (32, 32)]
    assert (row.number, row.stride, row.out_channels) == (2, 4, 32)
    row, layer = _second(broken(backbone_1=[-1, 6, "InvertedResidual", [128, 2, 6]]))
    assert [m.add for m in layer] == [False, True]
    stem = [-1, 1, "Conv", [64, 4, 4, 0]]
    row, layer = _second(broken(backbone_0=stem, backbone_1=[-1, 6, "C3SPP", [128, [3, 5]]]))
    assert [m.cv1.conv.in_channels for m in layer] == [16, 32]


def _second(cfg):
    layers, rows = parse_model(cfg)
    return rows[1], layers[1]


def test_an_output_is_known_by_its_type_and_never_by_a_channel_number():
    # 255 = 3 * (80 + 5): YOLOv5 leaves such a convolution unscaled, whatever it is for.
    _, rows = parse_model(broken(backbone_1=[-1, 1, "Conv", [255, 3, 2]]))
    assert rows[1].out_channels == 64


def test_rows_tell_channels_strides_and_parameters():
    _, rows = parse_model(BASE)
    assert [row.out_channels for row in rows[:10]] == [16, 32, 32, 64, 64, 128, 128, 256, 256, 256]
    assert [row.stride for row in rows[10:24]] == [32, 16, 16, 16, 16, 8, 8, 8, 16, 16, 16, 32, 32, 32]
    assert sum(row.params for row in rows) == 1_872_157
    assert rows[12].sources == (11, 6)
    assert rows[6].number == 3


def test_an_activation_is_that_models_alone():
    relu = DetectionModel(broken(activation="nn.ReLU()"))
    assert isinstance(relu.model[4].m[1].cv2.act, nn.ReLU)
    assert isinstance(DetectionModel(BASE).model[4].m[1].cv2.act, nn.SiLU)
    assert not any(isinstance(m, nn.SiLU) for m in relu.modules())


def test_anchor_numbers_become_placeholders_in_order():
    anchors = pixel_anchors(2, [8, 16])
    assert [len(level) for level in anchors] == [4, 4]
    assert anchors[0][0] == 16
    assert anchors[1][0] == 32
    assert pixel_anchors(3.4, [8]) == pixel_anchors(3, [8])


def test_channel_multiple_and_ch():
    layers, rows = parse_model(broken(channel_multiple=4, backbone_0=[-1, 1, "Conv", [50, 6, 2, 2]]), ch=5)
    assert rows[0].out_channels == 16
    assert layers[0].conv.in_channels == 5


def test_torch_modules_as_rows():
    cfg = broken(backbone_9=[-1, 1, "nn.BatchNorm2d", []])
    assert parse_model(cfg)[0][9].num_features == 256
    cfg = broken(backbone_9=[-1, 1, "nn.Conv2d", [1024, 1]])
    assert parse_model(cfg)[0][9].out_channels == 256
    cfg = broken(backbone_9=[-1, 1, "nn.MaxPool2d", [3, 1, 1]])
    assert isinstance(parse_model(cfg)[0][9], nn.MaxPool2d)


def test_a_network_is_built_without_torchs_compiler():
    """The meta device imports it, which costs every script more than a second."""
    code = "import sys; from models.yolo import DetectionModel; DetectionModel('yolov5-mobilevit-xxs.yaml')"
    code += "; print(*{'torch._dynamo', 'sympy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", ["yolov5-mobilevit-xxs", "yolov5-efficientnet-b0", "yolov5s-ghost"])
def test_a_batch_of_no_image_tells_what_the_meta_device_tells(name, monkeypatch):
    def facts():
        return [(row.shape, row.stride, row.params) for row in DetectionModel(f"{name}.yaml").rows]

    found, tried = facts(), []

    def refuse(*args):
        tried.append(args)
        raise ValueError

    monkeypatch.setattr(shapes, "_forward_of_no_image", refuse)
    assert facts() == found
    assert tried


def test_a_row_that_takes_no_empty_batch_is_tried_on_the_meta_device():
    head = [[-1, 1, "TransformerBlock", [32, 4, 1]], [[-1], 1, "Detect", ["nc", "anchors"]]]
    backbone = [[-1, 1, "Conv", [16, 3, 32]]]
    cfg = {
        "nc": 1,
        "depth_multiple": 1.0,
        "width_multiple": 1.0,
        "anchors": 1,
        "backbone": backbone,
        "head": head,
    }
    _, rows = parse_model(cfg)
    assert rows[1].shape == (1, 32, 16, 16)
