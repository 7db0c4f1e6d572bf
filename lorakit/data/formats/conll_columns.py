"""Which column of a column file holds the words and which the tags.

The tags are in the only column all of whose cells are tags of one spelling (`data/spelling`); chunks (B-NP) count only
where nothing else does. If several columns are tags, they are layers or a gold and a predicted column, which only the
user can tell apart; GermEval's layout, a number before the word and two columns of tags, is known.

The words are in the first column that can be words: not one with a number in every line (places, ids), not one that is
the same throughout each sentence (the name of the document), not one of parts of speech or of few values before many,
and not lemmas that the words follow. Each column that is skipped is a note. It is skipped only for one that can hold
words; nothing but numbers that count is refused.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, NoReturn
from unicodedata import category

from lorakit._counts import counted
from lorakit.data.formats.conll_brackets import is_bracket
from lorakit.data.formats.conll_expressions import is_expression
from lorakit.data.formats.conll_rows import Table, values_of
from lorakit.data.formats.record import Note, Reading, as_argument
from lorakit.data.spelling import plain_tags, spelling_of
from lorakit.data.tags import spans

ALLOWED = "a tag is O or one of B I E S L U M W, a hyphen and the entity type"
BRACKETS = "brackets"  # beside the spellings of data/spelling
EXPRESSIONS = "expressions"
_CHUNKS = frozenset("NP VP PP ADJP ADVP SBAR PRT CONJP INTJ LST UCP NC VC PC".split())  # CoNLL-2000 and -2003
_NUMBER = re.compile(r"\d+")
_HEXADECIMAL = re.compile(r"[0-9a-f-]{8,}", re.IGNORECASE)
_LANGUAGE = re.compile(r"[a-z][a-z-]{1,11}:")
_PARTS_OF_SPEECH = frozenset(
    # the Penn Treebank's and OntoNotes', then the universal ones
    "CC CD DT EX FW IN JJ JJR JJS LS MD NN NNS NNP NNPS PDT POS PRP PRP$ RB RBR RBS RP SYM TO UH VB VBD VBG VBN VBP VBZ"
    " WDT WP WP$ WRB HYPH AFX NFP ADD GW XX -LRB- -RRB- LRB RRB"
    " ADJ ADP ADV AUX CCONJ CONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ VERB X SPACE".split()
)
_MANY_ROWS = 2000  # by which a prefix of all words is told
_MOST_CLASSES = 100  # different values of a column that is no words: parts of speech, shapes, sources
_TAG_NAMES = re.compile(r"(^|[^A-Z])(NER?|MWE|BIO|IOB2?|ENTIT(Y|IES)|NAMED_ENTITY|TAGS?|LABELS?)($|[^A-Z])")
_WORD_NAMES = ("FORM", "WORD", "TOKEN", "TEXT", "FORMS", "WORDS", "TOKENS", "TEXTS")


class Layout(NamedTuple):
    """How to read the rows of a table.

    Attributes:
        word: the column of words, from 0.
        tag: the column of tags.
        spelling: of the tags, or BRACKETS or EXPRESSIONS.
        prefixes: what the words of a sentence begin with and is not part of them: "en:" of WikiANN.
        notes: what to know about the choice.
        is_numbered: whether words are characters with their numbers in a word, as in the Weibo corpus: 北0 京1.
    """

    word: int
    tag: int
    spelling: str
    prefixes: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    is_numbered: bool = False


def find_layout(table: Table, reading: Reading) -> Layout:
    """Find the columns of a table, or check those that the user or the table itself names.

    Raises:
        ValueError: no column holds tags, several do, or a named column does not exist or holds no tags.
    """
    width = table.width
    distinct = [values_of(table.blocks, column) for column in range(width)]
    named = _named_columns(table, distinct, reading)
    notes: list[Note] = []
    if "tag" in named:
        tag = named["tag"]
    else:
        tag = _tag_column(table, distinct, named.get("word"), reading, notes)
    spelling = _spelling(table, distinct[tag])
    if spelling is None:
        _refuse_tags(table, distinct, tag, reading)
    if spelling == "types":
        notes += _maybe_header(table, tag)
    word = named["word"] if "word" in named else _word_column(table, distinct, tag, notes)
    prefixes = () if "word" in named else _shared_prefixes(table, word, notes)
    is_numbered = "word" not in named and _are_numbered(table, word, notes)
    return Layout(word, tag, spelling, prefixes, tuple(notes), is_numbered)


def layout_as_in(first: Layout, table: Table, reading: Reading, other: Table) -> Layout | None:
    """The layout of a table whose words and tags are in the same columns as those of another file; None if not.

    Args:
        first: the layout of the other file.
        table: the rows.
        reading: what the user says.
        other: the rows of the other file. A table with as many columns, whose cells beside the words and tags all are
            there too, has the same columns, whatever its words are; one without numbers where that has some has not.
    """
    width = table.width
    if max(first.word, first.tag) >= width:
        return None
    distinct = [values_of(table.blocks, column) for column in range(width)]
    spelling = _spelling(table, distinct[first.tag])
    texts = [i for i in range(width) if i not in (first.word, first.tag) and not spelling_of(distinct[i], bare=False)]
    is_known = width == other.width and all(distinct[i] <= values_of(other.blocks, i) for i in texts)
    if spelling == "types" != first.spelling and any(spelling_of(one, bare=False) for one in distinct if one != {"O"}):
        return None  # words, one of which is O
    lost = any(_are_ids(values_of(other.blocks, i)) and not _are_ids(distinct[i]) for i in texts if i < other.width)
    are_tags = distinct[first.word] != {"O"} and spelling_of(distinct[first.word], bare=False) not in (None, "untyped")
    if spelling is None or are_tags or lost or not is_known and _why_no_words(table, distinct, first.word, texts):
        return None
    notes: list[Note] = []
    prefixes = () if (reading.columns or {}).get("word") else _shared_prefixes(table, first.word, notes)
    is_numbered = not (reading.columns or {}).get("word") and _are_numbered(table, first.word, notes)
    return Layout(first.word, first.tag, spelling, prefixes, tuple(notes), is_numbered)


def types_in(table: Table, column: int, spelling: str) -> set[str]:
    """The entity types in a column of tags; none for brackets and expressions."""
    tags = set() if spelling in (BRACKETS, EXPRESSIONS) else values_of(table.blocks, column)
    return {tag[2:] for tag in plain_tags(tags, spelling).values() if tag != "O"}


def _spelling(table: Table, values: set[str]) -> str | None:
    """The spelling of a column's tags, BRACKETS, EXPRESSIONS, or None if they are no tags."""
    if spelling := spelling_of(values - {"_"} if table.names else values):
        return spelling
    if all(map(is_bracket, values)):
        return BRACKETS
    return EXPRESSIONS if all(map(is_expression, values)) and any(":" in value for value in values) else None


