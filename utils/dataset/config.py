"""Dataset YAML -> list of images -> verified labels.

A dataset YAML names `path` (the root), `train`, `val` and `test` (each a folder, a `.txt` list of images,
or a list of these, below the root), `names` (a list, or a mapping from 0..n-1) and, if it likes, `nc` and
`download`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.dataset.archives import open_archive
from utils.dataset.location import (
    candidate_roots,
    choose_root,
    download_dataset,
    locate_split,
    missing_sentence,
)
from utils.downloads import is_archive
from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES, find_file, load_yaml, read_path_list

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
    candidates = candidate_roots(yaml_path, given or "")
    root = choose_root(candidates, entries)
    if root is None and fetch:
        if data.get("download"):
            root = download_dataset(
                yaml_path, data["download"], given or "", lambda: choose_root(candidates, entries)
            )
        if root is None:
            raise UserError(missing_sentence(yaml_path, candidates, entries))
    root = root or next((c for c in candidates if c.is_dir()), candidates[0])
    return DatasetConfig(
        path=yaml_path,
        root=root,
        splits={split: [locate_split(root, entry) for entry in listed] for split, listed in entries.items()},
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


def _read_list(source: Path, root: Path) -> tuple[list[str], list[str]]:
    """Return the images that a text file names, one a line, and notes on lines that were left out."""
    found: list[str] = []
    notes: list[str] = []
    for number, name, file in read_path_list(source, root):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            found.append(str(file))
        else:
            notes.append(f"{source}, line {number}: {name!r} has no image suffix; line ignored")
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
