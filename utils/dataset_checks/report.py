"""Tell the findings as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from utils.dataset_checks.findings import CheckedData, Finding, Section

SHOWN_LINES = 10
"""Findings of a kind in the text; the JSON has all."""


def findings_text(sections: Sequence[Section]) -> str:
    """Return facts and the first findings of each kind as text."""
    lines: list[str] = []
    for section in sections:
        lines += ["", section.title]
        lines += [f"  {name}: {value}" for name, value in section.facts.items()]
        for kind, found in section.kinds().items():
            lines.append(f"  {kind}: {len(found)}")
            lines += [f"    {_sentence(finding)}" for finding in found[:SHOWN_LINES]]
            if len(found) > SHOWN_LINES:
                lines.append(f"    ... and {len(found) - SHOWN_LINES} more")
    return "\n".join(lines)


def _sentence(finding: Finding) -> str:
    """Return a finding on one line: where, what, what to do."""
    return f"{place_of(finding)}: {finding.value}; {finding.remedy}"


def place_of(finding: Finding) -> str:
    """Return the file of a finding, with its line where it has one.

    >>> place_of(Finding("bad-line", "a.txt", "no number", "correct it", line=3))
    'a.txt, line 3'
    """
    return f"{finding.file}, line {finding.line}" if finding.line else finding.file


def findings_json(data: CheckedData, sections: Sequence[Section]) -> str:
    """Return everything as JSON: facts by section, counts by kind, all findings."""
    kinds = [found for section in sections for found in section.kinds().items()]
    report = {
        "data": str(data.config.path),
        "imgsz": data.imgsz,
        "facts": {section.title: section.facts for section in sections},
        "counts": {kind: len(found) for kind, found in kinds},
        "findings": [asdict(finding) for _, found in kinds for finding in found],
    }
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"
