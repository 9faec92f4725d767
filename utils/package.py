"""Know whether this is a checkout or the installed package, and hold the version.

In a checkout `models`, `utils`, `data` and the scripts are at the top. The installed package holds all of
them inside `lightyolo`, so that it takes no name from anybody. `hatch_build.py` rewrites the imports for it;
the loader of plug-ins does the same when it reads a plug-in. Only the standard library is imported here.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

PROJECT = "light-yolo"
VERSION = "0.1.0.dev0"
"""Of this project, in checkpoints, exported files and the wheel; changed here only."""
PACKAGE = "lightyolo"
INSTALLED = __name__ != "utils.package"
MODULE_PREFIX = f"{PACKAGE}." * INSTALLED
"""What is before the name of a module of ours."""


def command(script: str) -> str:
    """Return how a script is started, for a message.

    >>> command("train.py"), command("data/convert.py")
    ('python train.py', 'python data/convert.py')
    """
    return f"{PACKAGE} {PurePosixPath(script).stem}" if INSTALLED else f"python {script}"


def start(script: Path) -> list[str]:
    """Return the first words of a process that runs a script of ours.

    The working folder is not on its import path, as it is not on that of the command.
    """
    own = ["-P", "-m", f"{PACKAGE}.{script.stem}"] if INSTALLED else [str(script)]
    return [sys.executable, *own]


def packaged(source: str, is_ours: Callable[[str], bool]) -> str:
    r"""Return a module's source with the imports of our modules taken from the package.

    Lines keep their numbers, and all else its text.

    Args:
        source: with line feeds only.
        is_ours: whether a dotted name is a module of ours.

    Raises:
        SyntaxError: it is no Python.

    >>> print(packaged("from models.yolo import A\nimport os, utils.nms\n", lambda name: name != "os"))
    from lightyolo.models.yolo import A
    import os; import lightyolo.utils.nms; from lightyolo import utils
    <BLANKLINE>
    """
    lines = [line.encode() for line in source.split("\n")]
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(found, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        old = lines[first : last + 1]
        before, after = old[0][: node.col_offset], old[-1][node.end_col_offset :]
        old[-1] = old[-1][: node.end_col_offset]
        old[0] = old[0][node.col_offset :]
        text = b"\n".join(old).decode()
        new = _import(node, is_ours) if isinstance(node, ast.Import) else _import_from(node, text, is_ours)
        if new is not None:
            kept = text.count("\n") - new.count("\n")  # the line feeds of a statement that is shorter now
            lines[first : last + 1] = (before + new.encode() + after + b"\n" * kept).split(b"\n")
    return b"\n".join(lines).decode()


def _import_from(node: ast.ImportFrom, text: str, is_ours: Callable[[str], bool]) -> str | None:
    """Return `from X import Y` anew; None where it stays."""
    module = node.module or ""
    names = [module] if "." in module else [f"{module}.{alias.name}" for alias in node.names]
    if node.level or not all(map(is_ours, names)):
        return None
    return re.sub(r"^from(\s+)", rf"from\1{PACKAGE}.", text)


def _import(node: ast.Import, is_ours: Callable[[str], bool]) -> str | None:
    """Return `import X` as one import for each name; None where it stays."""
    if not any(is_ours(alias.name) for alias in node.names):
        return None
    statements = []
    for alias in node.names:
        top, as_name = alias.name.partition(".")[0], alias.asname
        if not is_ours(alias.name):
            statements.append(ast.unparse(ast.Import([alias])))
        elif as_name or top == alias.name:
            statements.append(f"import {PACKAGE}.{alias.name} as {as_name or top}")
        else:
            statements += [f"import {PACKAGE}.{alias.name}", f"from {PACKAGE} import {top}"]
    return "; ".join(statements)
