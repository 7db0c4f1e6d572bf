"""Files of a corpus whose columns are elsewhere than in the training file."""

from pathlib import Path

import pytest

from lorakit.data.conversion import convert
from lorakit.data.corpus import read_ner
from lorakit.data.ner_data import NerData
from lorakit.data.written import CorpusOptions
from tests.support.corpora import write_text

TWO = "EU\tB-ORG\nrejects\tO\n\nPeter\tB-PER\nBlackburn\tI-PER\n"
NUMBERED = "1\tEU\tB-ORG\n2\trejects\tO\n\n1\tPeter\tB-PER\n2\tBlackburn\tI-PER\n"
TAG_FIRST = "B-ORG\tEU\nO\trejects\n\nB-PER\tPeter\nI-PER\tBlackburn\n"
CONLL = "EU\tNNP\tB-NP\tB-ORG\nrejects\tVBZ\tB-VP\tO\n\nPeter\tNNP\tB-NP\tB-PER\nBlackburn\tNNP\tI-NP\tI-PER\n"
SWAPPED = "EU\tB-ORG\tNNP\tB-NP\nrejects\tO\tVBZ\tB-VP\n\nPeter\tB-PER\tNNP\tB-NP\nBlackburn\tI-PER\tNNP\tI-NP\n"
SUFFIXES = TWO.replace("B-ORG", "ORG_B").replace("B-PER", "PER_B").replace("I-PER", "PER_I")
FORMS = {
    "words and tags": TWO,
    "numbered": NUMBERED,
    "tag first": TAG_FIRST,
    "CoNLL-2003": CONLL,
    "NER before chunks": SWAPPED,
    "suffixes": SUFFIXES,
    "WikiANN": "".join(f"en:{line}\n" if line else "\n" for line in TWO.splitlines()),
    "WikiANN, German": "".join(f"de:{line}\n" if line else "\n" for line in TWO.splitlines()),
    "with a header": "word\ttag\n" + TWO,
    "lemmas": "EU\teu\tB-ORG\nRejects\trejects\tO\n\nPeter\tpeter\tB-PER\nBlackburn\tblackburn\tI-PER\n",
    "a sentence per line": "EU/B-ORG rejects/O\nPeter/B-PER Blackburn/I-PER\n",
    "BIOES": TWO.replace("B-ORG", "S-ORG").replace("I-PER", "E-PER"),
    "IO": TWO.replace("B-", "").replace("I-", ""),
    "IOB1": TWO.replace("B-", "I-"),
    "letter and type": TWO.replace("-", "\t").replace("O\n", "O\tO\n"),
}
COLUMNS = {"numbered": (2, 3), "tag first": (2, 1), "CoNLL-2003": (1, 4), "lemmas": (1, 3)}


def corpus(folder: Path, train: str, test: str, **how: object) -> NerData:
    folder.mkdir()
    write_text(folder / "train.tsv", train)
    write_text(folder / "test.tsv", test)
    return read_ner(folder, **how)


@pytest.mark.parametrize("train", FORMS)
@pytest.mark.parametrize("test", FORMS)
def test_every_split_is_read_by_its_own_columns_and_scheme(tmp_path: Path, train: str, test: str) -> None:
    data = corpus(tmp_path / "c", FORMS[train], FORMS[test])
    for split in (data.train, data.test):
        assert [tuple(word.lower() for word in s.words) for s in split] == [("eu", "rejects"), ("peter", "blackburn")]
        assert [s.tags for s in split] == [("B-ORG", "O"), ("B-PER", "I-PER")]
    where = [COLUMNS.get(name, (1, 2)) for name in (train, test)]
    said = [note for note in data.notes if "the training file has them in columns" in note]
    assert said or where[0] == where[1] or test == "letter and type"  # whose last two columns become the same
    assert all(f"words in column {where[1][0]} and tags in column {where[1][1]} of" in note for note in said)


