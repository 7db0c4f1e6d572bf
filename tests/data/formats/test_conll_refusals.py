"""What a refusal of a column file says to do works: every message is here, with the same file after its advice."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from lorakit.data.corpus import read_ner
from lorakit.data.ner_data import NerData
from tests.support.corpora import named_columns, write_text
from tests.support.tiny import ROOT

FILES = sorted((ROOT / "lorakit" / "data" / "formats").glob("conll*.py"))


class Corpus(NamedTuple):
    """A file and how it is read."""

    text: str
    columns: Mapping[str, str] | None = None
    layer: str | None = None
    name: str = "train.tsv"
    labels: str = ""

    def read(self, folder: Path) -> NerData:
        folder.mkdir()
        if self.labels:
            write_text(folder / "label.json", self.labels)
        return read_ner(
            write_text(folder / self.name, self.text).parent
            if self.labels
            else write_text(folder / self.name, self.text),
            columns=self.columns,
            layer=self.layer,
        )


def csv(text: str) -> Corpus:
    return Corpus(text, name="train.csv")


LAYERS = "EU B-ORG B-LOC\nsays O O\n"
CONLLU = "1\tAnn\tAnn\tPROPN\t_\t_\t0\troot\t_\t{}\n"
BRACKETS = "#begin document (x); part 0\n{}"
MWE = "# global.columns = ID FORM PARSEME:MWE\n{}"


def brackets(*cells: str) -> Corpus:
    rows = (
        f"x 0 {i} {word} NN (TOP* - - - A {cell} -\n" for i, (word, cell) in enumerate(zip("abc", cells, strict=False))
    )
    return Corpus(BRACKETS.format("".join(rows)))


def expressions(*cells: str) -> Corpus:
    rows = (f"{i}\t{word}\t{cell}\n" for i, (word, cell) in enumerate(zip("abc", cells, strict=False), start=1))
    return Corpus(MWE.format("".join(rows)))


# words of a message, as they stand in the code -> what is refused with it, and the same after each advice
FOLLOWED: dict[str, tuple[Corpus, ...]] = {
    "is JSON, and no JSON format has such fields; write each sentence as …": (
        Corpus('{"tokens": "EU says", "tags": "B-ORG O"}\n'),
        Corpus('{"tokens": ["EU", "says"], "tags": ["B-ORG", "O"]}\n'),
    ),
    "one column; a line holds a word, then its tag": (Corpus("EU\tB-ORG\nsays\n"), Corpus("EU\tB-ORG\nsays\tO\n")),
    "write as many, with tabs between them where a word has spaces or is empty": (
        Corpus("EU B-ORG\nNew York B-LOC\n"),
        Corpus("EU\tB-ORG\nNew York\tB-LOC\n"),
    ),
    "each line before is a sentence; write it as they are": (
        Corpus("EU/B-ORG rejects/O\n" * 1000 + "it is\n"),
        Corpus("EU/B-ORG rejects/O\n" * 1000 + "it/O is/O\n"),
    ),
    "write a tag for each word, with one space between them": (
        Corpus("EU rejects it\tB-ORG O\nNew York\tB-LOC I-LOC\n"),
        Corpus("EU rejects it\tB-ORG O O\nNew York\tB-LOC I-LOC\n"),
    ),
    "a carriage return inside a line of a file with other line ends too; write every line end as LF": (
        Corpus("EU\tB-ORG\r\r\nsays\tO\r\r\n"),
        Corpus("EU\tB-ORG\nsays\tO\n"),
    ),
    "write a word and its tag with a comma between them": (csv("EU\n"), csv("EU,B-ORG\n")),
    "write a quotation mark inside a cell twice": (csv('EU,B-ORG\n"a"b,O\n'), csv('EU,B-ORG\n"a""b",O\n')),
    "write as many, and a cell with … in quotation marks": (csv("EU,B-ORG\n1,5,O\n"), csv('EU,B-ORG\n"1,5",O\n')),
    "words and tags cannot be in the same column": (
        Corpus(LAYERS, {"word": "2", "tag": "2"}),
        Corpus(LAYERS, {"word": "1", "tag": "2"}),
    ),
    "…: … has columns 1 to ……": (
        Corpus("word one ner\nEU B-X B-Y\n", {"word": "1", "tag": "4"}),
        Corpus("word one ner\nEU B-X B-Y\n", {"word": "1", "tag": "3"}),
        Corpus("word one ner\nEU B-X B-Y\n", {"word": "word", "tag": "one"}),
    ),
    "all look like tags; choose one with …": (
        Corpus(LAYERS),
        Corpus(LAYERS, {"word": "1", "tag": "2"}),
        Corpus(LAYERS, layer="outer"),
        Corpus(LAYERS, layer="inner"),
    ),
    "and no other column can hold the words; add the words to the file, or if these are the words, say so": (
        Corpus("1\tB-ORG\n2\tO\n"),
        Corpus("1\tEU\tB-ORG\n2\tsays\tO\n"),
        Corpus("1\tB-ORG\n2\tO\n", {"word": "1", "tag": "2"}),
    ),
    "…:…: unknown tag …; …": (  # label.json
        Corpus("EU\tB-ORG\n", labels='{"O": 0, "B-LOC": 1}'),
        Corpus("EU\tB-ORG\n", labels='{"O": 0, "B-LOC": 1, "B-ORG": 2}'),
    ),
    "…:…: unknown tag …; …; …": (Corpus("EU\tB+ORG\nsays\tB-X\n"), Corpus("EU\tB-ORG\nsays\tB-X\n")),
    "closes a bracket that nothing opened; open one, or write *": (
        brackets("*)", "(GPE)"),
        brackets("*", "(GPE)"),
        brackets("(X*)", "(GPE)"),
    ),
    "is never closed; end it with *)": (brackets("(GPE*", "*"), brackets("(GPE*", "*)")),
    "give them two numbers": (expressions("1:VID", "1:LVC"), expressions("1:VID", "2:LVC")),
    "has no type; write …:TYPE": (expressions("1", "1;2:X"), expressions("1:VID", "1;2:X")),
    "…: …": (brackets("(GPE*", "*"), brackets("(GPE*", "*)")),  # the place of the messages above
}
DIRECT = ("is not a bracket such as", "is not an expression such as")  # of such a file, a cell is called an unknown tag
HINTS: dict[str, tuple[Corpus, ...]] = {
    "tags are in column 2: columns={'tag': 2}": (
        Corpus("EU B-ORG\nsays O\n", {"word": "2", "tag": "1"}),
        Corpus("EU B-ORG\nsays O\n", {"tag": "2"}),
    ),
    "column 2 holds parts of speech: add a column with the tags of entities": (
        Corpus("EU NNP\nsays VBZ\n"),
        Corpus("EU NNP B-ORG\nsays VBZ O\n"),
    ),
    "if this line is a header, delete it": (Corpus("wort typ\nEU B-ORG\nsays O\n"), Corpus("EU B-ORG\nsays O\n")),
    "CoNLL-U has no column for entities: write their tags into column 10, as NE=B-PER": (
        Corpus(CONLLU.format("_")),
        Corpus(CONLLU.format("NE=B-PER")),
    ),
    "the columns of this line are 1 'EU', 2 'x', 3 'ORG+': write all tags of column 3 in one way": (
        Corpus("EU x ORG+\nsays y LOC+\nin z B-X\n"),
        Corpus("EU x B-ORG\nsays y B-LOC\nin z B-X\n"),
    ),
    "write all tags of the column in one way": (
        Corpus("EU B/ORG\nof I/ORG\nX I/ORG\nin O\n"),
        Corpus("EU B-ORG\nof I-ORG\nX I-ORG\nin O\n"),
    ),
}


def messages() -> list[str]:
    """The messages of these files' errors; parts that vary are `…`."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ValueError":
                values = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else [node.args[0]]
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in values))
    return found


