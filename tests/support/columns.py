"""Files of words and tags as corpora have them: each layout and scheme by its own definition, from tagged sentences."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

TYPES = ("PER", "cell_line", "DNA")
WORDS = (
    *"the EU rejects gene B I O S 1 2004 10:30 - # #tag @user ( ) \" ' B-PER I-DNA * (TOP* en:x 沪 é".split(),
    "\u200b",
    "a\u00a0b",
    "-LRB-",
    "http://x.org/#a",
)
PLAIN = ("said", "in", "here", "Monday")  # so that a column of words never holds tags only


class Tagged(NamedTuple):
    """A sentence: its words and its entities (type, first word, end)."""

    words: tuple[str, ...]
    entities: tuple[tuple[str, int, int], ...]


def sentences(random: Random, count: int, types: Sequence[str] = TYPES, words: Sequence[str] = WORDS) -> list[Tagged]:
    """Random sentences, of which the first has an entity of two words and the last a plain word."""
    made = []
    for number in range(count):
        there = [random.choice(words) for _ in range(random.randint(1, 9))]
        there += [random.choice(PLAIN)] if number in (0, count - 1) else []
        entities, at = [], 0
        while at < len(there):
            length = random.randint(1, 4)
            if random.random() < 0.4 and at + length <= len(there):
                entities.append((random.choice(types), at, at + length))
                at += length
            else:
                at += 1
        made.append(Tagged(tuple(there), tuple(entities)))
    first = made[0]
    made[0] = Tagged((random.choice(PLAIN), "x", *first.words), ((types[0], 0, 2), *_moved(first.entities)))
    return made


def _moved(entities: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    return [(kind, start + 2, end + 2) for kind, start, end in entities]


# Tags ----------------------------------------------------------------------------------------------------------------


def letters(scheme: str, length: int, touches: bool) -> str:
    """The letter of each word of an entity; `touches` says that one of its type ends right before it."""
    one, first, middle, last = {
        "iob2": "BBII",
        "iob1": "BBII" if touches else "IIII",
        "bioes": "SBIE",
        "bmes": "SBME",
        "bmewo": "WBME",
        "bilou": "UBIL",
    }[scheme]
    return one if length == 1 else first + middle * (length - 2) + last


SCHEMES = ("iob2", "iob1", "bioes", "bmes", "bmewo", "bilou")
SPELLINGS: dict[str, Callable[[str, str], str]] = {
    "B-PER": lambda letter, kind: f"{letter}-{kind}",
    "B_PER": lambda letter, kind: f"{letter}_{kind}",
    "PER-B": lambda letter, kind: f"{kind}-{letter}",
    "PER_B": lambda letter, kind: f"{kind}_{letter}",
}
COMBINATIONS = [("iob2", spelling) for spelling in SPELLINGS] + [(scheme, "B-PER") for scheme in SCHEMES[1:]]
COMBINATIONS += [("bioes", "PER_B"), ("iob2", "B"), ("iob1", "B"), ("bioes", "B"), ("io", "")]


def tags(sentence: Tagged, scheme: str, spelling: str = "B-PER") -> list[str]:
    """One tag per word; the scheme "io" and the spelling "B" (untyped) are others' too."""
    written, before = ["O"] * len(sentence.words), ("", -1)
    for kind, start, end in sentence.entities:
        if scheme == "io":
            written[start:end] = [kind] * (end - start)
        else:
            found = letters(scheme, end - start, before == (kind, start))
            spell = SPELLINGS.get(spelling, lambda letter, kind: letter)
            written[start:end] = [spell(letter, kind) for letter in found]
        before = (kind, end)
    return written


