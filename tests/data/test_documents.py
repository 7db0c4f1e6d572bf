"""Documents are read as they are, and cut into sentences without changing a character."""

import json

import pytest

from lorakit.data.documents import read_documents, sentences


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("IL-2 binds, i.e. p50. T cells\ndo not.", ["IL-2 binds, i.e. p50.", "T cells\ndo not."]),
        ("at 0.05 % vs. Smith et al. 3.5. No!  Yes?", ["at 0.05 % vs. Smith et al. 3.5.", "No!", "Yes?"]),
        ("A title\n\nA text. the rest", ["A title", "A text. the rest"]),
        ("  ", []),
        ("no end", ["no end"]),
    ],
)
def test_a_sentence_ends_where_a_reader_ends_it(text, wanted):
    found = sentences(text)
    assert [part for _, part in found] == wanted
    assert all(text[start : start + len(part)] == part for start, part in found)


def test_files_folders_and_fields_are_read_in_order(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": "x"}) + "\n\n" + json.dumps({"body": "y", "id": 1}))
    (tmp_path / "c.md").write_text("not a document")
    (tmp_path / "._b.txt").write_bytes(b"\0\5\x16\7\xff")  # what macOS puts beside b.txt on other disks
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "b-checkpoint.txt").write_text("an older one")
    found = list(read_documents([tmp_path], "body"))
    assert found == [
        (f"{tmp_path}/a.jsonl:1", "x"),
        (f"{tmp_path}/a.jsonl:3", "y"),
        (f"{tmp_path}/b.txt", "one\r\ntwo"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"x\n\xff", r"a\.txt:2: not UTF-8 .*; convert the file to UTF-8"),
        ("a.jsonl", b'{"text": "x", "text": "y"}', r"a\.jsonl:1: not JSON \(the key 'text' is twice"),
        ("a.jsonl", b'{"text": "x"}\n{', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"body": "x"}', r"a\.jsonl:1: no text in 'text'; it has body: name the field with text_field="),
        ("a.jsonl", b"[1]", r"no text in 'text'; it has list"),
        ("a.jsonl", b'{"text": null}', r"a\.jsonl:1: 'text' is null, not a text; leave the line out, or name another"),
        ("a.jsonl", b'\n{"text": "x \\ud83d"}', r"a\.jsonl:2: character 2 of the text is .*half a surrogate pair"),
        ("a.txt", b'[{"text": "x"}]', r"a\.txt holds JSON, .*: write an object per line, and call it a\.jsonl"),
        ("a.md", b"x", r"holds no file that ends in \.txt or \.jsonl; give the files by name"),
    ],
)
def test_what_cannot_be_read_is_named(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(read_documents([tmp_path]))


def test_objects_per_line_in_a_file_called_jsonl_are_read_as_the_message_says(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    assert [document.text for document in read_documents([tmp_path / "a.jsonl"])] == ["x"]
