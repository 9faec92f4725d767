"""The options of each script, held against those of YOLOv5 at v7.0 and later: names, spellings, defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from benchmarks.formats import FormatsOptions
from detect import DetectOptions
from export import ExportOptions
from models.yolo import ModelOptions
from utils.cli import Options, given, specs
from utils.comparison.options import CompareOptions
from utils.files import ROOT
from utils.training.options import TrainingOptions, TrainOptions
from val import ValOptions

SWITCH = False  # the default of an option without a value


@dataclass(frozen=True)
class Script:
    """What YOLOv5's script has and where ours differs.

    Attributes:
        ours: the options here.
        flags: YOLOv5's, as typed, with their defaults.
        differs: our default, and why, by flag.
        renamed: flags of YOLOv5 that are a spelling of another one here.
        added: what YOLOv5 does not have.
    """

    ours: type[Options]
    flags: dict[str, object]
    differs: dict[str, tuple[object, str]]
    added: set[str]
    renamed: dict[str, str] = field(default_factory=dict)


NEWEST = "without --weights the newest run's best.pt is taken, which nobody has to fetch"
FEW_CORES = "8 of them, but none on a CPU of one or two cores, where they slow the network"
SETS_NO_NAMES = "a file without names is no reason to call its classes by COCO's"
NOT_ASKED = "None tells whether it was given, so that what cannot be honoured is refused"
ON_CPU = "figures of a machine that everybody has"
TILES = {"--tile", "--overlap", "--tiles-only"}

SCRIPTS = {
    "train": Script(
        TrainOptions,
        {
            "--weights": "yolov5s.pt",
            "--cfg": "",
            "--data": "data/coco128.yaml",
            "--hyp": "data/hyps/hyp.scratch-low.yaml",
            "--epochs": 100,
            "--batch-size": 16,
            "--imgsz": 640,
            "--rect": SWITCH,
            "--resume": False,
            "--nosave": SWITCH,
            "--noval": SWITCH,
            "--noautoanchor": SWITCH,
            "--noplots": SWITCH,
            "--evolve": None,
            "--evolve_population": "data/hyps",
            "--resume_evolve": None,
            "--bucket": "",
            "--cache": None,
            "--image-weights": SWITCH,
            "--device": "",
            "--multi-scale": SWITCH,
            "--single-cls": SWITCH,
            "--optimizer": "SGD",
            "--sync-bn": SWITCH,
            "--workers": 8,
            "--project": "runs/train",
            "--name": "exp",
            "--exist-ok": SWITCH,
            "--quad": SWITCH,
            "--cos-lr": SWITCH,
            "--label-smoothing": 0.0,
            "--patience": 100,
            "--freeze": [0],
            "--save-period": -1,
            "--seed": 0,
            "--local_rank": -1,
            "--entity": None,
            "--upload_dataset": False,
            "--bbox_interval": -1,
            "--artifact_alias": "latest",
        },
        differs={
            "--weights": (None, "with --cfg training starts from scratch; without, it is yolov5s.pt"),
            "--workers": (None, FEW_CORES),
        },
        added={
            "--recipe",
            "--backbone-weights",
            "--backbone-lr",
            "--teacher",
            "--neck-weights",
            "--align",
            "--align-epochs",
            "--amp",
            "--logger",
            "--plugins",
        },
    ),
    "val": Script(
        ValOptions,
        {
            "--data": "data/coco128.yaml",
            "--weights": ["yolov5s.pt"],
            "--batch-size": 32,
            "--imgsz": 640,
            "--conf-thres": 0.001,
            "--iou-thres": 0.6,
            "--max-det": 300,
            "--task": "val",
            "--device": "",
            "--workers": 8,
            "--single-cls": SWITCH,
            "--augment": SWITCH,
            "--verbose": SWITCH,
            "--save-txt": SWITCH,
            "--save-hybrid": SWITCH,
            "--save-conf": SWITCH,
            "--save-json": SWITCH,
            "--project": "runs/val",
            "--name": "exp",
            "--exist-ok": SWITCH,
            "--half": SWITCH,
            "--dnn": SWITCH,
        },
        differs={"--weights": ([], NEWEST), "--workers": (None, FEW_CORES)},
        added={"--coco-eval", "--noplots", "--plugins"} | TILES,
    ),
    "detect": Script(
        DetectOptions,
        {
            "--weights": ["yolov5s.pt"],
            "--source": "data/images",
            "--data": "data/coco128.yaml",
            "--imgsz": [640],
            "--conf-thres": 0.25,
            "--iou-thres": 0.45,
            "--max-det": 1000,
            "--device": "",
            "--view-img": SWITCH,
            "--save-txt": SWITCH,
            "--save-format": 0,
            "--save-csv": SWITCH,
            "--save-conf": SWITCH,
            "--save-crop": SWITCH,
            "--nosave": SWITCH,
            "--classes": None,
            "--agnostic-nms": SWITCH,
            "--augment": SWITCH,
            "--visualize": SWITCH,
            "--update": SWITCH,
            "--project": "runs/detect",
            "--name": "exp",
            "--exist-ok": SWITCH,
            "--line-thickness": 3,
            "--hide-labels": SWITCH,
            "--hide-conf": SWITCH,
            "--half": SWITCH,
            "--dnn": SWITCH,
            "--vid-stride": 1,
        },
        differs={"--weights": ([], NEWEST), "--data": (None, SETS_NO_NAMES)},
        added={"--save-json", "--stream-timeout", "--plugins", "--track", "--count-line"} | TILES,
    ),
    "export": Script(
        ExportOptions,
        {
            "--data": "data/coco128.yaml",
            "--weights": "yolov5s.pt",
            "--imgsz": [640, 640],
            "--batch-size": 1,
            "--device": "cpu",
            "--half": SWITCH,
            "--inplace": SWITCH,
            "--train": SWITCH,
            "--keras": SWITCH,
            "--optimize": SWITCH,
            "--int8": SWITCH,
            "--per-tensor": SWITCH,
            "--dynamic": SWITCH,
            "--cache": "",
            "--simplify": SWITCH,
            "--mlmodel": SWITCH,
            "--opset": 17,
            "--verbose": SWITCH,
            "--workspace": 4,
            "--nms": SWITCH,
            "--agnostic-nms": SWITCH,
            "--topk-per-class": 100,
            "--topk-all": 100,
            "--iou-thres": 0.45,
            "--conf-thres": 0.25,
            "--include": ["torchscript"],
        },
        differs={
            "--data": ("", "an export needs no data set"),
            "--weights": ("", NEWEST),
            "--opset": (None, NOT_ASKED),
            "--workspace": (None, NOT_ASKED),
            "--topk-all": (None, NOT_ASKED),
            "--iou-thres": (None, NOT_ASKED),
            "--conf-thres": (None, NOT_ASKED),
        },
        added={"--max-det", "--calibration-images", "--nms-inputs", "--nocard", "--plugins"},
        renamed={"--topk-all": "--max-det"},
    ),
    "benchmarks": Script(
        FormatsOptions,
        {
            "--weights": "yolov5s.pt",
            "--imgsz": 640,
            "--batch-size": 1,
            "--data": "data/coco128.yaml",
            "--device": "",
            "--half": SWITCH,
            "--test": SWITCH,
            "--pt-only": SWITCH,
            "--hard-fail": False,
        },
        differs={
            "--weights": (["yolov5s.pt"], "several checkpoints, a table for each"),
            "--device": ("cpu", ON_CPU),
        },
        added={"--include", "--int8", "--threads", "--rounds", "--repeats", "--plugins"}
        | {"--project", "--name"},
    ),
    "models/yolo": Script(
        ModelOptions,
        {
            "--cfg": "yolov5s.yaml",
            "--batch-size": 1,
            "--device": "",
            "--profile": SWITCH,
            "--line-profile": SWITCH,
            "--test": SWITCH,
        },
        differs={"--device": ("cpu", ON_CPU)},
        added={"--nc", "--imgsz", "--plugins"},
    ),
}
each_script = pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)


def option_of(script: Script, flag: str) -> str:
    """The name of the field that a flag of YOLOv5 fills."""
    return script.renamed.get(flag, flag).removeprefix("--").replace("-", "_")


@each_script
def test_no_option_is_missing_and_none_is_undeclared(script: Script) -> None:
    offered = {option_of(script, flag) for flag in script.flags if flag not in script.ours.REFUSED}
    added = {flag.removeprefix("--").replace("-", "_") for flag in script.added}
    assert set(specs(script.ours)) == offered | added
    assert set(script.ours.REFUSED) <= set(script.flags), "what is refused is YOLOv5's"


@each_script
def test_defaults_are_those_of_yolov5_or_differ_for_a_reason(script: Script) -> None:
    ours = script.ours()
    assert not set(script.differs) & set(script.ours.REFUSED)
    for flag, default in script.flags.items():
        if flag in script.ours.REFUSED:
            continue
        value = getattr(ours, option_of(script, flag))
        if isinstance(value, str):
            value = value.removeprefix(f"{ROOT}/")  # ours do not depend on the working folder
        if flag in script.differs:
            expected, reason = script.differs[flag]
            assert value == expected and expected != default and reason, flag
        else:
            assert value == default, flag


@each_script
def test_every_flag_is_typed_as_in_yolov5_or_refused_with_its_reason(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag, default in script.flags.items():
        several = default[0] if isinstance(default, list) else default
        value = [] if several is SWITCH or flag == "--cache" else [str(several or "0")]
        choices = specs(script.ours).get(option_of(script, flag))
        if choices is not None and choices.given.choices:
            value = value and [str(choices.given.choices[0])]
        if flag in script.ours.REFUSED:
            with pytest.raises(SystemExit, match="1"):
                given(script.ours, [flag, *value])
            said = capsys.readouterr().err
            assert f"{flag}: {script.ours.REFUSED[flag]}" in said and said.count("\n") == 1
        else:
            assert list(given(script.ours, [flag, *value])) == [option_of(script, flag)]


@pytest.mark.parametrize("flag", ["--img", "--img-size"])
@pytest.mark.parametrize("name", ["train", "val", "detect", "export", "benchmarks"])
def test_the_image_size_has_its_other_spellings(name: str, flag: str) -> None:
    assert given(SCRIPTS[name].ours, [flag, "64"])["imgsz"] in (64, [64])


def test_the_abbreviations_in_use_are_not_ambiguous() -> None:
    typed = {"train": ["--batch"], "val": ["--batch", "--conf", "--iou"], "export": ["--batch"]}
    typed["detect"] = ["--conf", "--iou", "--line"]
    for name, flags in typed.items():
        for flag in flags:
            assert len(given(SCRIPTS[name].ours, [flag, "1"])) == 1


def test_compare_takes_the_options_of_a_training_with_their_defaults() -> None:
    shared = set(specs(TrainingOptions))
    ours, theirs = CompareOptions(), TrainOptions()
    assert shared < set(specs(CompareOptions)) and shared < set(specs(TrainOptions))
    assert all(getattr(ours, name) == getattr(theirs, name) for name in shared)
