"""Give the scripts and the hub to Python: `lightyolo.train.run(...)`, `lightyolo.load("best.pt")`.

Nothing is imported before it is used. In a checkout the same names lead to the modules at its top.
"""

from __future__ import annotations

from importlib import import_module

_MODULES = ("train", "val", "detect", "export", "compare", "hubconf")


def __getattr__(name: str) -> object:
    """Import a script, the hub's entries or the version when it is asked for."""
    if name not in (*_MODULES, "load", "__version__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from utils.package import MODULE_PREFIX, VERSION

    if name == "__version__":
        return VERSION
    module = import_module(f"{MODULE_PREFIX}{'hubconf' if name == 'load' else name}")
    return module.custom if name == "load" else module


def __dir__() -> list[str]:
    """Return what can be asked for."""
    return sorted([*globals(), *_MODULES, "load", "__version__"])