def _named_columns(table: Table, distinct: Sequence[set[str]], reading: Reading) -> dict[str, int]:
    """Role -> column, from 0, of those that the user names, the table names or CoNLL-2012 fixes."""
    width = len(distinct)
    if reading.columns:
        named = {role: _column(role, name, table, width) for role, name in reading.columns.items()}
        if len(named) > len(set(named.values())):
            raise ValueError(f"{as_argument(reading.columns)}: words and tags cannot be in the same column")
        return named
    if table.is_conll2012 and width > 10:  # document, part, number, word, POS, parse, lemma, frame, sense, speaker, NE
        return {"word": 3, "tag": 10}
    names = [name.upper() for name in table.names]
    words = [i for i, name in enumerate(names) if name.split(":")[-1] in _WORD_NAMES]
    tags = [i for i, name in enumerate(names) if _TAG_NAMES.search(name)]
    tags = tags if len(tags) == 1 and _spelling(table, distinct[tags[0]]) else []  # "tag" may be a part of speech
    return {role: found[0] for role, found in (("word", words), ("tag", tags)) if len(found) == 1}


def _column(role: str, name: str, table: Table, width: int) -> int:
    if name in table.names:
        return table.names.index(name)
    if not re.fullmatch(r"\d+", str(name)) or not 1 <= int(name) <= width:
        named = f" or one of {', '.join(table.names)}" if table.names else ""
        raise ValueError(f"{as_argument({role: name})}: {table.path} has columns 1 to {width}{named}")
    return int(name) - 1


