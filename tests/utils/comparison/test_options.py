"""compare.py's options: nets and their starts, what is passed on, what a resumed run may change."""

from __future__ import annotations

import inspect

import pytest

import compare
import train
from utils.cli import specs
from utils.comparison.options import CompareOptions, Net, open_run, split_cfg, train_options
from utils.errors import UserError
from utils.files import ROOT, load_yaml, save_yaml
from utils.training.hyp import load_hyp


def nets(**options) -> list[Net]:
    return open_run(options).nets()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("models/a.yaml", ("models/a.yaml", None)),
        ("models/a.yaml+imagenet", ("models/a.yaml", "imagenet")),
        ("models/a.yaml+scratch", ("models/a.yaml", "")),
        ("a+b/c.yml+timm/x=my+file.pth", ("a+b/c.yml", "timm/x=my+file.pth")),
        ("timm:mobilenetv4_conv_small+imagenet", ("timm:mobilenetv4_conv_small", "imagenet")),
        ("timm:mobilenetv4_conv_small", ("timm:mobilenetv4_conv_small", None)),
    ],
)
def test_a_cfg_may_name_its_start(text, parts):
    assert split_cfg(text) == parts


def test_nets_have_names_and_folders_of_their_own(tmp_path):
    found = nets(
        cfg=["models/n.yaml", "models/n.yaml+imagenet", "other/n.yaml", "timm:x", "models/n.yaml"],
        weights=["runs/exp3/weights/best.pt", str(tmp_path / "mine.pt")],
    )
    assert [(net.key, net.label) for net in found] == [
        ("n", "n"),
        ("n-imagenet", "n (ImageNet)"),
        ("n-2", "n"),
        ("timm-x", "timm-x"),
        ("weights-exp3", "exp3"),
        ("weights-mine", "mine"),
    ]
    assert found[1].backbone_weights == "imagenet" and found[0].backbone_weights == ""
    tagged = nets(cfg=["timm:x.a1_in1k", "timm:x.a2_in1k", "timm:x"])  # one network, other weights
    assert [net.label for net in tagged] == ["timm-x.a1_in1k", "timm-x.a2_in1k", "timm-x"]
    both = nets(cfg=["n.yaml", "n.yaml+scratch"], backbone_weights="imagenet")
    assert [net.backbone_weights for net in both] == ["imagenet", ""]
    assert nets(cfg=["../<img src=x>.yaml"])[0].key == "img-src-x"


def test_training_options_and_defaults_are_train_s_own():
    plan = open_run({"cfg": ["n.yaml"], "epochs": 7, "cos_lr": True, "hyp": "hyp.digits.yaml"})
    passed = train_options(plan.opt, Net("n", "n", cfg="n.yaml", backbone_weights="imagenet"))
    assert plan.folder is None and passed["epochs"] == 7 and passed["backbone_weights"] == "imagenet"
    assert passed["hyp"] == load_hyp("hyp.digits.yaml") and passed["cfg"] == "n.yaml"
    own = vars(train.parse_opt([]))
    assert set(passed) < set(own)
    same = set(passed) - {"cfg", "weights", "epochs", "cos_lr", "hyp", "backbone_weights"}
    assert all(passed[name] == own[name] for name in same)
    left = {"resume", "project", "name", "exist_ok", "nosave", "noval", "sync_bn", "local_rank"}
    left |= {"evolve", "recipe", "logger"}  # a recipe is passed on by its options
    left |= {"neck_weights", "align", "align_epochs"}  # they fit one network, whose best.pt compare.py takes
    assert set(own) - set(passed) == left


def test_a_recipe_says_how_to_train_and_not_what(tmp_path):
    opt = open_run({"cfg": ["n.yaml"], "recipe": "digits", "epochs": 3}).opt
    held = load_yaml(ROOT / "data" / "recipes" / "recipe.digits.yaml")
    told = {name: getattr(opt, name) for name in ("data", "imgsz", "optimizer", "batch_size")}
    assert told.items() <= held.items() and opt.epochs == 3 and opt.imgsz != CompareOptions().imgsz
    assert (opt.cfg, opt.name) == (["n.yaml"], "exp")
    command = open_run({"cfg": ["n.yaml"], "recipe": "adamw"}).command_line()
    assert command == (
        "python compare.py --cfg n.yaml --hyp data/hyps/hyp.adamw.yaml --optimizer AdamW --cos-lr"
    )


def test_the_command_line_comes_back(tmp_path):
    plan = open_run({"cfg": ["a b.yaml", "n.yaml"], "epochs": 3, "cos_lr": True, "freeze": ["backbone"]})
    line = "python compare.py --cfg 'a b.yaml' n.yaml --epochs 3 --cos-lr --freeze backbone"
    assert plan.command_line() == line


