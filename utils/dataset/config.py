"""Read the dataset YAML.

A dataset YAML has `path` (the root folder), `train`, `val` and `test` (each a folder, a `.txt` list of
images, or a list of these, relative to the root) and `names` (a list, or a mapping from 0..n-1). `nc` and
`download` are optional.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.dataset.archives import folder_yaml, open_archive
from utils.dataset.location import find_root, locate_split
from utils.downloads import is_archive
from utils.errors import UserError, shown
from utils.files import expand_user, find_file, load_yaml

LOGGER = logging.getLogger("yolo.datasets")

SPLITS = ("train", "val", "test")
MOST_CLASSES = 100_000
MOST_KEYPOINTS = 1000  # of a row, and numbers of each


@dataclass(frozen=True)
class DatasetConfig:
    """Hold what a dataset YAML says, with its paths resolved.

    Attributes:
        path: the YAML.
        root: the folder that the splits are relative to.
        splits: 'train', 'val', 'test' (those the YAML has) -> folders and lists.
        label_names: class number -> name, as the label files count them.
        keypoints: how many numbers follow the box in a row with keypoints, from `kpt_shape`; 0 without.
        single_cls: whether every label counts as class 0, 'item'.
    """

    path: Path
    root: Path
    splits: dict[str, list[Path]]
    label_names: dict[int, str]
    keypoints: int = 0
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
        path: a YAML (a bare name is searched in data/), or a folder, zip or tar that holds one.
        single_cls: treat every object as one class named 'item'.
        fetch: get a missing data set as its `download` key says, and raise when it stays missing.
            False reads the YAML alone (names, splits) and leaves a missing folder to `load_images`.

    Raises:
        UserError: the YAML is wrong, or the images are missing (the message lists the folders that were
            searched).
    """
    yaml_path = dataset_yaml(path)
    data = load_yaml(yaml_path, names_as_text=True)
    names = read_names(yaml_path, data)
    entries = {split: _read_split(yaml_path, split, data[split]) for split in SPLITS if data.get(split)}
    if not entries:
        raise UserError(
            f"{yaml_path}: no train, val or test key; say where the images are, as in data/coco128.yaml"
        )
    given = data.get("path")
    if given is not None and not isinstance(given, str):
        raise UserError(f"{yaml_path}: path is {shown(given)} where the text of a folder is expected")
    root = find_root(yaml_path, given or "", entries, data.get("download"), fetch=fetch)
    splits = {split: [locate_split(root, entry) for entry in listed] for split, listed in entries.items()}
    if fetch:
        if Path(path).is_dir():
            LOGGER.info("%s: the YAML of its data set is %s", path, yaml_path)
        _say_where(yaml_path, root, zip(sum(entries.values(), []), sum(splits.values(), [])))
    return DatasetConfig(yaml_path, root, splits, names, _read_keypoints(yaml_path, data), single_cls)


def _say_where(yaml_path: Path, root: Path, found: Iterable[tuple[str, Path]]) -> None:
    """Say which entries of a YAML are found only in another spelling."""
    for entry, place in dict(found).items():
        if place != Path(os.path.normpath(root / expand_user(entry))):
            LOGGER.info("%s: %s is not there, %s is read instead", yaml_path, entry, place)


def dataset_yaml(path: str | Path) -> Path:
    """Return the YAML that a path means: itself, or that in a folder or archive.

    Raises:
        UserError: there is none, or there are several.
    """
    if Path(path).is_dir():
        return folder_yaml(Path(path), Path(path))
    return open_archive(Path(path)) if is_archive(str(path)) else find_file(path, "data")


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
    return f"class {number} of {config.path} is {shown(config.names[number])}, not {shown(names.get(number))}"


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


def read_names(yaml_path: Path, data: Mapping[str, object]) -> dict[int, str]:
    """Return the class names of a YAML, numbered from 0 without a gap.

    Args:
        yaml_path: for messages.
        data: what `load_yaml` returns with `names_as_text`.

    Raises:
        UserError: there are none, or they are no words, or not numbered so.
    """
    names, nc = data.get("names"), data.get("nc")
    if nc is not None and not (type(nc) is int and 1 <= nc <= MOST_CLASSES):
        raise UserError(
            f"{yaml_path}: nc is {shown(nc)} where a number of classes from 1 to {MOST_CLASSES} is expected"
        )
    if names is None and type(nc) is int:
        return {i: f"class{i}" for i in range(nc)}
    words = _in_order(yaml_path, names)
    for number, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise UserError(
                f"{yaml_path}: the name of class {number} is {shown(word)} where a word is expected"
            )
    if nc not in (None, len(words)):
        raise UserError(
            f"{yaml_path}: nc is {nc} but names lists {len(words)} classes; make them agree or drop nc"
        )
    return {number: str(word) for number, word in enumerate(words)}


def _in_order(yaml_path: Path, names: object) -> list[object]:
    """Return the names of a list, or of a mapping from numbers, in order."""
    if not names:
        what = "no names key" if names is None else "names is empty"
        raise UserError(f"{yaml_path}: {what}; list the classes, as in 'names: [cat, dog]'")
    if isinstance(names, list):
        return names
    if not isinstance(names, dict):
        raise UserError(
            f"{yaml_path}: names is {shown(names)} where a list or a mapping from numbers is expected"
        )
    by_number = {int(key) if _is_number(key) else key: name for key, name in names.items()}
    if by_number.keys() != set(range(len(names))):
        raise UserError(
            f"{yaml_path}: names has the keys {', '.join(map(str, names))} where 0 to {len(names) - 1} "
            "are expected, each once"
        )
    return [by_number[number] for number in range(len(names))]


def _is_number(key: object) -> bool:
    """Return whether a key, which is text or a number, is that of a class."""
    return str(key).isdecimal() and len(str(key)) <= len(str(MOST_CLASSES))


def _read_keypoints(yaml_path: Path, data: Mapping[str, object]) -> int:
    """Return how many numbers follow the box in a row with keypoints; 0 without `kpt_shape`."""
    shape = data.get("kpt_shape")
    if shape is None:
        return 0
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(type(n) is int and 0 < n <= MOST_KEYPOINTS for n in shape)
    ):
        raise UserError(
            f"{yaml_path}: kpt_shape is {shown(shape)} where two numbers are expected, as in [17, 3]"
        )
    return int(shape[0] * shape[1])


def _read_split(yaml_path: Path, split: str, value: object) -> list[str]:
    """Return the value of train, val or test as a list of paths."""
    paths: list[str] = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, str) or not entry:
            raise UserError(
                f"{yaml_path}: {split} has {shown(entry)} where a folder or a .txt list is expected"
            )
        paths.append(entry)
    return paths
