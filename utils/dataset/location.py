"""Find the folder of a data set, or fetch it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from utils.dataset.archives import fetch_archives
from utils.downloads import is_url
from utils.errors import UserError, shown
from utils.files import ROOT, WORK, datasets_dir, expand_user, path_remedy, spellings
from utils.locks import exclusive

LOGGER = logging.getLogger("yolo.datasets")


def find_root(
    yaml_path: Path, given: str, entries: dict[str, list[str]], download: object, *, fetch: bool
) -> Path:
    """Find the root folder of a data set, and fetch a missing one.

    Args:
        yaml_path: the dataset YAML; its `path` is `given`, '' without, and its `download` None without.
        entries: split -> folders and lists, relative to the root.
        fetch: fetch a missing data set, and raise when it stays missing; else return the likeliest folder.

    Raises:
        UserError: the images are missing, or cannot be fetched.
    """
    given, written = spellings(given, shortened=False)[-1], given
    if fetch and given != written:
        LOGGER.info("%s: the path %s is not there, %s is read instead", yaml_path, written, given)
    candidates = _candidate_roots(yaml_path, given)
    root = _choose_root(candidates, entries)
    if root is None and fetch:
        if download:
            root = _download_dataset(yaml_path, download, given, lambda: _choose_root(candidates, entries))
        if root is None:
            raise UserError(_missing_sentence(yaml_path, given, candidates, entries))
    return root or next((c for c in candidates if c.is_dir()), candidates[0])


def locate_split(root: Path, entry: str) -> Path:
    """Return the path of a split's folder or list, in a spelling that exists.

    Paths from Windows have backslashes, and some exporters write a wrong leading `../` or `data/`.
    """
    places = [Path(os.path.normpath(root / expand_user(spelled))) for spelled in spellings(entry)]
    return next((place for place in places if place.exists()), places[0])


def _missing_sentence(
    yaml_path: Path, given: str, candidates: list[Path], entries: dict[str, list[str]]
) -> str:
    """Say which images are missing and where they were searched."""
    looked = ", ".join(map(str, candidates))
    if not any(c.is_dir() for c in candidates):
        remedy = path_remedy(given, "put it there or correct 'path'")
        return f"{yaml_path}: data set missing (looked for {looked}); {remedy}"
    absent = [
        f"{split}: {entry}"
        for split, listed in entries.items()
        for entry in listed
        if split != "test" and not any(locate_split(c, entry).exists() for c in candidates)
    ]
    what = ", ".join(absent) or "train and val together"
    return f"{yaml_path}: images missing ({what}; looked in {looked}); put them there or correct the YAML"


def _download_dataset(
    yaml_path: Path, how: object, given: str, find: Callable[[], Path | None]
) -> Path | None:
    """Fetch a missing data set as the YAML's `download` key says, and `find` it.

    Nothing of it is ever run. A YAML and what its addresses hold may come from a stranger: their files go
    only into a folder of their own in the datasets folder, whatever `path` says. The project's own
    generators write only images and labels, into a folder that is missing or empty.
    """
    folder = Path(os.path.abspath(_fetched_folder(given)))
    datasets = Path(os.path.abspath(datasets_dir()))
    bundled = how if isinstance(how, str) and how in ("digits", "voc", "coco") else None
    listed = how if isinstance(how, list) else [how]
    urls = [url for url in listed if isinstance(url, str) and is_url(url)]
    if bundled is None and (not urls or len(urls) < len(listed)):
        raise UserError(
            f"{yaml_path}: download is {shown(how)}, and scripts are not run; get the data yourself and "
            f"put it in {folder}, or give a URL or one of digits, voc, coco"
        )
    inside = folder != datasets and folder.is_relative_to(datasets) and not ROOT.is_relative_to(folder)
    if not inside and not (bundled and folder.name and expand_user(given).is_absolute()):
        raise UserError(
            f"{yaml_path}: path {shown(given)} is no folder of its own below {datasets}, and data are "
            "fetched to no other place; write 'path: ../datasets/NAME', set YOLOV5_DATASETS_DIR to the "
            "folder that path is in, or put the data there yourself"
        )
    LOGGER.info("%s: data set not found, making it in %s", yaml_path.name, folder)
    with exclusive(folder.with_name(f".{folder.name}.lock"), str(folder)):
        found = find()  # again: another run may have made it in the meantime
        if found is None:
            if bundled:
                _make_bundled(bundled, folder)
            else:
                fetch_archives(urls, folder)
            found = find()
    return found


def _make_bundled(name: str, folder: Path) -> None:
    """Run one of the generators and converters of this project."""
    # Imported when used: most runs have their data set and need no generator.
    if name == "digits":
        from utils.dataset.bundled.digits import generate

        generate(folder)
    else:
        from utils.dataset.bundled.published import fetch_coco, fetch_voc

        (fetch_voc if name == "voc" else fetch_coco)(folder)


def _fetched_folder(given: str) -> Path:
    """Return where a data set with this `path` is fetched to.

    It is in the datasets folder, unless the path is absolute.
    """
    path = expand_user(given)
    if path.is_absolute():
        return path
    parts = path.parts[2:] if path.parts[:2] == ("..", "datasets") else path.parts
    return datasets_dir().joinpath(*(p for p in parts if p not in ("..", ".")))


def _candidate_roots(yaml_path: Path, given: str) -> list[Path]:
    """Return the folders that `path` may mean, in the order in which they are tried."""
    path = expand_user(given)
    if path.is_absolute():
        return [path]
    places = [yaml_path.absolute().parent / path, Path.cwd() / path, WORK.absolute() / path]
    if given:
        places.append(_fetched_folder(given))
    places = list(dict.fromkeys(Path(os.path.normpath(p)) for p in places))
    if os.environ.get("YOLOV5_DATASETS_DIR") and path.parts[:2] == ("..", "datasets"):
        # The user set it: it replaces the folder beside the project, which such a path means by default.
        default = Path(os.path.normpath(WORK.absolute() / path))
        first = Path(os.path.normpath(_fetched_folder(given)))
        places = list(dict.fromkeys([first, *(p for p in places if p != default)]))
    return places


def _choose_root(candidates: list[Path], entries: dict[str, list[str]]) -> Path | None:
    """Return the first folder that holds all images, or None.

    The second choice has train and val, the third only val: validation needs no training images, and
    `load_images` raises for a split that is asked for and missing.
    """
    for splits in (tuple(entries), ("train", "val"), ("val",)):
        needed = [e for split in splits for e in entries.get(split, ())]
        for root in candidates:
            if needed and all(locate_split(root, entry).exists() for entry in needed):
                return root
    return None
