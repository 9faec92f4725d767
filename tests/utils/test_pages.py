"""The parts of a page: everything inside, everything escaped."""

from __future__ import annotations

import re

from utils.pages import html_facts, html_figure, html_page


def test_a_page_is_one_file_that_loads_nothing():
    html = html_page("a < b", html_figure(b"\xff\xd8", "a picture", "caption", "note"))
    assert "<title>a &lt; b</title>" in html and "<h1>a &lt; b</h1>" in html
    assert html.count("src=") == html.count('src="data:image/jpeg;base64,') == 1
    assert not re.search(r"https?:|href=|\$\w", html)


def test_a_body_s_own_dollar_signs_stay():
    assert "costs $title" in html_page("t", "costs $title")


def test_texts_are_escaped():
    bad = '<script>"'
    html = html_facts({bad: bad}) + html_figure(b"", bad, bad, bad, "truth")
    assert bad not in html and html.count("&lt;script&gt;&quot;") == 5
    assert '<figure class="truth">' in html and "class" not in html_figure(b"", "", "", "")
