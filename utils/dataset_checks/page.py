"""Render the findings as one HTML file with example images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from utils.boxes import xywhn2xyxy
from utils.dataset_checks.findings import Finding, Mark, Section
from utils.dataset_checks.report import place_of
from utils.errors import UserError
from utils.images import load_image
from utils.pages import html_facts, html_figure, html_page, html_tiles
from utils.results.drawing import drawn_jpeg

SHOWN_ROWS = 50
"""Findings of a kind in its table; the JSON has all."""

SHOWN_IMAGES = 12
"""Findings of a kind that are shown with their images."""

_LEAST_VIEW = 96  # pixels: a smaller part of an image tells nothing about where it is


def findings_page(title: str, sections: Sequence[Section], facts: Mapping[str, object]) -> str:
    """Return the page of a check.

    Args:
        title: its heading.
        sections: results of the checks.
        facts: how the check was made.
    """
    parts = [_overview(sections), *map(_section, sections)]
    parts.append(f"<section><h2>How it was checked</h2>{html_facts(facts)}</section>")
    return html_page(title, "\n".join(parts))


def _overview(sections: Sequence[Section]) -> str:
    """Return the number of findings of each kind, in tiles."""
    tiles = [(kind, str(len(found)), "") for section in sections for kind, found in section.kinds().items()]
    return html_tiles(tiles) if tiles else '<p class="sub">Nothing was found.</p>'


def _section(section: Section) -> str:
    """Return a section: facts, then each kind with its table and its images."""
    kinds = "".join(_kind(kind, found) for kind, found in section.kinds().items())
    return f"<section><h2>{escape(section.title)}</h2>{html_facts(section.facts)}{kinds}</section>"


def _kind(kind: str, found: Sequence[Finding]) -> str:
    more = f", the first {SHOWN_ROWS}" if len(found) > SHOWN_ROWS else ""
    rows = "".join(map(_finding_row, found[:SHOWN_ROWS]))
    figures = "".join(map(_figures, [finding for finding in found if finding.images][:SHOWN_IMAGES]))
    grid = f'<div class="sample">{figures}</div>' if figures else ""
    return (
        f"<h3>{escape(kind)}: {len(found)}{more}</h3>{grid}"
        '<div class="scroll"><table><thead><tr><th class="num">score</th><th>split</th><th>where</th>'
        f"<th>what</th><th>what to do</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _finding_row(finding: Finding) -> str:
    texts = (place_of(finding), finding.value, finding.remedy)
    cells = "".join(f'<td class="wrap">{escape(text)}</td>' for text in texts)
    return f'<tr><td class="num">{finding.score:.2f}</td><td>{escape(finding.split)}</td>{cells}</tr>'


def _figures(finding: Finding) -> str:
    """Return the images of a finding, the first with its marks."""
    figures = []
    for number, path in enumerate(finding.images):
        try:
            image = load_image(path)
        except UserError:
            continue  # the finding itself says what is wrong with the file
        jpeg = _picture(image, finding.marks if number == 0 else ())
        note = finding.value if number == 0 else "the other one"
        figures.append(html_figure(jpeg, path, Path(path).name, note))
    return "".join(figures)


def _picture(image: np.ndarray, marks: Sequence[Mark]) -> bytes:
    """Return the part of an image around its marks, drawn, as JPEG."""
    height, width = image.shape[:2]
    boxes = np.zeros((len(marks), 6))
    boxes[:, 4:] = 1, 0
    boxes[:, 5] = np.arange(len(marks))
    if len(marks):
        boxes[:, :4] = xywhn2xyxy(np.array([mark.row[1:] for mark in marks]), width, height)
        left, top, right, bottom = view_of(boxes[:, :4], (height, width))
        image = np.ascontiguousarray(image[top:bottom, left:right])
        boxes[:, :4] -= (left, top, left, top)
    return drawn_jpeg(image, boxes, [mark.caption for mark in marks], hide_conf=True)


def view_of(boxes: np.ndarray, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the part of an image that shows boxes with their surroundings.

    Args:
        boxes: (n, 4) xyxy in pixels.
        shape: (h, w) of the image.

    Returns:
        left, top, right, bottom in pixels.

    >>> view_of(np.array([[200.0, 200, 260, 240]]), (400, 600))
    (140, 130, 320, 310)
    """
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    half = max(1.5 * (high - low).max(), _LEAST_VIEW / 2)
    centre = (low + high) / 2
    left, top = np.maximum(np.floor(centre - half), 0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(centre + half), shape[::-1]).astype(int).tolist()
    return left, top, right, bottom
