"""The command `lightyolo`, in the checkout: each word is a script."""

from __future__ import annotations

import sys

import pytest

import lightyolo
import train
from hubconf import custom
from lightyolo.command import COMMANDS, main, run_script
from utils.package import VERSION


def said(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """What a command line ends with: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lightyolo", *words])
    with pytest.raises(SystemExit) as ended:
        run_script()
    return ended.value.code or 0, *capsys.readouterr()


def test_help_names_every_command_and_the_version(monkeypatch, capsys) -> None:
    code, out, _ = said(monkeypatch, capsys)
    assert code == 0 and all(f"    {name} " in out for name in COMMANDS)
    assert said(monkeypatch, capsys, "--version")[1] == f"lightyolo {VERSION}\n"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "info"])
def test_a_command_is_its_script_with_its_own_name_in_the_usage(monkeypatch, capsys, name: str) -> None:
    code, out, _ = said(monkeypatch, capsys, name, "--help")
    assert code == 0 and out.startswith(f"usage: lightyolo {name} [-h]")


def test_mistakes_are_one_sentence_and_exit_code_1(monkeypatch, capsys) -> None:
    code, _, error = said(monkeypatch, capsys, "trian")
    assert code == 1 and error.startswith("error: argument COMMAND: invalid choice: 'trian'")
    code, _, error = said(monkeypatch, capsys, "train", "--epohcs", "3")
    assert (code, error) == (
        1,
        "error: unrecognized arguments: --epohcs 3 (see lightyolo train --help)\n",
    )
    monkeypatch.setattr(sys, "argv", ["lightyolo", "train", "--epochs", "0", "--cfg", "yolov5n.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1 and capsys.readouterr().err == "error: --epochs 0: must be at least 1\n"


def test_python_finds_the_scripts_and_the_hub() -> None:
    assert lightyolo.train is train and lightyolo.load is custom and lightyolo.__version__ == VERSION
    assert {"train", "val", "detect", "export", "compare", "hubconf", "load"} <= set(dir(lightyolo))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        lightyolo.trian  # noqa: B018 the look-up is the test
