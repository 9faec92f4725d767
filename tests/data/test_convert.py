"""The command line of the converters."""

import subprocess
import sys
from pathlib import Path

import pytest

from data.convert import parse_opt
from utils.files import ROOT


def test_the_options_of_the_converters(capsys):
    voc = parse_opt(["voc", "root", "out", "--split", "train=a.txt", "--split", "val=b.txt", "--zero-based"])
    assert (voc.path, voc.out, voc.split) == (Path("root"), Path("out"), ("train=a.txt", "val=b.txt"))
    assert (voc.zero_based, voc.drop_difficult, voc.copy, voc.names) == (True, False, False, None)
    coco = parse_opt(["coco", "a.json", "images", "out", "--segments", "--name", "pets"])
    assert (coco.path, coco.images, coco.out) == (Path("a.json"), Path("images"), Path("out"))
    assert (coco.kind, coco.split, coco.segments, coco.name) == ("coco", (), True, "pets")
    auto = parse_opt(["auto", "set.zip", "out", "--allow-loss"])
    assert (auto.path, auto.images, auto.allow_loss) == (Path("set.zip"), None, True)
    with pytest.raises(SystemExit):
        parse_opt(["yolo", "a"])
    assert "invalid choice: 'yolo' (choose from 'auto', 'voc', 'coco', " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_opt(["kitti", "a", "out", "--segments"])
    assert "unrecognized arguments: --segments" in capsys.readouterr().err


def test_the_command_line_ends_in_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "data/convert.py", "voc", tmp_path / "none", tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"error: {tmp_path / 'none'}: no such file or folder; check the path" in done.stderr
    assert not (tmp_path / "out").exists()
