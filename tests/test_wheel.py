"""The package as it is installed: files, metadata, and its command beside a `models` of somebody else."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import torch

from hatch_build import FOLDERS, files_of_package, is_ours, requirements
from tests.test_plugins import BLOCKS
from tests.tiny_set import TINY_MODEL, write_set
from utils.files import ROOT, load_yaml, save_yaml
from utils.package import VERSION

pytest.importorskip("hatchling")


def build(source: Path, out: Path, target: str) -> Path:
    """Build one target as pip would, without its environment of its own; returns the file."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it, as pip installs it."""
    place = tmp_path_factory.mktemp("site")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(place),
    ]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True, capture_output=True)
    return place


def test_the_wheel_takes_one_name_and_has_every_file(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"light_yolo-{VERSION}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"lightyolo", info}
    inside = {name.removeprefix("lightyolo/") for name in names if name.startswith("lightyolo/")}
    assert inside == {file.as_posix().removeprefix("lightyolo/") for file in files_of_package()}
    assert {"train.py", "models/yolov5n.yaml", "data/recipes/recipe.digits.yaml", "utils/page.html"} <= inside
    assert {"data/hyps/hyp.digits.yaml", "data/images/digits_1.jpg", "requirements.txt"} <= inside
    assert not [
        name
        for name in inside
        if name.startswith(("tests", "benchmarks", "runs")) or "cache" in Path(name).parts
    ]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only git knows which files are the project's")
def test_no_file_of_the_project_is_left_out() -> None:
    tracked = subprocess.check_output(["git", "ls-files", *FOLDERS], cwd=ROOT, text=True).splitlines()
    assert len(tracked) > 200 and set(tracked) <= {file.as_posix() for file in files_of_package()}


def test_no_module_of_the_wheel_imports_from_the_top(wheel: Path) -> None:
    archive, wrong = zipfile.ZipFile(wheel), []
    for name in archive.namelist():
        if not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(archive.read(name))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                imported = [node.module or ""]
            wrong += [f"{name}:{node.lineno}: {module}" for module in imported if is_ours(module)]
    assert not wrong


def test_metadata_are_those_of_the_requirements(wheel: Path) -> None:
    text = zipfile.ZipFile(wheel).read(f"light_yolo-{VERSION}.dist-info/METADATA").decode()
    told = message_from_string(text)
    assert (told["Name"], told["Version"], told["Requires-Python"]) == ("light-yolo", VERSION, ">=3.11")
    needed = told.get_all("Requires-Dist", [])
    plain = {line for line in needed if "extra ==" not in line}
    assert plain == set(requirements(ROOT / "requirements.txt")) and any(
        p.startswith("torch>=") for p in plain
    )
    assert set(told.get_all("Provides-Extra", [])) == {"export", "track", "timm", "dev"}
    extras = [line.partition(";")[0] for line in needed if line.endswith("extra == 'export'")]
    assert len(extras) == 9 and set(extras) <= set(requirements(ROOT / "tests" / "requirements.txt"))


def test_the_source_archive_gives_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    archive = build(ROOT, tmp_path / "sdist", "sdist")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    again = build(source, tmp_path / "wheel", "wheel")
    first, second = (zipfile.ZipFile(file) for file in (wheel, again))
    assert {n: first.read(n) for n in first.namelist()} == {n: second.read(n) for n in second.namelist()}
    assert sum(path.stat().st_size for path in (wheel, archive)) < 2_000_000


def test_an_editable_install_is_refused() -> None:
    code = "from hatchling.build import build_editable; build_editable('.')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "a checkout runs as it is" in done.stderr


USERS = '''
"""The project of somebody who has a `models` and a `utils`."""
import multiprocessing
import pickle
import sys
from pathlib import Path

import models, utils
import lightyolo

assert models.MINE and utils.MINE

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    weights = "runs/train/exp/weights/best.pt"
    given = {"weights": weights, "imgsz": [96], "plugins": ["my_blocks.py"], "device": "cpu"}
    measured = lightyolo.val.run(**given | {"imgsz": 96}, data="data.yaml", workers=1)
    assert measured.seen == 4 and measured.save_dir == Path("runs/val/exp"), measured.save_dir
    assert lightyolo.detect.run(**given, source="images/val").save_dir == Path("runs/detect/exp")
    (file,) = lightyolo.export.run(**given, include=["torchscript"])
    assert lightyolo.load(file.path, _verbose=False).names[0] == "square"
    model = lightyolo.load(weights, _verbose=False, plugins=["my_blocks.py"])
    found = [each("images/val/0.png", size=96).xyxy[0] for each in (model, pickle.loads(pickle.dumps(model)))]
    assert (found[0] == found[1]).all()
    for name, module in (("models", models), ("utils", utils)):
        assert sys.modules[name] is module and module.__file__ == str(Path(name).absolute() / "__init__.py")
    from models import losses
    assert losses.MINE
'''


def test_the_command_and_a_plug_in_beside_somebody_elses_models(installed: Path, tmp_path: Path) -> None:
    """Train by the command, then validate (workers spawned), detect, export and load from Python."""
    data = write_set(tmp_path, train=8, val=4)
    data.rename(tmp_path / "data.yaml")
    rows = [row if row[3][0] != 24 else [-1, 1, "GatedConv", [24, 3, 2]] for row in TINY_MODEL["backbone"]]
    save_yaml(tmp_path / "mine.yaml", TINY_MODEL | {"backbone": rows})
    (tmp_path / "my_blocks.py").write_text(
        "import models.losses\n" + BLOCKS + "\nassert models.losses.MINE\n"
    )
    for name in ("models", "utils"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "models" / "losses.py").write_text("MINE = True\n")
    (tmp_path / "use.py").write_text(textwrap.dedent(USERS))
    scratch = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": f"{installed}{os.pathsep}{tmp_path}"}

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=os.environ | scratch, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = "--cfg mine.yaml --data data.yaml --imgsz 96 --epochs 1 --batch-size 4 --workers 0 --device cpu"
    run(
        str(installed / "bin" / "lightyolo"),
        "train",
        *options.split(),
        "--noplots",
        "--plugins",
        "my_blocks.py",
    )
    best = tmp_path / "runs" / "train" / "exp" / "weights" / "best.pt"
    saved = torch.load(best, weights_only=True)
    assert saved["meta"]["versions"]["light-yolo"] == VERSION
    assert saved["plugins"] == {"GatedConv": str(tmp_path / "my_blocks.py")}
    assert load_yaml(best.parents[1] / "opt.yaml")["project"] == "runs/train"
    run(sys.executable, "use.py")
    assert len(list((tmp_path / "runs" / "detect" / "exp").glob("*.png"))) == 4
    assert not (installed / "runs").exists() and not (installed / "lightyolo" / "runs").exists()
