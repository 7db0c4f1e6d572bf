"""The rows of a column file: lines, comments and the borders of sentences and documents, before anything is a word.

Two kinds of lines look like rows and hold no word: a header (`word  pos  tag`), and in CoNLL-U the surface form of
several words (1-2) and a word that is not in the text (8.1).
"""

import re
from collections.abc import Callable, Container, Iterator
from itertools import compress
from pathlib import Path
from typing import NamedTuple

BORDERS = ("-DOCSTART-", "###MEDLINE:")  # CoNLL-2003, BioNLP2004
LONG = 500  # words: a file that is one sentence of at least this many gets a note
GLOBAL_COLUMNS = re.compile(r"#\s*global\.columns\s*=\s*(.*)")
_MARKS = ("#begin document", "#end document")
_NEW_DOCUMENT = re.compile(r"#begin document|#\s*newdoc\b")
_NUMBER = re.compile(r"\d+([-.]\d+)?")  # CoNLL-U also counts 1-2 and 8.1
_FEATURE = re.compile(r"(?:^|\|)NER?=([^|]+)", re.IGNORECASE)
_WORD_NAME = re.compile(r"(FORM|WORD|TOKEN|TEXT)S?")
_TAG_NAME = re.compile(
    r"(NER?|BIO|BIOES|IOB2?|IOBES|BILOU|(NAMED[_ -]?)?ENTIT(Y|IES)|TAGS?|LABELS?)([_ -]?(TAG|LABEL|TYPE|IOB2?|BIO)S?)?"
)
_SENTENCE_NAME = re.compile(r"SENT(ENCE)?S?[ _.-]*(#|IDX?|NO|NUM|NUMBER|NR|INDEX)?")
_SURE_TAG = re.compile(r"O|[BIESLUMW][-_].+|.+[-_][BIESLUMW]|[BIES]")


class Block(NamedTuple):
    """The rows of one sentence.

    Attributes:
        columns: the cells of each column, from top to bottom.
        lines: the number of each row's line, from 1.
        document: which document of the file it is in, from 1; 0 where the file does not mark documents.
    """

    columns: tuple[tuple[str, ...], ...]
    lines: list[int]
    document: int


class Table(NamedTuple):
    """A column file.

    Attributes:
        path: the file.
        blocks: its sentences.
        names: of the columns, from a line `# global.columns = …` (CoNLL-U Plus) or a header; () without one.
        is_conll2012: whether it is marked up as CoNLL-2012 is, where rows of different sentences differ in length.
        notes: (what to know about it, where).
        others: (line, cells) of CoNLL-U's lines that are no words.
    """

    path: Path
    blocks: list[Block]
    names: tuple[str, ...]
    is_conll2012: bool
    notes: tuple[tuple[str, str], ...]
    others: tuple[tuple[int, tuple[str, ...]], ...] = ()

    def cells_outside(self, allowed: Container[str], column: int) -> Iterator[tuple[int, str]]:
        """Yield (line, cell) for every cell of a column that is not among those allowed."""
        for block in self.blocks:
            for line, cell in zip(block.lines, block.columns[column], strict=True):
                if cell not in allowed:
                    yield line, cell


