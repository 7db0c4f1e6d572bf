from pathlib import Path

import pytest

from lorakit.data.corpus import Sentence, read_ner
from tests.support.corpora import write_text


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
    data = read_ner(write_text(tmp_path / f"corpus{end}", text))
    assert data.train == (Sentence(("IL-2", "gene"), ("B-DNA", "I-DNA")), Sentence(("is",), ("O",)))


def test_column_words_keep_odd_characters_and_quotes(tmp_path: Path) -> None:
    words = ('"', "a\u00a0b", "\u200b", "c\u2028d", "e f", "#", "", "\u0085")
    path = write_text(tmp_path / "odd.tsv", "".join(f"{word}\tO\n" for word in words))
    assert read_ner(path).train == (Sentence(words, ("O",) * len(words)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("IL-2\tB-DNA\ngene\n", "corpus.tsv:2: broken line 'gene': one column; a line holds a word, then its tag"),
        ("IL-2 B-DNA\n a b O\n", "corpus.tsv:2: broken line ' a b O': 3 columns, the lines before have 2"),
        ("\n\nIL-2\tB_DNA\n", "corpus.tsv:3: unknown tag 'B_DNA'; a tag is O or one of B I E S L U"),
        ("IL-2\t\n", "corpus.tsv:1: unknown tag ''"),
        ("IL-2\tB-\n", "corpus.tsv:1: unknown tag 'B-'"),
        ("", "corpus.tsv: empty: it holds no sentence"),
        ("\n-DOCSTART- O\n\n", "corpus.tsv: empty: it holds no sentence"),
    ],
)
def test_a_bad_column_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_ner(write_text(tmp_path / "corpus.tsv", text))
