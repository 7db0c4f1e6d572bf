"""Numbers and ids that tell where the sentences of a column file begin.

Before the words, these are names or numbers that stay the same throughout a sentence (1, 1, 1, 2, 2; `d1s1t1`,
`d1s1t2`), or numbers of words that begin again (1, 2, 3, 1, 2). After the words, where other numbers are common, such
as heads of dependencies, they count without gaps, or are places that leave room for each word.

In a file with blank lines that has such a column too, blank lines end documents, and the numbers sentences, if the
numbers never go on after a blank line (those of pages or lines do) and the sentences look like sentences.
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

_DIGITS = re.compile(r"\d+")
_STOPS = tuple(".!?…。！？।۔")
Values = Sequence[Any]  # of a column, from the first line of the file to the last


class Rows(NamedTuple):
    """The rows of a column file, from the first line to the last.

    Attributes:
        cells: a column, from 0 -> its cells.
        width: the number of columns.
        tops: the first row, and each one after a blank line.
    """

    cells: Callable[[int], list[str]]
    width: int
    tops: list[int]


class Told(NamedTuple):
    """What columns tell.

    Attributes:
        starts: the rows, counted through the file, at which sentences begin; among them those after blank lines.
        columns: which tell so, from 0; [] if none does.
    """

    starts: set[int]
    columns: list[int]


def sentences_told(rows: Rows, word: int, tag: int) -> Told:
    """The sentences that the columns other than those of words and tags tell."""
    told = _before_words(rows, word, tag)
    return told if told.columns else _after_words(rows, word, tag)


def end_documents(rows: Rows, word: int, told: Told) -> bool:
    """Whether blank lines end documents of several sentences, and the sentences are those told."""
    tops = rows.tops
    cells = list(zip(*(filled(rows.cells(column)) for column in told.columns), strict=True))
    firsts = [cells[top] for top in tops]
    go_on = any(cells[top] == cells[top - 1] for top in tops[1:])
    if go_on and len(set(firsts)) > 1:
        return False
    words = rows.cells(word)
    inside = sorted(told.starts.difference(tops))
    return _look_like_starts(words, inside) or not _look_like_starts(words, tops[1:])


def filled(values: Sequence[str]) -> list[str]:
    """The values, with that above in place of each empty one."""
    found, above = [], ""
    for value in values:
        above = value.strip() or above
        found.append(above)
    return found


def changes(values: Values) -> set[int]:
    """The rows whose value is not that of the row above, the first among them."""
    return {0, *(i for i, (above, value) in enumerate(pairwise(values), start=1) if value != above)}


def _before_words(rows: Rows, word: int, tag: int) -> Told:
    columns = range(min(word, rows.width))
    columns = [column for column in columns if column != tag and rows.cells(column) != rows.cells(tag)]
    borders, told = set(rows.tops), []
    keys: list[tuple] = _keys(rows, word) if columns else []
    for column in columns:
        for values in _parts(filled(rows.cells(column))):
            longer = [(*key, value) for key, value in zip(keys, values, strict=True)]
            found = changes(longer)
            if len(rows.tops) > 1 and not _are_numbers(values) and len(changes(values)) > len(set(values)):
                continue  # a name comes again after a blank line: a class, such as a part of speech
            if _are_names(longer, values, len(found), len(borders)):
                keys = longer
            elif not _are_numbers(values) or not (found := _restarts(values)):
                continue
            told += [column] if found - borders and column not in told else []
            borders |= found
    return Told(borders, told)


def _after_words(rows: Rows, word: int, tag: int) -> Told:
    tops = set(rows.tops)
    numbered = []
    for column in range(word + 1, rows.width):
        if column == tag:
            continue
        cells = rows.cells(column)
        if not any(map(str.isdigit, cells[0])) or not all(map(_are_numbers, parts := _parts(cells))):
            continue
        values = parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))
        if len(parts) == 1 and (found := _restarts_of_words(values, rows.cells(word))) and tops <= found:
            return Told(found, [column] if found - tops else [])
        numbered.append((column, values))
    if len(numbered) == 1 and (found := _counted(numbered[0][1], tops)) - tops:
        return Told(found, [numbered[0][0]])
    return Told(tops, [])


def _keys(rows: Rows, column: int) -> list[tuple]:
    """(which part between blank lines,) of each row."""
    ends = [*rows.tops[1:], len(rows.cells(column))]
    return [(i,) for i, (top, end) in enumerate(zip(rows.tops, ends, strict=True)) for _ in range(top, end)]


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


def _restarts(numbers: Sequence[int]) -> set[int]:
    """The rows at which numbers that otherwise go up are the first one again; none where they do anything else."""
    found = {i for i, number in enumerate(numbers) if number == numbers[0]}
    goes_up = all(later > earlier or later == numbers[0] for earlier, later in pairwise(numbers))
    return found if goes_up and 1 < len(found) < len(numbers) else set()


def _restarts_of_words(numbers: Sequence[int], words: Sequence[str]) -> set[int]:
    """The rows at which numbers of words, or the places where they begin, are the first one again."""
    first = numbers[0]
    if first > 1 or len(set(numbers)) < 3:  # two values are flags
        return set()
    steps = [
        (later - earlier, len(above)) for (earlier, later), above in zip(pairwise(numbers), words, strict=False)
        if later != first
    ]  # fmt: skip
    are_words = all(step == 1 for step, _ in steps)
    are_places = all(step >= length for step, length in steps)
    return _restarts(numbers) if are_words or are_places else set()


def _counted(values: Values, tops: set[int]) -> set[int]:
    """The rows at which numbers that count sentences change: by one, the last or an earlier one of their parts."""
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    for row, (earlier, later) in enumerate(pairwise(rows), start=1):
        step = next((two - one for one, two in zip(earlier, later, strict=True) if one != two), 0)
        if row not in tops and step not in (0, 1):
            return set()
    found = changes(values) | tops
    are_flags = set(rows) == {(0,), (1,)}
    return found if len(rows) >= 2 * len(found) and not are_flags else set()


def _go_up_or_restart(numbers: Sequence[int]) -> bool:
    return all(later - earlier in (0, 1) or later == numbers[0] for earlier, later in pairwise(numbers))


def _are_numbers(values: Values) -> bool:
    return isinstance(values[0], int)


def _look_like_starts(words: Sequence[str], rows: Sequence[int]) -> bool:
    """Whether at least half of these rows have a capital, or come after a stop."""
    like = sum(words[row][:1].isupper() or words[row - 1].endswith(_STOPS) for row in rows)
    return bool(rows) and 2 * like >= len(rows)
