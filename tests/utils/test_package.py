"""The version, how commands are named, and imports rewritten for the package."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from hatch_build import is_ours
from utils import package
from utils.files import ROOT
from utils.package import VERSION, packaged

SOURCE = '''"""from models.yolo import A"""
from models.yolo import (  # why
    A,
    B as C,
)
import os, utils.nms; import utils as u; import b
import models \\
    .common
if os:
    from utils import boxes; X = "from utils import boxes"  # é
from modelsx import A; from .models import B
from mine.models import A
from models import mine
import_module("models.yolo")
'''


def ours(name: str) -> bool:
    return name.partition(".")[0] in ("models", "utils") and name != "models.mine"


def test_only_import_statements_of_ours_change() -> None:
    expected = '''"""from models.yolo import A"""
from lightyolo.models.yolo import (  # why
    A,
    B as C,
)
import os; import lightyolo.utils.nms; from lightyolo import utils; import lightyolo.utils as u; import b
import lightyolo.models.common; from lightyolo import models

if os:
    from lightyolo.utils import boxes; X = "from utils import boxes"  # é
from modelsx import A; from .models import B
from mine.models import A
from models import mine
import_module("models.yolo")
'''
    assert packaged(SOURCE, ours) == expected
    assert packaged(expected, ours) == expected


@pytest.mark.parametrize("file", ["train.py", "compare.py", "models/plugins.py", "compat/utils/general.py"])
def test_statements_keep_their_lines_and_names(file: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    after = packaged(source, is_ours)
    assert after.count("lightyolo.") > source.count("lightyolo.") and "from lightyolo.utils." in after

    def leaves(text: str) -> list[tuple[int, str]]:
        """Line and text of each name and value outside imports."""
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name | ast.Constant)]
        return [(node.lineno, ast.unparse(node)) for node in nodes]

    assert leaves(after) == leaves(source)


def test_the_version_is_in_one_place() -> None:
    folders = ("models", "utils", "data", "compat", "lightyolo")
    files = [
        *ROOT.glob("*.py"),
        ROOT / "pyproject.toml",
        *(f for d in folders for f in (ROOT / d).rglob("*.py")),
    ]
    assert [f.name for f in files if VERSION in f.read_text(encoding="utf-8")] == ["package.py"]


def test_a_checkout_starts_its_script_and_the_package_its_module(monkeypatch) -> None:
    assert package.start(Path("a/train.py")) == [sys.executable, str(Path("a/train.py"))]
    monkeypatch.setattr(package, "INSTALLED", True)
    assert package.start(Path("a/train.py"))[1:] == ["-P", "-m", "lightyolo.train"]
    assert package.command("data/convert.py") == "lightyolo convert"
