"""Where the sentences of a column file end, if blank lines do not say so.

A header names a column of sentences (`Sentence #`), within one of documents or not. Without such a name, in a file
without blank lines, the sentences are told by names or numbers that stay the same throughout a sentence (1, 1, 1, 2, 2;
also as part of an id, d1s1t1, d1s1t2), or numbers of words that begin again (1, 2, 3, 1, 2).
A cell that is empty is as that above. HIPE-2022 marks the last word of a sentence in a column of flags
(`NoSpaceAfter|EndOfSentence`, https://github.com/hipe-eval/HIPE-2022-data). A note says which column it was.
Numbers that change between blank lines too tell that those end documents (see `conll_numbers`).
"""

import re
from functools import partial
from itertools import accumulate, pairwise

from lorakit._counts import counted
from lorakit.data.formats.conll_numbers import Rows, changes, end_documents, filled, sentences_told
from lorakit.data.formats.conll_rows import Block, Table

LONG = 500  # words: a file that is one sentence of at least this many gets a note
_SENTENCE_NAME = re.compile(r"SENT(ENCE)?S?[ _.-]*(#|IDX?|NO|NUM|NUMBER|NR|INDEX)?|S_?IDX?")
_DOCUMENT_NAME = re.compile(r"(DOC(UMENT)?|FILE|ARTICLE|TEXT|ABSTRACT)S?[ _.-]*(#|IDX?|NO|NUM|NUMBER|NR|INDEX|NAME)|"
                        r"DOC|DOCUMENT|FILE|FILENAME|ARTICLE|PMID")  # fmt: skip
_MARKS = frozenset("<s> </s> <bos> <eos> <BOS> <EOS> [CLS] [SEP] [PAD] <pad> BOS EOS".split())
_ENDS = ("EndOfSentence", "PySBDSegment")  # HIPE's flags: by annotators, or by the sentence splitter pySBD


def with_sentences(table: Table, word: int, tag: int) -> Table:
    """The table divided into the sentences that its columns tell; `word` and `tag` are those of words and tags."""
    if not table.blocks:
        return table
    named = [i for i, name in enumerate(table.names) if _SENTENCE_NAME.fullmatch(name.upper()) and i not in (word, tag)]
    if named:
        parents = [i for i, name in enumerate(table.names) if _DOCUMENT_NAME.fullmatch(name.upper()) and i != word]
        names = [filled(_column(table, i)) for i in (*parents, named[0])]
        kind = f"column {named[0] + 1} ({table.names[named[0]]}) tells where sentences begin"
        table = _divided(table, changes(list(zip(*names, strict=True))), kind)
    elif found := _flagged(table, word, tag):
        column, flag, starts = found
        table = _divided(table, starts, f"column {column + 1} tells where sentences end ({flag})")
    elif table.is_undivided or not table.is_conll2012:
        table = _as_numbered(table, word, tag)
    return _about_marks(_about_length(table), word)


def _as_numbered(table: Table, word: int, tag: int) -> Table:
    """The table divided where numbers say so, or with a note that they do."""
    rows = Rows(partial(_column, table), table.width, _tops(table))
    told = sentences_told(rows, word, tag)
    if not told.columns:
        return table
    listed = " and ".join(str(column + 1) for column in told.columns)
    which = f"columns {listed} tell" if len(told.columns) > 1 else f"column {listed} tells"
    if table.is_undivided:
        kind = f"no blank line in the file: {which} where sentences begin (if not, end them with blank lines)"
        return _divided(table, told.starts, kind)
    if end_documents(rows, word, told):
        fix = "if blank lines end sentences, remove the numbers"
        kind = f"blank lines end documents: {which} where sentences begin ({fix})"
        return _divided(_with_documents(table), told.starts, kind)
    kind = (
        f"{which} of {counted(len(told.starts), 'sentence')}, and blank lines of {len(table.blocks):,}, which are read"
    )
    kind += " (if the numbers are right, end each sentence with a blank line)"
    return table._replace(notes=(*table.notes, (kind, str(table.path))))


def _with_documents(table: Table) -> Table:
    """The table with each block as a document, unless the file marks others."""
    if any(block.document for block in table.blocks):
        return table
    return table._replace(blocks=[block._replace(document=i) for i, block in enumerate(table.blocks, start=1)])


def _about_length(table: Table) -> Table:
    """The table with a note on its longest sentence, if it has too many words to be one."""
    longest = max(table.blocks, key=lambda block: len(block.lines))
    words = len(longest.lines)
    if words < LONG:
        return table
    if len(table.blocks) == 1:
        kind = f"no blank line in the file: it is read as one sentence of {words:,} words"
    else:
        long = sum(len(block.lines) >= LONG for block in table.blocks)
        kind = f"{counted(long, 'sentence')} of at least {LONG} words (end each sentence with a blank line)"
    return table._replace(notes=(*table.notes, (kind, f"{table.path}:{longest.lines[0]}")))


def _about_marks(table: Table, word: int) -> Table:
    """The table with a note on lines whose word is only a mark that a tokenizer or a tool adds, or is empty."""
    there = set().union(*(block.columns[word] for block in table.blocks))
    marks = sorted(there & _MARKS)
    kinds = [f"{', '.join(marks)} read as words (delete these lines, or empty them where sentences end)"] * bool(marks)
    if table.is_undivided and "" in there:
        kinds.append("no blank line in the file, but lines without a word (if sentences end there, empty these lines)")
    if any(cell.startswith("##") and cell[2:].isalpha() for cell in there if cell[:1] == "#"):
        kinds.append("words begin with ##, as pieces of a tokenizer do: give whole words, which are split in training")
    return table._replace(notes=(*table.notes, *((kind, str(table.path)) for kind in kinds)))


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


def _column(table: Table, column: int) -> list[str]:
    return [cell for block in table.blocks for cell in block.columns[column]]


def _tops(table: Table) -> list[int]:
    """The row at which each block begins."""
    return [0, *accumulate(len(block.lines) for block in table.blocks[:-1])]
