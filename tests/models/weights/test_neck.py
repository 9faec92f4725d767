"""A neck and head of another detector: matched from the output back, counted, and refused in a sentence."""

import copy

import pytest
import torch

from models.weights.checkpoint import load_checkpoint, save_checkpoint
from models.weights.neck import load_neck, match_necks
from models.yolo import DetectionModel
from tests.tiny_necks import CARRY, JOINTS, PAIRS, SOURCE, UP, build, write_source
from utils.errors import UserError
from utils.files import ROOT

NAMES = {0: "square", 1: "star", 2: "disc"}
CARRIED = sorted(
    path.stem for path in (ROOT / "models").glob("yolov5n-*.yaml") if not path.stem.endswith("-free")
)


def test_rows_are_paired_from_the_output_back_to_the_adapters():
    match = match_necks(build(CARRY | {"nc": 3}), build(SOURCE))
    assert match.rows == PAIRS and match.joints == JOINTS
    assert match.adapters == {4: [4], 8: [8]}


@pytest.mark.parametrize("name", CARRIED)
def test_each_shipped_yaml_has_yolov5ns_neck_and_head(name):
    with torch.device("meta"):
        model, source = DetectionModel(f"{name}.yaml", nc=3), DetectionModel("yolov5n.yaml")
    match = match_necks(model, source)
    # "-p4": the backbone ends at stride 16, and yolov5n's own stage of stride 32 is taken over too.
    first, joints = (7, [4, 6]) if name.endswith("-p4") else (9, [4, 6, 8])
    assert sorted(match.rows.values()) == list(range(first, 25))
    assert sorted(match.joints.values()) == joints and match.adapters.keys() == match.joints.keys()
    widths = [(model.rows[a].out_channels, source.rows[b].out_channels) for a, b in match.joints.items()]
    assert all(ours == theirs for ours, theirs in widths)


def test_every_tensor_that_fits_is_taken_and_counted(tmp_path):
    source = load_checkpoint(write_source(tmp_path)).model
    model = build(CARRY | {"nc": 3}, seed=1)
    before = copy.deepcopy(model.state_dict())
    report = load_neck(model, tmp_path / "source.pt", NAMES)
    # 6 rows of 14 convolutions with their norms, and Detect's two convolutions and its anchors.
    assert (report.fitted, report.total, report.left) == (14 * 5 + 5, 14 * 5 + 5, [])
    assert "75 of 75 tensors of the neck and head fitted" in str(report)
    own, other = model.state_dict(), source.state_dict()
    for key, value in own.items():
        row = int(key.split(".")[1])
        if row in PAIRS and row != 14 and "num_batches" not in key:
            assert torch.equal(value, other[key.replace(f"model.{row}.", f"model.{PAIRS[row]}.", 1)]), key
        elif row not in PAIRS:
            assert torch.equal(value, before[key]), key


def test_detect_keeps_boxes_objectness_anchors_and_the_classes_that_it_knows(tmp_path):
    source = load_checkpoint(write_source(tmp_path)).model.detect  # disc, star
    model = build(CARRY | {"nc": 3}, seed=1)
    before = copy.deepcopy(model.detect)
    report = load_neck(model, tmp_path / "source.pt", NAMES)
    assert report.unknown == ["square"] and "start anew: 'square'" in str(report)
    assert torch.equal(model.detect.anchors, source.anchors)
    for own, other, old in zip(model.detect.m, source.m, before.m):
        for name in ("weight", "bias"):
            a, b = own.get_parameter(name).view(2, 8, -1), other.get_parameter(name).view(2, 7, -1)
            assert torch.equal(a[:, :5], b[:, :5])
            assert torch.equal(a[:, 5], old.get_parameter(name).view(2, 8, -1)[:, 5])
            assert torch.equal(a[:, 6], b[:, 6]) and torch.equal(a[:, 7], b[:, 5])


def test_as_many_classes_of_other_names_start_anew(tmp_path):
    model = build(CARRY, seed=1)
    before = copy.deepcopy(model.detect.m[0].bias).view(2, 7)
    load_neck(model, write_source(tmp_path), {0: "star", 1: "moon"})
    source = load_checkpoint(tmp_path / "source.pt").model.detect.m[0].bias.view(2, 7)
    after = model.detect.m[0].bias.view(2, 7)
    assert torch.equal(after[:, 5], source[:, 6]) and torch.equal(after[:, 6], before[:, 6])


