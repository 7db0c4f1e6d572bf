import re
from pathlib import Path

import pytest

from lorakit.data.corpus import Sentence, read_ner
from lorakit.data.formats.conll import read_conll
from lorakit.data.formats.conll_brackets import read_brackets
from lorakit.data.formats.conll_expressions import read_expressions
from lorakit.data.formats.record import Reading
from tests.support.corpora import named_columns, write_text


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
        ("\n\nIL-2\tB+DNA\n", r"corpus.tsv:3: unknown tag 'B\+DNA'; a tag is O or one of B I E S L U"),
        ("IL-2\t\n", "corpus.tsv:1: unknown tag ''"),
        ("IL-2\tB-\n", "corpus.tsv:1: unknown tag 'B-'"),
        ("", "corpus.tsv: empty: it holds no sentence"),
        ("\n-DOCSTART- O\n\n", "corpus.tsv: empty: it holds no sentence"),
    ],
)
def test_a_bad_column_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_ner(write_text(tmp_path / "corpus.tsv", text))


def read(folder: Path, text: str, **reading: object) -> list[list[tuple[str, str]]]:
    """(word, tag) pairs by sentence, of a file with this text."""
    documents = read_conll(write_text(folder / "corpus.tsv", text), Reading(**reading))
    return [list(zip(document.words, document.tags, strict=True)) for document in documents]


def kinds(folder: Path, text: str, **reading: object) -> list[str]:
    """What the notes on a file with this text say."""
    documents = read_conll(write_text(folder / "corpus.tsv", text), Reading(**reading))
    return [note.kind for document in documents for note in document.notes]


