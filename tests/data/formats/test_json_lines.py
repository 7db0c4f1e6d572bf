import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.data.corpus import Sentence, read_ner
from tests.support.corpora import LABELS, ROW, write_folder, write_lines, write_text


@pytest.mark.parametrize("column", ["tags", "ner_tags", "labels"])
def test_json_lines_may_call_the_tags_by_three_names(tmp_path: Path, column: str) -> None:
    path = write_lines(tmp_path / "corpus.jsonl", {"id": 7, "tokens": ["IL-2"], column: ["B-DNA"]})
    assert read_ner(path).train == (Sentence(("IL-2",), ("B-DNA",)),)
    path = write_lines(tmp_path / "corpus.jsonl", {"words": ["IL-2"], column: ["B-DNA"]})
    assert read_ner(path).train == (Sentence(("IL-2",), ("B-DNA",)),)


@pytest.mark.parametrize("indent", [None, 2])
def test_one_array_of_sentences_is_read(tmp_path: Path, indent: int | None) -> None:
    records = [{"id": 7, "tokens": ["IL-2", "is"], "tags": ["B-DNA", "O"]}, {"tokens": ["it"], "tags": ["O"]}]
    path = write_text(tmp_path / "corpus.json", json.dumps(records, indent=indent))
    assert read_ner(path).train == (Sentence(("IL-2", "is"), ("B-DNA", "O")), Sentence(("it",), ("O",)))
    write_text(path, path.read_text()[:-1])
    with pytest.raises(ValueError, match="corpus.json:.*the file ends inside its array; it may be truncated"):
        read_ner(path)
    write_text(path, '[{"tokens": ["a"], "tags": ["O"]},\n ["a", "O"]]')
    with pytest.raises(ValueError, match="corpus.json:2: each value must be a JSON object, got .'a', 'O'."):
        read_ner(path)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=6), escape=st.booleans())
def test_every_json_word_keeps_its_place(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], escape: bool
) -> None:
    path = tmp_path_factory.mktemp("odd") / "odd.jsonl"
    path.write_bytes(json.dumps({"tokens": words, "tags": ["O"] * len(words)}, ensure_ascii=escape).encode())
    assert read_ner(path).train == (Sentence(tuple(words), ("O",) * len(words)),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "train.json:2: invalid JSON"),
        ('{"tokens": ["a"], "tags": ["O"], "tags": ["B-DNA"]}', "train.json:2: invalid JSON: the key 'tags' is twice"),
        ("[1]", "train.json:2: a line must be a JSON object, got list"),
        (
            '{"word": ["a"], "tags": ["O"]}',
            "train.json:2: 'tokens' must be a list of strings; the keys are word, t",
        ),
        ('{"tokens": ["a", 1], "tags": ["O", "O"]}', "train.json:2: 'tokens' must be a list of strings"),
        (
            '{"tokens": ["a"], "ner_tag": ["O"]}',
            "train.json:2: no 'tags'; the keys are tokens, ner_tag: if 'ner_tag' holds them here, rename it",
        ),
        ('{"tokens": ["a"], "tags": "O"}', "train.json:2: 'tags' must be a list, got 'O'"),
        ("[" * 100_000, "train.json:2: invalid JSON: brackets are nested too deeply"),
        ('{"tokens": ["a", "b"], "tags": ["O"]}', "train.json:2: 2 tokens but 1 tags; each word has one tag"),
        ('{"tokens": ["a"], "tags": [5]}', "train.json:2: unknown tag 5; the ids are 0 to 4"),
        ('{"tokens": ["a"], "tags": [-1]}', "train.json:2: unknown tag -1; the ids are 0 to 4"),
        ('{"tokens": ["a"], "tags": [true]}', "train.json:2: unknown tag True; a tag is a string or an integer"),
        ('{"tokens": ["a"], "tags": [1.0]}', "train.json:2: unknown tag 1.0; a tag is a string or an integer"),
        ('{"tokens": ["a"], "tags": ["B-RNA"]}', "train.json:2: unknown tag 'B-RNA'; the labels are O, B-DNA, I-DNA"),
        ('{"tokens": ["\\ud800"], "tags": ["O"]}', "train.json:2: word .* holds half a surrogate pair"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    write_folder(tmp_path, LABELS, train=[ROW])
    with (tmp_path / "train.json").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        read_ner(tmp_path)


def test_numbers_without_label_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="corpus.jsonl:1: tag 1 is a number; put label.json, {label: id}, beside"):
        read_ner(write_lines(tmp_path / "corpus.jsonl", {"tokens": ["a"], "tags": [1]}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"O": 0,\n "B-DNA" 1}', "label.json:2: invalid JSON: Expecting ':' delimiter"),
        ('{"O": 0, "B-DNA": 1, "O": 2}', "label.json: the key 'O' is twice in one object"),
        ('["O"]', "label.json: must map labels to the ids 0, 1, 2"),
        ('{"O": 0, "B-DNA": 2}', "label.json: must map labels to the ids 0, 1, 2"),
        ('{"O": 0, "B-DNA": "1"}', "label.json: must map labels to the ids 0, 1, 2"),
        ('{"B-DNA": 0, "I-DNA": 1}', "label.json: no label 'O'; the labels are B-DNA, I-DNA"),
    ],
)
def test_a_bad_label_json_is_named(tmp_path: Path, text: str, message: str) -> None:
    write_folder(tmp_path, train=[ROW], valid=[ROW], test=[ROW])
    (tmp_path / "label.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_ner(tmp_path)


def test_records_whose_tags_have_two_names_are_read_after_the_advice(tmp_path: Path) -> None:
    path, first = tmp_path / "a.jsonl", {"tokens": ["IL-2"], "tags": ["B-DNA"]}
    write_lines(path, first, {"words": ["it"], "ner_tags": ["O"]})
    with pytest.raises(ValueError, match="a.jsonl:2: no 'tags'; .*: if 'ner_tags' holds them here, rename it"):
        read_ner(path)
    assert len(read_ner(write_lines(path, first, {"words": ["it"], "tags": ["O"]})).train) == 2
