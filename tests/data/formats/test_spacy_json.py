"""spaCy's JSON of version 2 is read as spaCy converts it."""

import json
from pathlib import Path

import pytest

from lorakit.data.formats.record import Annotation, Document, Reading
from lorakit.data.formats.spacy_json import read_spacy_json, recognise_spacy_json, write_spacy_json
from tests.support.corpora import write_lines, write_text

TEXT = "Apple buys U.K. startup."


def training(raw: str | None = TEXT, **changes: str) -> list:
    """https://v2.spacy.io/api/annotation#json-input"""
    tags = {"Apple": "U-ORG", "buys": "O", "U.K.": "B-GPE", "startup": "L-GPE", ".": "O", **changes}
    tokens = [{"id": i, "orth": word, "ner": tag} for i, (word, tag) in enumerate(tags.items())]
    paragraph = {"sentences": [{"tokens": tokens[:2]}, {"tokens": tokens[2:], "brackets": []}], "cats": []}
    return [{"id": 7, "paragraphs": [{**paragraph, "raw": raw} if raw else paragraph]}]


def read(path: Path, value: object) -> list[Document]:
    file = write_text(path / "a.json", json.dumps(value, indent=1))
    assert recognise_spacy_json(file)
    return list(read_spacy_json(file, Reading()))


def test_the_training_format_is_read_as_spacy_reads_it(tmp_path: Path) -> None:
    document = read(tmp_path, training())[0]
    assert document.spans == (Annotation("ORG", 0, 5), Annotation("GPE", 11, 23))
    assert (document.text, document.sentences, document.id) == (TEXT, ((0, 10), (11, 24)), "7")
    converters = pytest.importorskip("spacy.training.converters", reason="the oracle is spaCy")
    theirs = list(converters.json_to_docs(json.dumps(training())))[0]
    assert [(e.label_, e.start_char, e.end_char) for e in theirs.ents] == [i[:3] for i in document.spans]


def test_without_raw_text_the_spans_are_in_words(tmp_path: Path) -> None:
    document = read(tmp_path, training(raw=None))[0]
    assert document.text is None and document.words == ("Apple", "buys", "U.K.", "startup", ".")
    assert document.spans == (Annotation("ORG", 0, 1), Annotation("GPE", 2, 4)) and document.sentences == (
        (0, 2),
        (2, 5),
    )
    other = read(tmp_path, training(raw="Something else"))[0]
    assert other.text is None and other.notes[0].kind == "tokens are not those of the raw text, which is not used"


def test_missing_tags_are_counted(tmp_path: Path) -> None:
    notes = read(tmp_path, training(buys="-"))[0].notes
    assert [note.kind for note in notes] == ["token that nobody annotated, read as O"]


@pytest.mark.parametrize("form", ["array", "lines", "annotator"])
def test_train_data_is_read(tmp_path: Path, form: str) -> None:
    """https://v2.spacy.io/usage/training#training-simple-style; lines of it come from jsonlines dumps."""
    items = [["Who is Shaka Khan?", {"entities": [[7, 17, "PERSON"]]}], ["I like London.", {"entities": []}]]
    if form == "lines":
        documents = list(read_spacy_json(write_lines(tmp_path / "a.json", *items), Reading()))
    else:
        documents = read(tmp_path, items if form == "array" else {"classes": ["PERSON"], "annotations": [*items, None]})
    assert [(d.text, d.spans) for d in documents[:2]] == [
        ("Who is Shaka Khan?", (Annotation("PERSON", 7, 17),)),
        ("I like London.", ()),
    ]
    assert [d.notes[0].kind for d in documents[2:]] == ["text without annotation, left out"] * (form == "annotator")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (training(Apple="X-ORG"), "a.json:2, paragraph 1, token 1: 'ner' must be a BILUO tag, O or -, got 'X-ORG'"),
        ([{"id": 1, "paragraphs": [{"raw": "a"}]}], "a.json:2, paragraph 1: 'sentences' must be a list, got None"),
        ([["a", {"entities": [[0, 4, "X"]]}]], "a.json:2, X: offsets 0-4 are outside of the text of 1 characters"),
        ([["a", {"entities": [[0, 1]]}]], "a.json:2, entity 1: .0, 1. must be .start, end, label."),
        ([["a", {}], ["a"]], "a.json:2: 'entities' must be a list, got None"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, value)


def test_what_is_written_is_train_data(tmp_path: Path) -> None:
    document = Document((), None, "", TEXT, spans=(Annotation("ORG", 0, 5),))
    assert write_spacy_json([document], tmp_path / "a.json") == []
    assert json.loads((tmp_path / "a.json").read_text()) == [[TEXT, {"entities": [[0, 5, "ORG"]]}]]


def words(spans: tuple[Annotation, ...] = ()) -> Document:
    """The document of the training format, with its words."""
    offsets = ((0, 5), (6, 10), (11, 15), (16, 23), (23, 24))
    there = tuple(TEXT[start:end] for start, end in offsets)
    return Document(there, None, "", TEXT, offsets, spans, "7", ((0, 10), (11, 24)))


def test_words_and_sentences_are_written_in_the_training_format(tmp_path: Path) -> None:
    document = words(spans=(Annotation("ORG", 0, 5), Annotation("GPE", 11, 23)))
    assert write_spacy_json([document], tmp_path / "a.json") == []
    again = list(read_spacy_json(tmp_path / "a.json", Reading()))[0]
    assert again._replace(place="") == document
    written = json.loads((tmp_path / "a.json").read_text())
    tags = [[token["ner"] for token in s["tokens"]] for s in written[0]["paragraphs"][0]["sentences"]]
    assert tags == [["U-ORG", "O"], ["B-GPE", "L-GPE", "O"]]
    converters = pytest.importorskip("spacy.training.converters", reason="the oracle is spaCy")
    theirs = list(converters.json_to_docs(json.dumps(written)))[0]
    assert [(e.label_, e.start_char, e.end_char) for e in theirs.ents] == [i[:3] for i in document.spans]


@pytest.mark.parametrize(
    "document",
    [
        words(spans=(Annotation("A", 0, 10), Annotation("B", 6, 10))),  # nested
        words(spans=(Annotation("A", 0, 3),)),  # in a word
        words(spans=(Annotation("A", 0, 15, fragments=((0, 5), (11, 15))),)),
        words()._replace(offsets=((0, 5),), words=("Apple",)),  # words outside of the text
    ],
)
def test_what_tags_cannot_hold_is_written_as_train_data(tmp_path: Path, document: Document) -> None:
    said = write_spacy_json([words(), document], tmp_path / "a.json")
    assert bool(said) == any(item.fragments for item in document.spans)
    assert [type(item) for item in json.loads((tmp_path / "a.json").read_text())] == [list, list]
    again = list(read_spacy_json(tmp_path / "a.json", Reading()))[1]
    assert [item[:3] for item in again.spans] == [item[:3] for item in document.spans]


def test_what_else_train_data_holds_is_noted(tmp_path: Path) -> None:
    item = [TEXT, {"entities": [[0, 5, "ORG"]], "cats": {"X": 1.0}, "links": {}, "spans": {"sc": [[0, 5, "A"]]}}]
    [document] = read(tmp_path, [item, item])[:1]
    assert [note.kind for note in document.notes] == ["cats of a text, not used", "spans of a text, not used"]