def _tag_column(table: Table, distinct: Sequence[set[str]], word: int | None, reading: Reading, notes: list) -> int:
    """The column of tags, from 0."""
    columns = [i for i in range(len(distinct)) if i != word]
    found = [i for i in columns if spelling_of(distinct[i], bare=False)]
    chunks = [i for i in found if distinct[i] != {"O"} and _types(distinct[i]) <= _CHUNKS]
    found = _without_words(distinct, columns, [i for i in found if i not in chunks])
    empty = [i for i in found if distinct[i] == {"O"}]
    found = [i for i in found if i not in empty]
    found = found or [i for i in _columns_of_types(table, distinct, columns, word) if i not in chunks + empty]
    found = found or empty[-1:] or chunks[-1:]
    found = [i for n, i in enumerate(found) if not any(_equal(table, i, other) for other in found[:n])]
    found = [i for i in found if not any(_are_letters_of(table, i, other) for other in found)]
    about = (
        "is O in every line: not read (if each line is a sentence, write each word and its tag in a line of its own)"
    )
    notes += [Note(f"column {i + 1} {about}", str(table.path)) for i in empty if found and i not in found]
    if len(found) == 1:
        if reading.layer:
            kind = f"layer={reading.layer!r} has no effect: the only tags are in column {found[0] + 1}"
            notes.append(Note(kind, str(table.path)))
        return found[0]
    if not found:
        _refuse_tags(table, distinct, None, reading)
    if len(found) == 2 and (reading.layer or found[0] >= 2 and _counts(table, 0)):
        chosen = found[1] if reading.layer == "inner" else found[0]
        other = found[0] if reading.layer == "inner" else found[1]
        lost = counted(_count_entities(table, other), "entity", "entities")
        kind = f"column {chosen + 1} read as the {reading.layer or 'outer'} layer; column {other + 1}, with {lost}, "
        notes.append(Note(f"{kind}is left out", str(table.path)))
        return chosen
    listed = " and ".join(f"{i + 1} ({_sample(distinct[i])})" for i in found)
    layers = f", or layer='outer' for {found[0] + 1} or layer='inner' for {found[1] + 1}" if len(found) == 2 else ""
    words = word if word is not None else _word_column(table, distinct, found[0], [])
    ways = [as_argument({"word": words + 1, "tag": i + 1}) for i in (found[:1] if layers else found)]
    raise ValueError(f"{table.path}: columns {listed} all look like tags; choose one with {' or '.join(ways)}{layers}")


def _without_words(distinct: Sequence[set[str]], columns: Sequence[int], found: Sequence[int]) -> list[int]:
    """The columns that look like tags without the first one, if it is the words: the words "I" and "O"."""
    others = [i for i in columns if i not in found and _can_be_words(distinct[i]) and not _are_ids(distinct[i])]
    are_words = 0 in found and len(found) > 1 and (not others or spelling_of(distinct[0]) == "untyped")
    return [i for i in found if i or not are_words]


def _columns_of_types(
    table: Table, distinct: Sequence[set[str]], columns: Sequence[int], word: int | None
) -> list[int]:
    """The columns of types without letters (IO): with an O and few other values, and not where the words seem to be."""
    found = [i for i in columns if spelling_of(distinct[i]) == "types" and not _is_parts_of_speech(distinct[i])]
    found = [i for i in found if "O" in distinct[i]] or found
    if word is None and found:
        first = _word_column(table, distinct, -1, [])
        others = [i for i in columns if i != first and not _counts(table, i)]
        if first in found and others and (len(found) > 1 or not _is_before_words(table, distinct, first)):
            found.remove(first)
    chunks = [i for i in found if distinct[i] - {"O"} <= _CHUNKS]
    return found if len(chunks) == len(found) else [i for i in found if i not in chunks]


def _is_before_words(table: Table, distinct: Sequence[set[str]], column: int) -> bool:
    """Whether a column that may be words or types (IO) is of types, and the words are in a later one."""
    later = [len(values) for values in distinct[column + 1 :] if not _is_parts_of_speech(values)]
    outside = sum(block.columns[column].count("O") for block in table.blocks)
    rows = sum(len(block.lines) for block in table.blocks)
    are_types = 3 * outside >= rows or all(map(str.isupper, distinct[column]))
    return are_types and len(distinct[column]) < max(later, default=0)


def _maybe_header(table: Table, tag: int) -> list[Note]:
    """A note if the first line's type is nowhere else."""
    cell = table.blocks[0].columns[tag][0]
    types = values_of(table.blocks, tag) - {"O", "-"}
    count = sum(block.columns[tag].count(cell) for block in table.blocks)
    if table.names or cell not in types or len(types) < 2 or count > 1:
        return []
    kind = f"the type {cell} is in this line only; if the line is a header, delete it"
    return [Note(kind, f"{table.path}:{table.blocks[0].lines[0]}")]


