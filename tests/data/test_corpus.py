import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, IOBES, Entities

from lorakit.data.corpus import NerData, Sentence, Span, _read_hub, from_spans, irregular, read_ner, spans, to_iob2

CORPUS = Path(__file__).parents[2].parent / "shared" / "bionlp2004"
LABELS = {"O": 0, "B-DNA": 1, "I-DNA": 2, "B-protein": 3, "I-protein": 4}
ROW = {"tokens": ["IL-2", "gene"], "tags": ["B-DNA", "I-DNA"]}


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_folder(folder: Path, labels: dict[str, int] | None = None, **splits: list[object]) -> Path:
    for split, records in splits.items():
        write_lines(folder / f"{split}.json", *records)
    if labels is not None:
        (folder / "label.json").write_text(json.dumps(labels), encoding="utf-8")
    return folder


def write_conll(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8"))
    return path


# Tags and schemes


@st.composite
def sentences(draw: st.DrawFn) -> tuple[list[Span], int]:
    """Entities that do not overlap, and the number of words."""
    entities, at = [], 0
    kinds = st.sampled_from(["DNA", "protein", "a-b"])
    for gap, length, kind in draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), kinds), max_size=8)):
        entities.append(Span(kind, at + gap, at + gap + length))
        at += gap + length
    return entities, at + draw(st.integers(0, 3))


def write_scheme(entities: list[Span], length: int, scheme: str) -> list[str]:
    """The tags of these entities, written by each scheme's definition."""
    tags = ["O"] * length
    for i, (kind, start, end) in enumerate(entities):
        touches = i > 0 and entities[i - 1].end == start and entities[i - 1].type == kind
        letters = {
            "iob2": "B" + "I" * (end - start - 1),
            "iob1": ("B" if touches else "I") + "I" * (end - start - 1),
            "bioes": "S" if end - start == 1 else "B" + "I" * (end - start - 2) + "E",
            "bilou": "U" if end - start == 1 else "B" + "I" * (end - start - 2) + "L",
        }[scheme]
        tags[start:end] = [f"{letter}-{kind}" for letter in letters]
    return tags


@pytest.mark.parametrize("written", ["iob2", "iob1", "bioes", "bilou"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(sentence=sentences())
def test_every_scheme_gives_back_its_entities(written: str, sentence: tuple[list[Span], int]) -> None:
    entities, length = sentence
    scheme = "bioes" if written == "bilou" else written
    tags = write_scheme(entities, length, written)
    assert spans(tags, scheme) == entities
    assert irregular(tags, scheme) == []
    assert list(to_iob2(tags, scheme)) == write_scheme(entities, length, "iob2")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["O", "B-DNA", "I-DNA", "E-DNA", "S-DNA", "B-a-b", "I-a-b", "E-a-b"]), max_size=12))
def test_broken_tags_are_read_as_seqeval_reads_them(tags: list[str]) -> None:
    assert [(kind, start, end - 1) for kind, start, end in spans(tags, "bioes")] == get_entities(tags)
    repaired = to_iob2(tags, "bioes")
    assert irregular(repaired, "iob2") == []
    assert spans(repaired) == spans(tags, "bioes")


@pytest.mark.parametrize(("scheme", "oracle"), [("iob2", IOB2), ("bioes", IOBES)])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_regular_tags_are_those_in_which_seqeval_strict_finds_the_same_entities(
    scheme: str, oracle: type, data: st.DataObject
) -> None:
    letters = "BI" if scheme == "iob2" else "BIES"
    choices = ["O", *(f"{letter}-{kind}" for letter in letters for kind in ("DNA", "RNA"))]
    tags = data.draw(st.lists(st.sampled_from(choices), max_size=8))
    strict = [(entity.tag, entity.start, entity.end) for entity in Entities([tags], oracle).entities[0]]
    covered = sum(end - start for _, start, end in strict)
    assert (not irregular(tags, scheme)) == (covered == sum(tag != "O" for tag in tags))


def test_irregular_names_each_place() -> None:
    assert irregular(["I-DNA", "I-DNA", "O", "B-DNA", "I-RNA"], "iob2") == [0, 4]
    assert irregular(["B-DNA", "I-DNA", "B-DNA", "O", "B-DNA"], "iob1") == [0, 4]
    assert irregular(["B-DNA", "O", "I-DNA", "S-DNA", "E-DNA", "B-DNA", "E-DNA"], "bioes") == [0, 2, 4]


