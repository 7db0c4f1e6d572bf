"""Whole corpora: folders, files and schemes. The tests of each format are in formats/."""

from pathlib import Path

import pytest

from lorakit.data.corpus import NerData, Sentence, read_ner
from lorakit.data.tags import spans
from tests.support.corpora import LABELS, ROW, write_folder, write_lines, write_text


def test_bionlp2004_has_the_published_counts(bionlp2004: Path) -> None:
    data = read_ner(bionlp2004)
    assert data.labels[:5] == tuple(LABELS) and len(data.labels) == 11
    assert data.notes == ()
    expected = {
        "train": (16617, 442159, {"protein": 27200, "DNA": 8565, "cell_type": 6023, "cell_line": 3411, "RNA": 859}),
        "validation": (1927, 50416, {"protein": 3069, "DNA": 968, "cell_type": 695, "cell_line": 419, "RNA": 92}),
        "test": (3856, 101039, {"protein": 5067, "DNA": 1056, "cell_type": 1921, "cell_line": 500, "RNA": 118}),
    }
    for split, counts in expected.items():
        rows = getattr(data, split)
        by_type = dict.fromkeys(counts[2], 0)
        for row in rows:
            for span in spans(row.tags):
                by_type[span.type] += 1
        assert (len(rows), sum(len(row.words) for row in rows), by_type) == counts, split
    assert sum(by_type.values()) == 8662  # of test, the last


def test_a_folder_with_numbers_is_read_by_label_json(tmp_path: Path) -> None:
    row = {"tokens": ["IL-2", "gene", "is"], "tags": [1, 2, 0]}
    data = read_ner(write_folder(tmp_path, LABELS, train=[row, row], valid=[row], test=[row]))
    expected = Sentence(("IL-2", "gene", "is"), ("B-DNA", "I-DNA", "O"))
    assert data == NerData((expected, expected), (expected,), (expected,), tuple(LABELS), str(tmp_path), ())


def test_labels_without_label_json_are_o_and_then_sorted_types(tmp_path: Path) -> None:
    row = {"tokens": ["a", "b"], "tags": ["B-protein", "B-DNA"]}
    write_folder(tmp_path, train=[row], valid=[row], test=[{"tokens": ["c"], "tags": ["B-cell_line"]}])
    labels = read_ner(tmp_path).labels
    assert labels == ("O", "B-DNA", "I-DNA", "B-cell_line", "I-cell_line", "B-protein", "I-protein")


@pytest.mark.parametrize("name", ["validation.json", "dev.jsonl", "devel.json", "val.json", "valid.jsonl"])
def test_validation_goes_by_its_usual_names(tmp_path: Path, name: str) -> None:
    write_lines(write_folder(tmp_path, train=[ROW]) / name, ROW)
    data = read_ner(tmp_path)
    assert len(data.validation) == 1
    assert data.notes == (f"no test split: {tmp_path} has no such file",)


def test_a_folder_of_column_files_is_read(tmp_path: Path) -> None:
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        write_text(tmp_path / name, f"{name}\tB-DNA\n")
    data = read_ner(tmp_path)
    words = [rows[0].words for rows in (data.train, data.validation, data.test)]
    assert words == [("train.tsv",), ("dev.tsv",), ("test.tsv",)]


def test_the_dataset_subfolder_of_a_hub_copy_is_found(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    write_folder(tmp_path / "dataset", LABELS, train=[ROW], valid=[ROW], test=[ROW])
    assert read_ner(tmp_path).labels == tuple(LABELS)


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    write_lines(write_folder(tmp_path, train=[ROW], valid=[ROW]) / "dev.json", ROW)
    with pytest.raises(ValueError, match="dev.json and valid.json are all validation files; keep one"):
        read_ner(tmp_path)


def test_a_folder_without_train_says_what_it_holds(tmp_path: Path) -> None:
    write_folder(tmp_path, trian=[ROW])
    with pytest.raises(ValueError, match="no train file .*; the folder holds trian.json"):
        read_ner(tmp_path)


def test_a_single_file_is_train_and_says_so(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "test.json", ROW)
    data = read_ner(path)
    assert (len(data.train), data.validation, data.test) == (1, (), ())
    assert data.notes == (f"all of {path} is train: a file has no splits",)


def test_sentences_without_words_are_dropped_and_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "corpus.jsonl", ROW, {"tokens": [], "tags": []})
    data = read_ner(path)
    assert len(data.train) == 1
    assert "dropped: 1 sentences without words" in data.notes


def iob1_folder(folder: Path) -> Path:
    rows = [
        {"tokens": ["a", "b", "c", "d"], "tags": ["I-DNA", "B-DNA", "I-DNA", "O"]},
        {"tokens": ["e", "f"], "tags": ["O", "I-protein"]},
    ]
    return write_folder(folder, train=rows[:1], valid=rows[1:], test=rows)