def _count_entities(table: Table, column: int) -> int:
    values = values_of(table.blocks, column)
    plain = plain_tags(values, spelling_of(values) or "prefix")
    return sum(len(spans([plain[cell] for cell in block.columns[column]], "bioes")) for block in table.blocks)


def _types(tags: set[str]) -> set[str]:
    plain = plain_tags(tags, spelling_of(tags, bare=False) or "prefix").values()
    return {tag[2:] for tag in plain if tag != "O"}


def _sample(values: set[str]) -> str:
    return ", ".join(sorted(values - {"O"})[:2]) or "O"


def _are_letters_of(table: Table, one: int, other: int) -> bool:
    """Whether a column has only the letters, B for B-PER, of another one's tags."""
    if one == other or any(len(cell) != 1 for cell in values_of(table.blocks, one)):
        return False
    cells = values_of(table.blocks, other)
    letters = {cell: tag[:1] for cell, tag in plain_tags(cells, spelling_of(cells) or "prefix").items()}
    return any(len(cell) > 1 for cell in cells) and all(
        cell == letters.get(tag)
        for block in table.blocks
        for cell, tag in zip(block.columns[one], block.columns[other], strict=True)
    )


def _equal(table: Table, one: int, other: int) -> bool:
    return all(block.columns[one] == block.columns[other] for block in table.blocks)


def _refuse_tags(table: Table, distinct: Sequence[set[str]], tag: int | None, reading: Reading) -> NoReturn:
    """Raise for the first cell that is not a tag: in a named column, or else in the one with the most tags."""

    def tags(column: int) -> dict[str, str]:
        return plain_tags(distinct[column], "prefix")

    def count(column: int) -> int:
        good = tags(column)
        return sum(cell in good for block in table.blocks for cell in block.columns[column])

    columns = [i for i in range(len(distinct)) if str(i + 1) != str((reading.columns or {}).get("word"))]
    best = max(columns, key=lambda column: (count(column), column)) if tag is None else tag
    line, cell = next(table.cells_outside(tags(best), best), (table.blocks[0].lines[0], ""))
    hint = _hint(table, distinct, best, line, reading)
    raise ValueError(f"{table.path}:{line}: unknown tag {cell!r}; {ALLOWED}; {hint}")


def _hint(table: Table, distinct: Sequence[set[str]], column: int, line: int, reading: Reading) -> str:
    """What may be wrong with a column whose cells are not all tags, and what to do."""
    cells = next(
        [one[i] for one in block.columns]
        for block in table.blocks
        for i, number in enumerate(block.lines)
        if number == line
    )
    holders = [i for i in range(len(distinct)) if i != column and spelling_of(distinct[i], bare=False)]
    if reading.columns and holders:
        return f"tags are in column {' or '.join(str(i + 1) for i in holders)}: {as_argument({'tag': holders[0] + 1})}"
    if _is_parts_of_speech(distinct[column]):
        return f"column {column + 1} holds parts of speech: add a column with the tags of entities"
    rest = plain_tags(distinct[column], "prefix").keys()
    if line == table.blocks[0].lines[0] and rest and len(distinct[column] - rest) == 1:
        return "if this line is a header, delete it"
    if len(cells) == 10 and cells[0].isdecimal():
        return "CoNLL-U has no column for entities: write their tags into column 10, as NE=B-PER"
    if len(cells) > 2:
        shown = ", ".join(f"{i} {cell!r}" for i, cell in enumerate(cells, start=1))
        return f"the columns of this line are {shown}: write all tags of column {column + 1} in one way"
    return "write all tags of the column in one way"


# The words ------------------------------------------------------------------------------------------------------------


