"""Fetch and unpack data sets that are archives.

They are unpacked beside their folder and moved into it when complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from utils.downloads import ARCHIVE_SUFFIXES, fetch, file_name, merge, unpack
from utils.errors import UserError
from utils.files import datasets_dir
from utils.locks import exclusive

LOGGER = logging.getLogger("yolo.archives")

STAMP = ".archive.json"
"""The file that says which archive an unpacked folder is from."""

_LONGEST_NAME = 100  # of a file that an address names; with what is added it stays below every system's limit


def fetch_archives(urls: Iterable[str], folder: Path) -> None:
    """Fetch archives and put their files into `folder`.

    When an archive has a folder with the name of `folder` (as coco128.zip does), only that folder is used;
    otherwise the whole archive. Several archives are merged. After a failure the fetched files stay in
    `<folder>.part` for the next run.

    Raises:
        UserError: an archive cannot be fetched or unpacked, or `folder` already has a different file of the
            same name; `folder` is unchanged then.
    """
    work = folder.with_name(f"{folder.name}.part")
    tree = work / "tree"
    # The digest keeps apart two addresses that end in the same name.
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
                _add(archive, tree, folder.name, url)
        except UserError as error:
            raise UserError(f"{error}; or unpack it by hand, so that {folder} exists") from None
        _settle(tree, folder, ", ".join(archives))
        for archive in archives.values():
            archive.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        shutil.rmtree(tree, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: archives wait for the next run
            work.rmdir()


def _add(archive: Path, tree: Path, name: str, url: str) -> None:
    """Unpack one archive and add its data set to the tree.

    Its files replace those of earlier archives.
    """
    unpacked = tree.with_name("unpacked")
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        unpack(archive, unpacked)
        source = unpacked / name if (unpacked / name).is_dir() else unpacked
        beside = sorted(p.name for p in unpacked.iterdir() if p != source)
        if source != unpacked and beside:
            LOGGER.warning("%s: left out what is beside %s/: %s", url, name, ", ".join(beside[:5]))
        merge(source, tree, url, replace=True)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _settle(tree: Path, folder: Path, origin: str) -> None:
    """Move the tree to the data set's folder, or merge it into an existing one."""
    if folder.is_dir():
        merge(tree, folder, origin)
    elif os.path.lexists(folder):
        raise UserError(f"{folder}: exists and is not a folder; move it away and start again")
    else:
        os.replace(tree, folder)


def open_archive(archive: Path) -> Path:
    """Unpack a zip or tar that is a data set, and return its YAML.

    It is unpacked into the datasets folder, into a folder with the archive's name without suffix. The folder
    is used again, with the user's changes, as long as the archive is the same: an unchanged file, or one of
    the same bytes. A different archive of that name is unpacked into `name2`, `name3`, ...

    Raises:
        UserError: no such file, no archive, or not one YAML in it.
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
    return folder_yaml(folder, archive)


def folder_yaml(folder: Path, shown: Path) -> Path:
    """Return the YAML in the highest place of a folder; of several there `data.yaml`.

    Args:
        folder: of a data set.
        shown: what the user gave, for messages.

    Raises:
        UserError: no YAML within three levels, or several.
    """
    for level in ("", "*/", "*/*/", "*/*/*/"):
        found = sorted(
            p for p in folder.glob(f"{level}[!.]*") if p.suffix.lower() in (".yaml", ".yml") and p.is_file()
        )
        found = [p for p in found if p.name == "data.yaml"] or found
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(p.relative_to(folder)) for p in found[:5])
            raise UserError(f"{shown}: holds several YAMLs ({names}); give that of the data set as --data")
    raise UserError(
        f"{shown}: no dataset YAML in it; write one, as in data/coco128.yaml, and give it as --data"
    )


def _place(archive: Path, stem: str) -> tuple[Path, bool]:
    """Return the folder of an archive, and whether it is unpacked there already."""
    for number in itertools.count(1):
        folder = datasets_dir() / (stem if number == 1 else f"{stem}{number}")
        if not os.path.lexists(folder):
            break
        # Without a readable stamp the user made the folder.
        with contextlib.suppress(OSError):
            stamp = (folder / STAMP).read_text(encoding="utf-8", errors="surrogateescape")
            if _file_facts(archive) in stamp.splitlines() or _digest(archive) in stamp:
                return folder, True
    return folder, False


def _file_facts(archive: Path) -> str:
    """Return a line that is different after each change of an archive, without reading it."""
    stat = archive.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {os.path.abspath(archive)!r}"


def _digest(archive: Path) -> str:
    """Return the SHA-256 of an archive, in hexadecimal."""
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack_whole(archive: Path, folder: Path) -> None:
    """Unpack an archive and add its stamp, whole or not at all."""
    temporary = Path(
        tempfile.mkdtemp(prefix=f".{folder.name[:_LONGEST_NAME]}.", suffix=".part", dir=folder.parent)
    )
    try:
        facts = _file_facts(archive)  # first: an archive that changes during the work will not match
        tree = unpack(archive, temporary / "tree")
        folder_yaml(tree, archive)
        (tree / STAMP).write_text(f"{facts}\n{_digest(archive)}\n", encoding="utf-8")
        os.replace(tree, folder)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> UserError:
    """Return the error of a folder that cannot be written."""
    reason = error.strerror or error
    return UserError(f"{folder}: cannot be written ({reason}); set YOLOV5_DATASETS_DIR to a writable folder")
