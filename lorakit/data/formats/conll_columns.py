"""Which column of a column file holds the words and which the tags.

The words are in the first column that can be words: not one of numbers that count, not one that is the same throughout
each sentence (the name of the document), and not one of tags. The tags are in the only column all of whose cells are
tags of one spelling (`data/spelling`); chunks (B-NP) count only where nothing else does. If several columns are tags,
they are layers or a gold and a predicted column, which only the user can tell apart; GermEval's layout, a number before
the word and two columns of tags, is known.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from lorakit.data.formats.conll_brackets import is_bracket
from lorakit.data.formats.conll_table import Table, values_of
from lorakit.data.formats.record import Note, Reading
from lorakit.data.spelling import plain_tags, spelling_of
from lorakit.data.tags import spans

BRACKETS = "brackets"  # beside the spellings of data/spelling
_CHUNKS = frozenset("NP VP PP ADJP ADVP SBAR PRT CONJP INTJ LST UCP NC VC PC".split())  # CoNLL-2000 and -2003
_NUMBER = re.compile(r"\d+([-.]\d+)?")  # CoNLL-U also counts 1-2 and 8.1
_LANGUAGE = re.compile(r"[a-z][a-z-]{1,11}:")
_TAG_NAMES = re.compile(r"(^|[^A-Z])(NER?|BIO|IOB2?|ENTIT(Y|IES)|NAMED_ENTITY|TAGS?|LABELS?)($|[^A-Z])")
_WORD_NAMES = ("FORM", "WORD", "TOKEN", "TEXT")


class Layout(NamedTuple):
    """How to read the rows of a table.

    Attributes:
        word: the column of words, from 0.
        tag: the column of tags.
        spelling: of the tags, or BRACKETS.
        prefix: what every word begins with and is not part of it: "en:" of WikiANN.
        notes: what to know about the choice.
    """

    word: int
    tag: int
    spelling: str
    prefix: str = ""
    notes: tuple[Note, ...] = ()


def find_layout(table: Table, reading: Reading) -> Layout:
    """Find the columns of a table, or check those that the user or the table itself names.

    Raises:
        ValueError: no column holds tags, several do, or a named column does not exist.
    """
    width = min((len(block.columns) for block in table.blocks), default=0)
    named = _named_columns(table, width, reading)
    distinct = [values_of(table.blocks, column) for column in range(width)]
    notes: list[Note] = []
    if "tag" in named:
        tag = named["tag"]
    else:
        tag = _tag_column(table, distinct, named.get("word"), reading, notes)
    values = distinct[tag]
    spelling = spelling_of(values - {"_"} if table.names else values)
    if spelling is None and all(map(is_bracket, values)):
        spelling = BRACKETS
    word = named["word"] if "word" in named else _word_column(table, distinct, tag, notes)
    prefix = "" if "word" in named else _shared_prefix(distinct[word], table, notes)
    return Layout(word, tag, spelling or "prefix", prefix, tuple(notes))


def _named_columns(table: Table, width: int, reading: Reading) -> dict[str, int]:
    """Role -> column, from 0, of those that the user names, the table names or CoNLL-2012 fixes."""
    if reading.columns:
        return {role: _column(role, name, table, width) for role, name in reading.columns.items()}
    if table.is_conll2012 and width > 10:  # document, part, number, word, POS, parse, lemma, frame, sense, speaker, NE
        return {"word": 3, "tag": 10}
    names = [name.upper() for name in table.names]
    words = [i for i, name in enumerate(names) if name.split(":")[-1] in _WORD_NAMES]
    tags = [i for i, name in enumerate(names) if _TAG_NAMES.search(name)]
    return {role: found[0] for role, found in (("word", words), ("tag", tags)) if len(found) == 1}


def _column(role: str, name: str, table: Table, width: int) -> int:
    if role not in ("word", "tag"):
        raise ValueError(f"--columns {role}={name}: unknown role {role!r}; it is word or tag, as in word=1,tag=3")
    if name in table.names:
        return table.names.index(name)
    if not re.fullmatch(r"\d+", str(name)) or not 1 <= int(name) <= width:
        named = f" or one of {', '.join(table.names)}" if table.names else ""
        raise ValueError(f"--columns {role}={name}: {table.path} has columns 1 to {width}{named}")
    return int(name) - 1


def _tag_column(table: Table, distinct: Sequence[set[str]], word: int | None, reading: Reading, notes: list) -> int:
    """The column of tags, from 0."""
    columns = [i for i in range(len(distinct)) if i != word]
    found = [i for i in columns if spelling_of(distinct[i], bare=False)]
    found = [i for i in found if i] or found  # words may look like tags: a file of the words "I" and "O"
    found = [i for i in found if distinct[i] != {"O"}] or found[-1:]
    chunks = [i for i in found if distinct[i] != {"O"} and _types(distinct[i]) <= _CHUNKS]
    found = [i for i in found if i not in chunks]
    found = [i for n, i in enumerate(found) if not any(_equal(table, i, other) for other in found[:n])]
    if not found:  # types without prefixes (IO), which only a column with an O and few values can be
        found = [i for i in columns[1:] if i not in chunks and spelling_of(distinct[i])][-1:] or chunks[-1:]
    if len(found) == 1:
        return found[0]
    if not found:
        _refuse_tags(table, columns)
    if len(found) == 2 and (reading.layer or found[0] >= 2 and _counts(table, 0)):
        chosen = found[1] if reading.layer == "inner" else found[0]
        other = found[0] if reading.layer == "inner" else found[1]
        lost = _count_entities(table, other)
        kind = f"column {chosen + 1} read as the {reading.layer or 'outer'} layer; column {other + 1}, with {lost:,} "
        notes.append(Note(f"{kind}entities, is left out", str(table.path)))
        return chosen
    listed = " and ".join(f"{i + 1} ({_sample(distinct[i])})" for i in found)
    layers = f", or --layer outer for {found[0] + 1} or inner for {found[1] + 1}" if len(found) == 2 else ""
    raise ValueError(
        f"{table.path}: columns {listed} all look like tags; choose one with --columns word=W,tag={found[0] + 1}"
        f" (W: the column of the words){layers}"
    )


def _count_entities(table: Table, column: int) -> int:
    values = values_of(table.blocks, column)
    plain = plain_tags(values, spelling_of(values) or "prefix")
    return sum(len(spans([plain[cell] for cell in block.columns[column]], "bioes")) for block in table.blocks)


def _types(tags: set[str]) -> set[str]:
    plain = plain_tags(tags, spelling_of(tags, bare=False) or "prefix").values()
    return {tag[2:] for tag in plain if tag != "O"}


def _sample(values: set[str]) -> str:
    return ", ".join(sorted(values - {"O"})[:2]) or "O"


def _equal(table: Table, one: int, other: int) -> bool:
    return all(block.columns[one] == block.columns[other] for block in table.blocks)


def _refuse_tags(table: Table, columns: Sequence[int]) -> None:
    """Raise for the first cell that is not a tag, in the column with the most tags."""

    def plain(cells: set[str]) -> dict[str, str]:
        return plain_tags(cells, "prefix")

    def count(column: int) -> int:
        good = plain(values_of(table.blocks, column))
        return sum(cell in good for block in table.blocks for cell in block.columns[column])

    best = max(columns, key=lambda column: (count(column), column))
    good = plain(values_of(table.blocks, best))
    line, cell = next(table.cells_outside(good, best))
    raise ValueError(
        f"{table.path}:{line}: unknown tag {cell!r}; a tag is O or one of B I E S L U M W, a hyphen and the entity"
        " type; if the tags are in another column, name it: --columns word=1,tag=2"
    )


def _word_column(table: Table, distinct: Sequence[set[str]], tag: int, notes: list) -> int:
    """The first column, from 0, that can be words."""
    texts = [i for i in range(len(distinct)) if i != tag and not spelling_of(distinct[i], bare=False)]
    texts = texts or [i for i in range(len(distinct)) if i != tag]
    for column in texts:
        rest = [i for i in texts if i > column]
        if _counts(table, column):
            what = "counts 1, 2, 3, …"
        elif rest and len(rest) + (tag < column) and _is_constant(table, column):
            what = "is the same throughout each sentence"
        else:
            return column
        if not rest:
            raise ValueError(
                f"{table.path}: column {column + 1} counts 1, 2, 3, and so on, and no other column can hold the words; "
                f"add the words, or name their column: --columns word={column + 1},tag={tag + 1}"
            )
        notes.append(Note(f"column {column + 1} {what}: not read as words", str(table.path)))
    raise ValueError(f"{table.path}: no column of words beside the tags in column {tag + 1}")


def _counts(table: Table, column: int) -> bool:
    """Whether a column holds integers that, in every sentence, go up by one or stay the same."""
    single = []
    for block in table.blocks:
        values = block.columns[column]
        if not all(map(_NUMBER.fullmatch, values)):
            return False
        numbers = [int(value) for value in values if value.isdecimal()]
        steps = {later - earlier for earlier, later in zip(numbers, numbers[1:], strict=False)}
        if not steps <= {1} and steps != {0}:
            return False
        single += numbers if len(numbers) == 1 else []
    several = any(len(block.lines) > 1 for block in table.blocks)
    return bool(table.blocks) and (several or set(single) <= {0, 1})


def _is_constant(table: Table, column: int) -> bool:
    """Whether a column has one value in each sentence, in at least one of several words."""
    several = any(len(block.lines) > 1 for block in table.blocks)
    return several and all(len(set(block.columns[column])) == 1 for block in table.blocks)


def _shared_prefix(words: set[str], table: Table, notes: list) -> str:
    """The language code and colon that every word begins with, as in WikiANN; "" without one."""
    match = _LANGUAGE.match(next(iter(words), ""))
    if match is None or len(words) < 2 or not all(word.startswith(match[0]) for word in words):
        return ""
    notes.append(Note(f"every word begins with {match[0]!r}, which was removed", str(table.path)))
    return match[0]
