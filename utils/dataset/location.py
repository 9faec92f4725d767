"""Find the folder of a data set, or fetch it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.dataset.archives import fetch_archives
from utils.downloads import is_url
from utils.errors import UserError
from utils.files import ROOT, datasets_dir
from utils.locks import exclusive

LOGGER = logging.getLogger("yolo.datasets")


def missing_sentence(yaml_path: Path, candidates: list[Path], entries: dict[str, list[str]]) -> str:
    partial = next((c for c in candidates if c.is_dir()), None)
    if partial is None:
        looked = ", ".join(map(str, candidates))
        return f"{yaml_path}: data set missing (looked for {looked}); put it there or mend 'path'"
    absent = [
        f"{split}: {entry}"
        for split, listed in entries.items()
        for entry in listed
        if split != "test" and not any(locate_split(c, entry).exists() for c in candidates)
    ]
    what = ", ".join(absent) or "train and val together"
    looked = ", ".join(map(str, candidates))
    return f"{yaml_path}: images missing ({what}; looked below {looked}); put them there or mend the YAML"


def download_dataset(yaml_path: Path, how: Any, given: str, find: Callable[[], Path | None]) -> Path | None:
    """Get a missing data set as the YAML's `download` key says, and `find` it. Nothing in it is ever run.

    A YAML may be a stranger's, and so is what its addresses hold: that is written nowhere but in a folder of
    its own below the datasets folder, not where `path` likes (the user's home, a folder of programs). The
    makers of the project write images and labels alone, into a folder that is missing or empty.
    """
    home = Path(os.path.abspath(_home(given)))
    datasets = Path(os.path.abspath(datasets_dir()))
    bundled = how in ("digits", "voc", "coco")
    urls = how if isinstance(how, list) else [how]
    if not bundled and (not urls or not all(isinstance(u, str) and is_url(u) for u in urls)):
        shown = str(how).strip().splitlines()[0][:60]
        raise UserError(
            f"{yaml_path}: download is {shown!r}, and scripts are not run; get the data yourself and put it "
            f"in {home}, or give a URL or one of digits, voc, coco"
        )
    below = home != datasets and home.is_relative_to(datasets) and not ROOT.is_relative_to(home)
    if not below and not (bundled and home.name and Path(given).expanduser().is_absolute()):
        raise UserError(
            f"{yaml_path}: path {given!r} is no folder of its own below {datasets}, and data are fetched to "
            "no other place; write 'path: ../datasets/NAME', set YOLOV5_DATASETS_DIR to the folder that path "
            "is in, or put the data there yourself"
        )
    LOGGER.info("%s: data set not found, making it in %s", yaml_path.name, home)
    with exclusive(home.with_name(f".{home.name}.lock"), str(home)):
        found = find()
        if found is None:  # else a run that was waited for has made it
            if bundled:
                _make_bundled(how, home)
            else:
                fetch_archives(urls, home)
            found = find()
    return found


def _make_bundled(name: str, home: Path) -> None:
    """Run one of the generators and converters that come with the project."""
    # Imported when used: they are makers of data sets, which nobody needs who has one.
    if name == "digits":
        from utils.dataset.bundled.digits import generate

        generate(home)
    else:
        from utils.dataset.bundled.published import fetch_coco, fetch_voc

        (fetch_voc if name == "voc" else fetch_coco)(home)


def _home(given: str) -> Path:
    """Where a data set with this `path` is fetched to: below the datasets folder unless it is absolute."""
    path = Path(given).expanduser()
    if path.is_absolute():
        return path
    parts = path.parts[2:] if path.parts[:2] == ("..", "datasets") else path.parts
    return datasets_dir().joinpath(*(p for p in parts if p not in ("..", ".")))


def locate_split(root: Path, entry: str) -> Path:
    """A split's folder or list below the root; a leading `../` is forgiven, as some exporters write it."""
    path = root / Path(entry).expanduser()
    if not path.exists() and entry.startswith("../") and (root / entry[3:]).exists():
        path = root / entry[3:]
    return Path(os.path.normpath(path))


def candidate_roots(yaml_path: Path, given: str) -> list[Path]:
    """Folders that `path` may mean, in the order in which they are tried."""
    path = Path(given).expanduser()
    if path.is_absolute():
        return [path]
    places = [yaml_path.absolute().parent / path, Path.cwd() / path, ROOT / path]
    if given:
        places.append(_home(given))
    places = list(dict.fromkeys(Path(os.path.normpath(p)) for p in places))
    if os.environ.get("YOLOV5_DATASETS_DIR") and path.parts[:2] == ("..", "datasets"):
        # Set on purpose, it takes the place of the folder beside the project that such a path names.
        home, default = Path(os.path.normpath(_home(given))), Path(os.path.normpath(ROOT / path))
        places = list(dict.fromkeys([home, *(p for p in places if p != default)]))
    return places


def choose_root(candidates: list[Path], entries: dict[str, list[str]]) -> Path | None:
    """The first folder that holds all images, else the first with those of val, else None.

    Whoever only validates need not have the training images; `load_images` complains about a split that is
    asked for and not there.
    """
    for splits in (tuple(entries), ("train", "val"), ("val",)):
        needed = [e for split in splits for e in entries.get(split, ())]
        found = next(
            (c for c in candidates if needed and all(locate_split(c, e).exists() for e in needed)), None
        )
        if found:
            return found
    return None
