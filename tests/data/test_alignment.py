"""Annotations with offsets become tagged sentences, and each is kept or named by one note."""

import pytest

from lorakit.data.alignment import (
    AROUND,
    CUT,
    DOUBLE,
    EMPTY,
    GAPS,
    JOINED,
    LEFT_OUT,
    NESTED,
    NO_WORD,
    ONE_PIECE,
    OVERLAP,
    TRIMMED,
    tag_sentences,
    with_text,
    with_words,
)
from lorakit.data.formats.record import Annotation, Document
from lorakit.data.pretokenizer import split_words


def document(text: str, *spans: tuple, **more) -> Document:
    found = tuple(Annotation(label, start, end, f"T{i}") for i, (label, start, end) in enumerate(spans, start=1))
    return Document((), None, "doc", text, spans=found, **more)


def tagged(text: str, *spans: tuple, layer: str | None = None) -> tuple[list[str], list[tuple[str, str]]]:
    """The sentences, each as its words with their tags where they are not O; and the notes as (kind, id)."""
    aligned = tag_sentences(document(text, *spans), layer)
    assert aligned.kept + sum(note.kind in LEFT_OUT for note in aligned.notes) == len(spans)
    rows = [
        " ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in zip(row.words, row.tags, strict=True))
        for row in aligned.sentences
    ]
    return rows, [(note.kind, note.where.removeprefix("doc, ")) for note in aligned.notes]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One .", "Two !", "Three ?"]),
        ("Dr. Smith saw E. coli. Next.", ["Dr. Smith saw E. coli .", "Next ."]),
        ("see Fig. 2 vs. the rest. (New one.) yes", ["see Fig. 2 vs. the rest .", "( New one . ) yes"]),
        ('He said "no." Then left.', ['He said " no . "', "Then left ."]),
        ("a line\nanother\r\n\r\nthird", ["a line", "another", "third"]),
        ("approx. 5 mg. of it", ["approx. 5 mg . of it"]),
        ("你好。他来了！好", ["你 好 。", "他 来 了 ！", "好"]),
        (" \n ", []),
        ("", []),
    ],
)
def test_sentences_end_at_line_ends_and_stops(text: str, sentences: list[str]) -> None:
    assert tagged(text) == (sentences, [] if sentences else [(NO_WORD, "doc")])


def test_each_sentence_has_the_words_that_predict_finds_in_it() -> None:
    for row in tag_sentences(document("Smith et al.\nvs. Dr.\nOK (IL-2). Yes.")).sentences:
        assert list(row.words) == [word.text for word in split_words(row.text)]
        assert [row.text[start:end] for start, end in row.offsets] == list(row.words)


@pytest.mark.parametrize(
    ("spans", "layer", "row", "notes"),
    [
        ([("A", 0, 4), ("B", 5, 9)], None, "IL-2/B-A gene/B-B works", []),
        ([("A", 0, 4), ("B", 0, 9)], None, "IL-2/B-B gene/I-B works", [(NESTED, "T1")]),
        ([("A", 0, 4), ("B", 0, 9)], "inner", "IL-2/B-A gene works", [(AROUND, "T2")]),
        ([("A", 0, 9), ("B", 5, 15)], None, "IL-2 gene/B-B works/I-B", [(OVERLAP, "T1")]),
        ([("A", 0, 9), ("B", 5, 15)], "inner", "IL-2 gene/B-B works/I-B", [(OVERLAP, "T1")]),
        ([("A", 0, 4), ("B", 0, 4)], None, "IL-2/B-A gene works", [(DOUBLE, "T2")]),
        ([("A", 2, 2)], None, "IL-2 gene works", [(EMPTY, "T1")]),
        ([("A", 4, 5)], None, "IL-2 gene works", [(EMPTY, "T1")]),
        ([("A", 4, 10)], None, "IL-2 gene/B-A works", [(TRIMMED, "T1")]),
        ([("A", 0, 2)], None, "IL/B-A -2 gene works", [(CUT, "T1")]),
        ([("A", 3, 7)], None, "IL- 2/B-A ge/I-A ne works", [(CUT, "T1")]),
    ],
)
def test_each_annotation_is_kept_or_named(spans: list, layer: str | None, row: str, notes: list) -> None:
    assert tagged("IL-2 gene works", *spans, layer=layer) == ([row], notes)


