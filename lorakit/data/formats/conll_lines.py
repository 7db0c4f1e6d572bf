"""A sentence in each line instead of a word: `EU/B-ORG rejects/O`, `EU|NNP|B-ORG rejects|VBZ|O` (WikiNER), `EU B-ORG
rejects O`, or a list of words beside one of tags.

Read so only where nothing else fits: every line has to hold tags in these places, and most lines more than one word.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

Pairs = list[tuple[str, str]]
Form = Callable[[str], Pairs | None]

_TAG = re.compile(r"O|[BIESLUMW][-_][^\s/|]+")
_JOINTS = "/|_"


class SentenceForm(NamedTuple):
    """How lines hold sentences.

    Attributes:
        read: the words and tags of a line; None for a line of another form.
        about: a clause for people.
    """

    read: Form
    about: str


def sentence_form(lines: Sequence[str]) -> SentenceForm | None:
    """How lines hold sentences; None where they do not.

    Args:
        lines: the first of the file that are neither blank nor begin with #.
    """
    tokens = [token for line in lines for token in line.split()]
    if not tokens:
        return None
    about = "each line is a sentence of words and their tags"
    forms = []
    for joint in _JOINTS:
        joints = max(1, min(token.count(joint) for token in tokens))
        between = f", without what is between them, such as {joint.join(tokens[0].rsplit(joint, joints)[1:-1])!r}"
        forms.append(SentenceForm(partial(_joined, joint=joint, joints=joints), about + between * (joints > 1)))
    if len({len(line.split()) for line in lines}) > 1:  # lines of one length are rows of columns
        forms += [SentenceForm(partial(_in_turn, first=first), about) for first in (0, 1)]
    return next((form for form in forms if _are_sentences([form.read(line) for line in lines])), None)


def lists_in_columns(rows: Sequence[Sequence[str]]) -> tuple[int, int] | None:
    """The columns of words and of tags where each cell is a list, separated by spaces; None where they are not.

    Most lines have as many words as tags, though not all may.
    """
    width = len(rows[0])
    split = [[cell.split(" ") for cell in row] for row in rows]
    for tag in range(width):
        if not _are_sentences([_tagged([("", cell) for cell in row[tag]]) for row in split]):
            continue
        equal = [(sum(len(row[word]) == len(row[tag]) for row in split), -word) for word in range(width) if word != tag]
        count, word = max(equal)
        if 2 * count >= len(rows):
            return -word, tag
    return None


def _are_sentences(found: Sequence[Pairs | None]) -> bool:
    """Whether every line is words with tags, most have several, and one tag is of an entity."""
    lines = [line for line in found if line]
    several = 2 * sum(len(line) > 1 for line in lines) > len(lines)
    return len(lines) == len(found) and several and any(tag != "O" for line in lines for _, tag in line)


def _tagged(pairs: Pairs) -> Pairs | None:
    """The pairs, if the second of each is a tag."""
    return pairs if pairs and all(_TAG.fullmatch(tag) for _, tag in pairs) else None


def _joined(line: str, joint: str, joints: int) -> Pairs | None:
    """The words and tags of `word/tag`, or with more joints of `word/NNP/tag`."""
    parts = [token.rsplit(joint, joints) for token in line.split()]
    are_whole = all(part[0] and len(part) == joints + 1 for part in parts)
    return _tagged([(part[0], part[-1]) for part in parts]) if are_whole else None


def _in_turn(line: str, first: int) -> Pairs | None:
    tokens = line.split()
    return None if len(tokens) % 2 else _tagged(list(zip(tokens[first::2], tokens[1 - first :: 2], strict=True)))
