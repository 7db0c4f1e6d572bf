"""Numbers tell sentences where blank lines end documents, and after the words; numbers of other things do not."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.data.corpus import read_ner
from tests.support.corpora import write_text

Rows = Sequence[Sequence[object]]
DOCUMENTS = [
    [["EU B-ORG", "rejects O"], ["Peter B-PER", "Blackburn I-PER", "said O"]],
    [["Brussels B-LOC", "is O"], ["It O", "is O", "big O"]],
    [["Rome B-LOC", "too O"]],
]
SENTENCES = [sentence for document in DOCUMENTS for sentence in document]
# number of the document, of the sentence in it, in the file, and of the word, then the word and its tag -> the cells
LAYOUTS: dict[str, Callable[[int, int, int, int, str, str], Sequence[object]]] = {
    "sentence of the file": lambda d, s, n, t, word, tag: [n, word, tag],
    "sentence of the document": lambda d, s, n, t, word, tag: [s, word, tag],
    "sentence from 0": lambda d, s, n, t, word, tag: [s - 1, word, tag],
    "sentence and word": lambda d, s, n, t, word, tag: [s, t, word, tag],
    "document and sentence": lambda d, s, n, t, word, tag: [f"d{d}", s, word, tag],
    "word": lambda d, s, n, t, word, tag: [t, word, tag],
    "s1": lambda d, s, n, t, word, tag: [f"s{n}", word, tag],
    "d1.s1.t1": lambda d, s, n, t, word, tag: [f"d{d}.s{s}.t{t}", word, tag],
    "Kaggle, first lines only": lambda d, s, n, t, word, tag: [f"Sentence: {n}" if t == 1 else "", word, tag],
    "sentence after the word": lambda d, s, n, t, word, tag: [word, n, tag],
    "sentence after the tag": lambda d, s, n, t, word, tag: [word, tag, s],
    "d1_s1 after the tag": lambda d, s, n, t, word, tag: [word, tag, f"d{d}_s{s}"],
    "word after the word": lambda d, s, n, t, word, tag: [word, t, tag],
    "word from 0 after the tag": lambda d, s, n, t, word, tag: [word, tag, t - 1],
    "place after the word": lambda d, s, n, t, word, tag: [word, 20 * t - 20, 20 * t - 20 + len(word), tag],
}


def rows_of(documents: Sequence[Sequence[Sequence[str]]], cells: Callable[..., Sequence[object]]) -> list[Rows]:
    """The rows of each document."""
    found, n = [], 0
    for d, document in enumerate(documents, start=1):
        rows: list[Sequence[object]] = []
        for s, sentence in enumerate(document, start=1):
            n += 1
            rows += [cells(d, s, n, t, *pair.split()) for t, pair in enumerate(sentence, start=1)]
        found.append(rows)
    return found


def write(path: Path, documents: Sequence[Rows]) -> Path:
    return write_text(path, "\n".join("".join("\t".join(map(str, row)) + "\n" for row in rows) for rows in documents))


def read(path: Path) -> list[list[str]]:
    return [[f"{word} {tag}" for word, tag in zip(s.words, s.tags, strict=True)] for s in read_ner(path).train]


def notes(path: Path) -> str:
    return "\n".join(read_ner(path).notes)


@pytest.mark.parametrize("name", LAYOUTS)
def test_numbers_tell_sentences_where_blank_lines_end_documents(tmp_path: Path, name: str):
    path = write(tmp_path / "a.tsv", rows_of(DOCUMENTS, LAYOUTS[name]))
    assert read(path) == SENTENCES
    assert "blank lines end documents: column" in notes(path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_they_tell_them_in_a_file_without_blank_lines(tmp_path: Path, name: str):
    whole = [[sentence for document in DOCUMENTS for sentence in document]]
    path = write(tmp_path / "a.tsv", rows_of(whole, LAYOUTS[name]))
    assert read(path) == SENTENCES
    assert "no blank line in the file: column" in notes(path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_blank_lines_after_each_sentence_need_no_note(tmp_path: Path, name: str):
    apart = [[sentence] for sentence in SENTENCES]
    path = write(tmp_path / "a.tsv", rows_of(apart, LAYOUTS[name]))
    assert read(path) == SENTENCES
    assert "blank line" not in notes(path)


def test_without_the_numbers_blank_lines_end_sentences_as_the_note_says(tmp_path: Path):
    documents = rows_of(DOCUMENTS, LAYOUTS["sentence of the file"])
    path = write(tmp_path / "a.tsv", documents)
    assert "(if blank lines end sentences, remove the numbers)" in notes(path)
    write(path, [[row[1:] for row in rows] for rows in documents])
    assert read(path) == [sum(document, []) for document in DOCUMENTS]


def test_a_split_keeps_the_sentences_of_one_document_together(tmp_path: Path):
    documents = [[["A B-X", "b O"], ["C O", "d O"]] for _ in range(20)]
    marked = [[[f"{pair[0]}{d}{pair[1:]}" for pair in s] for s in document] for d, document in enumerate(documents)]
    path = write(tmp_path / "a.tsv", rows_of(marked, LAYOUTS["sentence of the document"]))
    data = read_ner(path, shares="50/25/25")
    there = [{s.words[0][1:] for s in split} for split in (data.train, data.validation, data.test)]
    assert [len(numbers) for numbers in there] == [10, 5, 5]
    assert len(set().union(*there)) == 20


@pytest.mark.parametrize(
    ("what", "numbers"),
    [
        ("a page that goes on after a blank line", [[1, 1], [1, 2, 2], [2, 2], [2, 3, 3], [3, 3]]),
        ("phrases inside a sentence", [[1, 1], [1, 2, 2], [1, 1], [1, 1, 2], [1, 2]]),
    ],
)
def test_numbers_of_other_things_are_a_note_that_works(tmp_path: Path, what: str, numbers: list[list[int]]):
    documents = [
        [(number, pair.split()[0], "B-X") for number, pair in zip(*both, strict=True)]
        for both in zip(numbers, SENTENCES, strict=True)
    ]
    path = write(tmp_path / "a.tsv", documents)
    assert read(path) == [[f"{word} {tag}" for _, word, tag in rows] for rows in documents]
    said = "blank lines of 5, which are read (if the numbers are right, end each sentence with a blank line)"
    assert said in notes(path)
    cut: list[list[tuple]] = []
    for rows in documents:
        for i, row in enumerate(rows):
            if i and row[0] == rows[i - 1][0]:
                cut[-1].append(row)
            else:
                cut.append([row])
    write(path, cut)
    assert read(path) == [[f"{row[1]} {row[2]}" for row in rows] for rows in cut]


@pytest.mark.parametrize(
    ("what", "numbers"),
    [
        ("heads of dependencies", [2, 0, 2, 3, 0]),
        ("flags", [0, 1, 0, 1, 0]),
        ("lengths", [2, 7, 5, 9, 4]),
        ("places that leave no room for the words", [0, 1, 3, 0, 1]),
        ("numbers with gaps", [1, 1, 3, 3, 3]),
    ],
)
def test_other_numbers_after_the_words_tell_nothing(tmp_path: Path, what: str, numbers: list[int]):
    pairs = [pair.split() for pair in [*SENTENCES[0], *SENTENCES[1]]]
    rows = [(word, number, tag) for (word, tag), number in zip(pairs, numbers, strict=True)]
    path = write(tmp_path / "a.tsv", [rows])
    assert read(path) == [[*SENTENCES[0], *SENTENCES[1]]]


def test_a_long_sentence_among_others_is_a_note(tmp_path: Path):
    path = write(tmp_path / "a.tsv", [[("a", "B-X"), ("b", "O")], [("c", "O")] * 600])
    assert "1 sentence of at least 500 words (end each sentence with a blank line)" in notes(path)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    lengths=st.lists(st.lists(st.integers(2, 6), min_size=1, max_size=4), min_size=2, max_size=5).filter(
        lambda found: max(map(len, found)) > 1
    ),
    name=st.sampled_from([name for name in LAYOUTS if "0" not in name]),  # 0 and 1 may be flags
)
def test_sentences_of_any_length_in_documents_of_any_number(lengths: list[list[int]], name: str, tmp_path: Path):
    documents = [
        [[f"{'abcdef'[t]}{'ghij'[s]}{'klmno'[d]} O" for t in range(length)] for s, length in enumerate(document)]
        for d, document in enumerate(lengths)
    ]
    documents[0][0][0] = "agk B-X"
    path = write(tmp_path / "a.tsv", rows_of(documents, LAYOUTS[name]))
    assert read(path) == [sentence for document in documents for sentence in document]