def parse_table(text: str, path: Path) -> Table:
    """The rows of a column file's text; `path` is for messages.

    Raises:
        ValueError: a line has another number of columns than those before, or holds a carriage return.
    """
    notes = []
    if "\r" in text:
        text, mac = _line_ends(text, path)
        notes += [("a carriage return ends each line (old Mac): read as line ends", str(path))] if mac else []
    lines = text.split("\n")
    some = [cells(line) for line in lines[:1000] if not _is_border(line) and not line.startswith("#")]
    first = some[0] if some else []
    names = next((tuple(match[1].split()) for line in lines[:100] if (match := GLOBAL_COLUMNS.match(line))), ())
    is_conll2012 = any(line.startswith(_MARKS[0]) for line in lines[:100]) and not names
    # of all the first lines: a corpus whose first word is a year has hashtags, not comments
    counted = bool(some) and all(re.match(r"\d", row[0]) for row in some) or bool(names)
    blocks: list[Block] = []
    rows: list[list[str]] = []
    numbers: list[int] = []
    width, document, padded = 0, 0, ""
    for number, line in enumerate(lines, start=1):
        if line[:1] in " \t-#":  # or empty: all others are rows
            is_border = _is_border(line)
            if is_border or line[:1] == "#" and _is_comment(line, not rows, len(first), counted, is_conll2012):
                if rows and (is_border or line.startswith(_MARKS)):
                    blocks.append(Block(tuple(zip(*rows, strict=True)), numbers, document))
                    rows, numbers = [], []
                document += line.startswith(BORDERS) or _NEW_DOCUMENT.match(line) is not None
                width = 0 if is_conll2012 else width
                continue
        row = line.split("\t")
        if " " in line:
            padded = padded or ("\t" in line and row != cells(line) and f"{path}:{number}") or ""
            row = cells(line)
        width = width or len(row)
        if len(row) != width or width < 2:
            if len(row) < 2:
                raise ValueError(
                    f"{path}:{number}: broken line {line!r}: one column; a line holds a word, then its tag"
                )
            raise ValueError(
                f"{path}:{number}: broken line {line!r}: {len(row)} columns, the lines before have {width}"
            )
        rows.append(row)
        numbers.append(number)
    if rows:
        blocks.append(Block(tuple(zip(*rows, strict=True)), numbers, document))
    if padded:
        notes.append(("spaces around words and tags were removed", padded))
    return finished(Table(path, blocks, names, is_conll2012, tuple(notes)))


def finished(table: Table) -> Table:
    """The table without the rows that hold no word, with the sentences and tags that other columns tell."""
    table = _with_tags_of_features(_words_only(_with_sentences(_without_header(table))))
    if len(table.blocks) == 1 and len(table.blocks[0].lines) >= LONG:
        kind = f"no blank line in the file: it is read as one sentence of {len(table.blocks[0].lines):,} words"
        table = table._replace(notes=(*table.notes, (kind, f"{table.path}:1")))
    return table


def cells(line: str) -> list[str]:
    """The cells of a line without the spaces that pad them; a cell of spaces only is kept as it is."""
    if "\t" in line:
        return [cell.strip(" ") or cell for cell in line.split("\t")]
    return re.split(" +", line.strip(" ")) if line.strip(" ") else []


def values_of(blocks: list[Block], column: int) -> set[str]:
    """Every cell of a column, each once."""
    return set().union(*(block.columns[column] for block in blocks))


def _without_header(table: Table) -> Table:
    """The table without lines that name its columns: the first row, and rows like it in files that were joined."""
    if table.names or not table.blocks:
        return table
    header = tuple([column[0] for column in table.blocks[0].columns])
    words, tags = ([bool(form.fullmatch(cell.upper())) for cell in header] for form in (_WORD_NAME, _TAG_NAME))
    if not any(words) or not any(tags):
        return table
    blocks, found = _filtered(table.blocks, lambda row: row != header)
    kind = f"this line names the columns ({', '.join(header)}): not read as words"
    notes = tuple([(kind, f"{table.path}:{line}") for line, _ in found])
    return table._replace(blocks=blocks, names=header, notes=(*table.notes, *notes))


def _with_sentences(table: Table) -> Table:
    """The table with a sentence for each value of a column that a header calls so; an empty cell is as that above."""
    found = [i for i, name in enumerate(table.names) if _SENTENCE_NAME.fullmatch(name.upper())]
    if not found or not table.blocks:
        return table
    blocks = []
    for block in table.blocks:
        value, rows = "", []
        for line, row in zip(block.lines, zip(*block.columns, strict=True), strict=True):
            if row[found[0]].strip() not in ("", value) or not rows:
                value = row[found[0]].strip()
                rows.append(([], []))
            rows[-1][0].append((*row[: found[0]], value, *row[found[0] + 1 :]))
            rows[-1][1].append(line)
        blocks += [Block(tuple(zip(*there, strict=True)), lines, block.document) for there, lines in rows]
    kind = f"column {found[0] + 1} ({table.names[found[0]]}) tells where sentences begin"
    return table._replace(blocks=blocks, notes=(*table.notes, (kind, str(table.path))))


