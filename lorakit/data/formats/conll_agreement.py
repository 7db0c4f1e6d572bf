"""Which columns a file is read by where the training file has them elsewhere.

A corpus has one layout as a rule, and a small file may not show it: it is read as the training file is, if its columns
allow that. Otherwise it is read by its own columns. Wherever the two differ, a note says which were taken.
"""

from typing import NamedTuple

from lorakit.data.formats.record import Note


class First(NamedTuple):
    """What the training file shows.

    Attributes:
        columns: those of words and tags, from 0.
        cells: the different cells of each column.
        types: of its entities.
        notes: their kinds.
    """

    columns: tuple[int, int]
    cells: tuple[frozenset[str], ...]
    types: frozenset[str]
    notes: frozenset[str]


class Candidate(NamedTuple):
    """One way to read a file: its columns of words and tags, and the types of its entities."""

    columns: tuple[int, int]
    types: frozenset[str]


def takes_own(first: First, own: Candidate | None, as_first: Candidate | None) -> bool:
    """Whether a file is read by its own columns (or by none), rather than by those of the training file.

    Args:
        first: what the training file shows.
        own: how the file is read by itself; None where its columns cannot be told apart.
        as_first: how the training file's columns read it; None where they do not hold words and tags.
    """
    if own is None or as_first is None:
        return as_first is None
    are_theirs = not first.types or not as_first.types or bool(as_first.types & first.types)
    return own.columns == as_first.columns or not are_theirs and bool(own.types & first.types)


def about_columns(first: First, columns: tuple[int, int], width: int, path: str) -> list[Note]:
    """A note where a file's columns, or their number, are not the training file's."""
    if (columns, width) == (first.columns, len(first.cells)):
        return []
    (word, tag), (first_word, first_tag) = columns, first.columns
    kind = (
        f"words in column {word + 1} and tags in column {tag + 1} of {width}; the training file has them in columns "
        f"{first_word + 1} and {first_tag + 1} of {len(first.cells)}"
    )
    return [Note(kind, path)]
