"""Texts with spans are read as transformers' pipelines and `lorakit predict` write them."""

import json
from pathlib import Path

import pytest

from lorakit.data.corpus import read_ner
from lorakit.data.formats.record import Annotation, Document, Reading
from lorakit.data.formats.span_pieces import JOINED
from lorakit.data.formats.spans_jsonl import read_spans_jsonl, recognise_spans_jsonl, write_spans_jsonl
from lorakit.report.entities import Tagging, as_jsonl
from lorakit.training.prediction import Entity
from tests.support.corpora import write_lines, write_text


def read(path: Path) -> list[Document]:
    assert recognise_spans_jsonl(path)
    return list(read_spans_jsonl(path, Reading()))


def test_what_predict_writes_is_read(tmp_path: Path) -> None:
    entity = Entity("DNA", start=4, end=8, text="IL-2", score=0.75, first_word=1, end_word=2)
    path = write_text(tmp_path / "a.jsonl", as_jsonl([Tagging("The IL-2", [], [], [entity])]))
    document = read(path)[0]
    assert (document.text, document.spans) == ("The IL-2", (Annotation("DNA", 4, 8, score=0.75),))


def test_what_a_pipeline_of_transformers_gives_is_read(tmp_path: Path) -> None:
    found = [{"entity_group": "PER", "score": 0.5, "word": "sarah", "start": 11, "end": 16}]
    path = write_lines(tmp_path / "a.jsonl", {"id": 4, "text": "My name is Sarah", "entities": found})
    spans = (Annotation("PER", 11, 16, score=0.5),)
    assert read(path) == [Document((), None, f"{path}:1", "My name is Sarah", spans=spans, id="4", is_proven=False)]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "IL-2"}, "a.jsonl:2: no 'spans' or 'entities'; the keys are text"),
        ({"text": "IL-2", "spans": [{"start": 0, "end": 4}]}, "a.jsonl:2, span 1: no 'label'; the keys are start, end"),
        (
            {"text": "IL-2", "spans": [{"start": 0, "end": 4, "label": "A", "text": "IL-4", "id": "s9"}]},
            "a.jsonl:2, s9: offsets 0-4 cover 'IL-2', but beside them the file has 'IL-4'",
        ),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, record: object, message: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "a", "spans": []}, record)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_ids_and_scores_are_written(tmp_path: Path) -> None:
    document = Document((), None, "", "IL-2", spans=(Annotation("A", 0, 4, "T1", score=0.5),), id="7")
    assert write_spans_jsonl([document], tmp_path / "a.jsonl") == []
    span = {"start": 0, "end": 4, "label": "A", "text": "IL-2", "id": "T1", "score": 0.5}
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"id": "7", "text": "IL-2", "spans": [span]}


def test_the_pieces_of_an_unaggregated_pipeline_are_joined(tmp_path: Path) -> None:
    """As aggregation_strategy="simple" joins them: I-LOC continues nothing, and is an entity of its own."""
    found = [
        {"entity": "B-ORG", "score": 0.25, "index": 1, "word": "Hu", "start": 0, "end": 2},
        {"entity": "I-ORG", "score": 0.75, "index": 2, "word": "##gging", "start": 2, "end": 7},
        {"entity": "I-ORG", "score": 0.5, "index": 3, "word": "Face", "start": 8, "end": 12},
        {"entity": "I-LOC", "score": 1, "index": 5, "word": "NYC", "start": 16, "end": 19},
        {"entity": "B-LOC", "score": 1, "index": 6, "word": "UK", "start": 20, "end": 22},
    ]
    path = write_lines(tmp_path / "a.jsonl", {"text": "Hugging Face in NYC UK", "entities": found})
    document = read(path)[0]
    assert [(i.label, i.start, i.end, i.score) for i in document.spans] == [
        ("ORG", 0, 12, 0.5),
        ("LOC", 16, 19, 1),
        ("LOC", 20, 22, 1),
    ]
    assert [note.kind for note in document.notes] == [JOINED] * 5
    data = read_ner(path)
    assert data.train[0].tags == ("B-ORG", "I-ORG", "O", "B-LOC", "B-LOC")
    assert any(note.startswith(f"{JOINED}: 5, the first at") for note in data.notes)


def test_words_given_as_objects_are_the_words(tmp_path: Path) -> None:
    """spaCy's Doc.to_json, whose tokens have no text of their own."""
    tokens = [{"id": 0, "start": 0, "end": 4, "tag": "NNP"}, {"id": 1, "start": 4, "end": 6}, {"start": 7, "end": 9}]
    record = {"text": "Rome's ok", "ents": [{"start": 0, "end": 4, "label": "LOC"}], "tokens": tokens}
    path = write_lines(tmp_path / "a.jsonl", record)
    assert read_ner(path).train[0].words == ("Rome", "'s", "ok")
    record["tokens"][1]["start"] = 3
    with pytest.raises(ValueError, match="a.jsonl:1, token 2: it begins before the token before it ends"):
        read_ner(write_lines(path, record))


def of_words(*spans: tuple[int, int], tokens: bool = True) -> dict[str, object]:
    record = {"text": "EU rejects German call .", "spans": [{"start": a, "end": b, "label": "X"} for a, b in spans]}
    return record | ({"tokens": ["EU", "rejects", "German", "call", "."]} if tokens else {})


def test_places_that_count_words_are_refused_and_both_ways_out_work(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", of_words((0, 1), (2, 4)), of_words())
    with pytest.raises(
        ValueError, match=r"a.jsonl:1, X 0-1: the places seem to count words, not characters"
    ) as refusal:
        read_ner(path)
    assert '{"tokenized_text": ["New", "York"], "ner": [[0, 1, "LOC"]]}' in str(refusal.value)
    assert read_ner(path, offsets="characters").train[0].words[:2] == ("E", "U")
    write_lines(path, {"tokenized_text": of_words()["tokens"], "ner": [[0, 0, "X"], [2, 3, "X"]]})
    assert read_ner(path).train[0].tags == ("B-X", "O", "B-X", "I-X", "O")


@pytest.mark.parametrize(
    "record",
    [of_words((0, 2), (11, 17)), of_words((0, 1)), of_words((0, 1), (2, 4), tokens=False), of_words((1, 2), (3, 9))],
)
def test_other_places_count_characters(tmp_path: Path, record: dict[str, object]) -> None:
    assert read_ner(write_lines(tmp_path / "a.jsonl", record)).train
