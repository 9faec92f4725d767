"""The parts of a page: everything inside, everything escaped."""

from __future__ import annotations

import re

from utils.pages import html_facts, html_figure, html_filter, html_page, html_table


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


def test_a_table_has_numbers_that_can_be_sorted_and_texts_that_are_escaped():
    html = html_table(["<name>", "n", "mAP"], [["<b>", 3, 0.25], ["c", 4, None]])
    assert "<b>" not in html and html.count("&lt;b&gt;") == 1 and "&lt;name&gt;" in html
    assert '<td class="num" data-value="3">3</td><td class="num" data-value="0.25">0.250</td>' in html
    assert '<td class="num" data-value=""></td>' in html and 'class="sortable"' in html
    assert "<tbody></tbody>" in html_table(["a"], [])


def test_a_filter_has_a_select_for_each_choice_and_tags_for_each_item():
    html = html_filter({"<kind>": {1: "<a>"}, "class": {7: "b"}}, [("one", [(2, 7), (1, 7)]), ("two", [])])
    assert '<article data-tags="1-7 2-7">one</article><article data-tags="">two</article>' in html
    assert html.count("<select>") == 2 and html.count('<option value="">all</option>') == 2
    assert '<option value="1">&lt;a&gt;</option>' in html and "<kind>" not in html
