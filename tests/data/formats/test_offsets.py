"""Offsets that a file counts in its own way are found out from the text beside the annotations, or refused."""

import pytest

from lorakit.data.formats.offsets import ASSUMED, place_spans
from lorakit.data.formats.record import Annotation

TEXT = "😀 naïve IL-2\r\nof 𝒙"


def in_units(text: str, unit: str) -> int:
    if unit == "utf-16":
        return len(text.encode("utf-16-le")) // 2
    if unit == "bytes":
        return len(text.encode())
    return len(text.replace("\r\n", "\n")) if unit == "line ends" else len(text) + (unit == "from 1")


def marked(text: str, word: str, unit: str) -> Annotation:
    start = text.index(word)
    return Annotation("X", in_units(text[:start], unit), in_units(text[: start + len(word)], unit), "T1")


@pytest.mark.parametrize(
    ("unit", "note"),
    [
        ("characters", None),
        ("utf-16", "offsets are UTF-16 units and were converted"),
        ("bytes", "offsets are bytes of UTF-8 and were converted"),
        ("line ends", "offsets are characters with each line end as one and were converted"),
        ("from 1", "offsets are counted from 1 and were converted"),
    ],
)
def test_the_text_beside_an_annotation_tells_how_a_file_counts(unit: str, note: str | None) -> None:
    words = ["naïve", "IL-2", "of", "𝒙"]
    placed, notes = place_spans(TEXT, [marked(TEXT, word, unit) for word in words], words, "doc")
    assert [TEXT[item.start : item.end] for item in placed] == words
    assert notes == ([(note, "doc")] if note else [])


@pytest.mark.parametrize("unit", ["characters", "utf-16", "bytes"])
def test_a_named_unit_is_used_where_nothing_tells(unit: str) -> None:
    placed, _ = place_spans(TEXT, [marked(TEXT, "IL-2", unit)], [None], "doc", unit)
    assert TEXT[placed[0].start : placed[0].end] == "IL-2"


def test_where_nothing_tells_characters_are_assumed_and_a_note_says_so() -> None:
    placed, notes = place_spans(TEXT, [marked(TEXT, "IL-2", "characters")], [None], "doc")
    assert TEXT[placed[0].start : placed[0].end] == "IL-2" and notes == [(ASSUMED, "doc, T1")]
    assert place_spans("naïve IL-2", [Annotation("X", 6, 10)], [None], "doc")[1] == []


def test_white_space_is_not_compared() -> None:
    assert place_spans("North\nAmerica", [Annotation("X", 0, 13, "T1")], ["North America"], "doc")[1] == []


@pytest.mark.parametrize(
    ("item", "covered", "message"),
    [
        (Annotation("X", 5, 20, "T1"), None, "doc, T1: offsets 5-20 are outside of the text of 8 characters"),
        (Annotation("X", 5, 2, "T1"), None, "doc, T1: offsets 5-2 end before they begin; correct them in the file"),
        (Annotation("X", 0, 4, "T1"), "gene", "doc, T1: offsets 0-4 cover 'IL-2', but beside them the file has 'gene'"),
        (Annotation("X", 0, 8, "", ((0, 4), (7, 9))), None, "doc, X: offsets 0-4;7-9 are outside of the text"),
    ],
)
def test_what_fits_nowhere_is_refused(item: Annotation, covered: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place_spans("IL-2 ist", [item], [covered], "doc")


def test_half_a_character_is_refused() -> None:
    with pytest.raises(ValueError, match="doc, X: offsets 0-1 are outside of the text of 1 characters, or inside a"):
        place_spans("😀", [Annotation("X", 0, 1)], [None], "doc", "utf-16")


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown unit of offsets 'runes'; it is one of characters, utf-16, bytes"):
        place_spans("a", [Annotation("X", 0, 1)], [None], "doc", "runes")