def test_a_resumed_run_keeps_its_conditions(tmp_path, monkeypatch):
    same = {"project": str(tmp_path), "name": "run", "data": "data/digits.yaml", "hyp": "hyp.digits.yaml"}
    plan = open_run({"cfg": ["a.yaml"], "epochs": 5, **same})
    folder = tmp_path / "run"
    folder.mkdir()
    plan.save(folder)
    again = open_run({"resume": str(folder), "cfg": ["b.yaml"], "workers": 1})
    assert again.folder == folder and again.opt.cfg == ["a.yaml", "b.yaml"] and again.opt.workers == 1
    assert again.opt.epochs == 5 and again.opt.hyp == plan.opt.hyp and again.hyp_file == "hyp.digits.yaml"
    monkeypatch.chdir(tmp_path)
    assert open_run({"resume": True}).folder == folder
    again = open_run({"cfg": ["c.yaml"], "epochs": 5, "exist_ok": True, **same})
    assert again.folder == folder and again.opt.cfg == ["a.yaml", "c.yaml"]
    assert open_run({"cfg": ["c.yaml"], "epochs": 6, **same}).folder is None  # a new run beside it
    for changes, says in (
        ({"resume": str(folder), "epochs": 6}, "epochs 5, now 6"),
        ({"resume": str(folder), "hyp": "hyp.VOC.yaml"}, "hyp"),
        ({"resume": str(folder), "data": "data/coco.yaml"}, "data/digits.yaml"),
        ({"cfg": ["a.yaml"], "exist_ok": True, **same}, "epochs 5, now 100"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            open_run(changes)
        assert "\n" not in str(caught.value)


def test_files_are_saved_by_paths_that_hold_everywhere(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        place.mkdir()
    files = ("a.yaml", "w.pt", "best.pt", "set.yaml", "blocks.py")
    for name in files:
        (here / name).touch()
    monkeypatch.chdir(here)
    given = {"cfg": ["a.yaml+w.pt", "a.yaml+timm/x=w.pt", "a.yaml", "timm:x"], "weights": ["best.pt"]}
    given |= {"data": "set.yaml", "plugins": ["blocks.py"], "backbone_weights": "w.pt", "name": "run"}
    plan = open_run(given | {"project": str(tmp_path)})
    opt = plan.opt
    cfg, start = str(here / "a.yaml"), str(here / "w.pt")
    assert opt.cfg == [f"{cfg}+{start}", f"{cfg}+timm/x={start}", cfg, "timm:x"]
    assert opt.weights == [str(here / "best.pt")] and opt.data == str(here / "set.yaml")
    assert opt.plugins == [str(here / "blocks.py")] and opt.backbone_weights == start
    found = plan.nets()
    assert [net.key for net in found] == [
        "a-w.pt",
        "a-timm-x-w.pt",
        "a-w.pt-2",
        "timm-x-w.pt",
        "weights-here",
    ]
    assert [net.label for net in found[:2]] == ["a (w.pt)", "a (timm/x=w.pt)"]
    assert "a.yaml+w.pt" in plan.command_line() and str(here) not in plan.command_line()

    (tmp_path / "run").mkdir()
    plan.save(tmp_path / "run")
    monkeypatch.chdir(there)
    again = open_run({"resume": str(tmp_path / "run"), "cfg": ["../here/a.yaml", "b.yaml"]})
    assert again.nets()[:4] == found[:4] and again.nets()[-1] == found[-1]
    assert again.opt.cfg[4:] == ["b.yaml"]  # a.yaml was there already
    assert (again.opt.data, again.opt.plugins) == (opt.data, opt.plugins)

    older = load_yaml(tmp_path / "run" / "compare.yaml")
    older = {name: value for name, value in older.items() if name != "keys"} | given
    save_yaml(tmp_path / "run" / "compare.yaml", older)  # as an earlier version wrote it
    monkeypatch.chdir(here)
    assert open_run({"resume": str(tmp_path / "run")}).nets() == found


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "nothing to compare"),
        ({"cfg": ["n.yaml"], "epochs": 0}, "--epochs 0"),
        ({"cfg": ["n.yaml"], "latency_runs": 0}, "--latency-runs 0"),
        ({"cfg": ["n.yaml"], "samples": -1}, "--samples -1"),
        ({"cfg": ["n.yaml"], "hyp": {"lr_0": 1.0}}, "did you mean 'lr0'"),
        ({"cfg": ["n.yaml"], "backbone_lr": 0.1, "freeze": ["backbone"]}, "use one"),
        ({"cfg": ["n.yaml"], "optimizer": "LAMB"}, "LAMB"),
        ({"resume": "nowhere"}, "nowhere: holds no compare.yaml"),
        ({"resume": "nowhere", "name": "other"}, "leave --name out"),
        ({"cfg": ["n.yaml"], "sync_bn": True}, "sync_bn"),
    ],
)
def test_what_cannot_work_is_one_sentence(options, says):
    with pytest.raises(UserError) as caught:
        open_run(options)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_every_option_is_documented():
    undocumented = {"epochs", "optimizer", "seed"}  # as in train.py, whose help these options have
    assert {name for name, spec in specs(CompareOptions).items() if not spec.given.help} <= undocumented
    assert inspect.getdoc(compare.run)
