"""A sentence in each line instead of a word: `EU/B-ORG rejects/O`, `EU B-ORG rejects O`, or a list of words beside one
of tags.

Read so only where nothing else fits: every line has to hold tags in these places, and most lines more than one word.
"""

import re
from collections.abc import Sequence

Pairs = list[tuple[str, str]]

_TAG = re.compile(r"O|[BIESLUMW][-_][^\s/|]+")
_JOINTS = "/|_"


def words_in_lines(lines: Sequence[str]) -> list[Pairs] | None:
    """The words and tags of each line; None where lines are not sentences.

    Args:
        lines: those of the file that are neither blank nor comments.
    """
    tokens = [line.split() for line in lines]
    for joint in _JOINTS:
        if joint in lines[0] and (found := _checked([_joined(line, joint) for line in tokens])):
            return found
    for first in (0, 1) if len({len(line) for line in tokens}) > 1 else ():
        if found := _checked([_in_turn(line, first) for line in tokens]):
            return found
    return None


def lists_in_columns(rows: Sequence[Sequence[str]]) -> tuple[int, int] | None:
    """The columns of words and of tags where each cell is a list, separated by spaces; None where they are not.

    Most lines have as many words as tags, though not all may.
    """
    width = len(rows[0])
    split = [[cell.split(" ") for cell in row] for row in rows]
    for tag in range(width):
        if not _checked([[("", cell) for cell in row[tag]] for row in split]):
            continue
        equal = [(sum(len(row[word]) == len(row[tag]) for row in split), -word) for word in range(width) if word != tag]
        count, word = max(equal)
        if 2 * count >= len(rows):
            return -word, tag
    return None


def _checked(found: Sequence[Pairs | None]) -> list[Pairs] | None:
    """The same, if every line is one of words with tags, most have several, and one tag is of an entity."""
    lines = [line for line in found if line]
    if len(lines) < len(found) or not all(_TAG.fullmatch(tag) for line in lines for _, tag in line):
        return None
    several = 2 * sum(len(line) > 1 for line in lines) > len(lines)
    return lines if several and any(tag != "O" for line in lines for _, tag in line) else None


def _joined(tokens: Sequence[str], joint: str) -> Pairs | None:
    pairs = [(word, tag) for word, between, tag in (token.rpartition(joint) for token in tokens) if between and word]
    return pairs if len(pairs) == len(tokens) else None


def _in_turn(tokens: Sequence[str], first: int) -> Pairs | None:
    pairs = list(zip(tokens[first::2], tokens[1 - first :: 2], strict=False))
    return pairs if 2 * len(pairs) == len(tokens) else None