def test_every_message_is_here() -> None:
    found = messages()
    assert len(found) > 15
    whole = [words for words in FOLLOWED if words.startswith("…:")]
    assert [
        m
        for m in found
        if m not in whole and not any(words in m for words in (*FOLLOWED, *DIRECT) if words not in whole)
    ] == []
    assert [words for words in FOLLOWED if not any(words in message for message in found)] == []


def test_every_hint_is_here() -> None:
    hints = next(
        node
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == "_hint"
    )
    assert sum(isinstance(node, ast.Return) for node in ast.walk(hints)) == len(HINTS)


@pytest.mark.parametrize("words", [*FOLLOWED, *HINTS])
def test_what_the_message_says_to_do_works(words: str, tmp_path: Path) -> None:
    refused, *advice = (FOLLOWED | HINTS)[words]
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words.split("…")))) as error:
        refused.read(tmp_path / "refused")
    assert f"train.{refused.name.rpartition('.')[2]}" in str(error.value) or "columns={" in str(error.value)
    for number, follow in enumerate(advice):
        data = follow.read(tmp_path / str(number))
        assert any(tag != "O" for sentence in data.train for tag in sentence.tags), number


@pytest.mark.parametrize("text", ["B-ORG O\nO O\n", "B-ORG O\nO B-LOC\nB-PER O\n"])
def test_a_file_of_tags_alone_is_not_read_as_words(text: str, tmp_path: Path) -> None:
    """The words are in another file: train.words.txt beside train.tags.txt."""
    with pytest.raises(
        ValueError, match=r"column 1 holds tags \(B-.*\), and no other column can hold the words"
    ) as error:
        Corpus(text).read(tmp_path / "refused")
    [columns] = named_columns(str(error.value).partition("if these are the words, say so: ")[2])
    assert Corpus(text, columns).read(tmp_path / "followed").train[0].words[0] == "B-ORG"


def test_a_header_above_numbers_can_be_deleted_as_the_message_says(tmp_path: Path) -> None:
    rows = "1,EU,B-ORG\n1,rejects,O\n2,Peter,B-PER\n"
    with pytest.raises(ValueError, match="if this line is a header, delete it"):
        csv("nr,wort,typ\n" + rows).read(tmp_path / "refused")
    assert [sentence.words for sentence in csv(rows).read(tmp_path / "followed").train] == [
        ("EU", "rejects"),
        ("Peter",),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "EU B-NX B-ORG\nsays O O\n",  # chunks of names that nobody listed
        "1 EU B-X x B-Y B-Z\n2 says O x O O\n",
        "B-ORG 0 2 EU B-NX\nO 3 5 says O\n",
        "EU B-ORG x B-LOC y B-PER\nsays O x O y O\n",
    ],
)
def test_every_column_that_is_offered_can_be_chosen(tmp_path: Path, text: str) -> None:
    path = write_text(tmp_path / "a.tsv", text)
    with pytest.raises(ValueError, match="look like tags; choose one with columns=") as error:
        read_ner(path)
    assert (offered := named_columns(str(error.value)))
    for columns in offered:
        data = read_ner(path, columns=columns)
        cells = [line.split() for line in text.splitlines()]
        assert [s.words for s in data.train] == [tuple(row[columns["word"] - 1] for row in cells)]
        assert [s.tags for s in data.train] == [tuple(row[columns["tag"] - 1] for row in cells)]
    for layer in re.findall(r"layer='(\w+)'", str(error.value)):
        assert read_ner(path, layer=layer).train