NUMBERED = "1 EU NNP I-NP I-ORG\n2 rejects VBZ I-VP O\n\n1 Peter NNP I-NP I-PER\n"
GERMEVAL = """#\thttp://de.wikipedia.org/wiki/Manfred_Korfmann [2009-10-17]
1\tin\tO\tO
2\tStuttgart\tB-LOC\tO
3\tTroia\tB-OTH\tB-LOC
4\t-\tI-OTH\tO
5\tTraum\tI-OTH\tO
"""
ONTONOTES = """#begin document (bc/cctv/00/cctv_0000); part 000
bc/cctv/00/cctv_0000   0   0   In     IN  (TOP(S(PP*  -   -   -   Speaker#1       *   (ARG*   *  -
bc/cctv/00/cctv_0000   0   1   Hong   NNP       (NP*  -   -   -   Speaker#1   (GPE*     *     *  (1
bc/cctv/00/cctv_0000   0   2   Kong   NNP       *)))  -   -   -   Speaker#1       *)    *)    *  1)

bc/cctv/00/cctv_0000   0   0   Bush   NNP    (TOP*)   -   -   -   Speaker#1   (PERSON)   -

#end document
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(NUMBERED, [["EU I-ORG", "rejects O"], ["Peter I-PER"]], id="CoNLL-2003 with word numbers"),
        pytest.param(
            "EU NNP I-NP I-ORG\nrejects VBZ I-VP O\n", [["EU I-ORG", "rejects O"]], id="CoNLL-2003, its chunks aside"
        ),
        pytest.param("a NN B-NP\nb VB B-VP\n", [["a B-NP", "b B-VP"]], id="CoNLL-2000, where chunks are all there is"),
        pytest.param(
            GERMEVAL, [["in O", "Stuttgart B-LOC", "Troia B-OTH", "- I-OTH", "Traum I-OTH"]], id="GermEval, outer"
        ),
        pytest.param(
            "en:R.H.\tB-ORG\nen:Saunders\tI-ORG\nen:(\tO\nen:10:30\tO\n",
            [["R.H. B-ORG", "Saunders I-ORG", "( O", "10:30 O"]],
            id="WikiANN",
        ),
        pytest.param("EU\tB-ORG\rsaid\tO\r\rPeter\tB-PER\r", [["EU B-ORG", "said O"], ["Peter B-PER"]], id="CR"),
        pytest.param("-DOCSTART- -X- O O\r\rEU NNP B-NP B-ORG\r", [["EU B-ORG"]], id="CR and DOCSTART"),
        pytest.param("adenomatous\tB\npolyposis\tI\ncoli\tO\n", [
            ["adenomatous B-ENTITY", "polyposis I-ENTITY", "coli O"]
        ], id="BioBERT, untyped"),
        pytest.param("Europäischen ORG\nUnion ORG\nist O\n", [
            ["Europäischen I-ORG", "Union I-ORG", "ist O"]
        ], id="Europarl, types only"),
        pytest.param("重 B-NAME\n小 M-NAME\n龙 E-NAME\n沪 S-LOC\n", [
            ["重 B-NAME", "小 M-NAME", "龙 E-NAME", "沪 S-LOC"]
        ], id="ResumeNER, BMES"),
        pytest.param("1\t비토리오\tPER_B\n2\t양일\tDAT_B\n3\t만에\t-\n", [
            ["비토리오 B-PER", "양일 B-DAT", "만에 O"]
        ], id="Naver, suffix with underscore and - for O"),
        pytest.param("a\tB_PER\nb\tI_PER\nc\tO\n", [["a B-PER", "b I-PER", "c O"]], id="underscore"),
        pytest.param("B-ACTOR\tbruce\nI-ACTOR\twillis\nO\twhat\n", [
            ["bruce B-ACTOR", "willis I-ACTOR", "what O"]
        ], id="MIT, tag first"),
        pytest.param("It O +\nis O -\nBerlin B-LOC +\n", [["It O", "is O", "Berlin B-LOC"]], id="flair, space after"),
        pytest.param(
            "# global.columns = ID FORM UPOS NE\n# text = x\n1-2\tdel\t_\t_\n1\tde\tX\tO\n2\tBonn\tX\tB-LOC\n"
            "2.1\tx\tX\t_\n",
            [["de O", "Bonn B-LOC"]],
            id="CoNLL-U Plus",
        ),
        pytest.param(
            "# sent_id = 1\n1\tWhere\tO\t-\t-\n2\tParis\tB-LOC\t-\tann\n", [["Where O", "Paris B-LOC"]], id="UNER"
        ),
        pytest.param(
            "bc/x 0 0 Ann NNP (TOP* B-PER\nbc/x 0 1 ran VBD *) O\n", [["Ann B-PER", "ran O"]], id="document first"
        ),
        pytest.param("# id 12ab\tdomain=train\nann\tB-PER\nlives\tO\n", [["ann B-PER", "lives O"]], id="MultiCoNER"),
        pytest.param("EU      \tB-ORG\nx \tO\n", [["EU B-ORG", "x O"]], id="padded columns"),
        pytest.param("#\tO\n#EU\tB-ORG\n", [["# O", "#EU B-ORG"]], id="hashtags are words"),
        pytest.param("en:EU\tB-ORG\nen:a\tO\n\nde:Bonn\tB-LOC\nde:ist\tO\n", [
            ["EU B-ORG", "a O"], ["Bonn B-LOC", "ist O"]
        ], id="WikiANN, two languages"),
        pytest.param("B-ORG EU NNP B-NP\nO says VBZ B-VP\n", [["EU B-ORG", "says O"]], id="tag first, chunks last"),
        pytest.param("EU NNP B-NP O\nsays VBZ B-VP O\n", [["EU O", "says O"]], id="CoNLL-2003, without an entity"),
        pytest.param("EU O ORG\nis O O\nto O O\n", [["EU I-ORG", "is O", "to O"]], id="types beside a column of O"),
        pytest.param("I B-X\nO O\nB O\n", [["I B-X", "O O", "B O"]], id="words that are letters"),
    ],
)  # fmt: skip
def test_published_layouts_are_read_by_their_own_columns(tmp_path: Path, text: str, expected: list) -> None:
    assert [[f"{word} {tag}" for word, tag in sentence] for sentence in read(tmp_path, text)] == expected


def test_ontonotes_brackets_are_spans_of_words(tmp_path: Path) -> None:
    first, second = read_conll(write_text(tmp_path / "a.conll", ONTONOTES), Reading())
    assert (first.words, first.tags) == (("In", "Hong", "Kong"), None)
    assert [span[:3] for span in first.spans] == [("GPE", 1, 3)]
    assert [span[:3] for span in second.spans] == [("PERSON", 0, 1)]
    assert first.id == second.id == "a.conll#1"


def test_the_inner_layer_can_be_chosen(tmp_path: Path) -> None:
    tags = [tag for _, tag in read(tmp_path, GERMEVAL, layer="inner")[0]]
    assert tags == ["O", "O", "B-LOC", "O", "O"]


def test_the_layer_that_is_left_out_is_counted(tmp_path: Path) -> None:
    assert "column 3 read as the outer layer; column 4, with 1 entity, is left out" in kinds(tmp_path, GERMEVAL)
    inner = kinds(tmp_path, GERMEVAL, layer="inner")
    assert "column 4 read as the inner layer; column 3, with 2 entities, is left out" in inner


FINER = "Helsingin\tB-ORG\tB-LOC\nyliopisto\tI-ORG\tO\n"


def test_two_columns_of_tags_are_refused_and_either_fix_works(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"columns 2 \(B-ORG, I-ORG\) and 3 \(B-LOC\) all look like tags; choose one"):
        read(tmp_path, FINER)
    assert read(tmp_path, FINER, layer="outer") == read(tmp_path, FINER, columns={"word": "1", "tag": "2"})
    assert read(tmp_path, FINER, layer="inner") == [[("Helsingin", "B-LOC"), ("yliopisto", "O")]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tag": "4"}, "columns={'tag': 4}: .* has columns 1 to 3"),
        ({"tag": "0"}, "columns={'tag': '0'}: .* has columns 1 to 3"),
        ({"tag": "NE"}, "columns={'tag': 'NE'}: .* has columns 1 to 3"),
        ({"word": "2", "tag": "2"}, "columns={'word': 2, 'tag': 2}: words and tags cannot be in the same column"),
        ({"word": "2", "tag": "1"}, "unknown tag 'Helsingin'; .*; tags are in column 2 or 3: columns={'tag': 2}"),
        ({"word": "3", "tag": "1"}, "unknown tag 'Helsingin'; .*; tags are in column 2 or 3: columns={'tag': 2}"),
    ],
)
def test_a_named_column_that_is_none_is_refused(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, FINER, columns=columns)


def test_numbers_are_never_words_in_silence(tmp_path: Path) -> None:
    assert kinds(tmp_path, NUMBERED) == [
        "column 1 counts 1, 2, 3, …: not read as words (if it is the words: columns={'word': 1, 'tag': 5})"
    ]
    text = "1\tB-ORG\n2\tO\n"
    with pytest.raises(ValueError, match="column 1 counts 1, 2, 3, …, and no other .*: columns={'word': 1, 'tag': 2}$"):
        read(tmp_path, text)
    assert read(tmp_path, text, columns={"word": "1", "tag": "2"}) == [[("1", "B-ORG"), ("2", "O")]]


def test_a_carriage_return_inside_a_line_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="corpus.tsv:2: a carriage return inside a line .*tr -d '"):
        read(tmp_path, "a\tO\nb\tO\r\r\nc\tO\n")


def test_a_file_without_blank_lines_says_so(tmp_path: Path) -> None:
    assert kinds(tmp_path, "a\tO\n" * 600) == ["no blank line in the file: it is read as one sentence of 600 words"]
    assert kinds(tmp_path, "a\tO\n" * 20) == []


def test_part_of_speech_tags_are_refused_as_tags_of_entities(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="corpus.tsv:1: unknown tag 'NN'; .*; column 2 holds parts of speech: add a"):
        read(tmp_path, "IL-2\tNN\nbinds\tVBZ\n")


@pytest.mark.parametrize(
    ("cells", "message"),
    [(["(GPE*", "*"], r"word 1: \(GPE is never closed"), (["*)"], "word 1: .* closes a bracket that nothing opened")],
)
def test_brackets_that_do_not_match_are_refused(cells: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_brackets(cells)


# What is in the way of the words --------------------------------------------------------------------------------------

IO = "tags without prefixes (IO): two entities of one type side by side are read as one"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("token\ttag\nBonn\tLOC\nis\tO\n", ["Bonn I-LOC", "is O"], id="types only"),
        pytest.param("Word\tTag\nBonn\tB-LOC\nis\tO\n", ["Bonn B-LOC", "is O"], id="prefixes"),
        pytest.param("word ne\nBonn LOC_B\nis O\n", ["Bonn B-LOC", "is O"], id="suffixes"),
        pytest.param("word label\nBonn B\nis O\n", ["Bonn B-ENTITY", "is O"], id="no types"),
        pytest.param("TOKEN NER_TAG\n\nBonn LOC\nis O\n", ["Bonn I-LOC", "is O"], id="with a blank line"),
        pytest.param("id form pos ner\n1 Bonn NNP LOC\n2 is VBZ O\n", ["Bonn I-LOC", "is O"], id="four columns"),
        pytest.param("tag token\nLOC Bonn\nO is\nO a\n", ["Bonn I-LOC", "is O", "a O"], id="tag first"),
        pytest.param("word tag iob\nBonn NNP B-LOC\nis VBZ O\n", ["Bonn B-LOC", "is O"], id="tag is a part of speech"),
        pytest.param("word tag\nBonn LOC\nword tag\nis O\n", ["Bonn I-LOC", "is O"], id="of files that were joined"),
    ],
)  # fmt: skip
def test_a_header_names_the_columns_and_is_no_word(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = [f"{word} {tag}" for sentence in read(tmp_path, text) for word, tag in sentence]
    assert found == expected
    header = text.splitlines()[0].split()
    kind = f"this line names the columns ({', '.join(header)}): not read as words"
    assert kinds(tmp_path, text).count(kind) == sum(line.split() == header for line in text.splitlines())


@pytest.mark.parametrize("text", ["Token O\nNER B-LOC\n", "text O\nlabel B-X\n", "Word B-TAG\nTag O\n"])
def test_words_that_could_be_in_a_header_are_words(tmp_path: Path, text: str) -> None:
    assert [pair for sentence in read(tmp_path, text) for pair in sentence] == [
        tuple(line.split()) for line in text.splitlines()
    ]


def test_columns_may_be_named_as_the_header_does(tmp_path: Path) -> None:
    text = "word one two\nBonn B-LOC O\nis O B-X\n"
    with pytest.raises(ValueError, match="corpus.tsv:1: unknown tag 'two'; .*; if this line is a header, delete it"):
        read(tmp_path, text)
    text = "word tag_one tag_two\nBonn B-LOC O\nis O B-X\n".replace("tag_one", "ner")
    assert read(tmp_path, text, columns={"tag": "tag_two"}) == [[("Bonn", "O"), ("is", "B-X")]]


def test_a_header_of_other_words_is_pointed_out(tmp_path: Path) -> None:
    rows = "Bonn LOC\nis O\nUlm LOC\n"
    text = "wort typ\n" + rows
    assert "the type typ is in this line only; if the line is a header, delete it" in kinds(tmp_path, text)
    assert kinds(tmp_path, rows) == [IO]


@pytest.mark.parametrize(
    ("text", "word", "what"),
    [
        ("NNP EU B-ORG\nVBZ rejects O\n. . O\n", 1, "holds parts of speech (NNP, VBZ, .)"),
        ("PROPN EU B-ORG\nVERB rejects O\n", 1, "holds parts of speech (PROPN, VERB)"),
        ("NNP EU ORG\nVBZ rejects O\n", 1, "holds parts of speech (NNP, VBZ)"),
        ("B-ORG NNP EU\nO VBZ rejects\n", 2, "holds parts of speech (NNP, VBZ)"),
        ("NNP B-ORG EU\nVBZ O rejects\n", 2, "holds parts of speech (NNP, VBZ)"),
        ("eu EU B-ORG\nreject rejects O\nthe The O\n", 1, "holds lemmas (eu, reject, the)"),
        ("d1 EU B-ORG\nd1 rejects O\n\nd2 Bonn B-LOC\n", 1, "is the same in all lines of a sentence (d1, d2)"),
        ("0 2 EU B-ORG\n3 10 rejects O\n", 2, "has a number in every line (0, 3)"),
        ("B-ORG 0 2 EU eu NNP B-NP\nO 3 10 rejects reject VBZ B-VP\n", 3, "has a number in every line (0, 3)"),
        ("O 0 2 eu\nO 3 10 rejects\nB-X 11 12 a\n", 3, "has a number in every line (10, 12, 2)"),
        ("w7 EU B-ORG\nw9 rejects O\nw2 a O\n", 1, "has a number in every line (w2, w7, w9)"),
        ("1-1 EU B-ORG\n1-2 rejects O\n", 1, "has a number in every line (1-1, 1-2)"),
        ("1.1 EU B-ORG\n\n2.1 rejects O\n", 1, "has a number in every line (1.1, 2.1)"),
        ("a1b2 EU B-ORG\n00ff rejects O\n", 1, "has a number in every line (00ff, a1b2)"),
        ("6f0eac41 EU B-ORG\nabcdefab rejects O\n", 1, "has a number in every line (6f0eac41, abcdefab)"),
        ("x\tEU\tB-ORG\n\trejects\tO\n\tthe\tO\n", 1, "is empty in many lines"),
        (
            "x EU B-ORG\nx rejects O\ny Bonn B-LOC\ny is O\n",
            1,
            "is the same in many lines that follow each other (x, y)",
        ),
    ],
)
def test_a_column_before_the_words_is_skipped_and_named(tmp_path: Path, text: str, word: int, what: str) -> None:
    expected = [cells_of(line)[word] for line in text.splitlines() if line]
    assert [pair[0] for sentence in read(tmp_path, text) for pair in sentence] == expected
    said = [kind for kind in kinds(tmp_path, text) if what in kind]
    named = re.search(r"column (\d) .*: not read as words \(if it is the words: columns={'word': \1, .*\)", said[0])
    [columns] = named_columns(named[0])
    other = read(tmp_path, text, columns=columns)
    assert [pair[0] for sentence in other for pair in sentence] == [
        cells_of(line)[int(named[1]) - 1] for line in text.splitlines() if line
    ]


def cells_of(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else line.split()


def test_a_column_of_few_values_before_the_words_is_skipped(tmp_path: Path) -> None:
    """A set of tags that nobody listed: 30 different ones beside 600 words."""
    kinds_of = [f"K{'abcde'[i % 5]}{'abcdef'[i // 5]}.x" for i in range(30)]
    words = (f"w{'abcdefghij'[i % 10]}{chr(97 + i % 23)}{chr(97 + i % 25)}" for i in range(2100))
    rows = "".join(f"{kinds_of[i % 30]} {word} O\n" for i, word in enumerate(words))
    text = rows + "Kab.x Bonn B-LOC\n"
    assert read(tmp_path, text)[0][-1] == ("Bonn", "B-LOC")
    assert any(
        kind.startswith("column 1 has 30 different values in 2,101 lines (Kaa.x, Kab.x")
        for kind in kinds(tmp_path, text)
    )


@pytest.mark.parametrize(
    "text",
    [
        "EU NNP B-ORG\nrejects VBZ O\n",
        "EU eu B-ORG\nThe the O\nrejects reject O\n",
        "ha B-X +\nha O -\n",
        "NN B-X\nVB O\n",
        "1999 CD B-DATE\n2005 CD O\n",  # numbers beside parts of speech
        "IL-2 il-2 B-DNA\nIL-4 il-4 O\n",
        "EU\tNeigen\tB-ORG\n\tLET\tO\nzegt\tWW\tO\n",  # a word is empty
    ],
)
def test_words_before_other_columns_stay_words(tmp_path: Path, text: str) -> None:
    assert [pair[0] for pair in read(tmp_path, text)[0]] == [cells_of(line)[0] for line in text.splitlines()]
    assert not any("not read as words" in kind for kind in kinds(tmp_path, text))


@pytest.mark.parametrize("text", ["w1 CD B-X\nw2 CD O\nw4 CD O\n", "0 CD . O\n2 CD - B-X\n9 CD ( O\n"])
def test_words_that_all_have_a_number_are_read_and_noted(tmp_path: Path, text: str) -> None:
    assert [pair[0] for pair in read(tmp_path, text)[0]] == [line.split()[0] for line in text.splitlines()]
    assert any(
        kind.startswith("column 1 is read as words, but has a number in every line") for kind in kinds(tmp_path, text)
    )


def test_words_that_are_all_parts_of_speech_are_read_and_noted(tmp_path: Path) -> None:
    text = "1 NNP B-ORG\n2 VBZ O\n3 DT O\n"
    assert "column 2 is read as words, but looks like parts of speech (DT, NNP, VBZ)" in kinds(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PER bruce\nO ran\nO the\nLOC Paris\n", ["bruce I-PER", "ran O", "the O", "Paris I-LOC"]),
        ("Year NN 1999\nO IN in\nO NNP Bonn\n", ["1999 I-Year", "in O", "Bonn O"]),
        ("bruce\tb-per\nwillis\ti-per\nran\to\n", ["bruce B-per", "willis I-per", "ran O"]),
        ("1 Where O - -\n2 Paris LOC - ann\n", ["Where O", "Paris I-LOC"]),
        ("Where O NP\nParis LOC VP\nO O O\n", ["Where O", "Paris I-LOC", "O O"]),
    ],
)
def test_types_and_lower_case_tags_are_found_in_their_column(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert [f"{word} {tag}" for word, tag in read(tmp_path, text)[0]] == expected


@pytest.mark.parametrize("text", ["O NN\nwas VBD\n", "EU\tNNP\nO\tX\n"])
def test_a_word_o_makes_no_column_of_types(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="unknown tag"):
        read(tmp_path, text)


def test_two_columns_of_types_are_refused(tmp_path: Path) -> None:
    text = "EU ORG LOC\nran O O\n"
    with pytest.raises(
        ValueError,
        match=r"columns 2 \(ORG\) and 3 \(LOC\) all look like tags; .*={'word': 1, 'tag': 2}, or layer='outer' for 2",
    ):
        read(tmp_path, text)
    assert read(tmp_path, text, layer="inner") == [[("EU", "I-LOC"), ("ran", "O")]]


def test_a_first_column_of_tags_beside_another_is_refused_and_either_fix_works(tmp_path: Path) -> None:
    text = "B-ORG EU B-LOC\nO says O\n"
    with pytest.raises(
        ValueError,
        match="columns 1 .* and 3 .* all look like tags; .* columns={'word': 2, 'tag': 1}, or layer=",
    ):
        read(tmp_path, text)
    assert read(tmp_path, text, columns={"word": "2", "tag": "1"}) == [[("EU", "B-ORG"), ("says", "O")]]
    assert read(tmp_path, text, layer="inner") == [[("EU", "B-LOC"), ("says", "O")]]


def test_a_prefix_that_only_most_words_have_is_kept_and_said(tmp_path: Path) -> None:
    text = "en:EU\tB-ORG\nen:says\tO\n\nBonn\tB-LOC\n"
    assert read(tmp_path, text)[0][0] == ("en:EU", "B-ORG")
    assert "2 words of 3 begin with 'en:', which was not removed" in kinds(tmp_path, text)
    text = "10:30\tB-X\nre:x\tO\nhttp://a\tO\na\tO\n"
    assert kinds(tmp_path, text) == []


def test_a_layer_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert kinds(tmp_path, "EU\tB-ORG\n", layer="inner") == [
        "layer='inner' has no effect: the only tags are in column 2"
    ]


# CoNLL-U and its kin --------------------------------------------------------------------------------------------------

CONLLU = """# text = Ann al parque
1\tAnn\tAnn\tPROPN\t_\t_\t0\troot\t_\t{0}
2-3\tal\t_\t_\t_\t_\t_\t_\t_\t{3}
2\ta\ta\tADP\t_\t_\t1\tcase\t_\t{1}
3\tel\tel\tDET\t_\t_\t1\tdet\t_\t{1}
3.1\tx\tx\tX\t_\t_\t_\t_\t_\t_
4\tparque\tparque\tNOUN\t_\t_\t1\tobl\t_\t{2}
"""
PLUS = "# global.columns = ID FORM LEMMA UPOS XPOS FEATS HEAD DEPREL DEPS {}\n"
WORDS = ["Ann", "a", "el", "parque"]


@pytest.mark.parametrize(
    "text",
    [
        CONLLU.format("start_char=0|ner=S-PER", "ner=O", "ner=S-LOC", "_"),  # as Stanza writes it
        CONLLU.format("NE=B-PER", "_", "NE=B-LOC", "_"),
        CONLLU.format("name=B-PER|SpaceAfter=No", "name=O", "Lang=x|name=B-LOC", "_"),  # DaNE, NorNE
        PLUS.format("NE") + CONLLU.format("B-PER", "O", "B-LOC", "_"),
        CONLLU.format("B-PER", "O", "B-LOC", "_"),
        "".join(line.split("\t", 2)[0] + "\t" + line.split("\t")[1] + "\t" + line.split("\t")[9]
            for line in CONLLU.format("B-PER", "O", "B-LOC", "_").splitlines(True)[1:]),
    ],
    ids=["Stanza", "MISC", "DaNE", "CoNLL-U Plus", "no names", "three columns"],
)  # fmt: skip
def test_lines_of_conllu_that_are_no_words_are_not_read(tmp_path: Path, text: str) -> None:
    [sentence] = read(tmp_path, text)
    assert [word for word, _ in sentence] == WORDS
    assert [(tag[:1], tag[2:]) for _, tag in sentence if tag != "O"] in (
        [("B", "PER"), ("B", "LOC")],
        [("S", "PER"), ("S", "LOC")],
    )


@pytest.mark.parametrize(
    "text",
    [
        "# global.columns = ID FORM NE\n1.1\tEU\tB-ORG\n1.2\tsays\tO\n",
        "2\tEU\tB-ORG\n2.1\tsays\tO\n4\tit\tO\n",
    ],
)
def test_numbers_that_do_not_count_words_as_conllu_does_lose_none(tmp_path: Path, text: str) -> None:
    assert [pair[0] for sentence in read(tmp_path, text) for pair in sentence][:2] == ["EU", "says"]


def test_lines_that_only_look_like_conllu_are_a_note(tmp_path: Path) -> None:
    kind = "1 line with a number such as 1-2 or 8.1 first, as CoNLL-U has beside its words: not read as words"
    assert kind in kinds(tmp_path, "1\tEU\tB-ORG\n1.5\tsays\tO\n")


def test_a_tag_on_a_line_that_is_no_word_is_named(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.conllu", CONLLU.format("B-PER", "O", "B-LOC", "B-X"))
    notes = [note for document in read_conll(path, Reading()) for note in document.notes if "left out" in note.kind]
    assert [note.where.rpartition(":")[2] for note in notes] == ["3"]


def test_a_first_word_that_is_a_number_loses_nothing(tmp_path: Path) -> None:
    text = "# global.columns = FORM NE\n2004\tO\nwas\tB-X\n"
    assert read(tmp_path, text) == [[("2004", "O"), ("was", "B-X")]]


def test_conllu_without_entities_says_where_to_write_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="CoNLL-U has no column for entities: write their tags into column 10, as NE="):
        read(tmp_path, CONLLU.format("_", "_", "_", "_"))
    assert read(tmp_path, CONLLU.format("NE=B-PER", "_", "_", "_"))[0][0] == ("Ann", "B-PER")


def test_expressions_of_parseme_are_spans_of_words(tmp_path: Path) -> None:
    """https://gitlab.com/parseme/corpora/-/wikis/Data-format"""
    cells = ["1:VID", "*", "2:LVC.full;1", "2"]
    lines = CONLLU.format("_", "_", "_", "_").splitlines()
    rows = [line for line in lines if line[:1].isdecimal() and line.split("\t")[0].isdecimal()]
    text = PLUS.format("MISC PARSEME:MWE") + "".join(f"{row}\t{cell}\n" for row, cell in zip(rows, cells, strict=True))
    [document] = read_conll(write_text(tmp_path / "train.cupt", text), Reading())
    assert list(document.words) == WORDS
    assert [(item.label, item.pieces) for item in document.spans] == [
        ("VID", ((0, 1), (2, 3))),
        ("LVC.full", ((2, 4),)),
    ]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1:VID", "1:LVC"], "word 2: expression 1 is of type VID and of type LVC"),
        (["*", "1"], "word 2: expression 1 has no type; write 1:TYPE"),
        (["B-X"], "word 1: 'B-X' is not an expression such as 1:VID, 1 or"),
    ],
)
def test_expressions_that_make_no_sense_are_refused(cells: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_expressions(cells)