@pytest.mark.parametrize("scheme", [None, "iob1"])
def test_iob1_is_recognised_and_converted(tmp_path: Path, scheme: str | None) -> None:
    data = read_ner(iob1_folder(tmp_path), scheme)
    assert data.train[0].tags == ("B-DNA", "B-DNA", "I-DNA", "O")
    assert data.validation[0].tags == ("O", "B-protein")
    assert data.notes == ("read as iob1: 4 tags converted to iob2",)


@pytest.mark.parametrize("scheme", [None, "bioes"])
@pytest.mark.parametrize("tags", ["S B I E", "U B I L"])
def test_bioes_and_bilou_are_converted(tmp_path: Path, tags: str, scheme: str | None) -> None:
    row = {"tokens": ["a", "b", "c", "d"], "tags": [f"{letter}-DNA" for letter in tags.split()]}
    data = read_ner(write_lines(tmp_path / "corpus.json", row), scheme)
    assert data.train[0].tags == ("B-DNA", "B-DNA", "I-DNA", "I-DNA")
    assert data.notes[1:] == ("read as bioes: 2 tags converted to iob2",)


@pytest.mark.parametrize("also", ["S-DNA", "I-protein"])  # I-protein: all iob2 tags used have an id, yet it is bioes
def test_label_json_of_another_scheme_is_renumbered_with_a_note(tmp_path: Path, also: str) -> None:
    labels = {"O": 0, "S-protein": 1, "B-protein": 2, "E-protein": 3, also: 4}
    rows = [{"tokens": ["a", "b", "c"], "tags": [2, 3, 1]}]
    data = read_ner(write_folder(tmp_path, labels, train=rows, valid=rows, test=rows))
    others = ("B-DNA", "I-DNA") if also == "S-DNA" else ()
    assert data.labels == ("O", *others, "B-protein", "I-protein")
    assert data.train[0].tags == ("B-protein", "I-protein", "B-protein")
    assert data.notes[0] == "read as bioes: 6 tags converted to iob2"
    assert data.notes[1] == "label.json's ids do not fit iob2 and were renumbered"


def test_label_json_of_iob1_that_lacks_a_label_is_renumbered(tmp_path: Path) -> None:
    rows = [{"tokens": ["a"], "tags": [0]}]
    data = read_ner(write_folder(tmp_path, {"I-DNA": 0, "O": 1}, train=rows, valid=rows, test=rows))
    assert (data.labels, data.train[0].tags) == (("O", "B-DNA", "I-DNA"), ("B-DNA",))


def test_label_json_of_bioes_means_bioes_even_where_no_tag_shows_it(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["B-DNA", "I-DNA"]}]
    folder = write_folder(tmp_path, {"O": 0, "B-DNA": 1, "I-DNA": 2, "E-DNA": 3}, train=rows, valid=rows, test=rows)
    with pytest.raises(ValueError, match="obey no scheme: 3 tags break bioes, the first at .*train.json:1, word 2 of"):
        read_ner(folder)


def ambiguous_folder(folder: Path) -> Path:
    bad = {"tokens": ["is", "gene"], "tags": ["O", "I-DNA"]}
    return write_folder(folder, train=[ROW, bad], valid=[ROW], test=[ROW])


def test_tags_that_obey_no_scheme_are_refused_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"1 tags break iob2, the first at .*train.json:2, word 2 of the sentence: 'gene' I-DNA; "
        r"3 tags break iob1, the first at .*train.json:1, word 1 .*Name the scheme.*scheme='iob2' or scheme='iob1'",
    ):
        read_ner(ambiguous_folder(tmp_path))


@pytest.mark.parametrize(("scheme", "broken"), [("iob2", 1), ("iob1", 3)])
def test_a_named_scheme_repairs_and_counts(tmp_path: Path, scheme: str, broken: int) -> None:
    data = read_ner(ambiguous_folder(tmp_path), scheme)
    assert [row.tags for row in data.train] == [("B-DNA", "I-DNA"), ("O", "B-DNA")]
    assert data.notes[-1] == f"repaired: {broken} tags broke scheme {scheme} and were read as seqeval reads them"


def test_a_named_scheme_without_the_letter_is_refused_with_the_place(tmp_path: Path) -> None:
    path = write_text(tmp_path / "corpus.tsv", "a\tO\n\nb\tS-DNA\nc\tO\n")
    with pytest.raises(ValueError, match="corpus.tsv:3: tag 'S-DNA' does not exist in scheme 'iob2'; read with"):
        read_ner(path, scheme="iob2")


def test_an_unknown_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown scheme 'iob'; it is one of iob2, iob1, bioes, or None to detect it"):
        read_ner(tmp_path, scheme="iob")


def test_a_missing_path_is_named_and_takes_no_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing: no such file or folder"):
        read_ner(tmp_path / "nothing")
    with pytest.raises(ValueError, match="data/train.tsv: no such file or folder"):
        read_ner("data/train.tsv")
    with pytest.raises(ValueError, match="the name of the corpus is empty"):
        read_ner("")


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="corpus.csv: unknown ending '.csv'; a corpus file ends in .json .jsonl .tsv"):
        read_ner(write_text(tmp_path / "corpus.csv", "a,O\n"))