def test_a_small_file_that_does_not_show_its_columns_is_read_as_the_training_file(tmp_path: Path) -> None:
    """Chunks, parts of speech and numbers there are not taken for tags and words."""
    for number, (train, test, words) in enumerate(
        [
            (CONLL, "The\tDT\tB-NP\tO\n", "The"),
            (NUMBERED, "7\t12\tO\n", "12"),
            ("1999\tCARD\tB-D\nBonn\tNE\tB-L\n", "2000\tCARD\tB-D\n", "2000"),
            ("EU\tB-ORG\tO\nsays\tO\tO\n", "EU\tB-ORG\tB-LOC\n", "EU"),
        ]
    ):
        [sentence] = corpus(tmp_path / str(number), train, test).test
        assert sentence.words == (words,), number
        assert sentence.tags in (("O",), ("B-D",), ("B-ORG",))


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (TWO, "1.1\tNew\tB-ORG\n1.2\tO\tO\n1.3\tcall\tO\n", ("New", "O", "call")),  # a word is O
        (TWO, "EU\tB-NP\tO\nsays\tB-VP\tO\n", ("EU", "says")),  # chunks, and no entity
    ],
)
def test_words_and_chunks_where_the_training_file_has_tags_are_none(
    tmp_path: Path, train: str, test: str, words: tuple[str, ...]
) -> None:
    [sentence] = corpus(tmp_path / "c", train, test).test
    assert sentence.words == words
    assert set(sentence.tags) <= {"B-ORG", "O"}


def test_a_file_that_by_itself_would_be_read_otherwise_is_said(tmp_path: Path) -> None:
    data = corpus(tmp_path / "c", "EU\tB-ORG\tO\nsays\tO\tO\n", "EU\tO\tB-ORG\n")
    assert data.test[0].tags == ("O",)
    assert any("by itself, its words would be in column 1 and its tags in column 3" in note for note in data.notes)
    options = CorpusOptions(columns={"word": "1", "tag": "3"})  # as the note says
    convert(str(tmp_path / "c" / "test.tsv"), tmp_path / "new.tsv", "conll", options)
    (tmp_path / "new.tsv").replace(tmp_path / "c" / "test.tsv")
    assert read_ner(tmp_path / "c").test[0].tags == ("B-ORG",)


def test_a_column_of_numbers_in_the_training_file_that_is_words_elsewhere_is_words(tmp_path: Path) -> None:
    data = corpus(tmp_path / "c", NUMBERED, "EU\tNeigen\tB-ORG\nzegt\tWW\tO\n")
    assert data.test[0].words == ("EU", "zegt")


def test_columns_that_cannot_be_told_apart_are_read_as_in_the_training_file_with_a_note(tmp_path: Path) -> None:
    data = corpus(tmp_path / "c", TWO, "EU\tB-ORG\tB-LOC\nrejects\tO\tB-X\n")
    assert data.test[0].tags == ("B-ORG", "O")
    assert any("words in column 1 and tags in column 2 of 3; the training file" in note for note in data.notes)


def test_columns_that_are_named_hold_for_every_file(tmp_path: Path) -> None:
    layers = "EU\tB-ORG\tB-LOC\nrejects\tO\tB-X\n"
    data = corpus(tmp_path / "c", layers, layers, columns={"word": "1", "tag": "3"})
    assert data.train[0].tags == data.test[0].tags == ("B-LOC", "B-X")
    with pytest.raises(ValueError, match=r"columns={'tag': 3}: .*test.tsv has columns 1 to 2"):
        corpus(tmp_path / "d", layers, TWO, columns={"word": "1", "tag": "3"})


def test_a_file_without_any_tags_is_refused_for_its_own_sake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="test.tsv:1: unknown tag 'NNP'; .*; column 2 holds parts of speech: add a"):
        corpus(tmp_path / "c", TWO, "EU\tNNP\nsays\tVBZ\n")
