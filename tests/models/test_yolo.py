"""DetectionModel: YOLOv5's figures to the digit, its names, its ways of being called, and the script."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from models.common import SameConv2d
from models.yolo import MOST_PARAMETERS, DetectionModel, run
from utils.errors import UserError
from utils.files import ROOT, load_yaml, save_yaml

FIGURES = {  # parameters, parameters fused, entries of the state_dict (nc 80)
    "yolov5n": (1_872_157, 1_867_405, 349),
    "yolov5s": (7_235_389, 7_225_885, 349),
    "yolov5m": (21_190_557, 21_172_173, 481),
    "yolov5l": (46_563_709, 46_533_693, 613),
    "yolov5x": (86_749_405, 86_705_005, 745),
    "yolov5-mobilenetv2": (2_428_797, 2_411_133, None),
}


def count(model):
    return sum(p.numel() for p in model.parameters())


def tiny(**changes):
    """yolov5n at an eighth of its width, for speed."""
    cfg = {**copy.deepcopy(load_yaml(ROOT / "models/yolov5n.yaml")), "width_multiple": 0.125, "nc": 2}
    return DetectionModel({**cfg, **changes})


@pytest.mark.parametrize("name", FIGURES)
def test_figures_to_the_digit(name):
    with torch.device("meta"):
        model = DetectionModel(f"{name}.yaml")
    parameters, fused, entries = FIGURES[name]
    assert count(model) == parameters == sum(row.params for row in model.rows)
    if entries:
        assert len(model.state_dict()) == entries
    assert count(model.fuse()) == fused


def test_an_optimised_network_pads_no_maps():
    torch.manual_seed(0)
    model = DetectionModel("yolov5-efficientnet-lite0.yaml", nc=2).eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        wanted, _ = model(x)
        found, _ = model.optimise()(x)
    assert not any(isinstance(module, SameConv2d) for module in model.modules())
    assert [m.kernel_size for m in model.model[4].modules() if isinstance(m, nn.Conv2d)][1] == (6, 6)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("nc", "parameters"), [(1, 7_022_326), (5, 7_033_114), (80, 7_235_389)])
def test_classes_change_the_head_alone(nc, parameters):
    with torch.device("meta"):
        model = DetectionModel("yolov5s.yaml", nc=nc)
    assert count(model) == parameters
    assert (model.nc, len(model.names), model.names[0]) == (nc, nc, "class0")


@pytest.mark.parametrize(("nc", "parameters"), [(1, 3_684_542), (5, 3_695_330), (80, 3_897_605)])
def test_ghost_in_every_place(nc, parameters):
    cfg = load_yaml(ROOT / "models/yolov5s.yaml")
    for i, row in enumerate(cfg["backbone"] + cfg["head"]):
        row[2] = {"Conv": "GhostConv" if i else "Conv", "C3": "C3Ghost"}.get(row[2], row[2])
    with torch.device("meta"):
        assert count(DetectionModel(cfg, nc=nc)) == parameters


def test_transformer_variant():
    cfg = load_yaml(ROOT / "models/yolov5s.yaml")
    cfg["backbone"][8][2] = "C3TR"
    with torch.device("meta"):
        assert count(DetectionModel(cfg)) == 7_235_645


def test_four_levels():
    cfg = load_yaml(ROOT / "models/yolov5n.yaml")
    up = [-1, 1, "nn.Upsample", ["None", 2, "nearest"]]
    cfg["backbone"][7:] = [
        [-1, 1, "Conv", [768, 3, 2]],
        [-1, 3, "C3", [768]],
        [-1, 1, "Conv", [1024, 3, 2]],
        [-1, 3, "C3", [1024]],
        [-1, 1, "SPPF", [1024, 5]],
    ]
    cfg["head"] = []
    for width, tap in ((768, 8), (512, 6), (256, 4)):
        cfg["head"] += [
            [-1, 1, "Conv", [width, 1, 1]],
            up,
            [[-1, tap], 1, "Concat", [1]],
            [-1, 3, "C3", [width, False]],
        ]
    for down, width, tap in ((256, 512, 20), (512, 768, 16), (768, 1024, 12)):
        cfg["head"] += [
            [-1, 1, "Conv", [down, 3, 2]],
            [[-1, tap], 1, "Concat", [1]],
            [-1, 3, "C3", [width, False]],
        ]
    cfg["head"].append([[23, 26, 29, 32], 1, "Detect", ["nc", "anchors"]])
    model = DetectionModel(cfg, anchors=3)
    assert count(model) == 3_246_940  # yolov5n6
    assert model.stride.tolist() == [8, 16, 32, 64]
    assert model.detect.na == 3


def test_names_in_the_state_dict():
    state = tiny().state_dict()
    assert {
        "model.0.conv.weight",
        "model.2.m.0.cv2.bn.running_var",
        "model.24.anchors",
        "model.24.m.0.bias",
    } <= set(state)
    assert not any("stride" in key or key == "mean" for key in state)


def test_outputs_of_both_modes_and_gradients():
    model = DetectionModel("yolov5n.yaml")
    decoded, raws = model.eval()(torch.rand(1, 3, 64, 96))
    assert decoded.shape == (1, 3 * (8 * 12 + 4 * 6 + 2 * 3), 85)
    raws = model.train()(torch.rand(2, 3, 64, 96))
    assert [tuple(raw.shape) for raw in raws] == [(2, 3, 8, 12, 85), (2, 3, 4, 6, 85), (2, 3, 2, 3, 85)]
    sum(raw.square().mean() for raw in raws).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.stride.tolist() == [8, 16, 32]
    assert torch.equal(model.detect.anchors[0, 0] * 8, torch.tensor([10.0, 13.0]))


def test_the_yaml_it_keeps_builds_it_again(tmp_path):
    model = DetectionModel("yolov5-mobilenetv2.yaml", nc=3, anchors=[[4, 5], [8, 9], [16, 17]])
    save_yaml(tmp_path / "again.yaml", model.yaml)
    again = DetectionModel(tmp_path / "again.yaml")
    assert again.yaml == model.yaml
    assert again.load_state_dict(model.state_dict()).missing_keys == []
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(model.eval()(x)[0], again.eval()(x)[0])
    assert torch.equal(copy.deepcopy(model)(x)[0], model(x)[0])


def test_the_callers_dict_is_left_alone():
    cfg = load_yaml(ROOT / "models/yolov5n.yaml")
    before = copy.deepcopy(cfg)
    DetectionModel(cfg, nc=3, anchors=2)
    assert cfg == before


def test_the_model_subtracts_its_own_mean():
    plain, normed = tiny(), tiny(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    normed.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 32, 32)
    by_hand = (x - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(
        1, 3, 1, 1
    )
    assert torch.allclose(normed.eval()(x)[0], plain.eval()(by_hand)[0], atol=1e-4)
    assert tiny(mean=[0.5, 0.4, 0.3]).std is None
    mobilenet = DetectionModel("yolov5-mobilenetv2.yaml", nc=1)
    assert mobilenet.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert mobilenet.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_a_model_of_one_channel_sees_the_luma_of_rgb():
    model = tiny(ch=1).eval()
    assert model.ch == 1
    assert model.model[0].conv.in_channels == 1
    rgb = torch.rand(1, 3, 32, 32)
    luma = 0.299 * rgb[:, :1] + 0.587 * rgb[:, 1:2] + 0.114 * rgb[:, 2:]
    assert torch.allclose(model(rgb)[0], model(luma)[0], atol=1e-4)
    assert DetectionModel(model.yaml, ch=3).ch == 1


def test_anchors_against_the_strides_are_turned_round(caplog):
    anchors = [[116, 90, 156, 198], [30, 61, 62, 45], [10, 13, 16, 30]]
    model = tiny(anchors=anchors)
    assert (model.detect.anchors[0, 0] * 8).tolist() == [10, 13]
    assert (model.detect.anchors[2, 1] * 32).tolist() == [156, 198]


def test_augmented_rows_and_their_places():
    model = tiny(nc=80).eval()
    with torch.no_grad():
        decoded, none = model(torch.rand(1, 3, 640, 640), augment=True)
    assert none is None
    assert decoded.shape == (1, 45_147, 85)
    # A centred picture: the mirrored pass must put its cells where the others have theirs.
    with torch.no_grad():
        decoded, _ = model(torch.full((1, 3, 96, 64), 0.447), augment=True)
        plain, _ = model(torch.full((1, 3, 96, 64), 0.447))
    first = 3 * (12 * 8 + 6 * 4)
    assert torch.equal(decoded[:, :first], plain[:, :first])
    second = decoded[0, first : first + 3 * (12 * 8 + 6 * 4 + 3 * 2)]
    # scale 0.83 of 96x64 is 79x53, padded to 96x64: its first cell is the mirrored image's left: our right
    assert second[0, 0] > 55
    assert second[7, 0] < second[0, 0] - 60
    with pytest.raises(ValueError, match="eval mode"):
        model.train()(torch.rand(1, 3, 64, 64), augment=True)


def test_a_head_of_one_level_is_augmented_with_all_it_has():
    cfg = copy.deepcopy(load_yaml(ROOT / "models/yolov5n.yaml")) | {"anchors": 2, "width_multiple": 0.125}
    cfg["head"] = [[[6], 1, "Detect", ["nc", "anchors"]]]
    model = DetectionModel(cfg, nc=2).eval()
    x = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        decoded, _ = model(x, augment=True)
        plain, _ = model(x)
    # stride 16: 96x64, then 79x53 and 64x42, padded to 80x64 and 64x48
    assert decoded.shape == (1, 2 * (6 * 4 + 5 * 4 + 4 * 3), 7)
    assert torch.equal(decoded[:, :48], plain)


@pytest.mark.parametrize("name", ["yolov5n.yaml", "yolov5-mobilenetv2.yaml"])
def test_traced_at_one_size_it_runs_at_another(name):
    model = DetectionModel(name, nc=2).fuse()
    model.detect.export = True
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.rand(1, 3, 64, 64), check_trace=False)
        x = torch.rand(2, 3, 96, 64)
        assert torch.allclose(traced(x), model(x), atol=1e-3)


def test_channels_last_gives_the_same_result_and_trains_in_bfloat16():
    model = DetectionModel("yolov5-mobilenetv2.yaml", nc=2).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)[0]
        model.to(memory_format=torch.channels_last)
        assert torch.allclose(model(x.contiguous(memory_format=torch.channels_last))[0], expected, atol=1e-2)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        raws = model(x.contiguous(memory_format=torch.channels_last))
    sum(raw.float().square().mean() for raw in raws).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_mobilenet_backbone_takes_torchvisions_tensors():
    models = pytest.importorskip("torchvision.models", reason="torchvision holds the reference")
    reference = models.mobilenet_v2(weights=None).features[:18].eval()
    model = DetectionModel("yolov5-mobilenetv2.yaml", nc=1).eval()
    model.model[:18].load_state_dict(reference.state_dict())
    taps = {}
    for i in (6, 13, 17):
        model.model[i].register_forward_hook(lambda m, x, y, i=i: taps.__setitem__(i, y))
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        model(x)
        y = (x - model.mean) / model.std
        for i, layer in enumerate(reference):
            y = layer(y)
            if i in taps:
                assert (taps[i] - y).abs().max() <= 1e-4 * y.abs().max()
    assert [taps[i].shape[1] for i in (6, 13, 17)] == [32, 96, 320]


def script(*arguments, cwd):
    command = [sys.executable, str(ROOT / "models/yolo.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_the_script_prints_its_table_with_a_plugin(tmp_path):
    # The plug-in imports models.yolo: a second copy of the registry or of DetectionModel would show here.
    (tmp_path / "mine.py").write_text(
        "from models.common import Conv\n"
        "from models.registry import register_block\n"
        "from models.yolo import DetectionModel\n"
        "@register_block\n"
        "class Mine(Conv):\n"
        "    pass\n"
    )
    cfg = load_yaml(ROOT / "models/yolov5n.yaml")
    cfg["backbone"][1][2] = "Mine"
    save_yaml(tmp_path / "mine.yaml", cfg)
    done = script(
        "--cfg",
        "mine.yaml",
        "--nc",
        3,
        "--imgsz",
        64,
        96,
        "--line-profile",
        "--plugins",
        "mine.py",
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["from", "n", "params", "module", "arguments", "output", "GFLOPs", "ms"]
    assert len(lines) == 27
    assert lines[2].split()[:5] == ["1", "-1", "1", "4672", "Mine"]
    assert "32x16x24" in lines[2]
    assert "1,767,976 parameters (1,763,224 fused)" in lines[-1]
    assert "GFLOPs at 64x96" in lines[-1]


def test_the_script_ends_in_a_sentence(tmp_path):
    done = script("--cfg", ROOT / "tests/fixtures/posts/yolov5-efficient.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_run_returns_the_model_and_checks_its_options():
    assert isinstance(run(cfg="yolov5n.yaml", nc=2, imgsz=50, profile=True), nn.Module)
    for options in ({"imgsz": [1, 2, 3]}, {"imgsz": 0}, {"size": 64}, {"nc": 0}):
        with pytest.raises(UserError):
            run(cfg="yolov5n.yaml", **options)


def test_a_network_of_too_many_parameters_is_refused_before_it_takes_memory():
    cfg = load_yaml(ROOT / "models/yolov5n.yaml") | {"width_multiple": 60}
    with pytest.raises(UserError, match=f"parameters, expected at most {MOST_PARAMETERS}"):
        DetectionModel(cfg)
    with pytest.raises(UserError, match="1872157 parameters, expected at most 1000000"):
        DetectionModel("yolov5n.yaml", most=1_000_000)


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is another")
def test_refusing_a_network_of_too_many_parameters_takes_little_memory(tmp_path):
    cfg = tmp_path / "wide.yaml"
    save_yaml(cfg, load_yaml(ROOT / "models/yolov5n.yaml") | {"width_multiple": 60})
    code = (
        "import resource, sys; from models.yolo import DetectionModel; from utils.errors import UserError\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = peak()\n"
        "try: DetectionModel(sys.argv[1])\n"
        "except UserError: print(peak() - before)"
    )
    output = subprocess.run([sys.executable, "-c", code, cfg], cwd=ROOT, capture_output=True, text=True)
    assert int(output.stdout) <= 500, output.stderr  # MiB; 16 000 when each row's weights were copied
