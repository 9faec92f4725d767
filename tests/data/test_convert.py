"""The command line of the converters."""

import subprocess
import sys
from pathlib import Path

import pytest

from data.convert import parse_opt
from utils.files import ROOT


def test_the_options_of_both_converters(capsys):
    voc = parse_opt(["voc", "root", "out", "--split", "train=a.txt", "--split", "val=b.txt", "--zero-based"])
    assert (voc.root, voc.out, voc.split) == (Path("root"), Path("out"), ["train=a.txt", "val=b.txt"])
    assert (voc.zero_based, voc.drop_difficult, voc.copy, voc.names) == (True, False, False, None)
    coco = parse_opt(["coco", "a.json", "images", "out", "--segments", "--name", "pets"])
    assert (coco.annotations, coco.split, coco.segments, coco.name) == (Path("a.json"), "train", True, "pets")
    with pytest.raises(SystemExit):
        parse_opt(["yolo", "a"])
    assert "invalid choice: 'yolo' (choose from 'voc', 'coco')" in capsys.readouterr().err


def test_the_command_line_ends_in_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "data/convert.py", "voc", tmp_path / "none", tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "no train.txt" in done.stderr
