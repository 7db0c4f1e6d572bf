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
        width: how many columns it has.
        types: of its entities.
        notes: their kinds.
    """

    columns: tuple[int, int]
    width: int
    types: frozenset[str]
    notes: frozenset[str]


class Candidate(NamedTuple):
    """One way to read a file: its columns of words and tags, and the types of its entities."""

    columns: tuple[int, int]
    types: frozenset[str]


def is_better(own: Candidate, as_first: Candidate, first: First) -> bool:
    """Whether a file's own columns, rather than those of the training file, may hold the types that that one has."""
    are_theirs = bool(as_first.types & first.types) or not first.types or not as_first.types
    return not are_theirs and (not own.types or bool(own.types & first.types))


def about_doubt(own: Candidate, path: str) -> list[Note]:
    """A note that a file is read as the training file is, though by itself it would be read otherwise."""
    word, tag = own.columns
    kind = (
        f"read by the columns of the training file; by itself, its words would be in column {word + 1} and its tags in "
        f"column {tag + 1} (if they are, write it anew: lorakit data convert --columns word={word + 1},tag={tag + 1})"
    )
    return [Note(kind, path)]


def about_columns(first: First, columns: tuple[int, int], width: int, path: str) -> list[Note]:
    """A note where a file's columns, or their number, are not the training file's."""
    if (columns, width) == (first.columns, first.width):
        return []
    (word, tag), (first_word, first_tag) = columns, first.columns
    kind = (
        f"words in column {word + 1} and tags in column {tag + 1} of {width}; the training file has them in columns "
        f"{first_word + 1} and {first_tag + 1} of {first.width}"
    )
    return [Note(kind, path)]
