"""In files without blank lines, numbers and ids before the words tell the sentences, or columns that a header names."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.data.corpus import read_ner
from tests.support.corpora import write_text

SENTENCES = [["EU B-ORG", "rejects O"], ["Peter B-PER", "Blackburn I-PER", "said O"], ["Brussels B-LOC", "is O"]]


def rows_of(before: Callable[[int, int], Sequence[object]], blank: bool = False) -> list[list[str]]:
    """The rows of SENTENCES after other columns, given the numbers of a sentence and a word, both from 1."""
    rows = []
    for s, sentence in enumerate(SENTENCES, start=1):
        rows += [[*map(str, before(s, t)), *pair.split()] for t, pair in enumerate(sentence, start=1)]
        rows += [[""]] if blank else []
    return rows


def read(path: Path, rows: list[list[str]], between: str = "\t") -> list[list[str]]:
    data = read_ner(write_text(path, "".join(f"{between.join(row)}\n" for row in rows)))
    return [[f"{word} {tag}" for word, tag in zip(s.words, s.tags, strict=True)] for s in data.train]


NUMBERS: dict[str, Callable[[int, int], Sequence[object]]] = {
    "sentence": lambda s, t: [s],
    "sentence from 0": lambda s, t: [s - 1],
    "sentence with gaps": lambda s, t: [7 * s],
    "Kaggle": lambda s, t: [f"Sentence: {s}"],
    "Kaggle, first lines only": lambda s, t: [f"Sentence: {s}" if t == 1 else ""],
    "sentence and word": lambda s, t: [s, t],
    "document and sentence": lambda s, t: ["ab"[s > 2], 1 if s == 3 else s],
    "word": lambda s, t: [t],
    "word from 0": lambda s, t: [t - 1],
    "word with gaps": lambda s, t: [10 * t],
    "word and sentence": lambda s, t: [t, s],
    "word, document, sentence": lambda s, t: [t - 1, "d1", s - 1],
    "d1s1t1": lambda s, t: [f"d1s{s}t{t}"],
    "1.1": lambda s, t: [f"{s}.{t}"],
    "1-1": lambda s, t: [f"{s}-{t}"],
    "w1": lambda s, t: [f"w{t}"],
    "#1": lambda s, t: [f"#{t}"],
    "t1": lambda s, t: [f"t{t}"],
    "sentence and any number": lambda s, t: [s, [0, 3, 3, 2][t]],
    "text, sentence, word": lambda s, t: ["x.txt", s, t],
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(("file", "between"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_numbers_and_ids_before_the_words_tell_the_sentences(tmp_path: Path, name: str, file: str, between: str):
    assert read(tmp_path / file, rows_of(NUMBERS[name]), between) == SENTENCES
    [said] = [note for note in read_ner(tmp_path / file).notes if "where sentences begin" in note]
    assert said.startswith("no blank line in the file: column")


@pytest.mark.parametrize("name", NUMBERS)
def test_blank_lines_end_sentences_whatever_the_numbers_say(tmp_path: Path, name: str):
    assert read(tmp_path / "a.tsv", rows_of(NUMBERS[name], blank=True)) == SENTENCES
    assert not any("where sentences begin" in note for note in read_ner(tmp_path / "a.tsv").notes)


def test_what_the_note_says_to_do_works(tmp_path: Path):
    rows = [["1", "EU", "B-ORG"], ["1", "says", "O"], ["2", "it", "O"], ["2", "all", "O"]]
    assert len(read(tmp_path / "a.tsv", rows)) == 2
    assert any("(if not, end them with blank lines)" in note for note in read_ner(tmp_path / "a.tsv").notes)
    assert read(tmp_path / "a.tsv", [*rows[:3], [""], rows[3]]) == [["EU B-ORG", "says O", "it O"], ["all O"]]


@pytest.mark.parametrize("name", ["id", "nr", "sid", "sent_id", "Sentence #", "sentence_idx"])
def test_a_header_above_numbers_changes_nothing(tmp_path: Path, name: str):
    rows = [[name, "word", "tag"], *rows_of(NUMBERS["sentence"])]
    assert read(tmp_path / "a.csv", rows, ",") == SENTENCES


def test_sentences_of_one_number_in_two_documents_stay_apart(tmp_path: Path):
    rows = rows_of(lambda s, t: [f"doc{s}", 1])
    assert read(tmp_path / "a.csv", [["doc_id", "Sentence #", "word", "tag"], *rows], ",") == SENTENCES


def test_a_number_after_the_tag_tells_the_sentences_too(tmp_path: Path):
    rows = [[word, tag, number] for number, word, tag in rows_of(NUMBERS["sentence"])]
    assert read(tmp_path / "a.tsv", rows) == SENTENCES


@pytest.mark.parametrize("before", [lambda s, t: [s * 10 + t], lambda s, t: [f"w{s}{t}x{10 * s + t}"]])
def test_numbers_that_never_begin_again_tell_nothing(tmp_path: Path, before: Callable[[int, int], Sequence[object]]):
    [sentence] = read(tmp_path / "a.tsv", rows_of(before))
    assert sentence == sum(SENTENCES, [])


def test_a_column_of_zeros_and_ones_after_the_words_tells_nothing(tmp_path: Path):
    rows = [["a", "B-X", "0"], ["b", "O", "0"], ["c", "O", "1"], ["d", "O", "1"]]
    assert len(read(tmp_path / "a.tsv", rows)) == 1


def test_heads_of_dependencies_tell_nothing(tmp_path: Path):
    """CoNLL-U's seventh column goes up as numbers of sentences would."""
    rows = [[str(i + 1), word, "_", "_", "_", "_", str(min(i, 1)), "_", "_", "NE=B-X"] for i, word in enumerate("abcd")]
    assert read(tmp_path / "a.conllu", rows) == [["a B-X", "b B-X", "c B-X", "d B-X"]]


