"""Expressions of several words as numbers in a column, as in PARSEME's .cupt files.

`1:LVC.full` begins expression 1, which is of type LVC.full; `1` is another word of it; a word of several expressions
has all of them, `1;2:VID`; `*` is a word of none, and `_` one that nobody annotated. An expression may have gaps.
https://gitlab.com/parseme/corpora/-/wikis/Data-format
"""

import re
from collections.abc import Sequence

_PART = r"\d+(?::[^\s:;]+)?"
_CELL = re.compile(rf"[*_]|{_PART}(?:;{_PART})*")


def is_expression(cell: str) -> bool:
    """Whether a cell names expressions, or is * or _."""
    return _CELL.fullmatch(cell) is not None


def read_expressions(cells: Sequence[str]) -> list[tuple[str, tuple[tuple[int, int], ...]]]:
    """The expressions of a sentence: type and pieces (first word, end), in the order of their first words.

    Args:
        cells: one per word.

    Raises:
        ValueError: a cell is something else, or an expression has no type or two.
    """
    types: dict[str, str] = {}
    pieces: dict[str, list[tuple[int, int]]] = {}
    for i, cell in enumerate(cells):
        if not is_expression(cell):
            raise ValueError(f"word {i + 1}: {cell!r} is not an expression such as 1:VID, 1 or *")
        for part in cell.split(";") if cell[0].isdecimal() else ():
            number, _, kind = part.partition(":")
            if kind and types.setdefault(number, kind) != kind:
                raise ValueError(
                    f"word {i + 1}: expression {number} is of type {types[number]} and of type {kind}; "
                    "give them two numbers"
                )
            there = pieces.setdefault(number, [])
            if there and there[-1][1] == i:
                there[-1] = (there[-1][0], i + 1)
            else:
                there.append((i, i + 1))
    for number, there in pieces.items():
        if number not in types:
            raise ValueError(f"word {there[0][0] + 1}: expression {number} has no type; write {number}:TYPE")
    return [(types[number], tuple(there)) for number, there in pieces.items()]
