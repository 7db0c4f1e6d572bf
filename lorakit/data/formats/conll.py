"""Column files: a word and its tag per line, among other columns or not, and a blank line after each sentence.

Tabs separate the columns, or spaces in a line without tabs. `conll_table` finds the rows, `conll_columns` the columns
of words and tags, `conll_sentences` and `conll_numbers` the sentences that no blank line ends; `conll_agreement`
compares a file with the training file. Read by these rules, among others: CoNLL-2002 and -2003 with or without a column
of numbers, WNUT17, GermEval 2014 (two layers), CoNLL-2012 (brackets), CoNLL-U (`NE=B-PER` in its last column), CoNLL-U
Plus (`# global.columns`), PARSEME's .cupt (numbered expressions), WikiANN (`en:` before each word), the MIT corpora
(tag first). A header is read as the names of the columns.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lorakit._counts import counted
from lorakit.data.formats.conll_agreement import Candidate, First, about_columns, about_doubt, is_better
from lorakit.data.formats.conll_brackets import read_brackets
from lorakit.data.formats.conll_columns import (
    ALLOWED,
    BRACKETS,
    EXPRESSIONS,
    Layout,
    find_layout,
    layout_as_in,
    types_in,
)
from lorakit.data.formats.conll_csv import parse_csv
from lorakit.data.formats.conll_expressions import read_expressions
from lorakit.data.formats.conll_rows import Block, Table, values_of
from lorakit.data.formats.conll_sentences import with_sentences
from lorakit.data.formats.conll_table import BORDERS, GLOBAL_COLUMNS, parse_table, words_only
from lorakit.data.formats.conll_tags import with_tags_of_features, with_types_of_letters
from lorakit.data.formats.record import UNANNOTATED, Annotation, Document, Note, Reading, about_texts
from lorakit.data.formats.text import check_lines, read_head, read_text
from lorakit.data.spelling import ABOUT, plain_tags

KEY = "conll layout"  # in Reading.agreed: the training file's table and layout, and what it shows


def recognise_conll(path: Path) -> str | None:
    """The evidence that a file holds columns: each of its first lines has as many, and one of them is tags."""
    return _evidence(path, parse_table)


def _evidence(path: Path, parse: Callable[[str, Path], Table]) -> str | None:
    head = read_head(path)
    end = max(head.rfind("\n"), head.rfind("\r")) if path.stat().st_size > len(head.encode()) else len(head)
    try:
        table = _finished(parse(head[:end], path))
        if not table.blocks:
            return None
        layout = find_layout(table, Reading(layer="outer"))
    except ValueError:
        return None
    width = len(table.blocks[0].columns)
    return f"{width} columns; words in column {layout.word + 1}, tags in column {layout.tag + 1}"


def read_conll(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield the sentences of a column file.

    Args:
        path: the file.
        reading: its `labels` are the allowed tags; `columns` and `layer` name the columns.

    Raises:
        ValueError: with the line: one column only, another number of columns than before, or an unknown tag; or the
            columns cannot be told apart.
    """
    text = read_text(path)
    check_lines(text, path)
    yield from _documents(_finished(parse_table(text, path)), reading)


def recognise_csv(path: Path) -> str | None:
    """The evidence that commas or semicolons separate columns of words and tags; the same as for tabs and spaces."""
    return None if "\t" in read_head(path) else _evidence(path, parse_csv)


