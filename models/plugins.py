"""Run the user's own Python files, so that a YAML can name their blocks.

Only here is code run that the user names: no YAML and no checkpoint can name a file that is then run.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

# Our own blocks register first. Otherwise a plug-in that imports them would register them as its own.
import models.common
import models.heads
import models.layers.timm_torchvision_rows  # noqa: F401
from models.registry import REGISTRY, registering_for
from utils.errors import UserError, first_line
from utils.files import ROOT
from utils.package import INSTALLED, packaged

_loaded: dict[Path, str] = {}


class PluginLoader(SourceFileLoader):
    """Read a plug-in for the installed package, whose modules are not at the top.

    `from models.registry import register_block` in the plug-in then means our registry. That concerns this
    file only: other modules of the process keep their own `models` and `utils`.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Return the rewritten code; none is read from a bytecode file, or written to one."""
        source = importlib.util.decode_source(self.get_data(self.path))
        code: CodeType = compile(packaged(source, is_ours), self.path, "exec", dont_inherit=True)
        return code


def is_ours(module: str) -> bool:
    """Return whether `models` or `utils` here has a module of this name.

    >>> is_ours("models.registry"), is_ours("utils.general"), is_ours("models.mine"), is_ours("numpy")
    (True, True, False, False)
    """
    top, *rest = module.split(".")
    places = [Path(folder, top, *rest) for folder in (ROOT, ROOT / "compat")]
    found = (place.with_suffix(".py").is_file() or (place / "__init__.py").is_file() for place in places)
    return top in ("models", "utils") and any(found)


def load_plugins(paths: str | Path | Iterable[str | Path]) -> list[str]:
    """Run Python files so that their blocks register.

    A file that was loaded before is not run again.

    Returns:
        The absolute paths of the files, in order.

    Raises:
        UserError: a file is missing, or its code fails (the message names the line).
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    return [_load_plugin(Path(path)) for path in paths or []]


def _load_plugin(path: Path) -> str:
    """Run one plug-in file under its own module name."""
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"--plugins {path}: no such Python file; give the path of a .py file that registers blocks"
        )
    path = path.resolve()
    if path in _loaded:
        return str(path)
    module_name = f"yolo_plugin_{path.stem}_{len(_loaded)}"
    loader = PluginLoader(module_name, str(path)) if INSTALLED else None
    spec = importlib.util.spec_from_file_location(module_name, path, loader=loader)
    assert spec is not None and spec.loader is not None  # None only for a name that does not end in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        with registering_for(str(path)):
            spec.loader.exec_module(module)
    except UserError:
        _forget(module_name, str(path))
        raise
    except Exception as error:  # noqa: BLE001 the user's code can raise anything; the message names its line
        _forget(module_name, str(path))
        raise UserError(f"--plugins {path}, {blame(error, path)}") from error
    _loaded[path] = module_name
    return str(path)


def _forget(module_name: str, source: str) -> None:
    """Remove what a failed plug-in registered, so that the corrected file can be loaded."""
    sys.modules.pop(module_name, None)
    for name in [name for name, spec in REGISTRY.items() if spec.source == source]:
        del REGISTRY[name]


def blame(error: Exception, path: Path) -> str:
    """Describe an exception raised in a plug-in file: its line, kind and message."""
    if isinstance(error, SyntaxError) and error.lineno:
        lines = [error.lineno]
    else:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.lineno and Path(f.filename) == path]
    return f"line {lines[-1] if lines else '?'}: {type(error).__name__}: {first_line(error)}"
