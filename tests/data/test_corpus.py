"""Whole corpora: folders, files and schemes. The tests of each format are in formats/."""

import os
from pathlib import Path

import pytest

from lorakit.data.corpus import NerData, Sentence, read_ner, read_written
from lorakit.data.tags import spans
from tests.support.corpora import LABELS, ROW, named_columns, write_folder, write_lines, write_text


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


def test_types_that_differ_in_case_alone_are_noted_also_of_two_corpora(tmp_path: Path) -> None:
    names = {name: write_text(tmp_path / f"{name}.tsv", f"a\tB-{name}\n") for name in ("Per", "PER", "ORG")}
    note = "PER and Per are types of their own; if they are one, a table renames them (label_map)"
    assert read_ner([names["Per"], names["ORG"], names["PER"]]).notes[-1] == note
    both = write_text(tmp_path / "both.tsv", "a\tB-Per\nb\tB-PER\nb\tB-ORG\n")
    assert read_ner(both).notes[-1] == note
    assert read_ner(both, label_map={"Per": "PER"}).labels == ("O", "B-ORG", "I-ORG", "B-PER", "I-PER")
    assert note not in read_ner(both, label_map={"Per": "PER"}).notes


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


@pytest.mark.parametrize("name", ["dataset", "data"])
def test_the_folder_of_splits_in_a_hub_copy_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    write_folder(tmp_path / name, LABELS, train=[ROW], valid=[ROW], test=[ROW])
    assert read_ner(tmp_path).labels == tuple(LABELS)


def test_a_folder_of_corpora_says_so_and_one_is_read(tmp_path: Path) -> None:
    for name in ("de", "en"):
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name, LABELS, train=[ROW])
    with pytest.raises(ValueError, match=f"give a file, or one of its folders, such as {tmp_path / 'de'}, instead"):
        read_ner(tmp_path)
    assert len(read_ner(tmp_path / "de").train) == 1


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    write_lines(write_folder(tmp_path, train=[ROW], valid=[ROW]) / "dev.json", ROW)
    with pytest.raises(ValueError, match="dev.json and valid.json are all validation files; keep one"):
        read_ner(tmp_path)


def test_a_folder_without_train_says_what_it_holds(tmp_path: Path) -> None:
    write_folder(tmp_path, trian=[ROW])
    with pytest.raises(ValueError, match="no train file .*; the folder holds trian.json"):
        read_ner(tmp_path)


def test_a_training_file_whose_columns_must_be_chosen_says_so_and_is_read_then(tmp_path: Path) -> None:
    (tmp_path / "corpus-train-en.tsv").write_text("Mr\tO\tO\nSwift\tB-pers\tB-pers.ind\n", encoding="utf-8")
    with pytest.raises(
        ValueError,
        match="corpus-train-en.tsv: columns 2 .* and 3 .* all look like tags; .*={'word': 1, 'tag': 2}",
    ):
        read_ner(tmp_path)
    assert read_ner(tmp_path, columns={"word": "1", "tag": "2"}).train[0].tags == ("O", "B-pers")


def test_a_single_file_is_train_and_says_so(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "test.json", ROW)
    data = read_ner(path)
    assert (len(data.train), data.validation, data.test) == (1, (), ())
    assert data.notes == (f"all of {path} is train: a file has no splits",)


def test_sentences_without_words_are_dropped_and_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "corpus.jsonl", ROW, {"tokens": [], "tags": []})
    data = read_ner(path)
    assert len(data.train) == 1
    assert "dropped: 1 sentence without words" in data.notes


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
        match=r"1 tag breaks iob2, the first at .*train.json:2, word 2 of the sentence: 'gene' I-DNA; "
        r"3 tags break iob1, the first at .*train.json:1, word 1 .*Name the scheme.*scheme='iob2' or scheme='iob1'",
    ):
        read_ner(ambiguous_folder(tmp_path))


