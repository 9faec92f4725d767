"""The house rules that a reader cannot check in every line: nothing that runs a stranger's data as code."""

import ast
import subprocess

import pytest

from utils.files import ROOT

TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
    capture_output=True,
    text=True,
    cwd=ROOT,
).stdout.split()
SOURCES = [ROOT / name for name in TRACKED if not name.startswith("tests/") and (ROOT / name).exists()]


def _calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: k.value for k in node.keywords}, node.lineno


@pytest.mark.skipif(not SOURCES, reason="not a git checkout: the list of sources is unknown")
@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_call_runs_data_as_code(path):
    for name, keywords, line in _calls(path):
        where = f"{path.name}:{line}"
        assert name not in {"eval", "exec", "os.system", "pickle.load", "pickle.loads", "yaml.load"}, where
        assert not name.endswith("extractall"), where
        if name == "torch.load":
            flag = keywords.get("weights_only")
            assert isinstance(flag, ast.Constant), where
            assert flag.value is True, where
        if name in {"np.load", "numpy.load"} and "allow_pickle" in keywords:
            assert keywords["allow_pickle"].value is False, where
        if name.startswith("subprocess."):
            assert "shell" not in keywords, where


@pytest.mark.skipif(not SOURCES, reason="not a git checkout: the list of sources is unknown")
@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_stay_readable(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{path.name}:{node.lineno} {node.name}"