def read_csv(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield the sentences of a table whose columns commas or semicolons separate; arguments and errors as above."""
    yield from _documents(_finished(parse_csv(read_text(path), path)), reading)


def _finished(table: Table) -> Table:
    """The table without the rows that hold no word, with all tags in a column."""
    return with_types_of_letters(with_tags_of_features(words_only(table)))


def _documents(table: Table, reading: Reading) -> Iterator[Document]:
    path = table.path
    if not table.blocks:
        return
    layout = _layout(table, reading)
    table = with_sentences(table, layout.word, layout.tag)
    about = ABOUT.get(layout.spelling)
    notes = (*(Note(*note) for note in table.notes), *layout.notes, *([Note(about, str(path))] if about else []))
    plain = _plain_tags(table, layout, reading)
    notes += tuple(
        Note("tag of a line such as 1-2 or 8.1, which CoNLL-U does not count as a word: left out", f"{path}:{line}")
        for line, row in table.others
        if row[layout.tag] not in ("O", "_", "*", "-")
    )
    for block in table.blocks:
        document = _read_block(block, table, layout, plain)
        yield document._replace(notes=(*notes, *document.notes)) if notes or document.notes else document
        notes = ()


def _layout(table: Table, reading: Reading) -> Layout:
    """The layout of a table: its own, or that of the training file where that fits (see `conll_agreement`)."""
    if reading.agreed is None or KEY not in reading.agreed:
        layout = find_layout(table, reading)
        if reading.agreed is not None:
            kinds = frozenset(note.kind for note in layout.notes)
            shown = _candidate(table, layout)
            reading.agreed[KEY] = table, layout, First(shown.columns, table.width, shown.types, kinds)
        return layout
    before, as_before, first = reading.agreed[KEY]
    try:
        layout = find_layout(table, reading)
        own = _candidate(table, layout)
    except ValueError:
        if (layout := layout_as_in(as_before, table, reading, before)) is None:
            raise
    else:
        if own.columns != first.columns and (other := layout_as_in(as_before, table, reading, before)):
            chosen = layout if is_better(own, _candidate(table, other), first) else other
            doubt = about_doubt(own, str(table.path)) if chosen is other else []
            layout = chosen._replace(notes=(*chosen.notes, *doubt))
    notes = [note for note in layout.notes if note.kind not in first.notes]
    notes += about_columns(first, (layout.word, layout.tag), table.width, str(table.path))
    return layout._replace(notes=tuple(notes))


def _candidate(table: Table, layout: Layout) -> Candidate:
    return Candidate((layout.word, layout.tag), frozenset(types_in(table, layout.tag, layout.spelling)))


def _read_block(block: Block, table: Table, layout: Layout, plain: dict[str, str] | None) -> Document:
    place = f"{table.path}:{block.lines[0]}"
    words, cells = block.columns[layout.word], block.columns[layout.tag]
    if layout.prefixes:
        words = tuple([word.partition(":")[2] for word in words])
    if layout.is_numbered:
        words = tuple([word[0] for word in words])
    name = f"{table.path.name}#{block.document}" if block.document else ""
    if layout.spelling not in (BRACKETS, EXPRESSIONS):
        tags = cells if plain is None else tuple([plain[cell] for cell in cells])
        return Document(words, tags, place, id=name)
    try:
        if layout.spelling == BRACKETS:
            spans = [Annotation(*span) for span in read_brackets(cells)]
        else:
            spans = [
                Annotation(kind, pieces[0][0], pieces[-1][1], fragments=pieces if len(pieces) > 1 else ())
                for kind, pieces in read_expressions(cells)
            ]
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    notes = tuple([Note(UNANNOTATED, place)] * cells.count("_"))
    return Document(words, None, place, spans=tuple(spans), id=name, notes=notes)


def _plain_tags(table: Table, layout: Layout, reading: Reading) -> dict[str, str] | None:
    """Cell -> tag for every cell of the column of tags; None where all cells are the tags themselves.

    Raises:
        ValueError: with the line: a cell is not a tag or not among the labels.
    """
    if layout.spelling in (BRACKETS, EXPRESSIONS):
        return None
    tags = values_of(table.blocks, layout.tag)
    plain = plain_tags(tags, layout.spelling)
    if table.names and "_" in tags:
        plain["_"] = "O"
    good = plain if reading.labels is None else plain.keys() & reading.labels
    for line, tag in table.cells_outside(good, layout.tag) if tags - set(good) else ():
        allowed = (
            ALLOWED if reading.labels is None else f"the labels are {', '.join(reading.labels)}; add it to label.json"
        )
        raise ValueError(f"{table.path}:{line}: unknown tag {tag!r}; {allowed}")
    return None if all(tag == cell for cell, tag in plain.items()) else plain


def write_conll(documents: Sequence[Document], path: Path) -> list[str]:
    """Write a word, a tab and its tag per line, and `-DOCSTART-` before each document that has an id.

    Where a reader could take the words for something else, such as numbers that count, a line names the columns.
    """
    lines: list[str] = []
    changed, before = 0, ""
    for document in documents:
        if document.id != before and document.id:
            lines += ["-DOCSTART-\tO", ""]
        before = document.id
        for word, tag in zip(document.words, document.tags or (), strict=True):
            cell = _cell(word)
            changed += (cell.strip(" ") or cell) != word
            # a space protects a word that would begin a comment or a document; readers take it for padding
            special = cell.startswith((*BORDERS, "#begin document", "#end document")) or GLOBAL_COLUMNS.match(cell)
            lines.append(f"{' ' if special else ''}{cell}\t{tag}")
        lines.append("")
    text = "\n".join(lines)
    if not _reads_plainly(text, path, documents):
        text = f"# global.columns = FORM NE\n{text}"
    path.write_text(text, encoding="utf-8", newline="")
    return _about_changed(changed) + about_texts(documents)


def write_csv(documents: Sequence[Document], path: Path) -> list[str]:
    """Write a header and a row per word: the number of its sentence, the word and its tag, with commas between them."""
    changed, names = 0, set()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("sentence", "word", "tag"))
        for number, document in enumerate(documents, start=1):
            names.add(document.id)
            for word, tag in zip(document.words, document.tags or (), strict=True):
                cell = _cell(word)
                changed += (cell.strip(" ") or cell) != word
                writer.writerow((number, cell, tag))
    names -= {""}
    about = [f"{counted(len(names), 'name')} of documents: the table has no place for them"] if names else []
    return _about_changed(changed) + about + about_texts(documents)


def _cell(word: str) -> str:
    return re.sub("[\0\t\n\r]", " ", word)


def _about_changed(words: int) -> list[str]:
    about = "with a tab, a line end, a NUL or spaces around them: these became spaces"
    return [f"{counted(words, 'word')} {about}"] if words else []


def _reads_plainly(text: str, path: Path, documents: Sequence[Document]) -> bool:
    """Whether a reader finds the words and tags without being told in which columns they are."""
    try:
        found = list(_documents(_finished(parse_table(text, path)), Reading()))
    except ValueError:
        return False
    words = [tuple([cell.strip(" ") or cell for cell in map(_cell, document.words)]) for document in documents]
    written = [(row, document.tags) for row, document in zip(words, documents, strict=True) if row]
    return [(document.words, document.tags) for document in found] == written
