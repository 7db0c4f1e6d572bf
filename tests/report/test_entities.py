"""Entities shown as HTML and on a terminal: every character of the text is shown, and none is executed."""

import re
from html.parser import HTMLParser

from lorakit.report.entities import Tagging, as_html, as_table, as_terminal
from lorakit.training.prediction import Entity

NASTY = Tagging(
    'a <script>alert("x")</script> & \x1b]0;title\x07 \u202eIL-2\n', [], [], [Entity('D"<A', 2, 29, "", 0.5, 0, 1)]
)
NASTY = NASTY._replace(entities=[Entity('D"<A', 2, 29, NASTY.text[2:29], 0.5, 0, 1)])


def test_html_shows_every_character_and_runs_none():
    class Reader(HTMLParser):
        tags, text = set(), ""

        def handle_starttag(self, tag, attributes):
            self.tags.add(tag)

        def handle_data(self, data):
            self.text += data

    page = as_html([NASTY])
    reader = Reader()
    reader.feed(page)
    assert reader.tags <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "ul",
        "li",
        "mark",
        "b",
        "small",
        "p",
    }
    assert NASTY.text.replace(NASTY.entities[0].text, NASTY.entities[0].text + 'D"<A0.50') in reader.text
    assert not re.search(r"https?://|src=|href=", page)


def test_a_terminal_obeys_no_character_of_the_text():
    shown = re.sub(r"\x1b\[[\d;]*m", "", as_terminal([NASTY]))
    assert shown.endswith("\\x1b]0;title\\x07 \\u202eIL-2\\n\n")
    assert "\x1b" not in shown + as_table([NASTY])
