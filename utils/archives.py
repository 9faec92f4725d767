"""Data sets that come as archives: fetched, unpacked beside their folder, and moved into it when whole."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from utils.downloads import fetch, file_name, merge, unpack
from utils.errors import UserError

LOGGER = logging.getLogger("yolo.archives")

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
        raise UserError(
            f"{home}: cannot be written ({error.strerror}); set YOLOV5_DATASETS_DIR to a writable folder"
        ) from None
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