def _word_column(table: Table, distinct: Sequence[set[str]], tag: int, notes: list[Note]) -> int:
    """The column of the words, from 0.

    Args:
        table: the rows.
        distinct: the different cells of each column.
        tag: the column of the tags; -1 if it is not known yet.
        notes: gets one for each column that was skipped.

    Raises:
        ValueError: there is no column but numbers that count.
    """
    columns = [i for i in range(len(distinct)) if i != tag]
    texts = [i for i in columns if not spelling_of(distinct[i], bare=False)] or columns
    for column in texts:
        rest = [i for i in texts if i > column]
        what = _why_no_words(table, distinct, column, rest)
        if what is None and tag >= 0 and _are_typed_tags(distinct[column]):  # there is nothing else: texts are columns
            what = f"holds tags ({_example(distinct[column])})"
        if what is None:
            if _is_parts_of_speech(distinct[column]) and len(distinct[column]) > 2:
                kind = f"column {column + 1} is read as words, but looks like parts of speech"
                notes.append(Note(f"{kind} ({_example(distinct[column])})", f"{table.path}"))
            if len(texts) > 1 and _are_ids(distinct[column]) and len(distinct[column]) > 2:
                kind = f"column {column + 1} is read as words, but has a number in every line"
                notes.append(Note(f"{kind} ({_example(distinct[column])})", f"{table.path}"))
            notes += _maybe_words(table, distinct, column, rest, tag)
            return column
        fix = as_argument({"word": column + 1, "tag": tag + 1})
        if not rest:
            raise ValueError(
                f"{table.path}: column {column + 1} {what}, and no other column can hold the words; add the words to"
                f" the file, or if these are the words, say so: {fix}"
            )
        kind = f"column {column + 1} {what}: not read as words (if it is the words: {fix})"
        notes.append(Note(kind, f"{table.path}"))
    raise AssertionError("the last column is returned or refused")


def _maybe_words(table: Table, distinct: Sequence[set[str]], column: int, rest: Sequence[int], tag: int) -> list[Note]:
    """A note on a later column of more different words than the one that is read as words: those may be lemmas."""
    counts = [(_count_letters(distinct[i]), -i) for i in rest if _can_be_words(distinct[i])]
    most, later = max(counts, default=(0, 0))
    if tag < 0 or most <= len(distinct[column]):
        return []
    fix = as_argument({"word": 1 - later, "tag": tag + 1})
    kind = (
        f"column {column + 1} is read as words, but column {1 - later} has more different ones"
        f" ({most:,}, not {len(distinct[column]):,}; if those are the words: {fix})"
    )
    return [Note(kind, str(table.path))]


def _are_typed_tags(values: set[str]) -> bool:
    """Whether all these cells are tags with letters, and one has a type: B-PER, not only the words "I" and "O"."""
    return any(len(value) > 1 for value in values) and spelling_of(values, bare=False) == "prefix"


def _counts(table: Table, column: int) -> bool:
    """Whether a column holds integers that, in every sentence, go up by one or stay the same."""
    single = []
    for block in table.blocks:
        values = block.columns[column]
        if not all(map(_NUMBER.fullmatch, values)):
            return False
        numbers = list(map(int, values))
        steps = {later - earlier for earlier, later in zip(numbers, numbers[1:], strict=False)}
        if not steps <= {1} and steps != {0}:
            return False
        single += numbers if len(numbers) == 1 else []
    several = any(len(block.lines) > 1 for block in table.blocks)
    return bool(table.blocks) and (several or set(single) <= {0, 1})


def _shared_prefixes(table: Table, column: int, notes: list[Note]) -> tuple[str, ...]:
    """The language codes with a colon that all words begin with, as in WikiANN; () and a note if only most do."""
    words = [word for block in table.blocks for word in block.columns[column]]
    if 4 * sum(":" in word for word in words[:_MANY_ROWS]) < len(words[:_MANY_ROWS]):
        return ()
    codes = Counter(match[0] for word in words if (match := _LANGUAGE.match(word)))
    if len(words) < 2 or codes.total() < max(2 * len(codes), len(words) / 2):
        return ()
    listed = " or ".join(map(repr, codes))
    if codes.total() < len(words):
        kind = f"{counted(codes.total(), 'word')} of {len(words):,} begin with {listed}, which was not removed"
        notes.append(Note(kind, str(table.path)))
        return ()
    notes.append(Note(f"every word begins with {listed}, which was removed", str(table.path)))
    return tuple(codes)


def _are_numbered(table: Table, column: int, notes: list[Note]) -> bool:
    """Whether all words are one character and a number that counts from 0 in each word of the text; with a note."""
    count = 0
    for block in table.blocks:
        before = -1
        for word in block.columns[column]:
            if not word[1:].isdecimal() or int(word[1:]) not in (0, before + 1):
                return False
            before = int(word[1:])
            count += before > 0
    if count:
        kind = "every word is a character with its number in a word (北0 京1): the numbers were removed"
        notes.append(Note(kind, str(table.path)))
    return count > 0


