"""Dataset YAML -> list of images -> verified labels.

A dataset YAML names `path` (the root), `train`, `val` and `test` (each a folder, a `.txt` list of images,
or a list of these, below the root), `names` (a list, or a mapping from 0..n-1) and, if it likes, `nc` and
`download`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.archives import fetch_archives, open_archive
from utils.downloads import is_archive, is_url
from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES, ROOT, datasets_dir, find_file, load_yaml
from utils.imageset import CORRUPT, ImageSet, Packed, ScanReport
from utils.labels import label_path
from utils.locks import exclusive
from utils.scan import cache_path, log_report, scan

LOGGER = logging.getLogger("yolo.datasets")

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class DatasetConfig:
    """What a dataset YAML says, its paths resolved.

    Attributes:
        path: the YAML.
        root: the folder that the splits are below.
        splits: 'train', 'val', 'test' (those the YAML has) -> folders and lists.
        names: class number -> name; {0: 'item'} with single_cls.
        nc: number of classes of the model, `len(names)`.
        label_names: the names that the label files number, single_cls or not.
        single_cls: whether every label becomes class 0.
    """

    path: Path
    root: Path
    splits: dict[str, list[Path]]
    names: dict[int, str]
    nc: int
    label_names: dict[int, str]
    single_cls: bool = False


def load_dataset(path: str | Path, *, single_cls: bool = False, fetch: bool = True) -> DatasetConfig:
    """Read a dataset YAML and find its images.

    Args:
        path: a YAML (a bare name is searched below data/), or a zip or tar that holds a data set with its
            YAML.
        single_cls: treat every object as one class named 'item'.
        fetch: get a missing data set as its `download` key says, and complain when it stays missing.
            False reads the YAML alone (names, splits) and leaves a missing folder to `load_images`.

    Raises:
        UserError: the YAML is wrong, or the images are not there (the message says where they were looked
            for).
    """
    yaml_path = open_archive(Path(path)) if is_archive(str(path)) else find_file(path, "data")
    data = load_yaml(yaml_path)
    label_names = _read_names(yaml_path, data)
    entries = {split: _read_split(yaml_path, split, data[split]) for split in SPLITS if data.get(split)}
    if not entries:
        raise UserError(
            f"{yaml_path}: no train, val or test key; say where the images are, as in data/coco128.yaml"
        )
    given = data.get("path")
    if given is not None and not isinstance(given, str):
        raise UserError(f"{yaml_path}: path is {given!r} where the text of a folder is expected")
    candidates = _candidate_roots(yaml_path, given or "")
    root = _choose_root(candidates, entries)
    if root is None and fetch:
        if data.get("download"):
            root = _download(
                yaml_path, data["download"], given or "", lambda: _choose_root(candidates, entries)
            )
        if root is None:
            raise UserError(_missing_sentence(yaml_path, candidates, entries))
    root = root or next((c for c in candidates if c.is_dir()), candidates[0])
    return DatasetConfig(
        path=yaml_path,
        root=root,
        splits={split: [_locate(root, entry) for entry in listed] for split, listed in entries.items()},
        names={0: "item"} if single_cls else label_names,
        nc=1 if single_cls else len(label_names),
        label_names=label_names,
        single_cls=single_cls,
    )


def class_difference(names: Mapping[int, str], config: DatasetConfig, *, by_name: bool = False) -> str:
    """Say how the classes of a network and of a dataset differ; empty when they agree.

    Args:
        names: the network's.
        config: the dataset, whose names follow `single_cls`.
        by_name: compare the names and their order; otherwise only how many there are.
    """
    if len(names) != config.nc:
        return f"{config.path} has {config.nc}"
    differing = [number for number, name in config.names.items() if by_name and name != names.get(number)]
    if not differing:
        return ""
    number = differing[0]
    return f"class {number} of {config.path} is {config.names[number]!r}, not {names.get(number)!r}"


def check_classes(path: Path, names: Mapping[int, str], config: DatasetConfig) -> None:
    """Refuse a network and a dataset that do not number the same classes.

    With `single_cls` every network fits, because all of its classes count as one.

    Args:
        path: where the network is from.
        names: its class names.
        config: the dataset.

    Raises:
        UserError: the two numbers, and what to pass.
    """
    if not config.single_cls and (difference := class_difference(names, config)):
        raise UserError(
            f"{path}: the model has {len(names)} classes and {difference}; pass the --data it was trained on"
        )


def load_images(
    config: DatasetConfig,
    split: str,
    *,
    workers: int | None = None,
    use_cache: bool = True,
    require_labels: bool = False,
) -> ImageSet:
    """List, verify and pack the images of a split.

    Args:
        config: from `load_dataset`.
        split: 'train', 'val' or 'test'.
        workers: processes for the verification, at most 8; None: as many as fit.
        use_cache: take over what an earlier scan found for files that have not changed.
        require_labels: no label at all is an error (training), not a warning.

    Raises:
        UserError: no such split or folder, no usable image, a class beyond the names, no labels.
    """
    if split not in config.splits:
        known = ", ".join(config.splits)
        raise UserError(f"{config.path}: no '{split}' images (it has {known}); add a '{split}:' line to it")
    sources = config.splits[split]
    images, notes = list_images(sources, config.root)
    cache = cache_path(sources[0], sources) if use_cache else None
    title = f"{config.path.name} {split}"
    packed, report = scan(images, cache, workers=workers, title=title)
    report.messages[:0] = notes
    log_report(report, title)
    usable = packed.take(np.flatnonzero(packed.status != CORRUPT)) if report.corrupt else packed
    if not len(usable):
        raise UserError(
            f"{config.path}: none of the {report.total} {split} images is usable ({report.messages[0]})"
        )
    _check_classes(config, usable)
    if not len(usable.labels):
        _no_labels(config, split, usable, report, require_labels)
    if config.single_cls:
        usable = replace(usable, labels=usable.labels.copy())
        usable.labels[:, 0] = 0
    return ImageSet(usable, report)


def list_images(sources: list[Path], root: Path) -> tuple[list[str], list[str]]:
    """The images of folders and lists, sorted within a folder, each once, and notes on what was left out.

    Raises:
        UserError: a source is missing or holds no image.
    """
    listed: list[str] = []
    notes: list[str] = []
    for source in sources:
        if source.is_dir():
            found = _walk(source)
        elif source.is_file() and source.suffix.lower() in IMAGE_SUFFIXES:
            found = [str(source)]
        elif source.is_file():
            found, more = _read_list(source, root)
            notes += more
        else:
            raise UserError(
                f"{source}: no such folder or list of images; check the dataset YAML's path and splits"
            )
        if not found:
            raise UserError(f"{source}: no images in it (known suffixes: {' '.join(sorted(IMAGE_SUFFIXES))})")
        listed += found
    unique = list(dict.fromkeys(listed))
    if len(unique) < len(listed):
        notes.append(
            f"{', '.join(map(str, sources))}: {len(listed) - len(unique)} images listed more than once"
        )
    return unique, notes


def _walk(folder: Path) -> list[str]:
    """Images below a folder, links followed but none twice, hidden files left out."""
    found: list[str] = []
    visited: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in visited:
            folders.clear()
            continue
        visited.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [
            os.path.join(place, name)
            for name in files
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def _read_list(source: Path, root: Path) -> tuple[list[str], list[str]]:
    """Images named by a text file, one a line.

    `./x` is beside the list; another relative path is looked for from the list's folder, the data set's
    root and the working folder.
    """
    try:
        lines = source.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise UserError(f"{source}: the list of images cannot be read ({error.strerror})") from None
    found: list[str] = []
    notes: list[str] = []
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            continue
        if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
            notes.append(f"{source}, line {number}: {name!r} has no image suffix; line ignored")
            continue
        tail = name[2:] if name.startswith("./") else name
        places = [source.parent / tail]
        if tail is name:
            places += [root / tail, Path(tail)]
        found.append(str(next((p for p in places if p.exists()), places[0])))
    return found, notes


def _read_names(yaml_path: Path, data: dict[str, Any]) -> dict[int, str]:
    """Class names of a YAML, numbered from 0 without a gap."""
    names, nc = data.get("names"), data.get("nc")
    if nc is not None and (not isinstance(nc, int) or isinstance(nc, bool) or nc < 1):
        raise UserError(f"{yaml_path}: nc is {nc!r} where a number of classes from 1 is expected")
    if names is None:
        if nc is None:
            raise UserError(f"{yaml_path}: no names key; list the classes, as in 'names: [cat, dog]'")
        return {i: f"class{i}" for i in range(nc)}
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(
                f"{yaml_path}: names has the keys {', '.join(map(str, names))} where 0 to {len(names) - 1} "
                "are expected, each once"
            )
        numbered = {i: str(names[i]) for i in range(len(names))}
    elif isinstance(names, list):
        numbered = {i: str(name) for i, name in enumerate(names)}
    else:
        raise UserError(f"{yaml_path}: names is {names!r} where a list or a mapping from numbers is expected")
    if not numbered:
        raise UserError(f"{yaml_path}: names is empty; list the classes, as in 'names: [cat, dog]'")
    if nc is not None and nc != len(numbered):
        raise UserError(
            f"{yaml_path}: nc is {nc} but names lists {len(numbered)} classes; make them agree or drop nc"
        )
    return numbered


def _read_split(yaml_path: Path, split: str, value: Any) -> list[str]:
    """The value of train, val or test as a list of paths."""
    listed = value if isinstance(value, list) else [value]
    for entry in listed:
        if not isinstance(entry, str) or not entry:
            raise UserError(f"{yaml_path}: {split} has {entry!r} where a folder or a .txt list is expected")
    return listed


def _candidate_roots(yaml_path: Path, given: str) -> list[Path]:
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


def _home(given: str) -> Path:
    """Where a data set with this `path` is fetched to: below the datasets folder unless it is absolute."""
    path = Path(given).expanduser()
    if path.is_absolute():
        return path
    parts = path.parts[2:] if path.parts[:2] == ("..", "datasets") else path.parts
    return datasets_dir().joinpath(*(p for p in parts if p not in ("..", ".")))


def _locate(root: Path, entry: str) -> Path:
    """A split's folder or list below the root; a leading `../` is forgiven, as some exporters write it."""
    path = root / Path(entry).expanduser()
    if not path.exists() and entry.startswith("../") and (root / entry[3:]).exists():
        path = root / entry[3:]
    return Path(os.path.normpath(path))


