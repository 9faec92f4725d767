"""Build the wheel: the whole tree inside one package, `lightyolo`, with its imports rewritten.

`models` and `utils` at the top of site-packages would break other projects. `pyproject.toml` names the two
hooks here; the requirements come from requirements.txt and tests/requirements.txt.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

ROOT = Path(__file__).resolve().parent
FOLDERS = ("models", "utils", "data", "compat", "lightyolo")
SCRIPTS = ("train", "val", "detect", "export", "compare", "hubconf")
SUFFIXES = {".py", ".yaml", ".html", ".jpg", ".md"}


def load_package() -> Any:  # Any: a module
    """Load utils/package.py alone, without what `utils` needs."""
    spec = importlib.util.spec_from_file_location("utils.package", ROOT / "utils" / "package.py")
    assert spec is not None and spec.loader is not None  # None only for a name that does not end in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files_of_package() -> list[Path]:
    """Return the files that go into the package, relative to the project."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    files = [path.relative_to(ROOT) for path in found if path.is_file() and "__pycache__" not in path.parts]
    return sorted([*files, *(Path(f"{script}.py") for script in SCRIPTS), Path("requirements.txt")])


def write_package(folder: Path) -> None:
    """Write the package's files below a folder, Python with its imports rewritten."""
    own = load_package()
    for file in files_of_package():
        place = folder / (file if file.parts[0] == own.PACKAGE else own.PACKAGE / file)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".py":
            text = (ROOT / file).read_text(encoding="utf-8")
            place.write_text(own.packaged(text, is_ours), encoding="utf-8", newline="\n")
        else:
            shutil.copyfile(ROOT / file, place)


def is_ours(module: str) -> bool:
    """Return whether a module is at the top of a checkout and inside the package."""
    return module.partition(".")[0] in {*FOLDERS, *SCRIPTS} - {"lightyolo"}


def requirements(file: Path) -> list[str]:
    """Return the requirements of a file, without its comments."""
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


class Metadata(MetadataHookInterface):
    """Fill in the version, the requirements and the extras."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:  # Any: what pyproject.toml may hold
        """Add what pyproject.toml leaves to this file; hatchling calls this."""
        optional = requirements(ROOT / "tests" / "requirements.txt")
        by_name = {re.split(r"[^\w-]", line)[0]: line for line in optional}
        metadata["version"] = load_package().VERSION
        metadata["dependencies"] = requirements(ROOT / "requirements.txt")
        metadata["optional-dependencies"] = {
            **{extra: [by_name[name] for name in names] for extra, names in self.config["extras"].items()},
            "dev": optional,
        }


class Build(BuildHookInterface):  # type: ignore[type-arg]  # its parameter is hatchling's own business
    """Put the rewritten tree into the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # Any: hatchling's own dict
        """Write the package to a temporary folder, and name it to hatchling."""
        if self.target_name != "wheel":
            return
        if version == "editable":
            raise SystemExit(
                "pip install -e: a checkout runs as it is (python train.py ...) and has nothing to link to; "
                "install what it needs by pip install -r requirements.txt, or the package by pip install ."
            )
        self.folder = Path(tempfile.mkdtemp())
        write_package(self.folder)
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                build_data["force_include"][str(path)] = path.relative_to(self.folder).as_posix()

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary folder."""
        if self.target_name == "wheel":
            shutil.rmtree(self.folder, ignore_errors=True)
