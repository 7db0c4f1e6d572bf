"""JSON records are read one per line or from one array, and a truncated file is named with its line."""

from pathlib import Path

import pytest

from lorakit.data.formats.json_records import check_text, first_record, parse_records, read_span
from tests.support.corpora import write_text


def records(text: str) -> list:
    return list(parse_records(text, "f.json"))


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}\n{"a": 2}\n',
        '{"a": 1}\n\n\n{"a": 2}',
        '[{"a": 1}, {"a": 2}]',
        '[\n{"a": 1},\n{"a": 2}\n]\n',
        '  [{"a":\n1}\n,{"a": 2}]',
        '{\n "a": 1\n}\n{\n "a": 2\n}\n',
    ],
)
def test_lines_and_arrays_are_the_same_records(tmp_path: Path, text: str) -> None:
    assert [value for _, value in records(text)] == [{"a": 1}, {"a": 2}]
    assert first_record(write_text(tmp_path / "f.json", text)) == {"a": 1}


def test_a_place_is_the_line_where_a_value_begins() -> None:
    assert [place for place, _ in records('[\n {"a":\n 1},\n\n {"a": 2}]')] == ["f.json:2", "f.json:5"]


def test_lines_of_arrays_are_values() -> None:
    assert [value for _, value in records('["a", {}]\n["b", {}]\n')] == [["a", {}], ["b", {}]]
    assert [value for _, value in records('["a", {}]\n')] == [["a", {}]]
    assert [value for _, value in records('[["a", {}], ["b", {}]]')] == [["a", {}], ["b", {}]]
    assert records("") == [] and records("[]") == []


@pytest.mark.parametrize("text", ["", "x"])
def test_a_file_without_a_value_has_no_first_record(tmp_path: Path, text: str) -> None:
    assert first_record(write_text(tmp_path / "f.json", text)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": ', "f.json:2: invalid JSON: the file ends inside this value; it may be truncated"),
        ('[{"a": 1},\n{"a": "b', "f.json:2: invalid JSON: the file ends inside this value; it may be truncated"),
        ('[{"a": 1},\n', "f.json:2: invalid JSON: the file ends inside its array; it may be truncated"),
        ('[{"a": 1}', "f.json:1: invalid JSON: the file ends inside its array; it may be truncated"),
        ('[{"a": 1}\n{"a": 2}]', "f.json:2: invalid JSON: a comma or ] must follow, got '{\"a\": 2}]'"),
        ('{"a": 1}\n{"b": [{"c": 1, "c": 1}]}', "f.json:2: invalid JSON: the key 'c' is twice in one object"),
        ("[1]\n[2] 3", "f.json:2: invalid JSON: more than one value in a line; the file must hold one per line"),
        ("[1, 2]\n3 x", r"f.json:2: invalid JSON: more than one value"),
        ("[\n1\n] 3", "f.json:3: invalid JSON: there is more after the array's end"),
        ('{"a": 1}\n{"a": nope}', r"f.json:2: invalid JSON: Expecting value \(line 2, column 7\)"),
    ],
)
def test_bad_json_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        records(text)


def test_half_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(ValueError, match="f:1: 'text' holds half a surrogate pair, which is not text"):
        check_text("a\ud800", "text", "f:1")


@pytest.mark.parametrize(
    ("span", "message"),
    [
        (7, "f:1: a span must be a JSON object, got 7"),
        ({"start": 0, "end": 1}, "f:1: no 'label'; the keys are start, end"),
        ({"start": 0, "end": 1, "label": " "}, "f:1: the label must be a name, got ' '"),
        ({"start": 0, "end": 1, "label": "a\tb"}, r"f:1: the label 'a\\tb' holds a tab or a line end; rename it"),
        ({"start": "0", "end": 1, "label": "a"}, "f:1: 'start' must be an integer of at least 0, got '0'"),
        ({"start": 0, "end": True, "label": "a"}, "f:1: 'end' must be an integer of at least 0, got True"),
        ({"start": -1, "end": 1, "label": "a"}, "f:1: 'start' must be an integer of at least 0, got -1"),
        ({"start": 0, "label": "a"}, "f:1: 'end' must be an integer of at least 0, got None"),
    ],
)
def test_a_bad_span_is_named(span: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_span(span, "f:1")


def test_a_span_may_call_its_type_by_several_names() -> None:
    for name in ("label", "type", "entity_group", "entity", "tag"):
        assert read_span({"start": 0, "end": 1, name: "DNA", "score": 1}, "f")[0][:3] == ("DNA", 0, 1)