def _choose_root(candidates: list[Path], entries: dict[str, list[str]]) -> Path | None:
    """The first folder that holds all images, else the first with those of val, else None.

    Whoever only validates need not have the training images; `load_images` complains about a split that is
    asked for and not there.
    """
    for splits in (tuple(entries), ("train", "val"), ("val",)):
        needed = [e for split in splits for e in entries.get(split, ())]
        found = next((c for c in candidates if needed and all(_locate(c, e).exists() for e in needed)), None)
        if found:
            return found
    return None


def _missing_sentence(yaml_path: Path, candidates: list[Path], entries: dict[str, list[str]]) -> str:
    partial = next((c for c in candidates if c.is_dir()), None)
    if partial is None:
        looked = ", ".join(map(str, candidates))
        return f"{yaml_path}: data set missing (looked for {looked}); put it there or mend 'path'"
    absent = [
        f"{split}: {entry}"
        for split, listed in entries.items()
        for entry in listed
        if split != "test" and not any(_locate(c, entry).exists() for c in candidates)
    ]
    what = ", ".join(absent) or "train and val together"
    looked = ", ".join(map(str, candidates))
    return f"{yaml_path}: images missing ({what}; looked below {looked}); put them there or mend the YAML"


def _download(yaml_path: Path, how: Any, given: str, find: Callable[[], Path | None]) -> Path | None:
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
        from data.digits import generate

        generate(home)
    else:
        from data.published import fetch_coco, fetch_voc

        (fetch_voc if name == "voc" else fetch_coco)(home)


