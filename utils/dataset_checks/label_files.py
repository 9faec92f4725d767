"""Find bad lines of label files, unusable images, and classes without a name."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from utils.dataset.labels import read_labels
from utils.dataset_checks.findings import CheckedData, Finding, Section
from utils.files import IMAGE_SUFFIXES

_PLACE = re.compile(r"(?P<file>.+?), line (?P<line>\d+): (?P<fault>.+)")


def check_label_files(data: CheckedData) -> Section:
    """Report each line and image that training leaves out, and why."""
    section = Section("Label files and images")
    for split, reason in data.missing.items():
        section.facts[split] = "no images"
        remedy = "put the images there or take the split out of the YAML"
        section.findings.append(Finding("missing-split", str(data.config.path), reason, remedy, split=split))
    for split, images in data.splits.items():
        section.facts[split] = images.report.summary()
        section.findings += [_finding(data, message, split) for message in images.report.messages]
    section.findings += _unnamed_classes(data)
    return section


def _finding(data: CheckedData, message: str, split: str) -> Finding:
    """Return a message of the scan as a finding of a line, image or split."""
    text = re.sub(r"; (row|line|image) ignored$", "", message)
    if place := _PLACE.fullmatch(text):
        remedy = "correct the line or delete it"
        return Finding("bad-line", place["file"], place["fault"], remedy, int(place["line"]), split=split)
    file, _, fault = text.partition(": ")
    if Path(file).suffix.lower() in IMAGE_SUFFIXES:
        remedy = "replace the file or take it out of the data set"
        return Finding("bad-image", file, fault, remedy, split=split)
    return Finding("note", str(data.config.path), text, "look whether it is meant so", split=split)


def _unnamed_classes(data: CheckedData) -> list[Finding]:
    """Return the labels whose class has no name; training ends at the first."""
    found, nc = [], len(data.config.label_names)
    for split, images, owner in data.labels():
        for row in np.flatnonzero(images.all_labels[:, 0] >= nc):
            index = int(owner[row])
            path = data.label_files[split][index]
            value = f"class {int(images.all_labels[row, 0])}, but the YAML names {nc} classes"
            line = label_line(data, path, int(row - images.offsets[index]))
            remedy = f"correct the class (0 to {nc - 1}) or add its name to {data.config.path}"
            shown = (images.path(index),)
            found.append(Finding("unknown-class", path, value, remedy, line, split=split, images=shown))
    return found


def label_line(data: CheckedData, path: str, number: int) -> int:
    """Return the line of a label, counted from 1; 0 if the file has changed.

    Args:
        data: the data set.
        path: the label file.
        number: of the label among the valid ones, from 0.
    """
    lines = _valid_lines(path, data.config.keypoints)
    return lines[number] if number < len(lines) else 0


@lru_cache(maxsize=64)
def _valid_lines(path: str, keypoints: int) -> list[int]:
    """Return the line numbers of the rows of a label file that are used."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            written = [number for number, line in enumerate(file.read().splitlines(), 1) if line.strip()]
        messages = read_labels(path, keypoints)[2]
    except OSError:
        return []
    places = (_PLACE.fullmatch(message) for message in messages)
    ignored = {int(place["line"]) for place in places if place}
    return [number for number in written if number not in ignored]
