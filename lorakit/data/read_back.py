"""What differs between a corpus and the same corpus read from the file that it was converted to.

Words, sentences and entities are compared by the letters that they cover, from the first of a split to its last. The
files of a folder may be read in another order.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from os.path import commonprefix
from typing import NamedTuple

from lorakit._counts import counted
from lorakit.data.formats.record import Document
from lorakit.data.tags import spans


class _Content(NamedTuple):
    """The parts of tagged sentences, each by its place in the letters of all of them."""

    letters: str
    words: dict[tuple[int, int, int], str]  # start, end, how many have the same place -> where it is
    sentences: dict[tuple[int, int], str]
    entities: Counter[tuple[str, int, int]]
    ids: set[str]


def differences(before: Sequence[Sequence[Document]], after: Sequence[Sequence[Document]]) -> list[str]:
    """Describe what differs when a converted corpus is read back, a line for each kind of difference.

    Example:
        from lorakit.data.formats.record import Document
        from lorakit.data.read_back import differences
        one = Document(("U.S.A.", "!"), ("B-LOC", "O"), "a.tsv:1")
        other = Document(("U.S.A", ".", "!"), ("B-LOC", "I-LOC", "O"), "b.txt:1")
        differences([[one]], [[other]])[0][:31]  # '1 of 2 words is split different'

    Args:
        before: the tagged sentences of each document that was converted.
        after: those that reading the converted file gives.
    """
    one, other = _content(before), _content(after)
    if one.letters != other.letters:
        one, other = _content(sorted(before, key=_letters)), _content(sorted(after, key=_letters))
    if one.letters != other.letters:
        where = len(commonprefix((one.letters, other.letters)))
        return [f"the text differs when read back, from {one.letters[where : where + 20]!r} on"]
    lines = []
    if lost := [place for place in one.words if place not in other.words]:
        start, end, _ = lost[0]
        first = f"the first {one.letters[start:end]!r} ({one.words[lost[0]]})"
        lines.append(f"{_of(len(lost), len(one.words), 'word')} split differently when read back, {first}")
    if apart := [place for place in one.sentences if place not in other.sentences]:
        is_other = _of(len(apart), len(one.sentences), "sentence")
        lines.append(f"{is_other} split differently when read back, the first at {one.sentences[apart[0]]}")
    if gone := (one.entities - other.entities).total():
        new = (other.entities - one.entities).total()
        is_gone = _of(gone, one.entities.total(), "entity", "entities")
        lines.append(f"{is_gone} not read back, and {counted(new, 'other is', 'others are')}")
    if lost_ids := one.ids - other.ids:
        name = min(lost_ids)
        lines.append(f"{counted(len(lost_ids), 'id')} of documents, such as {name!r}, cannot be written")
    return lines


def _of(count: int, total: int, one: str, many: str | None = None) -> str:
    """Such as "3 of 84 sentences are"."""
    whole = f"of {counted(total, one, many)}"
    return counted(count, f"{whole} is", f"{whole} are")


def _letters(document: Sequence[Document]) -> str:
    return "".join("".join(word.split()) for sentence in document for word in sentence.words)


def _content(documents: Sequence[Sequence[Document]]) -> _Content:
    letters: list[str] = []
    found = _Content("", {}, {}, Counter(), set())
    reached = 0
    same: Counter[tuple[int, int]] = Counter()
    for sentence in chain.from_iterable(documents):
        if not sentence.words:
            continue
        first, places = reached, []
        for word in sentence.words:
            short = "".join(word.split())
            letters.append(short)
            place = (reached, reached + len(short))
            places.append(place)
            found.words[(*place, same[place])] = sentence.place
            same[place] += 1
            reached += len(short)
        found.sentences.setdefault((first, reached), sentence.place)
        for kind, start, end in spans(sentence.tags or ()):
            found.entities[kind, places[start][0], places[end - 1][1]] += 1
        found.ids.update([sentence.id] if sentence.id else [])
    return found._replace(letters="".join(letters))