def test_a_letter_of_another_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="tag 'E-DNA' does not exist in scheme 'iob2'"):
        spans(["B-DNA", "E-DNA"])


def test_from_spans_is_the_inverse_of_spans() -> None:
    assert from_spans([Span("DNA", 1, 3), Span("DNA", 3, 4)], 5) == ("O", "B-DNA", "I-DNA", "B-DNA", "O")


# The real corpus


@pytest.mark.skipif(not CORPUS.exists(), reason="needs ../shared/bionlp2004, which is not part of the project")
def test_bionlp2004_has_the_published_counts() -> None:
    data = read_ner(CORPUS)
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


# Folders


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
        write_conll(tmp_path / name, f"{name}\tB-DNA\n")
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


# JSON lines


@pytest.mark.parametrize("column", ["tags", "ner_tags", "labels"])
def test_json_lines_may_call_the_tags_by_three_names(tmp_path: Path, column: str) -> None:
    path = write_lines(tmp_path / "corpus.jsonl", {"id": 7, "tokens": ["IL-2"], column: ["B-DNA"]})
    assert read_ner(path).train == (Sentence(("IL-2",), ("B-DNA",)),)


def test_a_single_file_is_train_and_says_so(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "test.json", ROW)
    data = read_ner(path)
    assert (len(data.train), data.validation, data.test) == (1, (), ())
    assert data.notes == (f"all of {path} is train: a file has no splits",)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=6), escape=st.booleans())
def test_every_json_word_keeps_its_place(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], escape: bool
) -> None:
    path = tmp_path_factory.mktemp("odd") / "odd.jsonl"
    path.write_bytes(json.dumps({"tokens": words, "tags": ["O"] * len(words)}, ensure_ascii=escape).encode())
    assert read_ner(path).train == (Sentence(tuple(words), ("O",) * len(words)),)


