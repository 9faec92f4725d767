"""The structure of the project: sizes, names, first sentences, mirrored tests, imports of scripts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("train", "val", "detect", "export", "compare", "hubconf")
MODULES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("models", "utils", "data", "compat", "lightyolo")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
) + [f"{script}.py" for script in SCRIPTS]

MOST_WORDS = 15  # of a docstring's first sentence
MOST_LINES = 60  # of a function
MOST_LINES_OF_NINE_IN_TEN = 25
MOST_PARAMETERS = 8
MOST_FILES = 20  # of Python in a folder

# Public names that mean the same kind of thing in each module, and why they may repeat.
REPEATED = {
    "LOGGER": "each module's own logger",
    "main": "a script's entry",
    "run": "a script as a function, YOLOv5's name",
    "parse_opt": "a script's options from the command line, YOLOv5's name",
}

# Block constructors mirror a YAML row, and compat YOLOv5's functions, so their parameters are given.
WIDE = {"models/common.py", "compat/utils/general.py"}

# Modules without a test file of their own, and where they are tested.
TESTED_ELSEWHERE: dict[str, str] = {
    "models/schema.py": "tests/models/weights/test_checkpoint.py",
    "lightyolo/__main__.py": "tests/test_wheel.py",
    "utils/results/writer.py": "tests/test_detect.py",
    "compat/models/experimental.py": "tests/compat/test_models.py",
    "compat/utils/augmentations.py": "tests/compat/test_utils.py",
    "compat/utils/dataloaders.py": "tests/compat/test_utils.py",
    "compat/utils/datasets.py": "tests/compat/test_utils.py",
    "compat/utils/general.py": "tests/compat/test_utils.py",
    "compat/utils/metrics.py": "tests/compat/test_utils.py",
    "compat/utils/plots.py": "tests/compat/test_utils.py",
    "compat/utils/torch_utils.py": "tests/compat/test_utils.py",
}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def first_sentence(docstring: str) -> str:
    """The text up to the first full stop that ends a word, within the first paragraph."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[\w)`\]'\"])\.(?:\s|$)", paragraph, maxsplit=1)[0]


def public_names(module: str) -> Iterator[str]:
    for node in tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


@pytest.mark.parametrize("module", MODULES)
def test_the_first_sentence_of_a_docstring_is_short(module: str) -> None:
    long = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            sentence = first_sentence(ast.get_docstring(node) or "")
            if len(sentence.split()) > MOST_WORDS:
                long.append(f"line {getattr(node, 'lineno', 1)}, {len(sentence.split())} words: {sentence}")
    assert not long, "\n".join([f"{module}: at most {MOST_WORDS} words", *long])


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_small(module: str) -> None:
    long = [
        f"{f.name}: {f.end_lineno - f.lineno + 1} lines"
        for f in functions(module)
        if f.end_lineno - f.lineno + 1 > MOST_LINES
    ]
    assert not long, f"{module}: {', '.join(long)}"


def test_nine_in_ten_functions_are_smaller() -> None:
    lines = sorted(f.end_lineno - f.lineno + 1 for module in MODULES for f in functions(module))
    assert lines[len(lines) * 9 // 10] <= MOST_LINES_OF_NINE_IN_TEN


@pytest.mark.parametrize("module", [m for m in MODULES if m not in WIDE])
def test_functions_have_few_parameters(module: str) -> None:
    wide = []
    for f in functions(module):
        names = [a.arg for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs)]
        count = len([n for n in names if n not in ("self", "cls")])
        if count > MOST_PARAMETERS:
            wide.append(f"{f.name}: {count} parameters")
    assert not wide, f"{module}: {', '.join(wide)}; an options object would serve"


def test_no_public_name_means_two_things() -> None:
    homes = defaultdict(set)
    for module in MODULES:
        if module.startswith("compat/"):  # YOLOv5's names for what has another signature, or place, here
            continue
        for name in public_names(module):
            homes[name].add(module)
    twice = {name: sorted(where) for name, where in homes.items() if len(where) > 1 and name not in REPEATED}
    assert not twice


def test_folders_are_small() -> None:
    count = defaultdict(int)
    for module in MODULES:
        count[str(Path(module).parent)] += 1
    assert max(count.values()) <= MOST_FILES, dict(count)


def test_every_module_has_its_test_at_the_mirrored_place() -> None:
    lacking = []
    for module in MODULES:
        path = Path(module)
        if path.name == "__init__.py" or module in TESTED_ELSEWHERE:
            continue
        if not (ROOT / "tests" / path.parent / f"test_{path.name}").is_file():
            lacking.append(module)
    assert not lacking, f"no test file at the mirrored place: {', '.join(lacking)}"
    assert all((ROOT / test).is_file() for test in TESTED_ELSEWHERE.values())


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s != "compare"])
def test_a_script_imports_no_other_script(script: str) -> None:
    imported = set()
    for node in ast.walk(tree(f"{script}.py")):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.split(".")[0])
    assert not imported & set(SCRIPTS)


def uses_of_any(node: ast.AST, statement: int = 1) -> Iterator[tuple[int, int]]:
    """The line of each `Any` outside imports, also of one in a text, and the first line of its statement."""
    if isinstance(node, ast.stmt):
        statement = min(part.lineno for part in [node, *getattr(node, "decorator_list", [])])
    names = [getattr(node, key, None) for key in ("id", "attr", "value")]  # Any, typing.Any, "list[Any]"
    if any(isinstance(name, str) and re.search(r"^Any$|\bAny[],]", name) for name in names):
        yield node.lineno, statement
    for child in ast.iter_child_nodes(node):
        yield from uses_of_any(child, statement)


@pytest.mark.parametrize("module", [m for m in MODULES if "/" in m])
def test_a_comment_says_why_a_type_is_any(module: str) -> None:
    lines = ["", *(ROOT / module).read_text(encoding="utf-8").splitlines()]
    silent = []
    for number, statement in uses_of_any(tree(module)):
        block = statement - 1
        while lines[block].lstrip().startswith("#"):
            block -= 1
        near = [lines[number], lines[number - 1], *lines[block:statement]]
        if not any(re.search(r"# Any: \S", line) for line in near):
            silent.append(f"line {number}: {lines[number].strip()}")
    assert not silent, "\n".join([f"{module}: say why in a comment '# Any: ...'", *silent])


@pytest.mark.parametrize(
    ("script", "not_needed"),
    [
        ("detect", ("matplotlib", "utils.evaluation")),
        ("val", ("matplotlib", "av")),
        ("train", ("matplotlib", "av", "optuna", "tensorboard", "torch.utils.tensorboard")),
        ("export", ("matplotlib", "av")),
        ("data.check", ("matplotlib", "av")),
        ("data.convert", ("matplotlib", "av")),
    ],
)
def test_a_script_starts_without_what_it_may_not_need(script: str, not_needed: tuple[str, ...]) -> None:
    """What each costs is in docs/measured.md; torch._dynamo came with torchvision's modules."""
    heavy = (
        "torchvision",
        "torch._dynamo",
        "sympy",
        "timm",
        "onnx",
        "onnxruntime",
        "pandas",
        "scipy",
        "PIL.PdfParser",
    )
    code = f"import sys, {script}; print(*sorted({(*heavy, *not_needed)} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
