"""Texts with spans are read as transformers' pipelines and `lorakit predict` write them."""

import json
from pathlib import Path

import pytest

from lorakit.data.formats.record import Annotation, Document, Reading
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
    assert read(path) == [
        Document((), None, f"{path}:1", "My name is Sarah", spans=(Annotation("PER", 11, 16, score=0.5),), id="4")
    ]


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
