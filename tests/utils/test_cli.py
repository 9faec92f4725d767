"""The command line: errors in one sentence with exit code 1, options from Python, logging levels."""

import errno
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import detect
import val
from utils import cli
from utils.cli import Options, build_parser, from_keywords, given, option, parse, specs
from utils.errors import UserError
from utils.files import ROOT
from utils.training import options as train_options


@dataclass(frozen=True)
class Example(Options):
    """Count things."""

    REFUSED = {
        "--evolve": "hyperparameters are not searched here",
        "--bucket": "hyperparameters are not searched here",
    }

    epochs: int = option(100, help="how often")
    batch_size: int = option(16, flags=("--bs",))
    optimizer: str = option("SGD", choices=["SGD", "Adam"])
    rate: float | None = option(None)
    sizes: list[int] = option([640], help="pixels, 50 % more or less")
    rect: bool = option(False)
    resume: bool | str = option(False, nargs="?", const=True)
    device: str = option("", type=str)

    def check(self) -> None:
        self.at_least(epochs=1)


def test_parser_error_is_one_line_and_exit_code_one(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Example, ["--epochs", "many"])
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--epochs" in err
    assert "many" in err


def test_abbreviations_work_as_yolov5_users_type_them():
    assert parse(Example, ["--batch", "8"]).batch_size == 8
    assert parse(Example, ["--bs", "8"]).batch_size == 8


def test_the_annotations_say_what_the_command_line_takes():
    assert parse(Example, []) == Example()
    typed = ["--rate", "0.5", "--sizes", "1", "2", "--rect", "--resume", "--device", "0"]
    assert parse(Example, typed) == Example(rate=0.5, sizes=[1, 2], rect=True, resume=True, device="0")
    assert parse(Example, ["--resume", "last.pt"]).resume == "last.pt"
    assert given(Example, ["--rect", "--epochs", "100"]) == {"rect": True, "epochs": 100}


def test_help_tells_defaults_that_say_something():
    text = " ".join(build_parser(Example).format_help().split())
    assert "Count things." in text and "how often (default: 100)" in text
    assert "pixels, 50 % more or less (default: 640)" in text
    assert "None" not in text and "False" not in text


def test_an_option_that_is_known_and_not_had_says_why(capsys):
    for arguments in (["--evolve"], ["--evolve", "300"], ["--bucket=x"]):
        with pytest.raises(SystemExit) as stop:
            parse(Example, arguments)
        assert stop.value.code == 1
        assert f"{arguments[0][:8]}: hyperparameters are" in capsys.readouterr().err
    with pytest.raises(UserError, match="run.. got evolve: hyperparameters are not searched here"):
        from_keywords(Example, {"evolve": 300})
    assert "evolve" not in specs(Example)
    assert "evolve" not in build_parser(Example).format_help()


def test_train_knows_what_yolov5_has_beside_its_options(capsys):
    for flag in ("--resume_evolve", "--quad", "--entity"):
        with pytest.raises(SystemExit):
            train_options.parse_opt([flag])
        assert "unrecognized" not in capsys.readouterr().err


@pytest.mark.parametrize(("parse_opt", "folder"), [(val.parse_opt, "val"), (detect.parse_opt, "detect")])
def test_scripts_that_run_models_share_their_options(parse_opt, folder):
    opt = parse_opt(["--name", "mine", "--plugins", "a.py", "b.py", "--half"])
    assert isinstance(opt, cli.RunOptions)
    assert (opt.project, opt.name, opt.exist_ok) == (str(ROOT / "runs" / folder), "mine", False)
    assert (opt.half, opt.dnn, opt.plugins) == (True, False, ["a.py", "b.py"])


def test_keywords_are_laid_over_defaults():
    opt = from_keywords(Example, {"epochs": 3})
    assert (opt.epochs, opt.batch_size, opt.optimizer) == (3, 16, "SGD")


def test_words_of_a_command_line_give_the_same_values():
    opt = Example(epochs=3, rate=0.5, sizes=[320, 64], rect=True, device="", resume="a/last.pt")
    words = [word for name, spec in specs(Example).items() for word in spec.words(getattr(opt, name))]
    assert parse(Example, words) == opt
    assert specs(Example)["rate"].words(None) == specs(Example)["rect"].words(False) == []


def test_values_of_python_callers_become_those_of_the_fields():
    opt = Example(epochs=np.int64(3), rate=np.float32(0.5), sizes=320, resume=Path("a/last.pt"), device=0)
    assert vars(opt) == vars(Example(3, rate=0.5, sizes=[320], resume="a/last.pt", device="0"))
    kinds = {name: type(getattr(opt, name)) for name in ("epochs", "rate", "resume", "device")}
    assert kinds == {"epochs": int, "rate": float, "resume": str, "device": str}
    assert Example(sizes=(320, np.int32(64))).sizes == [320, 64]
    assert Example().sizes is not Example().sizes, "a list is each object's own"


def test_options_do_not_change_and_get_no_further_fields():
    opt = Example()
    with pytest.raises(FrozenInstanceError):
        opt.epochs = 3
    with pytest.raises(FrozenInstanceError):
        opt.own = True
    with pytest.raises(UserError, match="--epochs 0: must be at least 1"):
        replace(opt, epochs=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epoch": 1}, "unknown option 'epoch'; did you mean 'epochs'"),
        ({"colour": 1}, "unknown option 'colour'; the options are batch_size, device,"),
        ({"optimizer": "Lion"}, "optimizer='Lion'; it takes one of ['SGD', 'Adam']"),
        ({"epochs": "many"}, "epochs='many'; it takes a whole number"),
        ({"epochs": 2.5}, "epochs=2.5; it takes a whole number"),
        ({"epochs": True}, "epochs=True; it takes a whole number"),
        ({"epochs": None}, "epochs=None; it takes a whole number"),
        ({"rate": "fast"}, "rate='fast'; it takes a number"),
        ({"rect": "no"}, "rect='no'; it takes True or False"),
        ({"sizes": [1, "2"]}, "sizes='2'; it takes a whole number, or several"),
        ({"resume": 3}, "resume=3; it takes True or False or text"),
    ],
)
def test_what_a_script_does_not_take_is_one_sentence(options, says):
    with pytest.raises(UserError) as caught:
        from_keywords(Example, options)
    assert f"run() got {'the ' * ('unknown' in says)}{says}" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("a.yaml: no classes; add names"), 1, "a.yaml: no classes"),
        (OSError(errno.ENOSPC, "No space left on device", "best.pt"), 1, "best.pt"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, "runs"),
        (KeyboardInterrupt(), 130, "keyboard"),
    ],
)
def test_guard_turns_user_errors_into_a_sentence(capsys, error, code, words):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.guard(main)
    assert stop.value.code == code
    err = capsys.readouterr().err
    assert words in err
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_guard_lets_our_own_defects_through():
    with pytest.raises(ZeroDivisionError):
        cli.guard(lambda: 1 // 0)


@pytest.mark.parametrize("script", ["train.py", "val.py", "detect.py", "export.py"])
def test_every_script_refuses_a_wrong_option_in_one_line(script):
    done = subprocess.run(
        [sys.executable, ROOT / script, "--no-such-option"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "--no-such-option" in done.stderr
