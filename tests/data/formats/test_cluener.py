"""CLUENER names the last character of an entity, and lists places by type and surface."""

from pathlib import Path

import pytest

from lorakit.data.corpus import read_ner
from lorakit.data.formats.cluener import read_cluener, recognise_cluener, write_cluener
from lorakit.data.formats.record import Annotation, Document, Reading
from tests.support.corpora import write_lines

TEXT = "浙商银行的叶老桂和叶老桂"
RECORD = {"text": TEXT, "label": {"name": {"叶老桂": [[5, 7], [9, 11]]}, "company": {"浙商银行": [[0, 3]]}}}


def test_last_characters_are_inclusive(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.json", RECORD, {"text": "没有", "label": {}, "id": 7})
    assert recognise_cluener(path)
    first, second = read_cluener(path, Reading())
    assert first.spans == (Annotation("name", 5, 8), Annotation("name", 9, 12), Annotation("company", 0, 4))
    assert (second.spans, second.id, second.is_proven) == ((), "7", True)
    tags = read_ner(tmp_path).train[0].tags
    assert [tag for tag in tags if tag.startswith("B-")] == ["B-company", "B-name", "B-name"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": TEXT}, "a.json:1: no 'label'; the keys are text: texts that nobody annotated cannot be a split"),
        ({"text": TEXT, "label": []}, "a.json:1: 'label' must be a JSON object"),
        (
            {"text": TEXT, "label": {"name": {"叶老桂": [[5]]}}},
            "a.json:1, .叶老桂.: .5. must be .first character",
        ),
        ({"text": TEXT, "label": {"name": {"叶老桂": [[4, 6]]}}}, "a.json:1, name.*'的叶老'"),
        ({"text": TEXT, "label": {"name": {"叶老桂": [[50, 52]]}}}, "offsets 50-53 are outside of the text of 12"),
        ({"text": 1, "label": {}}, "a.json:1: 'text' must be a string, got 1"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, record: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(read_cluener(write_lines(tmp_path / "a.json", record), Reading()))


def test_a_test_set_without_labels_is_not_taken_for_another_format(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.json", RECORD)
    write_lines(tmp_path / "test.json", {"id": 0, "text": TEXT})
    with pytest.raises(ValueError, match="test.json:1: no 'label'.*; take the file away, or give texts without ent"):
        read_ner(tmp_path)
    (tmp_path / "test.json").unlink()
    assert len(read_ner(tmp_path).train) == 1


def test_what_it_cannot_hold_is_said(tmp_path: Path) -> None:
    spans = (Annotation("X", 1, 1), Annotation("X", 0, 3, fragments=((0, 1), (2, 3))))
    said = write_cluener([Document((), None, "", "a b", spans=spans)], tmp_path / "a.json")
    assert said == [
        "annotations with gaps, written from their first to their last character: 1",
        "1 annotation of no character, left out",
    ]