def test_an_entity_across_a_border_joins_the_sentences() -> None:
    rows, notes = tagged("at Yahoo! Inc. we\nwork. Here.", ("ORG", 3, 13), ("X", 15, 22))
    assert rows == ["at Yahoo/B-ORG !/I-ORG Inc/I-ORG . we/B-X work/I-X .", "Here ."]
    assert (JOINED, "T2") in notes


def test_a_language_without_spaces_has_characters_as_words() -> None:
    rows, notes = tagged("王小明在北京大学。", ("PER", 0, 3), ("ORG", 4, 8))
    assert rows == ["王/B-PER 小/I-PER 明/I-PER 在 北/B-ORG 京/I-ORG 大/I-ORG 学/I-ORG 。"] and notes == []


def test_pieces_of_one_entity() -> None:
    spans = (
        Annotation("LOC", 0, 23, "T1", ((0, 5), (16, 23))),
        Annotation("LOC", 28, 41, "T2", ((28, 33), (34, 41))),
    )
    text = "North and South America and North America"
    aligned = tag_sentences(Document((), None, "doc", text, spans=spans))
    assert aligned.sentences[0].tags == ("O",) * 5 + ("B-LOC", "I-LOC")
    assert [(note.kind, note.where) for note in aligned.notes] == [(GAPS, "doc, T1"), (ONE_PIECE, "doc, T2")]


def test_words_and_sentences_of_the_format_are_used_and_complemented() -> None:
    source = document("don't stop now", ("A", 2, 5), sentences=((0, 14),))
    source = source._replace(words=("do", "n't", "now"), offsets=((0, 2), (2, 5), (11, 14)))
    row = tag_sentences(source).sentences[0]
    assert (row.words, row.tags) == (("do", "n't", "stop", "now"), ("O", "B-A", "O", "O"))


def test_text_outside_of_the_formats_sentences_is_split_too() -> None:
    source = document("A title. Two of it.\nOne. Sentence here.", sentences=((20, 39),))
    rows = [" ".join(row.words) for row in tag_sentences(source).sentences]
    assert rows == ["A title .", "Two of it .", "One . Sentence here ."]


def test_spans_in_words_become_tags() -> None:
    words = Document(("a", "", "c", "d"), None, "doc", spans=(Annotation("X", 1, 3), Annotation("Y", 3, 4)))
    rows = tag_sentences(words._replace(sentences=((0, 2), (2, 4)))).sentences
    assert [(row.words, row.tags) for row in rows] == [(("a", "", "c", "d"), ("O", "B-X", "I-X", "B-Y"))]


def test_words_get_a_text_and_a_text_gets_words() -> None:
    source = Document(("IL-2", "gene", "."), ("B-A", "I-A", "O"), "doc")
    text = with_text(source)
    assert (text.text, text.spans) == ("IL-2 gene .", (Annotation("A", 0, 9),))
    words = with_words(text)
    assert (words.words, words.spans, words.text) == (source.words, (Annotation("A", 0, 2),), None)
    assert with_words(document("IL-2.", ("A", 0, 2), ("B", 4, 4))).spans == (Annotation("A", 0, 1, "T1"),)


def test_every_annotation_of_a_long_text_is_kept() -> None:
    text = "IL-2 gene works. " * 3000
    spans = [("A", 17 * i, 17 * i + 9) for i in range(3000)]
    aligned = tag_sentences(document(text, *spans))
    assert aligned.kept == 3000 == len(aligned.sentences)


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown layer 'middle'; it is one of outer, inner"):
        tag_sentences(document("a"), "middle")
