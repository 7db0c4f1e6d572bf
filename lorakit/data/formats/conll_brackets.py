"""Entities as brackets in a column, as in CoNLL-2012 (OntoNotes): `(PERSON*`, `*`, `*)`, and `(GPE)` for one word."""

import re
from collections.abc import Sequence

_BRACKET = re.compile(r"(?:\([^()*\s]+)*\*?\)*")


def is_bracket(cell: str) -> bool:
    """Whether a cell opens or closes brackets, or is a plain *."""
    return cell != "" and _BRACKET.fullmatch(cell) is not None


def read_brackets(cells: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities (type, first word, end) of a sentence, each before those inside it.

    Args:
        cells: one per word.

    Raises:
        ValueError: a cell is something else, or a bracket is never closed or never opened.
    """
    found: list[tuple[str, int, int]] = []
    open_at: list[int] = []
    for i, cell in enumerate(cells):
        if not is_bracket(cell):
            raise ValueError(f"word {i + 1}: {cell!r} is not a bracket such as (PERSON*, * or *)")
        for label in re.findall(r"\(([^()*\s]+)", cell):
            open_at.append(len(found))
            found.append((label, i, -1))
        for _ in range(cell.count(")")):
            if not open_at:
                raise ValueError(f"word {i + 1}: {cell!r} closes a bracket that nothing opened; open one, or write *")
            opened = open_at.pop()
            found[opened] = (*found[opened][:2], i + 1)
    if open_at:
        label, start, _ = found[open_at[-1]]
        raise ValueError(f"word {start + 1}: ({label} is never closed; end it with *)")
    return found