@pytest.mark.parametrize(
    ("scheme", "said"),
    [("iob2", "1 tag broke scheme iob2 and was"), ("iob1", "3 tags broke scheme iob1 and were")],
)
def test_a_named_scheme_repairs_and_counts(tmp_path: Path, scheme: str, said: str) -> None:
    data = read_ner(ambiguous_folder(tmp_path), scheme)
    assert [row.tags for row in data.train] == [("B-DNA", "I-DNA"), ("O", "B-DNA")]
    assert data.notes[-1] == f"repaired: {said} read as seqeval reads them"


NESTED = [
    "B-ORG/B-LOC",
    "B-ORG|B-LOC",
    "B-ORG,B-LOC",
    "B-ORG;B-LOC",
    "B-ORG+B-LOC",
    "B-ORG__B-LOC",
    "B-ORG/O",
    "B-A&S-B",
]


@pytest.mark.parametrize("tag", NESTED)
@pytest.mark.parametrize("ending", ["tsv", "json"])
def test_two_tags_in_one_place_are_refused_and_the_advice_works(tmp_path: Path, tag: str, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    rows = [("Uni", tag), ("x", "O"), ("y", "S-B" if "S-" in tag else "O")]
    if ending == "tsv":
        write_text(path, "".join(f"{word}\t{tag}\n" for word, tag in rows))
    else:
        write_lines(path, {"tokens": [word for word, _ in rows], "tags": [tag for _, tag in rows]})
    with pytest.raises(
        ValueError, match=rf"a.{ending}:1: word 1, 'Uni', has two tags, .*: keep one of them; or .* column"
    ):
        read_ner(path)
    write_text(tmp_path / "b.tsv", "Uni\tB-ORG\tB-LOC\nx\tO\tO\n")
    assert read_ner(tmp_path / "b.tsv", layer="outer").train[0].tags == ("B-ORG", "O")
    assert read_ner(tmp_path / "b.tsv", layer="inner").train[0].tags == ("B-LOC", "O")


@pytest.mark.parametrize("kind", ["ORG/COM", "G1/S-phase", "R&D", "a,b"])
def test_a_type_with_a_sign_in_its_name_is_a_type(tmp_path: Path, kind: str) -> None:
    data = read_ner(write_text(tmp_path / "a.tsv", f"x\tB-{kind}\ny\tI-{kind}\n"))
    assert data.train[0].tags == (f"B-{kind}", f"I-{kind}")
    assert len(data.notes) == 1


def test_a_type_that_may_be_two_others_is_said(tmp_path: Path) -> None:
    data = read_ner(write_text(tmp_path / "a.tsv", "x\tB-ORG/LOC\ny\tB-ORG\nz\tB-LOC\n"))
    assert any(
        note.startswith("ORG and LOC are types, and ORG/LOC is read as a type of its own") for note in data.notes
    )


SCHEMES = {
    "iob2": "B-PER I-PER B-LOC O",
    "iob1": "I-PER I-PER I-LOC O",
    "bioes": "B-PER E-PER S-LOC O",
    "io": "PER PER LOC O",
}


@pytest.mark.parametrize("train", SCHEMES)
@pytest.mark.parametrize("test", SCHEMES)
def test_each_split_is_read_by_its_own_scheme(tmp_path: Path, train: str, test: str) -> None:
    for split, name in (("train", train), ("test", test)):
        rows = zip("abcd", SCHEMES[name].split(), strict=True)
        write_text(tmp_path / f"{split}.tsv", "".join(f"{word}\t{tag}\n" for word, tag in rows))
    data = read_ner(tmp_path)
    for split in (data.train, data.test):
        assert split[0].tags == ("B-PER", "I-PER", "B-LOC", "O")
    used = [{"io": "iob1"}.get(name, name) for name in (train, test)]
    said = f"the splits are in different schemes, and each was read by its own: train {used[0]}, test {used[1]}"
    assert (said in data.notes) == (used[0] != used[1])


def test_a_named_scheme_without_the_letter_is_refused_with_the_place(tmp_path: Path) -> None:
    path = write_text(tmp_path / "corpus.tsv", "a\tO\n\nb\tS-DNA\nc\tO\n")
    message = "corpus.tsv:3: tag 'S-DNA' does not exist in scheme 'iob2'; name another scheme"
    with pytest.raises(ValueError, match=message):
        read_ner(path, scheme="iob2")


def test_an_unknown_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="unknown scheme 'iob'; it is one of iob2, iob1, bioes, bio, io, .*, or None to detect it"
    ):
        read_ner(tmp_path, scheme="iob")


