"""Offsets that a file counts in its own way are found out from the text beside the annotations, or refused."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.data.corpus import read_ner
from lorakit.data.formats.offsets import ASSUMED, check_ends, check_starts, place_spans
from lorakit.data.formats.record import Annotation, Document
from tests.support.corpora import write_lines

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


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["EU", "IL-2", "é", "(p50)", "U.S.", "naïve"]), min_size=1, max_size=6), st.booleans())
def test_ends_at_the_last_character_are_found_out_by_the_text_beside(words: list[str], from_one: bool) -> None:
    text, items, at = " ".join(words), [], 0
    for word in words:
        items.append(Annotation("X", at + from_one, at + len(word) - 1 + from_one))
        at += len(word) + 1
    placed, notes = place_spans(text, items, words, "doc")
    assert [text[item.start : item.end] for item in placed] == words
    assert any("first and the last character" in note.kind for note in notes) or all(len(word) == 1 for word in words)
    if not from_one:
        placed, _ = place_spans(text, items, [None] * len(items), "doc", "inclusive")
        assert [text[item.start : item.end] for item in placed] == words


TEXT_OF_ENDS = "EU rejects German call to boycott British lamb."


def of_words(*pieces: tuple[int, int], is_proven: bool = False) -> list[Document]:
    spans = tuple(Annotation("X", start, end) for start, end in pieces)
    return [Document((), None, "f:1", TEXT_OF_ENDS, spans=spans, is_proven=is_proven)]


def test_ends_that_all_are_one_character_short_are_refused() -> None:
    message = "f: all 3 annotations end one character before their words do, the first at f:1: 'E' of 'EU'; if the file"
    with pytest.raises(ValueError, match=f"{message} names the last character of each, say offsets='inclusive'"):
        check_ends(of_words((0, 1), (11, 16), (42, 45)), "f")


@pytest.mark.parametrize(
    "documents",
    [
        of_words((0, 2), (11, 17), (42, 46)),  # right ones
        of_words((0, 1), (11, 16), (42, 46), (34, 41)),  # most are, but not all
        of_words((0, 1)),  # one may be a mistake
        of_words((0, 1), (11, 16), is_proven=True),
        of_words((42, 46), (42, 46)),  # before a full stop
        [Document((), None, "f:1", "我在北京", spans=(Annotation("X", 0, 1), Annotation("X", 2, 3)), is_proven=False)],
        [],
    ],
)
def test_other_ends_are_kept(documents: list[Document]) -> None:
    check_ends(documents, "f")


@pytest.mark.parametrize("form", ["doccano", "spans-jsonl", "spacy-json", "prodigy"])
def test_both_ways_out_of_short_ends_work(tmp_path: Path, form: str) -> None:
    triples = [[0, 1, "ORG"], [11, 16, "MISC"], [34, 40, "MISC"]]
    spans = [dict(zip(("start", "end", "label"), triple, strict=True)) for triple in triples]
    tokens = [{"text": "EU", "start": 0, "end": 2}, {"text": "rejects", "start": 3, "end": 10}]
    record = {
        "doccano": {"text": TEXT_OF_ENDS, "label": triples},
        "spans-jsonl": {"text": TEXT_OF_ENDS, "spans": spans},
        "spacy-json": [TEXT_OF_ENDS, {"entities": triples}],
        "prodigy": {"text": TEXT_OF_ENDS, "spans": spans, "tokens": tokens, "answer": "accept"},
    }[form]
    path = write_lines(tmp_path / "a.jsonl", record)
    with pytest.raises(ValueError, match="say offsets='inclusive', and if not, offsets='characters'"):
        read_ner(path)
    for way, tags in (("inclusive", ("B-ORG", "O", "B-MISC", "O")), ("characters", ("B-ORG", "O", "O", "B-MISC"))):
        assert read_ner(path, offsets=way).train[0].tags[:4] == tags


def test_starts_that_all_are_one_too_high_are_refused() -> None:
    message = (
        "f: the 3 annotations begin one character after their words do, the first at f:1: 'U ' instead of 'EU'; if"
    )
    with pytest.raises(ValueError, match=f"{message} the file counts characters from 1, say offsets='from-one', and"):
        check_starts(of_words((1, 3), (12, 18), (43, 47)), "f")
    with pytest.raises(ValueError, match="'U' instead of 'EU'; .* say offsets='from-one-inclusive', and if not, off"):
        check_starts(of_words((1, 2), (12, 17), (43, 46)), "f")


@pytest.mark.parametrize(
    "documents",
    [
        of_words((0, 2), (11, 17), (42, 46)),  # right ones
        of_words((1, 3), (12, 18), (42, 46)),  # a third is right
        of_words((1, 3)),  # one may be a mistake
        of_words((1, 3), (12, 18), is_proven=True),
        of_words((4, 6), (13, 15)),  # pieces of words
        [Document((), None, "f:1", "我在北京", spans=(Annotation("X", 1, 2), Annotation("X", 2, 4)), is_proven=False)],
        [Document(("a", "b"), None, "f:1", spans=(Annotation("X", 0, 1), Annotation("X", 1, 2)), is_proven=False)],
        [],
    ],
)
def test_other_starts_are_kept(documents: list[Document]) -> None:
    check_starts(documents, "f")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["EU", "IL-2", "é", "(p50)", "U.S.", "naïve", "“a”"]), min_size=2, max_size=8),
    st.booleans(),
)
def test_places_counted_from_one_are_found_and_read(words: list[str], inclusive: bool) -> None:
    """What is written from 1 is refused, unless signs beside words hide it; the flag it names reads all of it."""
    text, items, at = " ".join(words), [], 0
    for word in words:
        items.append(Annotation("X", at + 1, at + len(word) + (not inclusive)))
        at += len(word) + 1
    text += " "  # the last end is a place, too
    unit = "from-one-inclusive" if inclusive else "from-one"
    shifted = Document((), None, "f:1", text, spans=tuple(items), is_proven=False)
    hidden = (not word[0].isalnum() or word[1:2] == "." for word in words)  # "p50)" and ".S." seem whole, too
    if not inclusive or not any(hidden):
        with pytest.raises(ValueError, match=f"say offsets='{unit}', and"):
            check_starts([shifted], "f")
    placed, _ = place_spans(text, items, [None] * len(items), "f:1", unit)
    assert [text[item.start : item.end] for item in placed] == words
    check_starts([shifted._replace(spans=placed)], "f")


@pytest.mark.parametrize("form", ["doccano", "spans-jsonl", "spacy-json", "prodigy"])
@pytest.mark.parametrize("unit", ["from-one", "from-one-inclusive"])
def test_both_ways_out_of_high_starts_work(tmp_path: Path, form: str, unit: str) -> None:
    last = unit == "from-one-inclusive"
    triples = [[1, 3 - last, "ORG"], [12, 18 - last, "MISC"], [35, 42 - last, "MISC"]]
    spans = [dict(zip(("start", "end", "label"), triple, strict=True)) for triple in triples]
    record = {
        "doccano": {"text": TEXT_OF_ENDS, "label": triples},
        "spans-jsonl": {"text": TEXT_OF_ENDS, "spans": spans},
        "spacy-json": [TEXT_OF_ENDS, {"entities": triples}],
        "prodigy": {"text": TEXT_OF_ENDS, "spans": spans, "answer": "accept"},
    }[form]
    path = write_lines(tmp_path / "a.jsonl", record)
    with pytest.raises(ValueError, match=f"say offsets='{unit}', and if not, offsets='characters'"):
        read_ner(path)
    assert read_ner(path, offsets=unit).train[0].tags[:4] == ("B-ORG", "O", "B-MISC", "O")
    assert read_ner(path, offsets="characters").train[0].tags[:2] == ("O", "B-ORG")