def test_sentences_without_words_are_dropped_and_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "corpus.jsonl", ROW, {"tokens": [], "tags": []})
    data = read_ner(path)
    assert len(data.train) == 1
    assert "dropped: 1 sentences without words" in data.notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "train.json:2: invalid JSON"),
        ("[1]", "train.json:2: a line must be a JSON object, got list"),
        ('{"words": ["a"], "tags": ["O"]}', "train.json:2: 'tokens' must be a list of strings; the keys are words"),
        ('{"tokens": ["a", 1], "tags": ["O", "O"]}', "train.json:2: 'tokens' must be a list of strings"),
        ('{"tokens": ["a"], "pos": ["NN"]}', "train.json:2: no 'tags', 'ner_tags' or 'labels'; the keys are tokens"),
        ('{"tokens": ["a"], "tags": "O"}', "train.json:2: 'tags' must be a list, got 'O'"),
        ('{"tokens": ["a", "b"], "tags": ["O"]}', "train.json:2: 2 tokens but 1 tags; each word has one tag"),
        ('{"tokens": ["a"], "tags": [5]}', "train.json:2: unknown tag 5; the ids are 0 to 4"),
        ('{"tokens": ["a"], "tags": [-1]}', "train.json:2: unknown tag -1; the ids are 0 to 4"),
        ('{"tokens": ["a"], "tags": [true]}', "train.json:2: unknown tag True; a tag is a string or a whole number"),
        ('{"tokens": ["a"], "tags": [1.0]}', "train.json:2: unknown tag 1.0; a tag is a string or a whole number"),
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
        ('["O"]', "label.json: must map labels to the ids 0, 1, 2"),
        ('{"O": 0, "B-DNA": 2}', "label.json: must map labels to the ids 0, 1, 2"),
        ('{"O": 0, "B-DNA": "1"}', "label.json: must map labels to the ids 0, 1, 2"),
        ('{"B-DNA": 0, "I-DNA": 1}', "label.json: no label 'O'; the labels are B-DNA, I-DNA"),
        ('{"O": 0, "DNA": 1}', "label.json: unknown tag 'DNA'; a tag is O or one of B I E S L U, a hyphen and"),
    ],
)
def test_a_bad_label_json_is_named(tmp_path: Path, text: str, message: str) -> None:
    write_folder(tmp_path, train=[ROW], valid=[ROW], test=[ROW])
    (tmp_path / "label.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_ner(tmp_path)


# Columns


@pytest.mark.parametrize("end", [".tsv", ".txt", ".iob2", ".conll", ".bio", ".TSV"])
@pytest.mark.parametrize(
    "text",
    [
        "IL-2\tB-DNA\ngene\tI-DNA\n\nis\tO\n",
        "IL-2 B-DNA\ngene  I-DNA\n\nis O\n",  # spaces
        "IL-2\tB-DNA \ngene\t I-DNA\n\nis\tO\n",  # tabs, and spaces around the tag
        "IL-2\tB-DNA\r\ngene\tI-DNA\r\n\r\nis\tO\r\n",
        "\ufeffIL-2\tB-DNA\ngene\tI-DNA\n\nis\tO",  # a byte-order mark, no last newline
        "\n\nIL-2 NN B-DNA\ngene NN I-DNA \n \t\n\n\nis VB O\n\n\n",  # three columns, more blank lines
        "-DOCSTART- -X- O\n\nIL-2 NN B-DNA\ngene NN I-DNA\n-DOCSTART- O\nis VB O\n",
        "###MEDLINE:95369245\n\nIL-2\tB-DNA\ngene\tI-DNA\n###MEDLINE:95369246\nis\tO\n",
    ],
)
def test_column_files_are_read_in_every_usual_form(tmp_path: Path, end: str, text: str) -> None:
    data = read_ner(write_conll(tmp_path / f"corpus{end}", text))
    assert data.train == (Sentence(("IL-2", "gene"), ("B-DNA", "I-DNA")), Sentence(("is",), ("O",)))


def test_column_words_keep_odd_characters_and_quotes(tmp_path: Path) -> None:
    words = ('"', "a\u00a0b", "\u200b", "c\u2028d", "e f", "#", "", "\u0085")
    path = write_conll(tmp_path / "odd.tsv", "".join(f"{word}\tO\n" for word in words))
    assert read_ner(path).train == (Sentence(words, ("O",) * len(words)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("IL-2\tB-DNA\ngene\n", "corpus.tsv:2: broken line 'gene': one column; a line holds a word, then its tag"),
        ("IL-2 B-DNA\n a b O\n", "corpus.tsv:2: broken line ' a b O': 3 columns, the lines before have 2"),
        ("\n\nIL-2\tB_DNA\n", "corpus.tsv:3: unknown tag 'B_DNA'; a tag is O or one of B I E S L U"),
        ("IL-2\t\n", "corpus.tsv:1: unknown tag ''"),
        ("IL-2\tB-\n", "corpus.tsv:1: unknown tag 'B-'"),
        ("", "corpus.tsv: empty: not one sentence in it"),
        ("\n-DOCSTART- O\n\n", "corpus.tsv: empty: not one sentence in it"),
    ],
)
def test_a_bad_column_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_ner(write_conll(tmp_path / "corpus.tsv", text))


def test_a_file_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_bytes(b"\xef\xbb\xbfa\tO\nb\tO\n\xfc\tO\n")
    with pytest.raises(ValueError, match=r"train.tsv:3: not UTF-8 \(invalid start byte\); convert the file to UTF-8"):
        read_ner(tmp_path)


# Schemes of whole corpora


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
        r"3 tags break iob1, the first at .*train.json:1, word 1 .*Name the scheme.*scheme= 'iob2' or 'iob1'",
    ):
        read_ner(ambiguous_folder(tmp_path))


@pytest.mark.parametrize(("scheme", "broken"), [("iob2", 1), ("iob1", 3)])
def test_a_named_scheme_repairs_and_counts(tmp_path: Path, scheme: str, broken: int) -> None:
    data = read_ner(ambiguous_folder(tmp_path), scheme)
    assert [row.tags for row in data.train] == [("B-DNA", "I-DNA"), ("O", "B-DNA")]
    assert data.notes[-1] == f"repaired: {broken} tags broke scheme {scheme} and were read as seqeval reads them"