def test_a_missing_path_is_named_and_takes_no_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing: no such file or folder"):
        read_ner(tmp_path / "nothing")
    with pytest.raises(ValueError, match="data/train.tsv: no such file or folder"):
        read_ner("data/train.tsv")
    with pytest.raises(ValueError, match="the name of the corpus is empty"):
        read_ner("")


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="corpus.rtf: unknown ending '.rtf', and no format .* file ends in .*.tsv"):
        read_ner(write_text(tmp_path / "corpus.rtf", "a/O\n"))


@pytest.mark.parametrize("name", ["train.tsv", "valid.json", "label.json"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.mkdir, "is not a regular file; copy its content into one"),
        (os.mkfifo, "is not a regular file; copy its content into one"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file; copy its content into one"),
        (lambda path: (path.touch(), os.truncate(path, 1 << 33)), "has 8,589,934,592 bytes; at most 4,294,967,296"),
    ],
)
def test_what_is_no_file_of_a_sane_size_is_refused_before_it_is_opened(tmp_path: Path, name, make, message) -> None:
    """A pipe would be waited for and a device read without end; neither is silently left out."""
    if name != "train.tsv":
        (tmp_path / "train.tsv").write_text("IL-2\tB-DNA\n", encoding="utf-8")
    make(tmp_path / name)
    for source in (tmp_path, *([tmp_path / name] if name == "train.tsv" and make is not Path.mkdir else [])):
        with pytest.raises(ValueError, match=f"{name} {message}"):
            read_ner(source)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").symlink_to("nowhere")
    with pytest.raises(ValueError, match="train.tsv: cannot be read: No such file or directory"):
        read_ner(tmp_path)


def test_tags_without_prefixes_are_read_by_label_json(tmp_path: Path) -> None:
    row = {"tokens": ["a", "b", "c"], "tags": [1, 1, 0]}
    data = read_ner(write_folder(tmp_path, {"O": 0, "DNA": 1}, train=[row]))
    assert (data.train[0].tags, data.labels) == (("B-DNA", "I-DNA", "O"), ("O", "B-DNA", "I-DNA"))
    assert "tags without prefixes (IO): two entities of one type side by side are read as one" in data.notes


