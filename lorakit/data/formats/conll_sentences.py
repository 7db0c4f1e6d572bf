"""Where the sentences of a column file end, if blank lines do not say so.

A header names a column of sentences (`Sentence #`), within one of documents or not. Without such a name, in a file
without blank lines, the sentences are told by what precedes the words: names or numbers that stay the same throughout a
sentence (1, 1, 1, 2, 2; also as part of an id, d1s1t1, d1s1t2), or numbers of words that begin again (1, 2, 3, 1, 2).
A cell that is empty is as that above. HIPE-2022 marks the last word of a sentence in a column of flags
(`NoSpaceAfter|EndOfSentence`, https://github.com/hipe-eval/HIPE-2022-data). A note says which column it was.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lorakit.data.formats.conll_rows import Block, Table

LONG = 500  # words: a file that is one sentence of at least this many gets a note
_SENTENCE_NAME = re.compile(r"SENT(ENCE)?S?[ _.-]*(#|IDX?|NO|NUM|NUMBER|NR|INDEX)?|S_?IDX?")
_DOCUMENT_NAME = re.compile(r"(DOC(UMENT)?|FILE|ARTICLE|TEXT|ABSTRACT)S?[ _.-]*(#|IDX?|NO|NUM|NUMBER|NR|INDEX|NAME)|"
                        r"DOC|DOCUMENT|FILE|FILENAME|ARTICLE|PMID")  # fmt: skip
_ENDS = ("EndOfSentence", "PySBDSegment")  # HIPE's flags: by annotators, or by the sentence splitter pySBD
_DIGITS = re.compile(r"\d+")
Values = Sequence[Any]  # of a column, from the first line of the file to the last


def with_sentences(table: Table, word: int, tag: int) -> Table:
    """The table divided into the sentences that its columns tell; `word` and `tag` are those of words and tags."""
    if not table.blocks:
        return table
    named = [i for i, name in enumerate(table.names) if _SENTENCE_NAME.fullmatch(name.upper()) and i not in (word, tag)]
    if named:
        parents = [i for i, name in enumerate(table.names) if _DOCUMENT_NAME.fullmatch(name.upper()) and i != word]
        names = [_filled(_column(table, i)) for i in (*parents, named[0])]
        kind = f"column {named[0] + 1} ({table.names[named[0]]}) tells where sentences begin"
        table = _divided(table, _changes(list(zip(*names, strict=True))), kind)
    elif found := _flagged(table, word, tag):
        column, flag, starts = found
        table = _divided(table, starts, f"column {column + 1} tells where sentences end ({flag})")
    elif table.is_undivided:
        starts, told = _told(table, word, tag)
        if told:
            listed = " and ".join(str(column + 1) for column in told)
            which = f"columns {listed} tell" if len(told) > 1 else f"column {listed} tells"
            kind = f"no blank line in the file: {which} where sentences begin (if not, end them with blank lines)"
            table = _divided(table, starts, kind)
    if len(table.blocks) == 1 and len(table.blocks[0].lines) >= LONG:
        kind = f"no blank line in the file: it is read as one sentence of {len(table.blocks[0].lines):,} words"
        table = table._replace(notes=(*table.notes, (kind, f"{table.path}:1")))
    return table


def _divided(table: Table, starts: set[int], kind: str) -> Table:
    """The table with a sentence from each of these rows, counted through the file, to the next one or a blank line."""
    blocks, row = [], 0
    for block in table.blocks:
        size = len(block.lines)
        cuts = [0, *(i for i in range(1, size) if row + i in starts), size]
        for first, end in pairwise(cuts):
            columns = tuple([column[first:end] for column in block.columns])
            blocks.append(Block(columns, block.lines[first:end], block.document))
        row += size
    return table._replace(blocks=blocks, notes=(*table.notes, (kind, str(table.path))))


def _flagged(table: Table, word: int, tag: int) -> tuple[int, str, set[int]] | None:
    """The column of flags that ends sentences, the flag, and the rows after those that have it."""
    for column in range(table.width):
        if column in (word, tag):
            continue
        cells = _column(table, column)
        for flag in _ENDS:
            if ends := {i for i, cell in enumerate(cells, start=1) if flag in cell and flag in cell.split("|")}:
                return column, flag, ends
    return None


def _told(table: Table, word: int, tag: int) -> tuple[set[int], list[int]]:
    """The rows at which sentences begin, and the columns that tell so."""
    width = table.width
    keys: list[tuple] = [(i,) for i, block in enumerate(table.blocks) for _ in block.lines]
    borders, told = _changes(keys), []
    for column in range(min(word, width)):
        for values in _parts(_filled(_column(table, column))) if column != tag else ():
            longer = [(*key, value) for key, value in zip(keys, values, strict=True)]
            found = _changes(longer)
            if _are_names(longer, values, len(found), len(borders)):
                keys = longer
            elif not _are_numbers(values) or not (found := _restarts(values)):
                continue
            told += [column] if found - borders and column not in told else []
            borders |= found
    if not told:
        free = [i for i in range(width) if i not in (word, tag) and _are_digits(_column(table, i))]
        for column in free if len(free) == 1 and free[0] > word else ():
            numbers = list(map(int, _column(table, column)))
            found = _changes(numbers)
            is_flag = set(numbers) == {0, 1}
            if _steps(numbers) == {0, 1} and len(numbers) >= 2 * len(found) and not is_flag:
                return borders | found, [column]
    return borders, told


def _are_names(keys: Sequence[tuple], values: Values, runs: int, runs_before: int) -> bool:
    """Whether values, within those of the columns before, name parts of the file of more than a word."""
    if len(keys) <= runs:
        return False
    if len(set(keys)) < runs:  # a name comes again: numbers that begin again in each document of several sentences
        return _are_numbers(values) and runs_before == 1 and _go_up_or_restart(values) and len(keys) >= 2 * runs
    if runs_before > 1 and _are_numbers(values):
        steps = {later[-1] - earlier[-1] for earlier, later in pairwise(keys) if earlier[:-1] == later[:-1]}
        return steps <= {0, 1}
    return _are_numbers(values) or len(keys) >= 2 * runs


def _parts(values: Sequence[str]) -> list[Values]:
    """The values, or where all are the same but for their numbers (d1s1t1), each number as values of their own."""
    shapes = {_DIGITS.sub("0", value) for value in values}
    if len(shapes) > 1 or "0" not in next(iter(shapes)):
        return [values]
    return list(zip(*(map(int, _DIGITS.findall(value)) for value in values), strict=True))


def _column(table: Table, column: int) -> list[str]:
    return [cell for block in table.blocks for cell in block.columns[column]]


def _filled(values: Sequence[str]) -> list[str]:
    filled, above = [], ""
    for value in values:
        above = value.strip() or above
        filled.append(above)
    return filled


def _changes(values: Values) -> set[int]:
    """The rows whose value is not that of the row above, the first among them."""
    return {0, *(i for i, (above, value) in enumerate(pairwise(values), start=1) if value != above)}


def _restarts(numbers: Sequence[int]) -> set[int]:
    """The rows at which numbers that otherwise go up are the first one again; none where they do anything else."""
    found = {i for i, number in enumerate(numbers) if number == numbers[0]}
    goes_up = all(later > earlier or later == numbers[0] for earlier, later in pairwise(numbers))
    return found if goes_up and 1 < len(found) < len(numbers) else set()


def _go_up_or_restart(numbers: Sequence[int]) -> bool:
    return all(later - earlier in (0, 1) or later == numbers[0] for earlier, later in pairwise(numbers))


def _steps(numbers: Sequence[int]) -> set[int]:
    return {later - earlier for earlier, later in pairwise(numbers)}


def _are_numbers(values: Values) -> bool:
    return isinstance(values[0], int)


def _are_digits(values: Sequence[str]) -> bool:
    return all(map(_DIGITS.fullmatch, values))