def test_a_named_scheme_without_the_letter_is_refused_with_the_place(tmp_path: Path) -> None:
    path = write_conll(tmp_path / "corpus.tsv", "a\tO\n\nb\tS-DNA\nc\tO\n")
    with pytest.raises(ValueError, match="corpus.tsv:3: tag 'S-DNA' does not exist in scheme 'iob2'; read with"):
        read_ner(path, scheme="iob2")


def test_an_unknown_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown scheme 'iob'; it is one of iob2, iob1, bioes, or None to detect it"):
        read_ner(tmp_path, scheme="iob")


# Sources that are not there


def test_a_missing_path_is_named_and_takes_no_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing: no such file or folder"):
        read_ner(tmp_path / "nothing")
    with pytest.raises(ValueError, match="data/train.tsv: no such file or folder"):
        read_ner("data/train.tsv")
    with pytest.raises(ValueError, match="the corpus' name is empty"):
        read_ner("")


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="corpus.csv: unknown ending '.csv'; a corpus file ends in .json .jsonl .tsv"):
        read_ner(write_conll(tmp_path / "corpus.csv", "a,O\n"))


# The hub, without network: its two calls are handed in


def no_snapshot(*_: object, **__: object) -> str:
    raise OSError("no such repository")


def no_dataset(name: str, **_: object) -> dict:
    raise RuntimeError("Dataset scripts are no longer supported, but found bionlp2004.py")


def parquet_only(dataset: dict):
    """What the hub does for a dataset with a script: refused, except on the branch of the parquet conversion."""

    def load_dataset(name: str, revision: str = "main") -> dict:
        return dataset if revision == "refs/convert/parquet" else no_dataset(name)

    return load_dataset


def test_a_hub_repository_with_plain_files_is_read_from_them(tmp_path: Path) -> None:
    def snapshot_download(name: str, repo_type: str, allow_patterns: list[str]) -> str:
        assert (name, repo_type) == ("tner/bionlp2004", "dataset")
        wanted = ["dataset/train.json", "dataset/valid.json", "dataset/test.json", "dataset/label.json"]
        assert set(wanted) <= set(allow_patterns)
        (tmp_path / "dataset").mkdir()
        write_folder(tmp_path / "dataset", LABELS, train=[ROW], valid=[ROW], test=[ROW])
        return str(tmp_path)

    corpus = _read_hub("tner/bionlp2004", snapshot_download, no_dataset)
    assert corpus.labels == tuple(LABELS)
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 1, "validation": 1, "test": 1}


def hub_dataset(tags: list[int], classes: bool) -> dict:
    import datasets

    label = datasets.ClassLabel(names=list(LABELS)) if classes else datasets.Value("int32")
    columns = {"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": datasets.Sequence(label)}
    rows = {"tokens": [["IL-2", "gene"]], "ner_tags": [tags]}
    split = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
    return datasets.DatasetDict({"train": split, "test": split})


def test_a_hub_dataset_is_read_by_its_class_names_from_the_parquet_branch() -> None:
    corpus = _read_hub("owner/name", no_snapshot, parquet_only(hub_dataset([1, 2], classes=True)))
    assert corpus.labels == tuple(LABELS)
    assert corpus.splits["train"] == [(("IL-2", "gene"), ("B-DNA", "I-DNA"), "owner/name train:1")]
    assert corpus.notes == ["no validation split: owner/name has none"]


def test_hub_numbers_without_class_names_are_refused() -> None:
    with pytest.raises(ValueError, match="owner/name train:1: tag 1 is a number; put label.json"):
        _read_hub("owner/name", no_snapshot, parquet_only(hub_dataset([1, 2], classes=False)))


def test_a_hub_that_gives_nothing_says_what_each_route_answered_and_the_way_out() -> None:
    with pytest.raises(
        ValueError,
        match="'owner/name' is no local file or folder, .*files: OSError: no such repository; datasets: RuntimeError: "
        "Dataset scripts are no longer supported.*; parquet branch: .*Without network, give a local folder",
    ):
        _read_hub("owner/name", no_snapshot, no_dataset)


def test_an_unreachable_hub_is_asked_once() -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("Name or service not known")

    def must_not_be_called(*_: object, **__: object) -> dict:
        raise AssertionError("the hub was asked again")

    with pytest.raises(ValueError, match=r"LocalEntryNotFoundError: Name or service not known\)\. Without network"):
        _read_hub("owner/name", unreachable, must_not_be_called)