def _words_only(table: Table) -> Table:
    """The table without CoNLL-U's lines that are no words, where the first column counts as CoNLL-U does."""
    if not table.blocks or not table.blocks[0].columns[0][0][:1].isdecimal():
        return table
    numbers = values_of(table.blocks, 0)
    is_ids = table.names[0].upper() == "ID" if table.names else len(table.blocks[0].columns) > 2
    if not is_ids or all(map(str.isdecimal, numbers)) or not all(map(_NUMBER.fullmatch, numbers)):
        return table
    blocks, others = _filtered(table.blocks, lambda row: row[0].isdecimal())
    return table._replace(blocks=blocks, others=tuple(others))


def _with_tags_of_features(table: Table) -> Table:
    """CoNLL-U with the tags that its column MISC has as NE=B-PER (Stanza: ner=S-PERSON) in place of that column."""
    if not table.blocks or len(table.blocks[0].columns) != 10 or not table.blocks[0].columns[0][0].isdecimal():
        return table
    found = {cell: _FEATURE.search(cell) for cell in values_of(table.blocks, 9)}
    if not any(found.values()):
        return table
    tags = {cell: match[1] if match else "O" for cell, match in found.items()}
    blocks = [
        block._replace(columns=(*block.columns[:9], tuple([tags[cell] for cell in block.columns[9]])))
        for block in table.blocks
    ]
    note = ("tags are those named NE or NER in column 10", str(table.path))
    return table._replace(blocks=blocks, notes=(*table.notes, note))


def _filtered(
    blocks: list[Block], keep: Callable[[tuple[str, ...]], bool]
) -> tuple[list[Block], list[tuple[int, tuple[str, ...]]]]:
    """The sentences with the rows to keep, without those that lose all; and (line, cells) of the others."""
    kept, others = [], []
    for block in blocks:
        rows = list(zip(*block.columns, strict=True))
        there = [keep(row) for row in rows]
        others += [(line, row) for line, row, stays in zip(block.lines, rows, there, strict=True) if not stays]
        if all(there):
            kept.append(block)
        elif any(there):
            columns = tuple([tuple(compress(column, there)) for column in block.columns])
            kept.append(Block(columns, list(compress(block.lines, there)), block.document))
    return kept, others


def _line_ends(text: str, path: Path) -> tuple[str, bool]:
    """The text with LF as its only line end, and whether CR alone ended its lines."""
    text = text.replace("\r\n", "\n")
    if "\r" not in text:
        return text, False
    if "\n" not in text:
        return text.replace("\r", "\n"), True
    line = text[: text.index("\r")].count("\n") + 1
    # a line end written as CR CR LF has one too many; a lone CR is a line end of its own
    fix = "tr '\\r' '\\n'" if re.search("\r(?![\r\n])", text) else "tr -d '\\r'"
    raise ValueError(
        f"{path}:{line}: a carriage return inside a line of a file with other line ends too; write every line end as "
        f"LF, for instance with: {fix} < FILE > NEW"
    )


def _is_border(line: str) -> bool:
    return not line.strip(" \t") or line.startswith(BORDERS)


def _is_comment(line: str, at_start: bool, width: int, counted: bool, is_conll2012: bool) -> bool:
    """Whether a line that begins with # is a comment: "#" and "#tag" are words of many corpora.

    A comment where the first column is a number or the file marks documents; else, at the start of a sentence, where
    the line cannot be a row: it has another number of columns, or a space after the # and a last cell that is no tag.
    """
    if counted or is_conll2012 or line.startswith(_MARKS) or GLOBAL_COLUMNS.match(line):
        return True
    row = cells(line)
    if not at_start or not width:
        return False
    return len(row) != width or row[0].startswith("# ") and not _SURE_TAG.fullmatch(row[-1])
