"""Hold what the checks read and what they find."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from utils.dataset.config import DatasetConfig
from utils.dataset.detection_dataset import BatchOptions
from utils.dataset.image_set import CORRUPT, ImageSet
from utils.dataset.images import list_images
from utils.dataset.labels import find_labels
from utils.dataset.verification import scan
from utils.errors import UserError
from utils.evaluation.evaluate import Evaluated
from utils.training.anchors import AnchoredLayer

LabelRow = tuple[float, float, float, float, float]
"""A label row: class, xc, yc, w, h normalised."""


@dataclass(frozen=True)
class Mark:
    """Hold a box to draw on an image: its caption and its label row."""

    caption: str
    row: LabelRow


@dataclass(frozen=True)
class Finding:
    """Hold one thing to look at.

    Attributes:
        kind: what is wrong, such as 'bad-line'.
        file: where it is.
        value: what was found there.
        remedy: what to do about it.
        line: of the file, counted from 1; 0 where no line can be named.
        score: how likely or how bad, in 0..1; the highest of a kind comes first.
        split: 'train', 'val' or 'test'; '' for the data set as a whole.
        row: the label row that the model suggests; '' without one.
        images: paths that show it, the marks belong to the first.
        marks: boxes to draw.
    """

    kind: str
    file: str
    value: str
    remedy: str
    line: int = 0
    score: float = 1.0
    split: str = ""
    row: str = ""
    images: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()


@dataclass
class Section:
    """Hold the result of one check: a title, facts by name, and findings."""

    title: str
    facts: dict[str, int | float | str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def kinds(self) -> dict[str, list[Finding]]:
        """Return the findings by kind, the highest score first."""
        found: dict[str, list[Finding]] = {}
        for finding in sorted(self.findings, key=lambda finding: -finding.score):
            found.setdefault(finding.kind, []).append(finding)
        return found


@dataclass(frozen=True)
class TrainedNetwork:
    """Hold a trained network, and how images become its batches.

    Attributes:
        backend: the network.
        batches: its image size, batch size and stride.
        workers: loader processes.
    """

    backend: Evaluated
    batches: BatchOptions
    workers: int


@dataclass(frozen=True)
class CheckedData:
    """Hold what the checks read.

    Attributes:
        config: the dataset YAML.
        imgsz: long side of the images in training, in pixels.
        anchors: the head whose anchors are checked; None for a head without any.
        workers: processes that read images; None: as many as fit.
        network: looks for labels that are probably wrong; None for no such search.
        splits: the usable images of each split, with their labels.
        label_files: of each of these images.
        missing: split -> why it has no images.
    """

    config: DatasetConfig
    imgsz: int
    anchors: AnchoredLayer | None
    workers: int | None
    network: TrainedNetwork | None
    splits: dict[str, ImageSet]
    label_files: dict[str, list[str]]
    missing: dict[str, str]

    @classmethod
    def read(
        cls,
        config: DatasetConfig,
        imgsz: int,
        anchors: AnchoredLayer | None,
        workers: int | None = None,
        network: TrainedNetwork | None = None,
    ) -> CheckedData:
        """Read every split of a data set, and keep no cache.

        Raises:
            UserError: no split has a usable image.
        """
        splits: dict[str, ImageSet] = {}
        missing: dict[str, str] = {}
        for split, sources in config.splits.items():
            try:
                paths, notes = list_images(sources, config.root)
            except UserError as error:
                missing[split] = str(error)
                continue
            title = f"{config.path.name} {split}"
            packed, report = scan(paths, None, workers=workers, title=title, keypoints=config.keypoints)
            report.messages[:0] = notes
            splits[split] = ImageSet(packed.take(np.flatnonzero(packed.status != CORRUPT)), report)
        if not any(map(len, splits.values())):
            found = [message for images in splits.values() for message in images.report.messages]
            reason = [*missing.values(), *found][0]
            raise UserError(f"{config.path}: no usable image in any split ({reason})")
        label_files = {
            split: find_labels([images.path(index) for index in range(len(images))])[0]
            for split, images in splits.items()
        }
        return cls(config, imgsz, anchors, workers, network, splits, label_files, missing)

    def labels(self) -> Iterator[tuple[str, ImageSet, np.ndarray]]:
        """Yield each split, its images, and the index (L,) of the image of each label."""
        for split, images in self.splits.items():
            yield split, images, np.repeat(np.arange(len(images)), np.diff(images.offsets))


def boxes_of(count: int) -> str:
    """Return a number of boxes in words.

    >>> boxes_of(1), boxes_of(2)
    ('1 box', '2 boxes')
    """
    return f"{count} box{'' if count == 1 else 'es'}"
