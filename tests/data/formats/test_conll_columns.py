"""Columns before the words that are none, in files of any size; what the notes say to do works."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lorakit.data.corpus import read_ner
from tests.support.corpora import named_columns, write_text

# word, lemma, part of speech, tag; a number of the word comes first
SENTENCES = """The the DT O|European european NNP B-ORG|Commission commission NNP I-ORG|said say VBD O|on on IN O
Germany germany NNP B-LOC|'s 's POS O|cats cat NNS O|were be VBD O|running run VBG O|. . . O
Peter peter NNP B-PER|Blackburn blackburn NNP I-PER|saw see VBD O|mice mouse NNS O|and and CC O|left leave VBD O"""
CLASSES = {
    "shape": lambda word, pos: "Xx" if word[0].isupper() else "x",
    "own parts of speech": lambda word, pos: {"NNP": "name", "VBD": "verb", "NNS": "noun"}.get(pos, "other"),
    "of German": lambda word, pos: {"NNP": "NE", "VBD": "VVFIN", "NNS": "NN", "DT": "ART"}.get(pos, "$."),
    "dependency": lambda word, pos: {"NNP": "nsubj", "VBD": "root", "NNS": "dobj", "DT": "det"}.get(pos, "dep"),
    "with dots": lambda word, pos: {"NNP": "n.prop", "VBD": "v.fin", "NNS": "n"}.get(pos, "pu"),
    "language": lambda word, pos: "en" if word.islower() else "other",
}


def write(path: Path, cells: Callable[..., Sequence[object]]) -> Path:
    lines = []
    for sentence in SENTENCES.split("\n"):
        rows = [cells(t, *token.split()) for t, token in enumerate(sentence.split("|"), start=1)]
        lines += ["\t".join(map(str, row)) for row in rows] + [""]
    return write_text(path, "\n".join(lines))


def words(path: Path, **options: object) -> list[str]:
    data = read_ner(path, **options)
    assert sum(tag[:2] == "B-" for s in data.train for tag in s.tags) == 3
    return [word for s in data.train for word in s.words]


WORDS = [token.split()[0] for sentence in SENTENCES.split("\n") for token in sentence.split("|")]
LEMMAS = [token.split()[1] for sentence in SENTENCES.split("\n") for token in sentence.split("|")]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("after", [False, True])
def test_a_column_of_few_values_is_no_words_in_a_small_file(tmp_path: Path, name: str, after: bool):
    make = CLASSES[name]
    path = write(tmp_path / "a.tsv", lambda t, w, lemma, pos, tag: [make(w, pos), w, *[pos] * after, tag])
    assert words(path) == WORDS
    [note] = [note for note in read_ner(path).notes if "not read as words" in note]
    [columns] = named_columns(note)
    assert words(path, columns=columns) == [make(*token.split()[::2]) for token in re.findall(r"[^|\n]+", SENTENCES)]


@pytest.mark.parametrize("name", CLASSES)
def test_classes_after_the_words_change_nothing(tmp_path: Path, name: str):
    make = CLASSES[name]
    path = write(tmp_path / "a.tsv", lambda t, w, lemma, pos, tag: [w, make(w, pos), tag])
    assert words(path) == WORDS
    assert not [note for note in read_ner(path).notes if "column" in note]


@pytest.mark.parametrize(
    "cells",
    [
        lambda t, w, lemma, pos, tag: [w, t, tag],
        lambda t, w, lemma, pos, tag: [w, t, pos, tag],
        lambda t, w, lemma, pos, tag: [w, tag, t],
        lambda t, w, lemma, pos, tag: [w, lemma, t, tag],
    ],
)
def test_numbers_after_the_words_are_no_words(tmp_path: Path, cells: Callable[..., Sequence[object]]):
    path = write(tmp_path / "a.tsv", cells)
    assert words(path) == WORDS
    assert not [note for note in read_ner(path).notes if "column" in note]


@pytest.mark.parametrize(
    ("lemma_of", "number"),
    [(lambda lemma: lemma, False), (lambda lemma: lemma, True), (lambda lemma: lemma[:4], False)],
    ids=["lemma", "after a number", "stem"],
)
def test_lemmas_before_the_words_are_skipped(tmp_path: Path, lemma_of: Callable[[str], str], number: bool):
    path = write(tmp_path / "a.tsv", lambda t, w, lemma, pos, tag: [*[t] * number, lemma_of(lemma), w, tag])
    assert words(path) == WORDS
    [note] = [note for note in read_ner(path).notes if "holds lemmas" in note]
    [columns] = named_columns(note)
    assert words(path, columns=columns) == list(map(lemma_of, LEMMAS))


def test_words_before_lemmas_stay_words(tmp_path: Path):
    path = write(tmp_path / "a.tsv", lambda t, w, lemma, pos, tag: [w, lemma, tag])
    assert words(path) == WORDS
    assert not [note for note in read_ner(path).notes if "column" in note]


def test_what_may_be_lemmas_is_a_note_that_works(tmp_path: Path):
    """Without capitals nothing but their number tells lemmas from words."""
    pairs = [("लड़के", "लड़का"), ("लड़कों", "लड़का"), ("घर", "घर"), ("घरों", "घर"), ("में", "में"), ("और", "और")]
    rows = "".join(f"{lemma}\t{word}\t{'B-X' if word == 'घर' else 'O'}\n" for word, lemma in pairs)
    path = write_text(tmp_path / "a.tsv", rows)
    [note] = [note for note in read_ner(path).notes if "more different ones" in note]
    assert "column 1 is read as words, but column 2 has more different ones (6, not 4; if those are the words" in note
    [columns] = named_columns(note)
    assert [read_ner(path, columns=columns).train[0].words] == [tuple(word for word, _ in pairs)]


def test_numbers_are_no_words_beside_words_with_numbers(tmp_path: Path):
    data = read_ner(write_text(tmp_path / "a.tsv", "1\tIL2\tB-X\n1\tp53\tO\n2\tCD4\tO\n2\tHIV1\tB-X\n\n1\tx1\tO\n"))
    assert [s.words for s in data.train][0][0] == "IL2"
    assert any("column 1 has only numbers (1, 2)" in note for note in data.notes)


def test_numbers_of_characters_are_removed_with_a_note(tmp_path: Path):
    path = write_text(tmp_path / "a.conll", "科0\tO\n技1\tO\n10\tO\n\n对0\tO\n北0\tB-GPE.NAM\n京1\tI-GPE.NAM\n")
    data = read_ner(path)
    assert [s.words for s in data.train] == [("科", "技", "1"), ("对", "北", "京")]
    assert any("every word is a character with its number in a word" in note for note in data.notes)
    assert read_ner(path, columns={"word": "1", "tag": "2"}).train[0].words == ("科0", "技1", "10")


@pytest.mark.parametrize("words", ["a0 b2", "a1 b2", "a0 b0", "ab0 c1", "a0 b", "a0 b1 c1"])
def test_other_words_with_numbers_stay_as_they_are(tmp_path: Path, words: str):
    path = write_text(tmp_path / "a.tsv", "".join(f"{word}\tB-X\n" for word in words.split()))
    assert read_ner(path).train[0].words == tuple(words.split())
