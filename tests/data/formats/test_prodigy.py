"""Prodigy's examples are read by its tokens; rejected ones are left out and counted."""

import json
from pathlib import Path

import pytest

from lorakit.data.alignment import tag_sentences
from lorakit.data.formats.prodigy import read_prodigy, recognise_prodigy, write_prodigy
from lorakit.data.formats.record import Annotation, Document, Reading
from tests.support.corpora import write_lines, write_text

EXAMPLE = {  # https://prodi.gy/docs/api-interfaces#ner_manual
    "text": "First look at the new MacBook Pro",
    "spans": [{"start": 22, "end": 33, "label": "PRODUCT", "token_start": 5, "token_end": 6}],
    "tokens": [
        {"text": "First", "start": 0, "end": 5, "id": 0, "ws": True},
        {"text": "look", "start": 6, "end": 10, "id": 1, "ws": True},
        {"text": "at", "start": 11, "end": 13, "id": 2, "ws": True},
        {"text": "the", "start": 14, "end": 17, "id": 3, "ws": True},
        {"text": "new", "start": 18, "end": 21, "id": 4, "ws": True},
        {"text": "MacBook", "start": 22, "end": 29, "id": 5, "ws": True},
        {"text": "Pro", "start": 30, "end": 33, "id": 6, "ws": False},
    ],
    "answer": "accept",
}


def read(path: Path, *examples: object) -> list[Document]:
    return list(read_prodigy(write_lines(path / "a.jsonl", *examples), Reading()))


def test_an_example_is_read_with_its_tokens(tmp_path: Path) -> None:
    document = read(tmp_path, EXAMPLE)[0]
    assert document.spans == (Annotation("PRODUCT", 22, 33),)
    row = tag_sentences(document).sentences[0]
    assert row.words == ("First", "look", "at", "the", "new", "MacBook", "Pro")
    assert row.tags == ("O",) * 5 + ("B-PRODUCT", "I-PRODUCT")


@pytest.mark.parametrize("answer", ["reject", "ignore"])
def test_what_the_annotator_did_not_accept_is_left_out_and_counted(tmp_path: Path, answer: str) -> None:
    left_out = read(tmp_path, EXAMPLE, {**EXAMPLE, "answer": answer})[1]
    assert (left_out.text, left_out.spans) == ("", ())
    assert [note.kind for note in left_out.notes] == [
        f"example that the annotator answered with '{answer}', left out",
        "annotation in an example that was not accepted, left out",
    ]


def test_a_file_is_recognised_by_tokens_or_by_hashes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert recognise_prodigy(write_lines(path, EXAMPLE)) == "each object has a text, and tokens with start and end"
    assert recognise_prodigy(write_lines(path, {"text": "a", "_input_hash": 1, "spans": []}))
    assert recognise_prodigy(write_lines(path, {"text": "a", "spans": []})) is None
    assert recognise_prodigy(write_text(path, '{"tokens": ["a"], "tags": ["O"]}')) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spans": [{"start": 22, "end": 99, "label": "X"}]}, "a.jsonl:1, X: offsets 22-99 are outside of the text"),
        ({"tokens": [{"text": "first", "start": 0, "end": 5}]}, "a.jsonl:1, first: offsets 0-5 cover 'First', but"),
        (
            {"tokens": [{"text": "First", "start": 0, "end": 5}, {"text": "st", "start": 3, "end": 5}]},
            "a.jsonl:1, token 2: it begins before the token before it ends; correct the offsets",
        ),
        ({"text": 1}, "a.jsonl:1: 'text' must be a string, got 1"),
        ({"spans": {}, "tokens": {"a": 1}}, "a.jsonl:1: 'tokens' must be a list, got"),
    ],
)
def test_a_bad_example_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, {**EXAMPLE, **changes})


def test_what_is_written_has_the_keys_of_the_specification(tmp_path: Path) -> None:
    text = "First look at the new MacBook Pro"
    document = Document((), None, "", text, spans=(Annotation("PRODUCT", 22, 33, score=0.5),))
    assert write_prodigy([document], tmp_path / "out.jsonl") == []
    written = json.loads((tmp_path / "out.jsonl").read_text())
    assert written == {**EXAMPLE, "spans": [{**EXAMPLE["spans"][0], "score": 0.5}]}
