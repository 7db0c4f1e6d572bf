"""Label Studio's exports are read with one annotation per task, and its pre-annotations are written."""

import json
from pathlib import Path

import pytest

from lorakit.data.formats.label_studio import read_label_studio, recognise_label_studio, write_label_studio
from lorakit.data.formats.record import Annotation, Document, Reading
from tests.support.corpora import write_text

TEXT = "To have faith is to trust yourself to the water"


def region(start: int, end: int, *labels: str, **more: object) -> dict:
    value = {"start": start, "end": end, "text": TEXT[start:end], "labels": list(labels), **more}
    return {"value": value, "id": f"r{start}", "from_name": "label", "to_name": "text", "type": "labels"}


def task(number: int, *annotations: dict, **more: object) -> dict:
    return {"id": number, "data": {"text": TEXT}, "annotations": list(annotations), "predictions": [], **more}


def annotation(number: int, *result: dict, **more: object) -> dict:
    return {"id": number, "completed_by": 1, "was_cancelled": False, "ground_truth": False, "result": [*result], **more}


def read(path: Path, value: object) -> list[Document]:
    file = write_text(path / "a.json", json.dumps(value, indent=1))
    assert recognise_label_studio(file)
    return list(read_label_studio(file, Reading()))


def kinds(document: Document) -> list[str]:
    return [note.kind for note in document.notes]


def test_the_full_export_is_read(tmp_path: Path) -> None:
    document = read(tmp_path, [task(8, annotation(1, region(8, 13, "VIRTUE"), region(42, 47, "THING", "PLACE")))])[0]
    assert (document.id, document.text, document.notes) == ("8", TEXT, ())
    assert document.spans == (
        Annotation("VIRTUE", 8, 13, "r8"),
        Annotation("THING", 42, 47, "r42"),
        Annotation("PLACE", 42, 47, "r42"),
    )


def test_the_short_export_is_read_under_any_name_of_the_control(tmp_path: Path) -> None:
    short = {"text": TEXT, "id": 8, "ner": [region(8, 13, "VIRTUE")["value"]], "annotator": 1, "annotation_id": 3}
    document, second = read(tmp_path, [short, {**short, "annotation_id": 4}])
    assert document.spans == (Annotation("VIRTUE", 8, 13),)
    assert kinds(second) == [
        "another annotation of the same task, left out",
        "annotation of another annotator, left out",
    ]


def test_one_annotation_of_a_task_is_used_and_the_others_are_counted(tmp_path: Path) -> None:
    cancelled = annotation(1, region(0, 2, "A"), was_cancelled=True)
    plain, truth = annotation(2, region(3, 7, "B")), annotation(3, region(8, 13, "C"), ground_truth=True)
    first, second, third = read(tmp_path, [task(1, cancelled, plain), task(2, plain, truth), task(3, cancelled)])
    assert [i.label for i in first.spans] == ["B"] and [i.label for i in second.spans] == ["C"]
    assert kinds(first) == ["a cancelled annotation of the same task, left out"]
    assert kinds(second) == [
        "another annotation of the same task, left out",
        "annotation of another annotator, left out",
    ]
    assert (third.text, kinds(third)) == ("", ["task without annotation, left out"])


def test_what_is_no_span_is_counted(tmp_path: Path) -> None:
    choice = {"type": "choices", "value": {"choices": ["x"]}, "id": "c", "from_name": "a", "to_name": "text"}
    relation = {"type": "relation", "from_id": "r0", "to_id": "r3", "labels": ["of"]}
    html = {
        "type": "hypertextlabels",
        "id": "h",
        "value": {"start": "/p[1]/text()[1]", "end": "/p[1]", "startOffset": 0},
    }
    regions = annotation(1, choice, relation, html, region(0, 2))
    document = read(tmp_path, [task(1, regions, predictions=[{"result": []}])])[0]
    assert document.spans == () and kinds(document) == [
        "predictions of a model, not used",
        "region of type 'choices', not used",
        "region of type 'relation', not used",
        "region of type 'hypertextlabels', not used",
        "region without a label, left out",
    ]


