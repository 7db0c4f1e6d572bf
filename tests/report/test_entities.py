"""Entities shown as HTML and on a terminal: every character of the text is shown, and none is executed."""

import csv
import io
import re
from dataclasses import asdict
from html.parser import HTMLParser

from lorakit.data.pretokenizer import split_words
from lorakit.report.entities import Tagging, as_conll, as_csv, as_html, as_table, as_terminal
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

    page = as_html([NASTY], "runs/<b>/adapter")
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
        "ol",
        "span",
    }
    assert NASTY.text.replace(NASTY.entities[0].text, NASTY.entities[0].text + 'D"<A0.50') in reader.text
    assert not re.search(r"https?://|src=|href=", page)


def test_a_terminal_obeys_no_character_of_the_text():
    shown = re.sub(r"\x1b\[[\d;]*m", "", as_terminal([NASTY]))
    assert shown.endswith("\\x1b]0;title\\x07 \\u202eIL-2\\n\n")
    assert "\x1b" not in shown + as_table([NASTY])


def test_the_page_names_its_model_counts_and_leaves_no_hole_for_blank_texts():
    word = Entity("DNA", 0, 4, "IL-2", 0.9, 0, 1)
    page = as_html(
        [Tagging("IL-2 binds", [], [], [word]), Tagging("", [], [], []), Tagging(" \n", [], [], [])], "my/model"
    )
    assert "<title>1 entity in 1 text – my/model</title>" in page
    assert "found by my/model; 2 blank texts left out" in page
    assert page.count('class="text"') == 1 and 'data-number="1"' in page
    assert re.search(r'<span class="label">IL-2<b>DNA</b><small>0.90</small></span></mark> binds', page)


def test_a_long_word_can_still_break_before_its_label():
    text = "a " + "x" * 90
    page = as_html([Tagging(text, [], [], [Entity("DNA", 0, 92, text, 0.9, 0, 2)])], "m")
    assert f'a {"x" * 78}<span class="label">{"x" * 12}<b>' in page


def test_conll_is_well_formed_where_the_models_own_tags_are_not():
    from seqeval.metrics.sequence_labeling import get_entities
    from seqeval.scheme import IOB2, Entities

    text = "IL-2 gene binds"
    entities = [Entity("protein", 0, 4, "IL-2", 0.9, 0, 1), Entity("DNA", 5, 9, "gene", 0.9, 1, 2)]
    conll = as_conll([Tagging(text, split_words(text), ["B-protein", "I-DNA", "O"], entities)])
    assert conll == "IL-2\tB-protein\ngene\tB-DNA\nbinds\tO\n\n"
    tags = conll.split()[1::2]
    strict = [entity.to_tuple()[1:] for row in Entities([tags], IOB2).entities for entity in row]
    assert strict == [(kind, start, end + 1) for kind, start, end in get_entities(tags)]


def test_csv_reads_back_as_the_entities():
    rows = list(csv.DictReader(io.StringIO(as_csv([Tagging("", [], [], []), NASTY]), newline="")))
    wanted = {"number": 2, **asdict(NASTY.entities[0])}
    assert rows == [{name: str(value) for name, value in wanted.items()}]