def test_equal_maps_at_the_joints_give_equal_detections(tmp_path):
    """With its own backbone in front, the neck and head that were taken over are the source's."""
    source = load_checkpoint(write_source(tmp_path)).model
    rows = {"backbone": SOURCE["backbone"][:4], "mean": [0.0, 0.0, 0.0]}
    cfg = copy.deepcopy(CARRY) | rows
    cfg["head"][0], cfg["head"][4] = [-1, 1, "nn.Identity", []], [2, 1, "nn.Identity", []]
    model = build(cfg, seed=1)
    load_neck(model, tmp_path / "source.pt", {0: "disc", 1: "star"})
    own, other = model.state_dict(), source.state_dict()
    for key in own:
        if int(key.split(".")[1]) < 4:
            own[key].copy_(other[key])
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(model(x)[0], source(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("licence", ["", "AGPL-3.0"])
def test_the_licence_of_what_was_taken_stays_with_the_network(tmp_path, licence):
    model = build(CARRY, seed=1)
    report = load_neck(model, write_source(tmp_path, licence=licence), {0: "a", 1: "b"})
    assert report.licence == model.licence == licence
    save_checkpoint(tmp_path / "best.pt", copy.deepcopy(model), meta={"epoch": 3})
    again = load_checkpoint(tmp_path / "best.pt")
    assert again.model.licence == licence and ("licence" in again.meta) == bool(licence)


def another_layer_in_between(cfg):
    cfg["head"][9] = [-1, 1, "C3Ghost", [32, False]]
    cfg["head"][6] = [-1, 1, "C3Ghost", [16, False]]


def another_activation(cfg):
    cfg["activation"] = "ReLU"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (another_layer_in_between, r"only 5 of the \d+ tensors .* and head row 10 \(layer 13, C3Ghost\)"),
        (another_activation, r"only 5 of the \d+ tensors .* and head row 10 \(layer 13, C3\)"),
    ],
)
def test_a_neck_that_does_not_fit_is_refused(tmp_path, edit, words):
    cfg = copy.deepcopy(CARRY)
    edit(cfg)
    model = build(cfg)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=words):
        load_neck(model, write_source(tmp_path), {0: "a", 1: "b"})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_does_not_fit_is_named_and_all_behind_it_is_left(tmp_path):
    cfg = copy.deepcopy(CARRY)
    cfg["head"][9] = [-1, 1, "C3Ghost", [32, False]]
    report = load_neck(build(cfg), write_source(tmp_path), {0: "disc", 1: "star"})
    assert report.fitted == (2 + 1 + 5) * 5 + 5 and report.fitted + len(report.left) == report.total
    assert {int(name.split(".")[1]) for name in report.left} == {11, 13}  # 11 feeds 13 alone
    assert "not fitted: model.11.conv.weight" in str(report)


def test_another_pooling_belongs_to_the_adapter(tmp_path):
    cfg = copy.deepcopy(CARRY)
    cfg["head"][1] = [-1, 1, "SPPF", [32, 9]]  # tensors of the same shapes, another layer
    match = match_necks(build(cfg), build(SOURCE))
    assert match.joints == {5: 4, 8: 2} and match.adapters == {5: [4, 5], 8: [8]}


def test_a_network_gives_its_neck_to_one_of_its_own_kind(tmp_path):
    """The source may be a network that got its neck from a third; its adapters are then its backbone."""
    first = build(CARRY, seed=1)
    first.licence = "AGPL-3.0"
    save_checkpoint(tmp_path / "first.pt", first, meta={})
    model = build(CARRY, seed=2)
    report = load_neck(model, tmp_path / "first.pt", {0: "a", 1: "b"})
    assert report.left == [] and model.licence == "AGPL-3.0"
    assert torch.equal(model.model[4].conv.weight, first.model[4].conv.weight)


def test_checkpoints_of_other_kinds_and_values_that_are_no_numbers_are_refused(tmp_path):
    model = build(CARRY)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(UserError, match="bare weights without the model's YAML"):
        load_neck(model, tmp_path / "bare.pt", {0: "a", 1: "b"})
    source = build(SOURCE)
    with torch.no_grad():
        source.model[8].cv1.conv.weight[0] = torch.nan
    save_checkpoint(tmp_path / "burst.pt", source, meta={})
    with pytest.raises(UserError, match=r"model\.8\.cv1\.conv\.weight holds values that are not finite"):
        load_neck(model, tmp_path / "burst.pt", {0: "a", 1: "b"})


def test_a_chain_of_rows_is_an_adapter_and_a_joined_one_is_not():
    cfg = copy.deepcopy(CARRY)
    cfg["head"][0:1] = [[-1, 1, "Conv", [48, 3, 1]], [-1, 1, "Conv", [32, 1, 1]]]
    for row in cfg["head"][2:]:
        row[0] = [s + (s > 3) for s in row[0]] if isinstance(row[0], list) else row[0]
    match = match_necks(build(cfg), build(SOURCE))
    assert match.adapters[5] == [4, 5] and match.joints == {5: 3, 9: 2}
    assert UP in cfg["head"]


def without_anchors(cfg):
    """The same neck under the head without anchors."""
    free = copy.deepcopy({key: value for key, value in cfg.items() if key != "anchors"})
    free["head"][-1] = [free["head"][-1][0], 1, "DetectFree", ["nc"]]
    return free


def test_a_head_of_another_kind_takes_the_neck_alone(tmp_path):
    model = build(without_anchors(CARRY), seed=1)
    before = copy.deepcopy(model.detect.state_dict())
    report = load_neck(model, write_source(tmp_path), {0: "disc", 1: "star"})
    assert report.fitted == 14 * 5 and {int(name.split(".")[1]) for name in report.left} == {14}
    assert all(torch.equal(value, before[key]) for key, value in model.detect.state_dict().items())
    source = load_checkpoint(tmp_path / "source.pt").model
    assert torch.equal(model.model[13].cv1.conv.weight, source.model[11].cv1.conv.weight)


def test_a_head_without_anchors_is_taken_with_the_classes_that_it_knows(tmp_path):
    source = build(without_anchors(SOURCE), seed=2)
    source.names = {0: "disc", 1: "star"}
    save_checkpoint(tmp_path / "free.pt", source, meta={})
    model = build(without_anchors(CARRY) | {"nc": 3}, seed=1)
    before = copy.deepcopy(model.detect.classes[0][4].weight)
    report = load_neck(model, tmp_path / "free.pt", NAMES)
    assert report.left == [] and report.unknown == ["square"]
    own, other = model.detect, source.detect
    assert torch.equal(own.boxes[1][4].weight, other.boxes[1][4].weight)
    assert torch.equal(own.classes[1][2].bn.running_var, other.classes[1][2].bn.running_var)
    after = own.classes[0][4].weight
    assert torch.equal(after[1:], other.classes[0][4].weight[[1, 0]]) and torch.equal(after[0], before[0])
