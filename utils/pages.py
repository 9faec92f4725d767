"""Build HTML pages of one file each, which load nothing and escape every text."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template

_TEMPLATE = Path(__file__).with_name("page.html")


def html_page(title: str, body: str) -> str:
    """Return a page with a title and the HTML of its body.

    It brings the style, and the script that sorts tables of class `sortable` and enlarges pictures.
    """
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(title=escape(title), body=body)


def html_image(data: bytes, kind: str, alt: str) -> str:
    """Return a picture whose bytes are inside the page.

    >>> html_image(b"abc", "png", "<a>")
    '<img alt="&lt;a&gt;" src="data:image/png;base64,YWJj">'
    """
    code = base64.b64encode(data).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{code}">'


def html_figure(jpeg: bytes, alt: str, caption: str, note: str, kind: str = "") -> str:
    """Return a picture with a caption and a note; `kind` is its style."""
    style = f' class="{kind}"' if kind else ""
    return (
        f"<figure{style}>{html_image(jpeg, 'jpeg', alt)}"
        f"<figcaption><b>{escape(caption)}</b><span>{escape(note)}</span></figcaption></figure>"
    )


def html_facts(facts: Mapping[str, object]) -> str:
    """Return names and their values as a list.

    >>> html_facts({"images": 3})
    '<dl><dt>images</dt><dd>3</dd></dl>'
    """
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    return f"<dl>{''.join(rows)}</dl>"


def html_tiles(tiles: Iterable[tuple[str, str, str]]) -> str:
    """Return a row of tiles: what each shows, its value, and a note or nothing.

    >>> html_tiles([("images", "3", "")])
    '<div class="tiles"><div class="tile"><span>images</span><strong>3</strong></div></div>'
    """
    inside = "".join(
        f'<div class="tile"><span>{escape(what)}</span><strong>{escape(value)}</strong>'
        + (f"<span>{escape(note)}</span></div>" if note else "</div>")
        for what, value, note in tiles
    )
    return f'<div class="tiles">{inside}</div>'