def _check_classes(config: DatasetConfig, packed: Packed) -> None:
    """Refuse a class that the names do not have, naming file and line."""
    classes, nc = packed.labels[:, 0], len(config.label_names)
    bad = np.flatnonzero(classes >= nc)
    if not len(bad):
        return
    image = int(np.searchsorted(packed.offsets, bad[0], side="right")) - 1
    images = ImageSet(packed, ScanReport())
    path, value = label_path(images.path(image)), int(classes[bad[0]])
    line = _line_of_class(path, value)
    raise UserError(
        f"{path}, line {line}: class {value}, but {config.path} names {nc} classes, so 0 to {nc - 1} are "
        f"allowed ({len(bad)} such labels); mend the labels or add the names"
    )


def _line_of_class(path: str, value: int) -> int:
    """The first line of a label file that has this class, 0 when the file has changed since."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            with contextlib.suppress(ValueError, IndexError):
                if float(line.split()[0]) == value:
                    return number
    return 0


def _no_labels(
    config: DatasetConfig, split: str, packed: Packed, report: ScanReport, require_labels: bool
) -> None:
    """No box in the whole split: an error in training, a warning otherwise."""
    first = ImageSet(packed, report).path(0)
    text = (
        f"{config.path}: no labels for any of the {len(packed)} {split} images; the labels of {first} are "
        f"expected in {label_path(first)}, as rows 'class xc yc w h'"
    )
    if require_labels:
        raise UserError(text)
    LOGGER.warning("%s", text)
