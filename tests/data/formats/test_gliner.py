"""GLiNER counts the last word of an entity, not the one after it."""

import json
from pathlib import Path

import pytest

from lorakit.data.formats.gliner import read_gliner, recognise_gliner, write_gliner
from lorakit.data.formats.record import Annotation, Document, Reading
from tests.support.corpora import write_lines, write_text

WORDS = ["State", "University", "of", "New", "York", "is", "big"]


@pytest.mark.parametrize("array", [False, True])
def test_word_ends_are_inclusive(tmp_path: Path, array: bool) -> None:
    record = {"tokenized_text": WORDS, "ner": [[0, 4, "org"], [3, 4, "city or state"]]}
    path = write_text(tmp_path / "a.json", json.dumps([record])) if array else write_lines(tmp_path / "a.json", record)
    assert recognise_gliner(path) == "each object has tokenized_text and ner"
    document = next(read_gliner(path, Reading()))
    assert document.words == tuple(WORDS) and document.text is None
    assert document.spans == (Annotation("org", 0, 5), Annotation("city or state", 3, 5))
    assert write_gliner([document], tmp_path / "out.json") == []
    assert json.loads((tmp_path / "out.json").read_text()) == [record]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tokenized_text": WORDS, "ner": [[5, 7, "x"]]}, "a.json:1, ner 1: words 5 to 7 do not exist: the text has 7"),
        ({"tokenized_text": WORDS, "ner": [[3, 2, "x"]]}, "a.json:1, ner 1: words 3 to 2 do not exist"),
        ({"tokenized_text": WORDS, "ner": [[3, 2]]}, "a.json:1, ner 1: .3, 2. must be .first word, last word, label."),
        ({"tokenized_text": WORDS, "ner": [[3, 4.0, "x"]]}, "a.json:1, ner 1: 'last word' must be an integer"),
        ({"tokenized_text": "a b", "ner": []}, "a.json:1: 'tokenized_text' must be a list, got 'a b'"),
        ({"tokenized_text": ["a", 1], "ner": []}, "a.json:1: 'a word of tokenized_text' must be a string, got 1"),
        ({"tokenized_text": WORDS}, "a.json:1: 'ner' must be a list, got None"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, record: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(read_gliner(write_lines(tmp_path / "a.json", record), Reading()))


def test_a_gap_in_words_is_said(tmp_path: Path) -> None:
    gap = Annotation("X", 0, 3, fragments=((0, 1), (2, 3)))
    said = write_gliner([Document(("a", "b", "c"), None, "", spans=(gap,))], tmp_path / "a.json")
    assert said == ["annotations with gaps, written from their first to their last word: 1"]


def test_other_lists_are_noted(tmp_path: Path) -> None:
    record = {"tokenized_text": ["EU"], "ner": [[0, 0, "ORG"]], "entities": [[0, 0, "X"]], "negatives": [], "id": 1}
    [document] = read_gliner(write_lines(tmp_path / "a.jsonl", record), Reading())
    assert [note.kind for note in document.notes] == ["field 'entities' is not used"]
