"""Read the dataset YAML.

A dataset YAML has `path` (the root folder), `train`, `val` and `test` (each a folder, a `.txt` list of
images, or a list of these, relative to the root) and `names` (a list, or a mapping from 0..n-1). `nc` and
`download` are optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.dataset.archives import open_archive
from utils.dataset.location import find_root, locate_split
from utils.downloads import is_archive
from utils.errors import UserError
from utils.files import find_file, load_yaml

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class DatasetConfig:
    """Hold what a dataset YAML says, with its paths resolved.

    Attributes:
        path: the YAML.
        root: the folder that the splits are relative to.
        splits: 'train', 'val', 'test' (those the YAML has) -> folders and lists.
        label_names: class number -> name, as the label files count them.
        single_cls: whether every label counts as class 0, 'item'.
    """

    path: Path
    root: Path
    splits: dict[str, list[Path]]
    label_names: dict[int, str]
    single_cls: bool = False

    @property
    def names(self) -> dict[int, str]:
        """Return class number -> name of the model; {0: 'item'} with `single_cls`."""
        return {0: "item"} if self.single_cls else self.label_names

    @property
    def nc(self) -> int:
        """Return the number of classes of the model."""
        return len(self.names)


def load_dataset(path: str | Path, *, single_cls: bool = False, fetch: bool = True) -> DatasetConfig:
    """Read a dataset YAML and find its images.

    Args:
        path: a YAML (a bare name is searched in data/), or a zip or tar that holds a data set with its YAML.
        single_cls: treat every object as one class named 'item'.
        fetch: get a missing data set as its `download` key says, and raise when it stays missing.
            False reads the YAML alone (names, splits) and leaves a missing folder to `load_images`.

    Raises:
        UserError: the YAML is wrong, or the images are missing (the message lists the folders that were
            searched).
    """
    yaml_path = open_archive(Path(path)) if is_archive(str(path)) else find_file(path, "data")
    data = load_yaml(yaml_path)
    names = _read_names(yaml_path, data)
    entries = {split: _read_split(yaml_path, split, data[split]) for split in SPLITS if data.get(split)}
    if not entries:
        raise UserError(
            f"{yaml_path}: no train, val or test key; say where the images are, as in data/coco128.yaml"
        )
    given = data.get("path")
    if given is not None and not isinstance(given, str):
        raise UserError(f"{yaml_path}: path is {given!r} where the text of a folder is expected")
    root = find_root(yaml_path, given or "", entries, data.get("download"), fetch=fetch)
    splits = {split: [locate_split(root, entry) for entry in listed] for split, listed in entries.items()}
    return DatasetConfig(yaml_path, root, splits, names, single_cls)


def class_difference(names: Mapping[int, str], config: DatasetConfig, *, by_name: bool = False) -> str:
    """Say how the classes of a network and of a dataset differ.

    Args:
        names: the network's.
        config: the dataset, whose names follow `single_cls`.
        by_name: compare the names and their order; otherwise only how many there are.

    Returns:
        The end of a sentence, or '' when they agree.
    """
    if len(names) != config.nc:
        return f"{config.path} has {config.nc}"
    differing = [number for number, name in config.names.items() if by_name and name != names.get(number)]
    if not differing:
        return ""
    number = differing[0]
    return f"class {number} of {config.path} is {config.names[number]!r}, not {names.get(number)!r}"


def check_classes(path: Path, names: Mapping[int, str], config: DatasetConfig) -> None:
    """Refuse a network and a dataset with different numbers of classes.

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


def _read_names(yaml_path: Path, data: Mapping[str, object]) -> dict[int, str]:
    """Read the class names of a YAML, numbered from 0 without a gap."""
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
        names = [names[i] for i in range(len(names))]
    elif not isinstance(names, list):
        raise UserError(f"{yaml_path}: names is {names!r} where a list or a mapping from numbers is expected")
    if not names:
        raise UserError(f"{yaml_path}: names is empty; list the classes, as in 'names: [cat, dog]'")
    if nc is not None and nc != len(names):
        raise UserError(
            f"{yaml_path}: nc is {nc} but names lists {len(names)} classes; make them agree or drop nc"
        )
    return {i: str(name) for i, name in enumerate(names)}


def _read_split(yaml_path: Path, split: str, value: object) -> list[str]:
    """Return the value of train, val or test as a list of paths."""
    paths: list[str] = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, str) or not entry:
            raise UserError(f"{yaml_path}: {split} has {entry!r} where a folder or a .txt list is expected")
        paths.append(entry)
    return paths