def test_offsets_of_old_versions_are_found_out(tmp_path: Path) -> None:
    """https://github.com/HumanSignal/label-studio/issues/1347"""
    value = {"start": 13, "end": 23, "text": "annotation", "labels": ["X"]}
    old = {
        "id": 1,
        "data": {"text": "💩This is an annotation."},
        "completions": [{"result": [{**region(0, 1), "value": value}]}],
    }
    document = read(tmp_path, [old])[0]
    assert document.text[document.spans[0].start : document.spans[0].end] == "annotation"
    assert kinds(document) == ["offsets are UTF-16 units and were converted"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (task(7, annotation(1, region(40, 99, "A"))), "a.json:.*, task 7, r40: offsets 40-99 are outside of the text"),
        (task(7, annotation(1, region(0, 2, "A", text="xx"))), "task 7, r0: offsets 0-2 cover 'To', but beside them"),
        (
            {**task(7, annotation(1)), "data": {"a": "x", "b": "y"}},
            "task 7: which key is the text. Its strings are a, b",
        ),
        (task(7, annotation(1, region(0, 2, ""))), "task 7, r0: the label must be a name, got ''"),
        (task(7, {"id": 1}), "task 7: 'result' must be a list, got None"),
        (7, "a.json:.*: a task must be a JSON object, got 7"),
    ],
)
def test_a_bad_task_is_named(tmp_path: Path, bad: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, [task(1, annotation(1)), bad])


def test_a_truncated_export_is_refused(tmp_path: Path) -> None:
    file = write_text(tmp_path / "a.json", json.dumps([task(1, annotation(1)), task(2)], indent=1)[:-40])
    with pytest.raises(ValueError, match=r"a.json:\d+: invalid JSON: the file ends inside this value; it may be trunc"):
        list(read_label_studio(file, Reading()))


def test_predictions_are_pre_annotations(tmp_path: Path) -> None:
    """The keys are those of https://labelstud.io/guide/predictions for spans of text."""
    spans = (Annotation("A", 0, 2, score=0.75), Annotation("B", 3, 7, score=0.5))
    documents = [Document((), None, "", TEXT, spans=spans), Document((), None, "", TEXT)]
    assert write_label_studio(documents, tmp_path / "a.json", predicted=True) == []
    first, second = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert first["data"] == {"text": TEXT} and "annotations" not in first
    assert first["predictions"][0]["score"] == 0.5
    assert first["predictions"][0]["result"][0] == {
        "id": "1-1",
        "from_name": "label",
        "to_name": "text",
        "type": "labels",
        "value": {"start": 0, "end": 2, "text": "To", "labels": ["A"], "score": 0.75},
    }
    assert second["predictions"] == [{"model_version": "lorakit", "result": []}]


def of(to_name: str, start: int, end: int, label: str, **value: object) -> dict:
    """A region of the text that the labeling configuration calls `to_name`."""
    value = {"start": start, "end": end, "labels": [label], **value}
    return {"value": value, "id": f"{to_name}{start}", "from_name": "label", "to_name": to_name, "type": "labels"}


TWO = {"text": "EU ran", "title": "Ann saw"}


@pytest.mark.parametrize(
    ("data", "regions"),
    [
        pytest.param(TWO, [of("title", 0, 3, "PER"), of("text", 0, 2, "ORG")], id="called like the keys"),
        pytest.param(
            {"a": "EU ran", "title": "Ann saw"},
            [of("t2", 0, 3, "PER", text="Ann"), of("t1", 0, 2, "ORG", text="EU")],
            id="told by the texts beside the regions",
        ),
        pytest.param(
            {"a": "EU ran", "b": "Ann saw", "meta": "x"},
            [of("b", 0, 3, "PER"), of("t1", 0, 2, "ORG", text="EU")],
            id="one of each",
        ),
    ],
)
def test_each_region_is_of_the_text_that_it_names(tmp_path: Path, data: dict, regions: list[dict]) -> None:
    """`to_name` of https://labelstud.io/guide/task_format: the name of the object tag that was labelled."""
    file = [{"id": 4, "data": data, "annotations": [{"id": 1, "result": regions}]}]
    found = {d.text: [(i.label, d.text[i.start : i.end]) for i in d.spans] for d in read(tmp_path, file)}
    assert found == {"EU ran": [("ORG", "EU")], "Ann saw": [("PER", "Ann")]}
    assert {document.id for document in read(tmp_path, file)} == {"4"}  # --split keeps them together


