from pathlib import Path

import pytest

from lorakit.data.corpus import Sentence, read_ner
from lorakit.data.formats.conll import read_conll
from lorakit.data.formats.conll_brackets import read_brackets
from lorakit.data.formats.record import Reading
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
    assert "column 3 read as the outer layer; column 4, with 1 entities, is left out" in kinds(tmp_path, GERMEVAL)
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
        ({"tag": "4"}, "--columns tag=4: .* has columns 1 to 3"),
        ({"tag": "0"}, "--columns tag=0: .* has columns 1 to 3"),
        ({"tag": "NE"}, "--columns tag=NE: .* has columns 1 to 3"),
        ({"words": "1"}, "unknown role 'words'; it is word or tag"),
    ],
)
def test_a_named_column_that_is_none_is_refused(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, FINER, columns=columns)


def test_numbers_are_never_words_in_silence(tmp_path: Path) -> None:
    assert kinds(tmp_path, NUMBERED) == ["column 1 counts 1, 2, 3, …: not read as words"]
    text = "1\tB-ORG\n2\tO\n"
    with pytest.raises(ValueError, match="column 1 counts 1, 2, 3, and so on, and no other column can hold the words"):
        read(tmp_path, text)
    assert read(tmp_path, text, columns={"word": "1", "tag": "2"}) == [[("1", "B-ORG"), ("2", "O")]]


def test_a_carriage_return_inside_a_line_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="corpus.tsv:2: a carriage return inside a line .*tr -d '"):
        read(tmp_path, "a\tO\nb\tO\r\r\nc\tO\n")


def test_a_file_without_blank_lines_says_so(tmp_path: Path) -> None:
    assert kinds(tmp_path, "a\tO\n" * 600) == ["no blank line in the file: it is read as one sentence of 600 words"]
    assert kinds(tmp_path, "a\tO\n" * 20) == []


def test_part_of_speech_tags_are_refused_as_tags_of_entities(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="corpus.tsv:1: unknown tag 'NN'; .*name it: --columns word=1,tag=2"):
        read(tmp_path, "IL-2\tNN\nbinds\tVBZ\n")


def test_the_columns_of_the_training_file_hold_for_the_others(tmp_path: Path) -> None:
    agreed: dict = {}
    read(tmp_path, NUMBERED, agreed=agreed)
    assert read(tmp_path, "7 EU NNP I-NP O\n", agreed=agreed) == [[("EU", "O")]]
    with pytest.raises(ValueError, match="2 columns, but the training file has words in column 2 and tags in column 5"):
        read(tmp_path, "EU O\n", agreed=agreed)


@pytest.mark.parametrize(
    ("cells", "message"),
    [(["(GPE*", "*"], r"word 1: \(GPE is never closed"), (["*)"], "word 1: .* closes a bracket that nothing opened")],
)
def test_brackets_that_do_not_match_are_refused(cells: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_brackets(cells)
