"""Tables with commas or semicolons are read as those with tabs are."""

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.data.corpus import read_ner
from lorakit.data.formats.record import Document, Reading
from lorakit.data.formats.registry import format_named
from tests.support.corpora import write_text

KAGGLE = """Sentence #,Word,POS,Tag
Sentence: 1,Thousands,NNS,O
,of,IN,O
,London,NNP,B-geo
Sentence: 2,"Iran,",NNP,B-gpe
"""


def read(path: Path, text: str, **how: object) -> list[list[str]]:
    data = read_ner(write_text(path / "a.csv", text), **how)
    return [[f"{word} {tag}" for word, tag in zip(s.words, s.tags, strict=True)] for s in data.train]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (KAGGLE, [["Thousands O", "of O", "London B-geo"], ["Iran, B-gpe"]]),
        (KAGGLE.replace("Sentence: ", "").replace("Sentence #", "sentence_id"), [
            ["Thousands O", "of O", "London B-geo"], ["Iran, B-gpe"]
        ]),
        ("Bonn,B-LOC\r\nis,O\r\n\r\nUlm,B-LOC\r\n", [["Bonn B-LOC", "is O"], ["Ulm B-LOC"]]),
        ("token;tag\nBonn;LOC\n\";\";O\n;\nUlm;LOC\n", [["Bonn B-LOC", "; O"], ["Ulm B-LOC"]]),
        ('"""",O\n"a ""b""",B-X\n', [['" O', 'a "b" B-X']]),
        ("Bonn, B-LOC\nis, O\n", [["Bonn B-LOC", "is O"]]),
    ],
)  # fmt: skip
def test_rows_are_words_and_blank_rows_end_sentences(tmp_path: Path, text: str, expected: list) -> None:
    assert read(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Bonn,B-LOC\nis\n", r"a.csv:2: 1 columns, the rows before have 2: \['is'\]"),
        ('Bonn,"B-LOC\nis,O\n', "a.csv:1: unexpected end of data: write a quotation mark inside a cell twice"),
        ("Bonn;LOC\nis;O\n;\nx;y;z\n", "a.csv:4: 3 columns, the rows before have 2"),
        ("Bonn\n", "a.csv: neither commas nor semicolons separate columns in the first line, 'Bonn'"),
        ("Bonn,NNP\nis,VBZ\n", "a.csv:1: unknown tag 'NNP'; .*; column 2 holds parts of speech"),
        (
            "Bonn,B-LOC,O\nis,O,B-X\n",
            "columns 2 .* and 3 .* all look like tags; choose one with columns={'word': 1, 'tag': 2}, or layer=",
        ),
    ],
)
def test_a_bad_table_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_the_columns_can_be_named(tmp_path: Path) -> None:
    assert read(tmp_path, "Bonn,B-LOC,O\nis,O,B-X\n", columns={"word": "1", "tag": "3"}) == [["Bonn O", "is B-X"]]


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5).map(
    lambda word: word.strip(" ") or "x"), min_size=1, max_size=6), delimiter=st.sampled_from(",;"))  # fmt: skip
def test_every_word_that_python_writes_is_read(tmp_path: Path, words: list[str], delimiter: str) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows([["word", "tag"], *([word, "B-X"] for word in words)])
    assert read(tmp_path, file.getvalue()) == [[f"{word} B-X" for word in words]]


@pytest.mark.parametrize("text", ["a,b B-X\nc,d O\n", ",\tB-X\n,\tO\n", "a,b\tB-X\n", ",, B-X\n. O\n"])
def test_commas_inside_words_separate_no_columns(tmp_path: Path, text: str) -> None:
    path = write_text(tmp_path / "a.txt", text)
    assert [word for s in read_ner(path).train for word in s.words] == [line.split()[0] for line in text.splitlines()]


CHARACTERS = st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from('",;\n\r\t #0123456789'))


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.lists(
            st.tuples(st.text(CHARACTERS, min_size=1, max_size=5), st.sampled_from(["O", "B-X", "B-a,b"])), min_size=1
        ),
        min_size=1,
        max_size=3,
    )
)
def test_what_is_written_is_read_again(tmp_path: Path, sentences: list[list[tuple[str, str]]]) -> None:
    documents = [
        Document(*(tuple(column) for column in zip(*rows, strict=True)), f"{i}") for i, rows in enumerate(sentences)
    ]
    form, path = format_named("csv"), tmp_path / "written.csv"
    notes = form.write(documents, path)
    plain = [tuple(re.sub("[\0\t\n\r]", " ", word) for word in document.words) for document in documents]
    plain = [tuple(word.strip(" ") or word for word in words) for words in plain]
    assert form.recognise(path)
    found = list(form.read(path, Reading()))
    assert [(d.words, d.tags) for d in found] == [(w, d.tags) for w, d in zip(plain, documents, strict=True)]
    changed = sum(
        a != b for d, words in zip(documents, plain, strict=True) for a, b in zip(d.words, words, strict=True)
    )
    assert [int(note.split()[0]) for note in notes] == ([changed] if changed else [])


def test_names_of_documents_have_no_place_in_a_table(tmp_path: Path) -> None:
    documents = [Document(("Bonn",), ("B-LOC",), "a", id="paper-1"), Document(("Ulm",), ("B-LOC",), "b", id="paper-1")]
    notes = format_named("csv").write(documents, tmp_path / "a.csv")
    assert notes == ["1 name of documents: the table has no place for them"]
    assert (tmp_path / "a.csv").read_text() == "sentence,word,tag\n1,Bonn,B-LOC\n2,Ulm,B-LOC\n"