def test_texts_of_a_task_without_regions_are_read_as_those_of_the_others(tmp_path: Path) -> None:
    first = {"id": 1, "data": TWO, "annotations": [{"id": 1, "result": [of("title", 0, 3, "PER")]}]}
    second = {"id": 2, "data": TWO, "annotations": [{"id": 2, "result": []}]}
    assert [document.text for document in read(tmp_path, [first, second])] == ["Ann saw", "Ann saw"]


@pytest.mark.parametrize(
    ("data", "regions", "right"),
    [
        ({"a": "EU ran", "b": "Ann saw"}, [of("t", 0, 2, "ORG")], {"t": "EU ran", "b": "Ann saw"}),
        (TWO, [of("t", 0, 2, "ORG"), of("u", 0, 2, "X")], {"t": "EU ran", "u": "Ann saw"}),
    ],
)
def test_regions_of_any_text_are_refused_and_the_advice_works(
    tmp_path: Path, data: dict, regions: list[dict], right: dict
) -> None:
    file = {"id": 4, "annotations": [{"id": 1, "result": regions}]}
    message = f"task 4: which key is the text of the regions of 't'. Its strings are {', '.join(data)}; call the right"
    with pytest.raises(ValueError, match=message):
        read(tmp_path, [{**file, "data": data}])
    assert read(tmp_path, [{**file, "data": right}])[0].spans[0].label == "ORG"


def test_the_short_export_may_have_several_controls_and_texts(tmp_path: Path) -> None:
    """label_studio_converter's convert_to_json_min: a key per control, beside the keys of the task's data."""
    value = {"start": 0, "end": 2, "text": "EU", "labels": ["ORG"]}
    other = {"start": 0, "end": 3, "text": "Ann", "labels": ["PER"]}
    short = {"id": 1, **TWO, "ner": [value], "more": [other], "annotator": 1, "annotation_id": 3}
    found = [(d.text, [i.label for i in d.spans]) for d in read(tmp_path, [short])]
    assert found == [("EU ran", ["ORG"]), ("Ann saw", ["PER"])]
    on_one = {**short, "more": [{"start": 3, "end": 6, "text": "ran", "labels": ["ACT"]}]}
    [document] = read(tmp_path, [on_one])
    assert [item.label for item in document.spans] == ["ORG", "ACT"]


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"was_cancelled": True, "annotation_id": 4}, "a cancelled annotation, left out"),
        ({"annotation_id": None, "ner": None}, "task without annotation, left out"),
    ],
)
def test_records_of_the_short_export_that_are_no_annotation_are_left_out(tmp_path: Path, more: dict, kind: str) -> None:
    short = {"id": 1, "text": TEXT, "ner": [region(8, 13, "X")["value"]], "annotator": 1, "annotation_id": 3}
    first, second = read(tmp_path, [short, {**short, "id": 2, **more}])
    assert (len(first.spans), second.text, kinds(second)) == (1, "", [kind])


def test_an_old_annotation_that_was_skipped_is_left_out(tmp_path: Path) -> None:
    old = {"id": 1, "data": {"text": TEXT}, "completions": [{"id": 2, "skipped": True, "result": [region(0, 2, "A")]}]}
    [document] = read(tmp_path, [old])
    assert (document.text, kinds(document)) == ("", ["task without annotation, left out"])
