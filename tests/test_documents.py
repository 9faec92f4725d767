"""Check the documents: their commands parse or run, their links resolve, their Python and YAML is valid."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
import yaml

from lightyolo.command import COMMANDS as COMMANDS_OF_PACKAGE
from models.registry import lookup
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.files import ROOT

README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = [README, CHINESE, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = {name: f"{module.replace('.', '/')}.py" for name, (module, _) in COMMANDS_OF_PACKAGE.items()}
SCRIPT = re.compile(r"(?:\./)?((?:[\w-]+/)*[\w-]+\.py)")
# What a document may name before it is there. Empty when the code is where the documents say.
COMING: frozenset[str] = frozenset()
PLAN = (ROOT / "models" / "layers").is_dir()  # whether the modules are where the documents put them


@dataclass(frozen=True)
class Command:
    """One script call of a document: the file, its line there, the script, its arguments."""

    page: str
    line: int
    script: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.script} {' '.join(self.arguments)}"


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """Yield (first line's number, text) of the fenced blocks of these languages."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        if found[1] in languages:
            yield text.count("\n", 0, found.start(2)) + 1, found[2]


def command_lines(page: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, command line): of shell blocks, indented lines, and code inside sentences."""
    for start, text in blocks(page, "bash", "sh", "shell", "console", ""):
        yield from enumerate(text.splitlines(), start)
    fenced = {
        number
        for start, text in blocks(page, "bash", "sh", "shell", "console", "", "python", "yaml", "text")
        for number in range(start, start + text.count("\n"))
    }
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if number in fenced:
            continue
        if line.startswith("    "):
            yield number, line.strip()
        for span in SPAN.findall(line):
            yield number, span.replace("\\|", "|")


def calls(page: Path) -> list[Command]:
    """The Python scripts that a document calls, in order; `python -c` and `-m` are scripts of that name."""
    found = []
    for number, line in command_lines(page):
        if not re.search(r"\b(python3?|torchrun|lightyolo)\s", line):
            continue
        for part in re.split(r"\s(?:&&|\|)\s|;\s", line) if " -c " not in line else [line]:
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if not words or words[0] not in ("python", "python3", "torchrun", "lightyolo"):
                continue
            if "lightyolo" in words:  # the installed package's command
                script, *arguments = words[words.index("lightyolo") + 1 :]
                given = () if arguments == ["..."] else tuple(arguments)
                found.append(Command(page.name, number, COMMAND[script], given))
                continue
            at = next((i for i, word in enumerate(words) if SCRIPT.fullmatch(word)), None)
            if words[1:2] in (["-c"], ["-m"]):
                found.append(Command(page.name, number, words[1], tuple(words[2:])))
            elif at is not None:
                arguments = () if words[-1] == "..." else tuple(words[at + 1 :])
                found.append(Command(page.name, number, words[at].removeprefix("./"), arguments))
            else:
                raise AssertionError(f"{page.name}:{number}: no script in {part!r}")
    return found


COMMANDS = [command for page in PAGES for command in calls(page)]
IN_PROCESS = [
    c for c in COMMANDS if c.script not in ("-c", "-m", "models/yolo.py") and "--help" not in c.arguments
]
CHEAP = sorted(
    {
        (c.script, c.arguments)
        for c in COMMANDS
        if c.script == "-c"
        or "--help" in c.arguments
        or (c.script == "models/yolo.py" and "--line-profile" not in c.arguments)
    }
)


class _Parsed(Exception):  # noqa: N818 no error: it carries what a script's main() parsed
    """Ends a script's `main` as soon as its command line is parsed."""


def parse(script: str, arguments: list[str]) -> object:
    """The options that a script makes of its arguments; SystemExit where it refuses them."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    if hasattr(module, "parse_opt"):
        return module.parse_opt(arguments)
    if hasattr(module, "build_parser"):
        return module.build_parser().parse_args(arguments)
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: object) -> None:
        raise _Parsed(parse_args(parser, *given))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(_Parsed) as found:
            module.main()
    return found.value.args[0]


def option_names(script: str) -> set[str]:
    """The keywords that a script's `run` takes."""
    options = parse(script, [])
    if dataclasses.is_dataclass(options):
        return {field.name for field in dataclasses.fields(options)}
    return set(vars(options))


def test_the_documents_have_commands() -> None:
    assert len([c for c in COMMANDS if c.page == "README.md"]) >= 10
    assert {"train.py", "val.py", "detect.py", "export.py", "compare.py"} <= {c.script for c in COMMANDS}


@pytest.mark.parametrize("command", IN_PROCESS, ids=str)
def test_options_are_those_of_the_script(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    if COMING & set(command.arguments):
        pytest.skip("names what is coming")
    assert (ROOT / command.script).is_file(), f"{command}: no such script"
    try:
        parse(command.script, list(command.arguments))
    except SystemExit:
        pytest.fail(f"{command}: {capsys.readouterr().err.strip()}")
    except UserError as error:
        other_machine = ("needs several processes", "this package is not installed")
        assert any(words in str(error) for words in other_machine), f"{command}: {error}"


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_files_of_the_project_exist(command: Command) -> None:
    for word in command.arguments:
        name = re.sub(r"\+.*", "", word)
        if re.match(r"(models|data|docs|benchmarks|tests)/", name):
            matches = sorted(ROOT.glob(name))
            assert matches or name in COMING, f"{command}: there is no {name}"
        hyp = re.match(r"--hyp=?(.*)", word)
        assert not (hyp and hyp[1]) or (ROOT / hyp[1]).is_file(), f"{command}: there is no {word}"


@pytest.mark.parametrize(
    ("script", "arguments"), CHEAP, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value
)
def test_cheap_commands_run(script: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    if any(a.startswith("timm:") for a in arguments):
        pytest.importorskip("timm")
    scratch = {"XDG_CACHE_HOME": str(tmp_path), "YOLOV5_DATASETS_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=ROOT,
        env=os.environ | scratch,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.strip()


def test_chinese_readme_has_the_same_commands() -> None:
    for languages in (("bash",), ("python", "yaml")):
        assert [text for _, text in blocks(CHINESE, *languages)] == [
            text for _, text in blocks(README, *languages)
        ]
    assert [(c.script, c.arguments) for c in calls(CHINESE)] == [
        (c.script, c.arguments) for c in calls(README)
    ]
    assert numbers(CHINESE) == numbers(README)


def numbers(page: Path) -> list[str]:
    """The figures of a page's tables: parameters, GFLOPs, taps."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `yolov")]
    return [figure for row in rows for figure in re.findall(r"\d[\d .]*", row)]


ROW = re.compile(r"^\| `(\S+)` \| [^|]* \| ([\d ]+) \| ([\d.]+) \| ([^|]*) \|", re.M)


@pytest.mark.parametrize("cfg", sorted((ROOT / "models").glob("*.yaml")), ids=lambda cfg: cfg.stem)
def test_readme_tells_each_network_as_it_is(cfg: Path) -> None:
    rows = {row[1]: row for row in ROW.finditer(README.read_text(encoding="utf-8"))}
    assert cfg.stem in rows, f"README.md has no row for {cfg.name}"
    _, parameters, gflops, taps = rows[cfg.stem].groups()
    with torch.device("meta"):
        model = DetectionModel(cfg)
    assert int(parameters.replace(" ", "")) == sum(p.numel() for p in model.parameters())
    assert f"{gflops} GFLOPs" in cfg.read_text(encoding="utf-8")  # which tests/models hold against the model
    shapes: list[tuple[int, ...]] = []
    for layer in model.model[:-1]:
        layer.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 256, 256, device="meta"))
    told = [(int(row), int(channels)) for row, channels in re.findall(r"(\d+) \((\d+)\)", taps)]
    assert [shapes[row][1:] for row, _ in told] == [
        (channels, 256 // stride, 256 // stride) for (_, channels), stride in zip(told, (8, 16, 32))
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_short(page: Path) -> None:
    limit = 150 if page.name.startswith("README") else 199
    assert len(page.read_text(encoding="utf-8").splitlines()) <= limit


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    for target in targets:
        if re.match(r"https?://", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = (page.parent / name).resolve() if name else page
        inside = file.relative_to(ROOT).as_posix()
        if inside in COMING and not file.exists():
            continue
        assert file.is_file(), f"{page.name}: {target} leads nowhere"
        assert not anchor or anchor in headings(file), f"{page.name}: {inside} has no heading #{anchor}"


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub forms them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_is_linked_from_the_readme(page: Path) -> None:
    if page in (README, CHINESE):
        return
    assert page.relative_to(ROOT).as_posix() in LINK.findall(README.read_text(encoding="utf-8"))


PYTHON = [(page, line, text) for page in PAGES for line, text in blocks(page, "python")]


@pytest.mark.parametrize(("page", "line", "text"), PYTHON, ids=[f"{p.name}:{n}" for p, n, _ in PYTHON])
def test_python_names_what_exists(page: Path, line: int, text: str) -> None:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            for alias in node.names:
                known = hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}")
                assert known, f"{page.name}:{line}: {node.module} has no {alias.name}"
        elif isinstance(node, ast.Call) and (called := ast.unparse(node.func)).endswith(".run"):
            script = called.removesuffix(".run")
            if script in ("train", "val", "detect", "export", "compare"):
                given = {keyword.arg for keyword in node.keywords}
                assert given <= option_names(f"{script}.py"), f"{page.name}:{line}: {called} of {given}"


YAMLS = [(page, line, text) for page in PAGES for line, text in blocks(page, "yaml")]


@pytest.mark.parametrize(("page", "line", "text"), YAMLS, ids=[f"{p.name}:{n}" for p, n, _ in YAMLS])
def test_yaml_is_valid(page: Path, line: int, text: str) -> None:
    data = yaml.safe_load(text)
    rows = data if isinstance(data, list) else data.get("backbone", [])
    example = "\n".join(text for _, _, text in PYTHON)
    for _, _, block, arguments in rows:
        known = lookup(block) is not None or f"class {block}(" in example
        assert known and isinstance(arguments, list), f"{page.name}:{line}: {block} is no block"


@pytest.mark.skipif(not PLAN, reason="the modules are still elsewhere")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_modules_exist(page: Path) -> None:
    """Each path of the project in a code span exists, and so does each name given after one."""
    text = page.read_text(encoding="utf-8")
    tree = [
        line.split()[0]
        for line in text.splitlines()
        if re.match(r"    (models|utils|data|docs|tests)/", line)
    ]
    for name in [*SPAN.findall(text), *tree]:
        if re.fullmatch(r"(models|utils|data|docs|tests|benchmarks)/[\w./*-]*", name) and name not in COMING:
            assert list(ROOT.glob(name.rstrip("/"))) or "NAME" in name, f"{page.name}: no {name}"
    for path, listed in re.findall(r"`((?:models|utils)/[\w/]+)\.py`: ((?:`\w+`(?:, )?)+)", text):
        module = importlib.import_module(path.replace("/", "."))
        for name in SPAN.findall(listed):
            assert hasattr(module, name), f"{page.name}: {path}.py has no {name}"