def _is_parts_of_speech(values: set[str]) -> bool:
    """Whether all these cells are parts of speech (NNP, VBZ, PROPN) or signs, and at least one is the former."""
    found = False
    for value in values:
        if any(map(str.isalpha, value)):
            if not _PARTS_OF_SPEECH.issuperset(value.split("|")):
                return False
            found = True
    return found


def _why_no_words(table: Table, distinct: Sequence[set[str]], column: int, rest: Sequence[int]) -> str | None:
    """What a column holds instead of words; None if it can be words. `rest` are the columns that may be instead."""
    values = distinct[column]
    if _counts(table, column):
        return "counts 1, 2, 3, …"
    lettered = [i for i in rest if _can_be_words(distinct[i])]
    others = [i for i in lettered if not _are_ids(distinct[i])]
    if not others:
        are_numbers = lettered and all(map(_NUMBER.fullmatch, values))
        return f"has only numbers ({_example(values)})" if are_numbers else None
    if _is_constant(table, column):
        return f"is the same in all lines of a sentence ({_example(values)})"
    if _are_ids(values):
        return f"has a number in every line ({_example(values)})"
    if "" in values and any("" not in distinct[i] for i in others) and _is_often_empty(table, column):
        return "is empty in many lines"
    if _names_parts(table, column):
        return f"is the same in many lines that follow each other ({_example(values)})"
    if _is_parts_of_speech(values):
        return f"holds parts of speech ({_example(values)})"
    if _are_classes(len(values), max(map(_count_letters, (distinct[i] for i in others)))):
        rows = sum(len(block.lines) for block in table.blocks)
        return f"has {len(values)} different values in {rows:,} lines ({_example(values)})"
    if _are_lemmas_of(table, column, others[0]):
        return f"holds lemmas ({_example(values)})"
    return None


def _count_letters(values: set[str]) -> int:
    """How many values are letters only, and the marks that belong to them in scripts such as Devanagari."""
    return sum(value.isalpha() or value[:1].isalpha() and all(map(_is_letter, value)) for value in values)


def _is_letter(character: str) -> bool:
    return character.isalpha() or category(character).startswith("M")


def _are_classes(values: int, words: int) -> bool:
    """Whether a column of so many different values holds classes of what another has so many different words of."""
    return values <= _MOST_CLASSES and words >= 2 * values


def _can_be_words(values: set[str]) -> bool:
    return not _is_parts_of_speech(values) and any(any(map(str.isalpha, value)) for value in values)


def _are_ids(values: set[str]) -> bool:
    """Whether there is a number in every cell that is not empty: 7, 0.5, t12, d1s1t1, Sentence: 3, 6f0eac41."""
    filled = values - {"", "_", "-"}
    without = [value for value in filled if not any(map(str.isdigit, value))]
    return len(without) < len(filled) and all(map(_HEXADECIMAL.fullmatch, without))


def _is_often_empty(table: Table, column: int) -> bool:
    cells = [cell for block in table.blocks for cell in block.columns[column]]
    return 2 * cells.count("") >= len(cells)


def _names_parts(table: Table, column: int) -> bool:
    """Whether, in a file without blank lines, a column's values are each of many lines that follow each other."""
    if not table.is_undivided:
        return False
    cells = [cell for block in table.blocks for cell in block.columns[column]]
    runs = 1 + sum(one != other for one, other in pairwise(cells))
    return 1 < runs == len(set(cells)) and len(cells) >= 2 * runs


def _is_constant(table: Table, column: int) -> bool:
    """Whether a column has one value in each sentence, in at least one of several words."""
    several = any(len(block.lines) > 1 for block in table.blocks)
    return several and all(len(set(block.columns[column])) == 1 for block in table.blocks)


def _are_lemmas_of(table: Table, column: int, other: int) -> bool:
    """Whether a column begins as the other one does, but without capitals, and hardly ever with a new one."""
    equal = lower = capital = rows = 0
    for block in table.blocks:
        for one, two in zip(block.columns[column], block.columns[other], strict=True):
            first, second = one[:1], two[:1]
            equal += first.lower() == second.lower()
            if first != second:
                lower += first == second.lower()
                capital += second == first.lower()
            rows += 1
    return 2 * equal > rows and lower > 4 * capital


def _example(values: set[str]) -> str:
    shown = sorted(values, key=lambda value: (not any(map(str.isalpha, value)), value))[:3]
    return ", ".join(shown) + ", …" * (len(values) > 3)