def test_an_id_of_a_sentence_or_document_begins_a_sentence(tmp_path: Path):
    text = "# newdoc id = d\n# sent_id = 1\n1\tEU\tB-ORG\n# newdoc id = d\n# sent_id = 1\n1\tBonn\tB-LOC\n"
    data = read_ner(write_text(tmp_path / "a.tsv", text))
    assert [sentence.words for sentence in data.train] == [("EU",), ("Bonn",)]


HIPE = """TOKEN\tNE-COARSE-LIT\tNE-COARSE-METO\tNEL-LIT\tMISC
# hipe2022:document_id = 1798-a
EU\tB-org\tO\tQ458\t_
rejects\tO\tO\t_\tLED0.00|EndOfLine
# segment_iiif_link = _
it\tO\tO\t_\tNoSpaceAfter
.\tO\tO\t_\t{flag}|EndOfLine
Peter\tB-pers\tB-org\tQ33923\t{flag}

# hipe2022:document_id = 1798-b
NotEndOfSentence\tO\tO\t_\tNot{flag}
Bonn\tB-loc\tO\tQ586\t{flag}
"""


@pytest.mark.parametrize("flag", ["EndOfSentence", "PySBDSegment"])
def test_a_flag_of_hipe_ends_a_sentence_also_where_blank_lines_end_documents(tmp_path: Path, flag: str):
    data = read_ner(write_text(tmp_path / "train.tsv", HIPE.format(flag=flag)), layer="outer")
    told = [" ".join(sentence.words) for sentence in data.train]
    assert told == ["EU rejects it .", "Peter", "NotEndOfSentence Bonn"]
    assert [tag for s in data.train for tag in s.tags if tag != "O"] == ["B-org", "B-pers", "B-loc"]
    assert f"column 5 tells where sentences end ({flag})" in " ".join(data.notes)


def test_a_long_file_that_nothing_divides_says_so(tmp_path: Path):
    data = read_ner(write_text(tmp_path / "a.tsv", "".join(f"{i}x\ta\tO\n" for i in range(600))))
    assert any(note.startswith("no blank line in the file: it is read as one sentence of 600") for note in data.notes)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=8).filter(lambda found: max(found) > 1),
    name=st.sampled_from(
        ["sentence", "sentence from 0", "Kaggle", "sentence and word", "word and sentence", "d1s1t1", "1.1", "word"]
    ),
    comma=st.booleans(),
)
def test_sentences_of_any_length_are_told_by_numbers(lengths: list[int], name: str, comma: bool, tmp_path: Path):
    lengths = [length + (name == "word") for length in lengths]  # 1, 1, 2: of sentences or of words
    sentences = [[f"{'abcdefx'[t]}{'ghijklmn'[s]} O" for t in range(length)] for s, length in enumerate(lengths)]
    sentences[0][0] = "ag B-X"
    rows = [
        [*map(str, NUMBERS[name](s, t)), *pair.split()]
        for s, sentence in enumerate(sentences, start=1)
        for t, pair in enumerate(sentence, start=1)
    ]
    path = tmp_path / ("a.csv" if comma else "a.tsv")
    assert read(path, rows, "," if comma else "\t") == sentences


@pytest.mark.parametrize(("mark", "row"), [("</s>", "</s>\tO"), ("EOS", "EOS\tO"), ("", "\tO")])
def test_marks_of_sentences_are_a_note_that_works(tmp_path: Path, mark: str, row: str):
    path = write_text(tmp_path / "a.tsv", f"EU\tB-ORG\nruns\tO\n{row}\nIt\tO\n{row}\n")
    assert [s.words for s in read_ner(path).train] == [("EU", "runs", mark, "It", mark)]
    [note] = [note for note in read_ner(path).notes if "lines" in note]
    assert ("empty them where sentences end" if mark else "(if sentences end there, empty these lines)") in note
    write_text(path, path.read_text().replace(f"\n{row}\n", "\n\n"))
    assert [s.words for s in read_ner(path).train] == [("EU", "runs"), ("It",)]
    assert not [note for note in read_ner(path).notes if "lines" in note]


def test_word_pieces_are_a_note(tmp_path: Path):
    path = write_text(tmp_path / "a.tsv", "[CLS]\tO\nEU\tB-ORG\nre\tO\n##jects\tO\n[SEP]\tO\n\nIt\tO\n")
    notes = " ".join(read_ner(path).notes)
    assert "[CLS], [SEP] read as words" in notes and "words begin with ##, as pieces of a tokenizer do" in notes
    assert "##" not in " ".join(read_ner(write_text(path, "EU\tB-ORG\n##\tO\n#1\tO\n")).notes)