def as_io(entities: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """What is left where two entities of one type side by side are one."""
    found: list[tuple[str, int, int]] = []
    for kind, start, end in entities:
        if found and found[-1][0] == kind and found[-1][2] == start:
            found[-1] = (kind, found[-1][1], end)
        else:
            found.append((kind, start, end))
    return found


# Layouts: the lines of a sentence, given its words and tags -----------------------------------------------------------

Rows = list[list[str]]


def two(words: Sequence[str], tags: Sequence[str], _: int) -> Rows:
    return [[word, tag] for word, tag in zip(words, tags, strict=True)]


def conll2003(words: Sequence[str], tags: Sequence[str], _: int) -> Rows:
    return [[word, "NN", f"{'BI'[i > 0]}-NP", tag] for i, (word, tag) in enumerate(zip(words, tags, strict=True))]


def numbered(words: Sequence[str], tags: Sequence[str], number: int) -> Rows:
    return [[str(i), *row] for i, row in enumerate(conll2003(words, tags, number), start=1)]


def flair(words: Sequence[str], tags: Sequence[str], _: int) -> Rows:
    return [[word, tag, "+-"[i % 2]] for i, (word, tag) in enumerate(zip(words, tags, strict=True))]


def tag_first(words: Sequence[str], tags: Sequence[str], _: int) -> Rows:
    return [[tag, word] for word, tag in zip(words, tags, strict=True)]


def wikiann(words: Sequence[str], tags: Sequence[str], _: int) -> Rows:
    return [[f"zh-yue:{word}", tag] for word, tag in zip(words, tags, strict=True)]


def conllu(words: Sequence[str], tags: Sequence[str], _: int) -> Rows:
    rows = [
        [str(i), word, "x", "X", "_", "_", "0", "dep", "_", f"start_char=0|ner={tag}" if tag != "O" else "_"]
        for i, (word, tag) in enumerate(zip(words, tags, strict=True), start=1)
    ]
    return [*rows[:1], ["2-3", "surface", *"________"], *rows[1:], ["9.1", "elided", *"________"]]


def part_of_speech_first(words: Sequence[str], tags: Sequence[str], _: int) -> Rows:
    return [[("NNP", "VBZ", ".")[i % 3], word, tag] for i, (word, tag) in enumerate(zip(words, tags, strict=True))]


def universal_ner(words: Sequence[str], tags: Sequence[str], _: int) -> Rows:
    return [[str(i), word, tag, "-", "ann"] for i, (word, tag) in enumerate(zip(words, tags, strict=True), start=1)]


def document_first(words: Sequence[str], tags: Sequence[str], number: int) -> Rows:
    return [[f"doc/{number}", "0", word, tag] for word, tag in zip(words, tags, strict=True)]


def sentence_numbers(words: Sequence[str], tags: Sequence[str], number: int) -> Rows:
    return [[str(number + 1), word, "NN", tag] for word, tag in zip(words, tags, strict=True)]


def ids(words: Sequence[str], tags: Sequence[str], number: int) -> Rows:
    return [[f"d1s{number}t{i}", word, tag] for i, (word, tag) in enumerate(zip(words, tags, strict=True), start=1)]


def places(words: Sequence[str], number: int) -> list[tuple[str, str]]:
    """(first character, end) of each word; every sentence begins at a thousand."""
    starts = [1000 * number + sum(len(word) + 1 for word in words[:i]) for i in range(len(words))]
    return [(str(start), str(start + len(word))) for start, word in zip(starts, words, strict=True)]


def anntoconll(words: Sequence[str], tags: Sequence[str], number: int) -> Rows:
    return [[tag, *at, word] for tag, at, word in zip(tags, places(words, number), words, strict=True)]


def nersuite(words: Sequence[str], tags: Sequence[str], number: int) -> Rows:
    rows = enumerate(anntoconll(words, tags, number))
    return [[*row, row[3].lower(), "NN", f"{'BI'[i > 0]}-NP"] for i, row in rows]


TAG_FIRST = ("MIT", "anntoconll", "NERsuite")


class Layout(NamedTuple):
    """How a corpus writes its lines: rows, what is between columns, before a sentence, before all, after one."""

    rows: Callable[[Sequence[str], Sequence[str], int], Rows]
    separator: str = "\t"
    comment: str = ""
    head: str = ""
    blank: str = "\n"


LAYOUTS = {
    "words and tags": Layout(two),
    "spaces": Layout(two, " "),
    "CoNLL-2003": Layout(conll2003, " ", head="-DOCSTART- -X- -X- O\n\n"),
    "CoNLL-2003, numbered": Layout(numbered, " "),
    "BioNLP2004": Layout(two, head="###MEDLINE:95369245\n\n"),
    "flair": Layout(flair, " "),
    "MIT": Layout(tag_first),
    "WikiANN": Layout(wikiann),
    "Universal NER": Layout(universal_ner, comment="# sent_id = {}\n# text = B-PER # O\n"),
    "document first": Layout(document_first),
    "MultiCoNER": Layout(two, comment="# id {}\tdomain=train\n"),
    "with a header": Layout(conll2003, head="Token\tPOS\tChunk\tNER\n"),
    "part of speech first": Layout(part_of_speech_first),
    "sentence numbers": Layout(sentence_numbers, blank=""),
    "ids": Layout(ids),
    "ids, no blank lines": Layout(ids, blank=""),
    "numbered, no blank lines": Layout(numbered, blank=""),
    "anntoconll": Layout(anntoconll),
    "NERsuite": Layout(nersuite),
    "CoNLL-U": Layout(conllu, comment="# sent_id = {}\n"),
    "CoNLL-U Plus": Layout(numbered, comment="# sent_id = {}\n", head="# global.columns = ID FORM XPOS CHUNK NER\n"),
}


def column_file(made: Sequence[Tagged], layout: Layout, scheme: str, spelling: str = "B-PER", end: str = "\n") -> bytes:
    """A file of these sentences."""
    parts = [layout.head]
    for number, sentence in enumerate(made):
        rows = layout.rows(sentence.words, tags(sentence, scheme, spelling), number)
        parts.append(layout.comment.format(number))
        parts += [layout.separator.join(row) + "\n" for row in rows] + [layout.blank]
    return "".join(parts).replace("\n", end).encode()


def germeval(made: Sequence[Tagged], inner: Sequence[Tagged]) -> bytes:
    """A file of two layers."""
    parts = []
    for number, (sentence, other) in enumerate(zip(made, inner, strict=True)):
        columns = zip(sentence.words, tags(sentence, "iob2"), tags(other, "iob2"), strict=True)
        parts.append(f"#\thttp://de.wikipedia.org/wiki/{number} [2009-10-17]\n")
        parts += ["\t".join([str(i), *row]) + "\n" for i, row in enumerate(columns, start=1)] + ["\n"]
    return "".join(parts).encode()


def conll2012(made: Sequence[Tagged]) -> bytes:
    """A file of brackets."""
    parts = ["#begin document (bc/x/00/x_0000); part 000\n"]
    for number, sentence in enumerate(made):
        cells = ["*"] * len(sentence.words)
        for kind, start, end in sentence.entities:
            cells[start] = f"({kind}*" if end - start > 1 else f"({kind})"
            cells[end - 1] = "*)" if end - start > 1 else cells[end - 1]
        arguments = ["*"] * (number % 3)  # rows of different sentences differ in length
        for i, (word, cell) in enumerate(zip(sentence.words, cells, strict=True)):
            row = ["bc/x/00/x_0000", "0", str(i), word, "NN", "(TOP*)", "-", "-", "-", "A#1", cell, *arguments, "-"]
            parts.append("   ".join(row) + "\n")
        parts.append("\n")
    return "".join([*parts, "#end document\n"]).encode()


def json_lines(path: Path, made: Sequence[Tagged], scheme: str, spelling: str) -> None:
    """JSON lines of words and tags."""
    rows = [{"tokens": s.words, "tags": tags(s, scheme, spelling)} for s in made]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def json_fields(path: Path, made: Sequence[Tagged], scheme: str, spelling: str) -> None:
    """JSON lines of words and tags with other fields: a text, a second layer and spans, all of them empty."""
    rows = [
        {
            "text": " ".join(s.words),
            "tokens": s.words,
            "pos_tags": ["NN"] * len(s.words),
            "spans": [],
            "ner_tags": tags(s, scheme, spelling),
            "ner_nested_tags": ["O"] * len(s.words),
        }
        for s in made
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def numbers(path: Path, made: Sequence[Tagged], scheme: str, spelling: str) -> None:
    """JSON lines of words and numbers of tags, which label.json names."""
    written = [tags(s, scheme, spelling) for s in made]
    ids = {tag: i for i, tag in enumerate(sorted({tag for row in written for tag in row} | {"O"}))}
    rows = [{"tokens": s.words, "ner_tags": [ids[t] for t in row]} for s, row in zip(made, written, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path.with_name("label.json").write_text(json.dumps(ids), encoding="utf-8")


def parquet(path: Path, made: Sequence[Tagged], scheme: str, spelling: str) -> None:
    """Parquet as `datasets` writes it, with class labels."""
    import datasets

    datasets.disable_progress_bars()
    written = [tags(s, scheme, spelling) for s in made]
    names = sorted({tag for row in written for tag in row} | {"O"})
    label = datasets.ClassLabel(names=names)
    columns = {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(label)}
    rows = {"tokens": [list(s.words) for s in made], "ner_tags": written}
    datasets.Dataset.from_dict(rows, features=datasets.Features(columns)).to_parquet(str(path))


def gliner(path: Path, made: Sequence[Tagged], scheme: str, spelling: str) -> None:
    """GLiNER's training data: the last word of an entity is named, not the one after it."""
    rows = [{"tokenized_text": s.words, "ner": [[a, b - 1, kind] for kind, a, b in s.entities]} for s in made]
    path.write_text(json.dumps(rows), encoding="utf-8")


def comma_separated(path: Path, made: Sequence[Tagged], scheme: str, spelling: str) -> None:
    """A table as spreadsheets write it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Sentence #", "Word", "Tag"])
        for number, s in enumerate(made, start=1):
            firsts = [f"Sentence: {number}"] + [""] * (len(s.words) - 1)
            writer.writerows(zip(firsts, s.words, tags(s, scheme, spelling), strict=True))


LISTS = {
    "csv": ("train.csv", comma_separated),
    "tokens-jsonl": ("train.json", json_lines),
    "tokens-jsonl, other fields": ("train.json", json_fields),
    "tokens-jsonl, numbers": ("train.json", numbers),
    "parquet": ("train.parquet", parquet),
    "gliner": ("train.json", gliner),
}