@pytest.mark.parametrize(
    "names",
    [
        ["eng.train", "eng.testa", "eng.testb"],  # CoNLL-2003
        ["wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"],
        ["NER-de-train.tsv", "NER-de-dev.tsv", "NER-de-test.tsv"],  # GermEval
        ["train", "dev", "test"],  # WikiANN
        ["train.char.bmes", "dev.char.bmes", "test.char.bmes"],  # ResumeNER
        ["en_ewt-ud-train.iob2", "en_ewt-ud-dev.iob2", "en_ewt-ud-test.iob2"],  # Universal NER
        ["train.tsv", "devel.tsv", "test.tsv"],  # MTL-Bioinformatics-2016
    ],
)
def test_splits_go_by_the_names_that_corpora_have(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_text(tmp_path / name, f"{name}\tB-DNA\nx\tO\n")
    write_text(tmp_path / "README.md", "the training data\n")
    write_text(tmp_path / "train_dev.tsv", "both\tB-DNA\nx\tO\n")
    data = read_ner(tmp_path)
    assert [rows[0].words[0] for rows in (data.train, data.validation, data.test)] == names


def test_the_gold_file_of_wnut17_is_the_test_split(tmp_path: Path) -> None:
    for name in ("wnut17train.conll", "emerging.test.conll", "emerging.test.annotated"):
        write_text(tmp_path / name, f"{name}\tB-DNA\nx\tO\n")
    data = read_ner(tmp_path)
    assert data.test[0].words[0] == "emerging.test.annotated"
    assert "emerging.test.annotated is the test split; not read: emerging.test.conll" in data.notes


def test_the_columns_of_one_split_hold_for_the_others(tmp_path: Path) -> None:
    write_text(tmp_path / "train.txt", "1 EU NNP I-NP I-ORG\n2 says VBZ I-VP O\n")
    write_text(tmp_path / "test.txt", "5 EU NNP I-NP I-ORG\n")
    data = read_ner(tmp_path)
    assert (data.train[0].words, data.test[0].words) == (("EU", "says"), ("EU",))


def test_ontonotes_is_read_with_its_outer_brackets(tmp_path: Path) -> None:
    row = "bc/x 0 {} {} NN (TOP* - - - A {} -\n"
    rows = [("the", "(ORG*"), ("Bank", "*"), ("of", "*"), ("Rome", "(GPE))"), ("said", "*")]
    text = "".join(row.format(i, word, cell) for i, (word, cell) in enumerate(rows))
    path = write_text(tmp_path / "x.conll", "#begin document (bc/x); part 000\n" + text + "\n#end document\n")
    data = read_ner(path)
    assert data.train[0].tags == ("B-ORG", "I-ORG", "I-ORG", "I-ORG", "O")
    assert any(note.startswith("inside another annotation, left out") for note in data.notes)
    assert read_ner(path, layer="inner").train[0].tags == ("O", "O", "O", "B-GPE", "O")


def test_several_corpora_are_joined_with_the_union_of_their_labels(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    write_text(one / "train.tsv", "a\tB-DNA\n")
    write_text(other / "train.tsv", "b\tB-RNA\n")
    write_text(other / "test.tsv", "c\tO\n")
    data = read_ner([one, other])
    assert [sentence.words[0] for sentence in data.train] == ["a", "b"]
    assert len(data.test) == 1
    assert data.labels == ("O", "B-DNA", "I-DNA", "B-RNA", "I-RNA")
    assert data.source == f"{one} + {other}"


def test_types_are_renamed_merged_and_dropped_by_a_table(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.tsv", "a\tB-DNA\nb\tB-RNA\nc\tI-RNA\nd\tB-cell\n")
    data = read_ner(path, label_map={"DNA": "NA", "RNA": "NA", "cell": None})
    assert data.train[0].tags == ("B-NA", "B-NA", "I-NA", "O")
    assert data.labels == ("O", "B-NA", "I-NA")
    assert {"label map: 1 RNA renamed NA", "label map: 1 cell left out"} <= set(data.notes)
    with pytest.raises(ValueError, match="label map: no type cells in the corpus; it has DNA, RNA, cell"):
        read_ner(path, label_map={"cells": None})


def test_a_type_with_a_space_is_refused_and_the_table_is_the_fix(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.tsv", "a\tB-cell line\n")
    with pytest.raises(ValueError, match="a.tsv:1: the type 'cell line' has a space in its name; .* to 'cell_line'"):
        read_ner(path)
    assert read_ner(path, label_map={"cell line": "cell_line"}).train[0].tags == ("B-cell_line",)
    path = write_text(tmp_path / "b.tsv", "a\tB-cell line\nb\tB-cell type\n")
    with pytest.raises(ValueError, match="'cell line' to 'cell_line', and also from 'cell type' to 'cell_type'"):
        read_ner(path)
    table = {"cell line": "cell_line", "cell type": "cell_type"}
    assert read_ner(path, label_map=table).train[0].tags == ("B-cell_line", "B-cell_type")


def test_a_file_is_divided_by_shares(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.tsv", "".join(f"w{i}\tB-DNA\n\n" for i in range(20)))
    data = read_ner(path, shares="80/10/10", seed=1)
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 2, 2)
    assert sorted(s.words[0] for s in (*data.train, *data.validation, *data.test)) == sorted(f"w{i}" for i in range(20))
    assert data == read_ner(path, shares="80/10/10", seed=1) != read_ner(path, shares="80/10/10", seed=2)
    assert data.notes == ("divided 80/10/10 with seed 1: 16 train, 2 validation, 2 test sentences",)


def test_a_document_is_not_divided(tmp_path: Path) -> None:
    text = "".join(f"-DOCSTART- O\n\nd{i}\tB-DNA\n\nd{i}\tO\n\n" for i in range(10))
    data = read_ner(write_text(tmp_path / "a.tsv", text), shares="60/20/20")
    parts = [{s.words[0] for s in part} for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [6, 2, 2] and len(set.union(*parts)) == 10


def test_two_formats_in_a_folder_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, train=[ROW])
    write_text(tmp_path / "test.tsv", "a\tB-DNA\n")
    with pytest.raises(ValueError, match=r"test.tsv: is a word and its tag per line, but .*train.json is JSON lines"):
        read_ner(tmp_path)


OTHERS = {  # files of a second format, beside documents of brat or WebAnno
    "train.json": '{"tokens": ["EU", "ran"], "tags": ["B-ORG", "O"]}\n',
    "x.csv": "word,tag\nEU,B-ORG\nran,O\n\nA,O\n",
    "x.pubtator": "1|t|EU ran\n1|a|x\n1\t0\t2\tEU\tORG\tD1\n",
    "x.jsonl": '{"text": "EU ran", "label": [[0, 2, "ORG"]]}\n',
    "train.txt": "EU\tB-ORG\nran\tO\n",
}
BRAT = {"a.txt": "EU ran", "a.ann": "T1\tORG 0 2\tEU\n"}
NAMED_ENTITY = "de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity"
WEBANNO = {
    "a.tsv": f"#FORMAT=WebAnno TSV 3.3\n#T_SP={NAMED_ENTITY}|value\n\n\n#Text=EU ran\n1-1\t0-2\tEU\tORG\t\n"
    "1-2\t3-6\tran\t_\t\n"
}


def folder_of(path: Path, *files: dict[str, str]) -> Path:
    path.mkdir()
    for name, text in (item for part in files for item in part.items()):
        write_text(path / name, text)
    return path


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("first", [BRAT, WEBANNO], ids=["brat", "webanno"])
def test_a_folder_of_documents_with_a_file_of_another_format_is_refused(tmp_path: Path, first: dict, name: str) -> None:
    path = folder_of(tmp_path / "both", first, {name: OTHERS[name]})
    with pytest.raises(ValueError, match=f"both: holds two formats, .*, and {name}: .*; move one of them to a folder"):
        read_ner(path)
    assert len(read_ner(path / name).train) >= 1  # the second way out
    (path / name).rename(tmp_path / name)  # the first
    assert read_ner(path).train[0].tags[0] == "B-ORG"


@pytest.mark.parametrize("first", [BRAT, WEBANNO], ids=["brat", "webanno"])
def test_files_of_a_folder_of_documents_that_are_not_used_are_listed(tmp_path: Path, first: dict) -> None:
    more = {"README.md": "text\n", "annotation.conf": "[entities]\nORG\n", "label_colors.json": '{"ORG": "red"}'}
    path = folder_of(tmp_path / "one", first, more)
    [(_, written)] = read_written(path)
    assert written.unused == ("README.md", "annotation.conf", "label_colors.json")
    parts = tmp_path / "parts"
    parts.mkdir()
    path.rename(parts / "train")
    folder_of(parts / "dev", first)
    [(_, written)] = read_written(parts)
    assert written.unused == ("train/README.md", "train/annotation.conf", "train/label_colors.json")


@pytest.mark.parametrize("names", [("train1.json", "train2.json"), ("a-train-0.json", "a-train-1.json")])
def test_numbered_files_of_one_split_are_its_parts(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write_lines(tmp_path / name, ROW)
    data = read_ner(tmp_path)
    assert len(data.train) == 2
    assert f"the train split has 2 parts: {', '.join(names)}" in data.notes


def test_parts_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(1, 12):
        write_lines(tmp_path / f"train{number}.json", {"tokens": [str(number)], "tags": ["O"]})
    assert [int(sentence.words[0]) for sentence in read_ner(tmp_path).train] == list(range(1, 12))


@pytest.mark.parametrize(
    "names",
    [("train-a.json", "train-b.json"), ("train_v1.json", "train_v2.json"), ("train10.json", "train100.json")],
)
def test_other_files_of_one_split_are_refused_and_the_names_of_parts_are_the_fix(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for name in names:
        write_lines(tmp_path / name, ROW)
    with pytest.raises(ValueError, match="are all train files; keep one .*name them train-1.json and train-2.json"):
        read_ner(tmp_path)
    for number, name in enumerate(names, start=1):
        (tmp_path / name).rename(tmp_path / f"train-{number}.json")
    assert len(read_ner(tmp_path).train) == 2


@pytest.mark.parametrize("other", ["train.tsv", "train"])
def test_a_file_and_another_format_of_one_split_are_no_parts(tmp_path: Path, other: str) -> None:
    write_folder(tmp_path, train=[ROW])
    if other == "train":
        folder_of(tmp_path / "train", BRAT)
    else:
        write_text(tmp_path / other, "EU\tB-ORG\n")
    with pytest.raises(ValueError, match="are all train files; keep one in the folder$"):
        read_ner(tmp_path)
    (tmp_path / "train.json").unlink()
    assert read_ner(tmp_path).train[0].tags[0] == "B-ORG"


def test_a_file_named_as_a_split_that_is_not_read_is_a_note(tmp_path: Path) -> None:
    write_folder(tmp_path, train=[ROW], train2=[ROW], dev1=[ROW], dev2=[ROW])
    notes = read_ner(tmp_path).notes
    assert "not read, though named as train: train2.json; parts are read if all are named train-1, train-2" in notes
    assert "not read, though named as validation: dev1.json, dev2.json; validation.json would be" in notes
    (tmp_path / "train.json").rename(tmp_path / "train-1.json")
    (tmp_path / "train2.json").rename(tmp_path / "train-2.json")
    (tmp_path / "dev1.json").rename(tmp_path / "validation.json")
    (tmp_path / "dev2.json").unlink()
    data = read_ner(tmp_path)
    assert (len(data.train), len(data.validation)) == (2, 1)
    assert not any(note.startswith("not read") for note in data.notes)


def test_a_bracket_around_one_word_is_an_entity(tmp_path: Path) -> None:
    row = "bc/x 0 {} {} NN (TOP* - - - A {} -\n"
    path = write_text(tmp_path / "x.conll", "#begin document (x); part 0\n" + row.format(0, "Rome", "(GPE)"))
    assert read_ner(path).train[0].tags == ("B-GPE",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offsets": "utf16"}, "unknown unit of offsets 'utf16'; it is one of characters, utf-16, bytes"),
        ({"layer": "middle"}, "unknown layer 'middle'; it is outer or inner"),
        ({"columns": {"words": "1"}}, "columns={'words': 1}: unknown role 'words'; it is word or tag"),
        (
            {"columns": {"word": "1"}},
            "columns={'word': 1}: no field '1' of .*corpus.jsonl holds lists of words; name one that does",
        ),
    ],
)
def test_an_option_that_says_nothing_about_the_corpus_is_refused(tmp_path: Path, options: dict, message: str) -> None:
    path = write_lines(tmp_path / "corpus.jsonl", ROW)
    with pytest.raises(ValueError, match=message):
        read_ner(path, **options)


def test_columns_are_given_as_numbers_or_text_and_in_a_dictionary(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.tsv", "B-X EU B-ORG\nO says O\n")
    data = read_ner(path, columns={"word": 2, "tag": 3})
    assert data == read_ner(path, columns={"word": "2", "tag": "3"})
    assert data.train[0].tags == ("B-ORG", "O")
    with pytest.raises(ValueError, match="columns is 'word=2,tag=3'; give a dictionary, as in ") as error:
        read_ner(path, columns="word=2,tag=3")
    assert named_columns(str(error.value)) == [{"word": 1, "tag": 3}]
    read_ner(path, columns=named_columns(str(error.value))[0])


def test_a_layer_of_a_format_that_has_one_is_noted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "corpus.jsonl", ROW)
    assert any(note.startswith("layer='inner' has no effect: ") for note in read_ner(path, layer="inner").notes)
