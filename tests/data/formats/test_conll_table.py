"""Tables of columns: what is a comment and what is a line end."""

import pytest

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
