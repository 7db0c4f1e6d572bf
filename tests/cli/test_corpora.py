"""The flags that say which corpus to read and how, from the command line to the sentences."""

from pathlib import Path

import pytest

from lorakit.cli.__main__ import build_parser
from lorakit.cli.corpora import read_corpus
from lorakit.data.ner_data import NerData
from tests.support.corpora import write_text


def corpus(*words: object) -> NerData:
    return read_corpus(build_parser().parse_args(["train", "--model", "x", "--dataset", *map(str, words)]))


def brat(folder: Path) -> Path:
    folder.mkdir()
    for i in range(10):
        write_text(folder / f"d{i}.txt", f"Nr{i} ran . Nr{i} ate .")
        write_text(folder / f"d{i}.ann", "T1\tX 0 3\tNr" + str(i) + "\n")
    return folder


def columns(path: Path, documents: int) -> Path:
    marks = ["-DOCSTART- O\n\n"] * documents + [""] * (10 - documents)
    return write_text(path, "".join(f"{mark}Nr{i} B-X\n\nNr{i} O\n\n" for i, mark in enumerate(marks)))


def test_split_divides_folders_and_files_by_document_and_seed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    columns(tmp_path / "folder" / "train.tsv", 10)
    for source in (brat(tmp_path / "brat"), columns(tmp_path / "a.tsv", 10), tmp_path / "folder"):
        data = corpus(source, "--split", "60/20/20", "--split-seed", "1")
        parts = [data.train, data.validation, data.test]
        assert [len(part) for part in parts] == [12, 4, 4]
        names = [{sentence.words[0] for sentence in part} for part in parts]
        assert [len(part) for part in names] == [6, 2, 2] and len(set.union(*names)) == 10
        assert data.notes[-1].endswith("sentences of 10 documents, none of them divided")
        again, other = (corpus(source, "--split", "60/20/20", "--split-seed", seed) for seed in "12")
        assert data == again != other


def test_split_divides_a_file_of_one_document_by_sentences(tmp_path: Path) -> None:
    data = corpus(columns(tmp_path / "a.tsv", 1), "--split", "80/10/10")
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 2, 2)
    assert data.notes[-1].endswith("sentences of one document, which was divided")


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (
            "80/10",
            "shares is '80/10', which divides no corpus; give three percentages that add up to 100, such as 80/10/10",
        ),
        ("80/10/20", "shares is '80/10/20', which divides no corpus"),
        ("0/50/50", "shares is '0/50/50', which divides no corpus"),
    ],
)
def test_shares_that_are_none_are_refused(tmp_path: Path, shares: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corpus(columns(tmp_path / "a.tsv", 0), "--split", shares)


def test_a_corpus_with_splits_is_not_divided(tmp_path: Path) -> None:
    columns(tmp_path / "train.tsv", 0)
    columns(tmp_path / "test.tsv", 0)
    with pytest.raises(ValueError, match="has a test split already, so it is not divided; leave shares= out"):
        corpus(tmp_path, "--split", "80/10/10")
    assert len(corpus(tmp_path).test) == 20
