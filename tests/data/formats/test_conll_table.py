"""Tables of columns: what is a comment, what is a line end and what is in quotation marks."""

import csv
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.data.corpus import read_ner


@pytest.mark.parametrize(
    "text",
    [
        "1 O\nday O\n\n# O\nPeter B-PER\n",
        "1 CD O\nday NN O\n\n# NN B-X\nPeter NNP B-PER\n",
    ],
)
def test_a_file_whose_first_word_is_a_number_keeps_its_hashes(text, tmp_path):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    words = [sentence.words for sentence in read_ner(tmp_path / "a.txt").train]
    assert words == [("1", "day"), ("#", "Peter")]


@pytest.mark.parametrize(
    ("text", "fix", "lines"),
    [
        ("EU\tB-ORG\r\r\nran\tO\r\r\n\r\r\nPeter\tB-PER\r\r\n", "tr -d '\\r'", str.maketrans("", "", "\r")),
        ("EU\tB-ORG\rran\tO\n\nPeter\tB-PER\n", "tr '\\r' '\\n'", str.maketrans("\r", "\n")),
    ],
)
def test_the_advice_on_carriage_returns_keeps_the_sentences(text, fix, lines, tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(ValueError, match="a.tsv:1: ") as error:
        read_ner(path)
    assert fix in str(error.value)
    path.write_text(text.translate(lines), encoding="utf-8", newline="")
    assert [sentence.words for sentence in read_ner(path).train] == [("EU", "ran"), ("Peter",)]


@pytest.mark.parametrize(
    "text",
    [
        "TOKEN\tNE-COARSE-LIT\n# hipe2022:date = 1798\nMr\tO\n# newspaper: x\nSwift\tB-pers\n",  # HIPE-2022
        "## klue-ner-v1_train_1\tMr <Swift:PS>\nMr\tO\nSwift\tB-PS\n",  # KLUE
        "a\tO\n# Mr Swift B-PER\nSwift\tB-PER\n",
    ],
)
def test_remarks_are_comments_wherever_they_cannot_be_rows(text, tmp_path):
    (tmp_path / "train.tsv").write_text(text, encoding="utf-8")
    [sentence] = read_ner(tmp_path / "train.tsv").train
    assert sentence.words[-1] == "Swift" and len(sentence.words) == 2


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a\tO\n\n#b\tB-X\nc\tO\n", "#b"),
        ("2004\tO\n\n#b\tB-X\n2005\tB-D\n", "#b"),  # numbers are the words: there is no column of them
        ("2004 O\n\n#b B-X\n2005 B-D\n", "#b"),
        ("# global.columns = FORM NE\na\tO\n\n#b\tB-X\n", "#b"),
        ("#begin document x\na\tO\n#b\tB-X\n#end document\n", "#b"),
        ("1\ta\tO\n\n#1\t#b\tB-X\n", "#b"),
        ("a\tPER\nc\tO\n\n# b\tPER\n", "# b"),  # a type that other words have
        ("a\tO\n\n# b\tB-X\n", "# b"),
    ],
)
def test_a_word_that_begins_with_a_hash_and_has_a_tag_is_a_word(text, word, tmp_path):
    (tmp_path / "a.tsv").write_text(text, encoding="utf-8")
    assert word in [word for sentence in read_ner(tmp_path / "a.tsv").train for word in sentence.words]


DOUBT = (
    "a line begins with # and holds what may be a tag: read as a comment (if it is a word, give it the columns of the "
)


@pytest.mark.parametrize(
    ("text", "line", "fixed"),
    [
        ("a O\n\n# b B-X\nc O\n", 3, "a O\n\n#b B-X\nc O\n"),
        ("a\tO\n\n# b\tPER\nc\tO\n", 3, "a\tO\n\n# b\tB-PER\nc\tO\n"),
        ("1\ta\tO\n\n#b\tB-X\tx\n", 3, "1\ta\tO\n\n2\t#b\tB-X\n"),
    ],
)
def test_a_comment_that_may_be_a_word_is_a_note_whose_advice_works(text, line, fixed, tmp_path):
    (tmp_path / "a.tsv").write_text(text, encoding="utf-8")
    [note] = [note for note in read_ner(tmp_path / "a.tsv").notes if note.startswith(DOUBT)]
    assert note.endswith(f"a.tsv:{line})")
    (tmp_path / "a.tsv").write_text(fixed, encoding="utf-8")
    words = [word for sentence in read_ner(tmp_path / "a.tsv").train for word in sentence.words]
    assert any(word.startswith("#") for word in words)


@pytest.mark.parametrize(
    "comment",
    ["# sent_id = 1", "# text = B-PER # O", "# id 12ab\tdomain=train", "#\thttp://x.org/#a\t[2009-10-17]", "# text"],
)
@pytest.mark.parametrize("rows", ["1\ta\tO\n", "a\tO\n", "1\ta\tB-X\t_\n"])
def test_comments_of_corpora_are_neither_words_nor_notes(comment, rows, tmp_path):
    (tmp_path / "a.tsv").write_text(f"{rows}\n{comment}\n{rows}", encoding="utf-8")
    data = read_ner(tmp_path / "a.tsv")
    assert [sentence.words for sentence in data.train] == [("a",), ("a",)]
    assert not any(note.startswith(DOUBT) for note in data.notes)


def test_a_line_with_a_hash_and_too_few_columns_is_broken_as_any_other(tmp_path):
    (tmp_path / "a.tsv").write_text("a\tO\tx\n\n#b\tB-X\n", encoding="utf-8")
    with pytest.raises(ValueError, match="a.tsv:3: broken line .* 2 columns, the lines before have 3"):
        read_ner(tmp_path / "a.tsv")


# Quotation marks ------------------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('"\t,#'), min_size=1, max_size=5).map(
    lambda word: word.strip(" ") or "x"
)


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(words=st.lists(WORDS, min_size=1, max_size=6), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_every_word_that_python_writes_with_tabs_is_read(words, quoting, tmp_path):
    """As pandas' to_csv does with sep="\\t"; tabs are in quotation marks, and so is a quotation mark."""
    file = io.StringIO(newline="")
    rows = [["word", "tag"], *([word, "B-X"] for word in [*words, 'a "b"'])]
    csv.writer(file, delimiter="\t", quoting=quoting, lineterminator="\n").writerows(rows)
    (tmp_path / "a.tsv").write_text(file.getvalue(), encoding="utf-8", newline="")
    data = read_ner(tmp_path / "a.tsv")
    assert [word for sentence in data.train for word in sentence.words] == [*words, 'a "b"']
    assert any(note.startswith("cells are in quotation marks") for note in data.notes)


@pytest.mark.parametrize(
    "text",
    [
        '"\tO\nEU\tB-ORG\n"\tO\n',  # as CoNLL-2003 has them
        '"\t"\tO\nEU\tNNP\tB-ORG\n',  # the mark is its own part of speech
        '""\tO\nEU\tB-ORG\n',
        '"EU"\tB-ORG\n"\tO\n',
        'a"b\tB-ORG\n"c"\tO\n',
        '"EU" B-ORG\n"x" O\n',
    ],
)
def test_quotation_marks_that_are_words_stay(text, tmp_path):
    (tmp_path / "a.tsv").write_text(text, encoding="utf-8")
    words = [word for sentence in read_ner(tmp_path / "a.tsv").train for word in sentence.words]
    assert words == [line.split()[0] for line in text.splitlines()]
