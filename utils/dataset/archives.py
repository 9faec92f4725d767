"""Data sets that come as archives: fetched, unpacked beside their folder, and moved into it when whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.downloads import ARCHIVE_SUFFIXES, fetch, file_name, merge, unpack
from utils.errors import UserError
from utils.files import datasets_dir
from utils.locks import exclusive

LOGGER = logging.getLogger("yolo.archives")

STAMP = ".archive.json"
"""In the folder of an unpacked archive: which one it came from."""

_LONGEST_NAME = 100  # of a file that an address names; with what is added it stays below every system's limit


def fetch_archives(urls: Iterable[str], home: Path) -> None:
    """Fetch archives and put what they hold into `home`, which need not exist.

    An archive that has a folder named as `home` is taken to hold the data set in that folder (as coco128.zip
    does), and what lies beside it is left out; of any other the whole tree goes into `home`. Several
    archives complete each other. What arrived stays in `<home>.part` after a failure, for the next run.

    Raises:
        UserError: an archive cannot be had or unpacked, or `home` has another file where one of the archives
            belongs; `home` is untouched then.
    """
    work = home.with_name(f"{home.name}.part")
    tree = work / "tree"
    # Two addresses may end in the same name, and a part that stayed must not be taken for another's.
    archives = {
        url: work / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}_{file_name(url)[-_LONGEST_NAME:]}"
        for url in urls
    }
    try:
        try:
            for url, archive in archives.items():
                fetch(url, archive)
            shutil.rmtree(tree, ignore_errors=True)  # of a run that was killed
            tree.mkdir()
            for url, archive in archives.items():
                _add(archive, tree, home.name, url)
        except UserError as error:
            raise UserError(f"{error}; or unpack it by hand, so that {home} exists") from None
        _settle(tree, home, ", ".join(archives))
        for archive in archives.values():
            archive.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(home, error) from None
    finally:
        shutil.rmtree(tree, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: archives wait for the next run
            work.rmdir()


def _add(archive: Path, tree: Path, name: str, url: str) -> None:
    """Unpack one archive and add its data set to the tree; a later archive's file counts."""
    unpacked = tree.with_name("unpacked")
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        unpack(archive, unpacked)
        source = unpacked / name if (unpacked / name).is_dir() else unpacked
        beside = sorted(p.name for p in unpacked.iterdir() if p != source)
        if source != unpacked and beside:
            LOGGER.warning("%s: left out what lies beside %s/: %s", url, name, ", ".join(beside[:5]))
        merge(source, tree, url, replace=True)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _settle(tree: Path, home: Path, origin: str) -> None:
    """Make the tree the data set's folder at once, or add it to the folder that is there."""
    if home.is_dir():
        merge(tree, home, origin)
    elif os.path.lexists(home):
        raise UserError(f"{home}: is there already and is no folder; move it away and start again")
    else:
        os.replace(tree, home)


def open_archive(archive: Path) -> Path:
    """The YAML of a zip or tar that is a data set, unpacked into a folder of the datasets folder.

    The folder is named as the archive, without its suffix. It is used again, with whatever the user changed
    in it, as long as the archive is the one that it came from: the same file unchanged, or one of the same
    bytes. Another archive of that name is unpacked beside it, into `name2`, `name3`, ...

    Returns:
        The YAML nearest to the folder, the first in the alphabet of several.

    Raises:
        UserError: no such file, no archive, or none with a YAML.
    """
    if not archive.is_file():
        raise UserError(f"{archive}: no such archive; check the path")
    suffix = next(s for s in ARCHIVE_SUFFIXES if archive.name.lower().endswith(s))
    stem = archive.name[: -len(suffix)].strip(".") or "archive"
    folder, done = _place(archive, stem)
    if not done:
        with exclusive(datasets_dir() / f".{stem}.lock", str(archive)):
            folder, done = _place(archive, stem)  # another run may have been faster
            if not done:
                LOGGER.info("%s: unpacking it into %s", archive, folder)
                _unpack_whole(archive, folder)
    return _first_yaml(folder, archive)


def _place(archive: Path, stem: str) -> tuple[Path, bool]:
    """The folder of an archive, and whether it is unpacked there already."""
    number = 1
    while True:
        folder = datasets_dir() / (stem if number == 1 else f"{stem}{number}")
        if not os.path.lexists(folder):
            return folder, False
        if _came_from(folder, archive):
            return folder, True
        number += 1


def _came_from(folder: Path, archive: Path) -> bool:
    """Whether this folder holds what this archive holds, or held when it was unpacked."""
    try:
        stamp = json.loads((folder / STAMP).read_bytes())
        known = {key: stamp[key] for key in ("path", "size", "time", "sha256")}
    except (OSError, ValueError, KeyError, TypeError):
        return False  # made by the user, or by a version that left no word
    found = _look(archive)
    if found == {key: known[key] for key in found}:
        return True
    return found["size"] == known["size"] and _digest(archive) == known["sha256"]


def _look(archive: Path) -> dict[str, Any]:
    stat = archive.stat()
    return {"path": os.path.abspath(archive), "size": stat.st_size, "time": stat.st_mtime_ns}


def _digest(archive: Path) -> str:
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _unpack_whole(archive: Path, folder: Path) -> None:
    """Unpack an archive and its stamp into a folder that does not exist, all or nothing."""
    temporary = Path(
        tempfile.mkdtemp(prefix=f".{folder.name[:_LONGEST_NAME]}.", suffix=".part", dir=folder.parent)
    )
    try:
        stamp = _look(archive)  # before: a file that changes meanwhile is then another one
        tree = unpack(archive, temporary / "tree")
        _first_yaml(tree, archive)
        (tree / STAMP).write_text(json.dumps(stamp | {"sha256": _digest(archive)}), encoding="utf-8")
        os.replace(tree, folder)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _first_yaml(folder: Path, archive: Path) -> Path:
    found = list(folder.rglob("*.yaml"))
    if not found:
        raise UserError(f"{archive}: no dataset YAML in it; unpack it and write one, as in data/coco128.yaml")
    return min(found, key=lambda p: (len(p.parts), p))


def _unwritable(folder: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"{folder}: cannot be written ({reason}); set YOLOV5_DATASETS_DIR to a writable folder")
