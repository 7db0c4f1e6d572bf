"""The rows of a column file, sentence by sentence, which the files conll_*.py find and read."""

from collections.abc import Callable, Container, Iterator
from itertools import compress
from pathlib import Path
from typing import NamedTuple


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

    @property
    def width(self) -> int:
        """The number of columns that all rows have."""
        return min((len(block.columns) for block in self.blocks), default=0)

    @property
    def is_undivided(self) -> bool:
        """Whether the file has no blank line inside, or only those between documents."""
        return len(self.blocks) == len({block.document for block in self.blocks})

    def cells_outside(self, allowed: Container[str], column: int) -> Iterator[tuple[int, str]]:
        """Yield (line, cell) for every cell of a column that is not among those allowed."""
        for block in self.blocks:
            for line, cell in zip(block.lines, block.columns[column], strict=True):
                if cell not in allowed:
                    yield line, cell


def values_of(blocks: list[Block], column: int) -> set[str]:
    """Every cell of a column, each once."""
    return set().union(*(block.columns[column] for block in blocks))


def filtered(
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
