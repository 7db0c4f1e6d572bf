"""doccano's exports of every version are read, or refused with the version that exports names."""

import json
from pathlib import Path

import pytest

from lorakit.data.corpus import read_ner
from lorakit.data.formats.doccano import NO_LABELS, read_doccano, recognise_doccano, write_doccano
from lorakit.data.formats.offsets import ASSUMED
from lorakit.data.formats.record import Annotation, Document, Reading
from tests.support.corpora import write_lines, write_text

TEXT = "EU rejects German call to boycott British lamb."
FOUND = [("ORG", "EU"), ("MISC", "German")]
FORMS = {  # https://github.com/doccano/doccano/issues/113 and its pull requests 46 and 1703
    "labels": {"text": TEXT, "labels": [[0, 2, "ORG"], [11, 17, "MISC"]]},
    "label": {"id": 3, "text": TEXT, "label": [[0, 2, "ORG"], [11, 17, "MISC"]], "Comments": []},
    "data": {"id": 3, "data": TEXT, "label": [[0, 2, "ORG"], [11, 17, "MISC"]]},
    "2018": {"doc_id": 3, "text": TEXT, "entities": [[0, 2, "ORG"], [11, 17, "MISC"]], "username": "admin"},
    "relation": {
        "id": 3,
        "text": TEXT,
        "entities": [
            {"id": 5, "label": "ORG", "start_offset": 0, "end_offset": 2},
            {"id": 6, "label": "MISC", "start_offset": 11, "end_offset": 17},
        ],
        "relations": [{"id": 0, "from_id": 5, "to_id": 6, "type": "rejects"}],
    },
}


def read(path: Path, **how: str) -> list[Document]:
    return list(read_doccano(path, Reading(**how)))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(tmp_path: Path, form: str) -> None:
    for path in (write_lines(tmp_path / "a.jsonl", FORMS[form]), tmp_path / "a.json"):
        path.exists() or path.write_text(json.dumps([FORMS[form]]))
        assert recognise_doccano(path)
        document = read(path)[0]
        assert [(item.label, document.text[item.start : item.end]) for item in document.spans] == FOUND
        assert document.id == ("" if form == "labels" else "3")
        assert [note.kind for note in document.notes] == ["relation, not used"] * (form == "relation")


def test_a_label_may_hold_a_space(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": TEXT, "label": [[0, 2, "big union"]]})
    assert read(path)[0].spans == (Annotation("big union", 0, 2),)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"text": TEXT, "label": [[0, 2, "A"]], "entities": [[3, 4, "B"]]},
            "a.jsonl:2: 'label' and 'entities' both hold annotations; choose one with columns={'tag': 'label'}",
        ),
        ({"text": TEXT}, "a.jsonl:2: no 'label', 'labels' or 'entities'; the keys are text"),
        ({"label": []}, "a.jsonl:2: 'text' must be a string, got None"),
        ([1], "a.jsonl:2: each value must be a JSON object, got .1."),
        ({"text": TEXT, "label": ["positive"]}, "a.jsonl:2, label 1: 'positive' is not .start, end, label.; these are"),
        (
            {"text": TEXT, "label": [["ORG", 0, 2]]},
            "a.jsonl:2, label 1: .'ORG', 0, 2. is not .start, end, label.; these",
        ),
        ({"text": TEXT, "label": [[0, 99, "ORG"]]}, "a.jsonl:2, ORG: offsets 0-99 are outside of the text of 47"),
        ({"text": TEXT, "label": [[0, "2", "ORG"]]}, "a.jsonl:2, label 1: 'end' must be an integer of at least 0"),
        (
            {"text": TEXT, "annotations": [{"label": 7, "start_offset": 0, "end_offset": 2, "user": 1}]},
            "a.jsonl:2, annotations 1: the label is the number 7; export the project again as 'JSONL .text label.'",
        ),
        (
            {"text": TEXT, "entities": [{"id": 9, "label": "", "start_offset": 0, "end_offset": 2}]},
            "a.jsonl:2, entities 1, id 9: the label must be a name, got ''",
        ),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, record: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(write_lines(tmp_path / "a.jsonl", FORMS["label"], record))


def test_offsets_after_an_emoji_are_noted_and_may_be_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "😀 IL-2", "label": [[3, 7, "DNA"]]})
    with pytest.raises(ValueError, match="offsets 3-7 are outside of the text"):
        read(path)
    assert read(path, offsets="utf-16")[0].spans == (Annotation("DNA", 2, 6),)
    path = write_lines(tmp_path / "a.jsonl", {"text": "😀 IL-2", "label": [[2, 6, "DNA"]]})
    assert [note.kind for note in read(path)[0].notes] == [ASSUMED]


def test_a_text_to_predict_may_have_any_annotations(tmp_path: Path) -> None:
    record = {"text": TEXT, "label": [[0, 2, "A"]], "entities": [[3, 4, "B"]]}
    [document] = read_doccano(write_lines(tmp_path / "a.jsonl", record), Reading(unannotated=True))
    assert document.text == TEXT


def test_other_files_are_not_taken_for_doccanos(tmp_path: Path) -> None:
    for text in (
        '{"text": "a"}',
        '{"tokens": ["a"], "labels": ["O"]}',
        '{"text": "a", "label": "positive"}',
        "EU\tO\n",
    ):
        assert recognise_doccano(write_text(tmp_path / "a.jsonl", text)) is None


def test_gaps_are_said(tmp_path: Path) -> None:
    gap = Annotation("X", 0, 5, fragments=((0, 1), (4, 5)))
    said = write_doccano([Document((), None, "", "a b c", spans=(gap,), id="7")], tmp_path / "out.jsonl")
    assert said == ["annotations with gaps, written from their first to their last character: 1"]
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"id": "7", "text": "a b c", "label": [[0, 5, "X"]]}


def test_a_text_without_labels_is_noted_since_doccano_exports_those_that_nobody_annotated(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", FORMS["label"], {"text": "Nobody", "label": []})
    first, second = read(path)
    assert (first.notes, [note.kind for note in second.notes]) == ((), [NO_LABELS])
    assert second.notes[0].where.endswith("a.jsonl:2")


@pytest.mark.parametrize("record", [{"text": "a b"}, {"text": "a b", "label": None}, {"data": "a", "entity": []}])
def test_a_first_record_without_labels_says_what_is_missing(tmp_path: Path, record: dict) -> None:
    path = write_lines(tmp_path / "a.jsonl", record, FORMS["label"])
    with pytest.raises(ValueError, match='a.jsonl:1: .* has its annotations as "label": .*, and .. where there are'):
        read_ner(path)
    write_lines(path, {**record, "label": []}, FORMS["label"])
    assert len(read_ner(path).train) == 2
