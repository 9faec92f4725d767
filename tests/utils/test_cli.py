"""The command line: errors in one sentence with exit code 1, options from Python, logging levels."""

import errno
import subprocess
import sys

import pytest

from utils import cli, train_options
from utils.errors import UserError
from utils.files import ROOT


def _parser():
    parser = cli.Parser(prog="train.py")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--optimizer", choices=["SGD", "Adam"], default="SGD")
    return parser


def test_parser_error_is_one_line_and_exit_code_one(capsys):
    with pytest.raises(SystemExit) as stop:
        _parser().parse_args(["--epochs", "many"])
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--epochs" in err
    assert "many" in err


def test_abbreviations_work_as_yolov5_users_type_them():
    assert _parser().parse_args(["--batch", "8"]).batch_size == 8


def test_an_option_that_is_known_and_not_had_says_why(capsys):
    parser = _parser()
    parser.refuse("hyperparameters are not searched here", "--evolve", "--bucket")
    for arguments in (["--evolve"], ["--evolve", "300"], ["--bucket=x"]):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(arguments)
        assert stop.value.code == 1
        assert f"{arguments[0][:8]}: hyperparameters are" in capsys.readouterr().err
    with pytest.raises(UserError, match="run.. got evolve: hyperparameters are not searched here"):
        cli.overlay(parser, {"evolve": 300})
    assert vars(parser.parse_args([])) == vars(_parser().parse_args([]))
    assert vars(cli.overlay(parser, {})) == vars(cli.overlay(_parser(), {}))
    assert "evolve" not in parser.format_help()


def test_train_knows_what_yolov5_has_beside_its_options(capsys):
    for flag in ("--evolve", "--quad", "--entity"):
        with pytest.raises(SystemExit):
            train_options.parse_opt([flag])
        assert "unrecognized" not in capsys.readouterr().err


def test_scripts_that_run_models_share_their_options():
    parser = _parser()
    cli.add_run_options(parser, "val")
    opt = parser.parse_args(["--name", "mine", "--plugins", "a.py", "b.py", "--half"])
    assert (opt.project, opt.name, opt.exist_ok) == (str(ROOT / "runs" / "val"), "mine", False)
    assert (opt.half, opt.dnn, opt.plugins) == (True, False, ["a.py", "b.py"])


def test_overlay_lays_options_over_defaults():
    opt = cli.overlay(_parser(), {"epochs": 3})
    assert (opt.epochs, opt.batch_size, opt.optimizer) == (3, 16, "SGD")


@pytest.mark.parametrize(("options", "match"), [({"epoch": 1}, "unknown"), ({"optimizer": "Lion"}, "Lion")])
def test_overlay_refuses_what_the_script_lacks(options, match):
    with pytest.raises(UserError, match=match):
        cli.overlay(_parser(), options)


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
