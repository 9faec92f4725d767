"""Build HTML pages of one file each, which load nothing and escape every text."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
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
    '<img alt="&lt;a&gt;" loading="lazy" decoding="async" src="data:image/png;base64,YWJj">'
    """
    code = base64.b64encode(data).decode("ascii")
    return f'<img alt="{escape(alt)}" loading="lazy" decoding="async" src="data:image/{kind};base64,{code}">'


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


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> str:
    """Return a table that is sorted by a click.

    A column is of numbers unless its first row has a text. None is an empty cell.

    >>> html_table(["class", "mAP"], [["cat", 0.5]]).split("<tbody>")[1].split("</tbody>")[0]
    '<tr><th scope="row">cat</th><td class="num" data-value="0.5">0.500</td></tr>'
    """
    listed = [list(row) for row in rows]
    numeric = [not isinstance(cell, str) for cell in listed[0]] if listed else [False] * len(heads)
    head = "".join(
        f'<th class="{"num" * number}"><button>{escape(title)}</button></th>'
        for title, number in zip(heads, numeric)
    )
    body = "".join(f"<tr>{''.join(map(_cell, row, range(len(row))))}</tr>" for row in listed)
    return html_sortable(head, body)


def html_sortable(head: str, body: str) -> str:
    """Return a table that is sorted by a click.

    It is made of the HTML of its heads and of its rows.
    """
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: str | float | None, column: int) -> str:
    """Return a cell of a table: a text, a number, or nothing for None."""
    if isinstance(value, str):
        text = escape(value)
        return f"<td>{text}</td>" if column else f'<th scope="row">{text}</th>'
    shown = "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
    return f'<td class="num" data-value="{"" if value is None else value}">{shown}</td>'


def html_filter(
    choices: Mapping[str, Mapping[int, str]], items: Iterable[tuple[str, Iterable[tuple[int, ...]]]]
) -> str:
    """Return items below one select for each of `choices`.

    The page's script hides the items that do not fit.

    Args:
        choices: name of a select -> number -> text; "all" comes first by itself.
        items: the HTML of each item with its tags; a tag has one number for each select, and an item is shown
            if one of its tags has all the numbers that are chosen.

    >>> html_filter({"class": {3: "cat"}}, [("<p></p>", [(3,)])]).split("</form>")[1]
    '<div class="items"><article data-tags="3"><p></p></article></div>'
    """
    selects = "".join(
        f'<label>{escape(name)} <select><option value="">all</option>'
        + "".join(f'<option value="{number}">{escape(text)}</option>' for number, text in texts.items())
        + "</select></label>"
        for name, texts in choices.items()
    )
    articles = "".join(
        f'<article data-tags="{" ".join("-".join(map(str, tag)) for tag in sorted(tags))}">{inside}</article>'
        for inside, tags in items
    )
    return f'<form class="filter">{selects}<output></output></form><div class="items">{articles}</div>'
