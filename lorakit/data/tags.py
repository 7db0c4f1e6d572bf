"""Tags of named entities: their schemes, the spans they stand for, and the conversion to IOB2.

iob2    B- begins an entity, I- continues it
iob1    B- only where an entity directly follows another of its type, I- otherwise
bioes   E- ends an entity of several words, S- is an entity of one word (also called IOBES; BILOU writes L- and U-)
"""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SCHEMES = ("iob2", "iob1", "bioes")

_TAG = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
_BILOU = {"L": "E", "U": "S"}
_PREFIXES = {"iob2": "BI", "iob1": "BI", "bioes": "BIES"}


class Span(NamedTuple):
    """An entity: its type and its words, [start, end)."""

    type: str
    start: int
    end: int


@functools.cache
def split_tag(tag: str) -> tuple[str, str]:
    """Prefix and entity type: "B-DNA" -> ("B", "DNA"), "O" -> ("O", ""). BILOU's L and U become E and S.

    Raises:
        ValueError: it is not a tag.
    """
    if tag == "O":
        return "O", ""
    match = _TAG.fullmatch(tag)
    if match is None:
        raise ValueError(f"unknown tag {tag!r}; a tag is O or one of B I E S L U, a hyphen and the entity type")
    prefix, kind = match.groups()
    return _BILOU.get(prefix, prefix), kind


def check_tag(tag: str, labels: Sequence[str] | None, place: str) -> None:
    """Refuse a string that is not a tag or, if there are labels, not one of them.

    Raises:
        ValueError: with the place.
    """
    if labels is not None and tag not in labels:
        raise ValueError(f"{place}: unknown tag {tag!r}; the labels are {', '.join(labels)}")
    try:
        split_tag(tag)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def check_labels(labels: Sequence[str], place: str) -> None:
    """Refuse a corpus' list of labels that lacks "O" or holds a string that is not a tag.

    Raises:
        ValueError: with the place.
    """
    if "O" not in labels:
        raise ValueError(f"{place}: no label 'O'; the labels are {', '.join(labels) or 'none'}")
    for label in labels:
        check_tag(label, None, place)


def irregular(tags: Sequence[str], scheme: str) -> list[int]:
    """The positions at which a sentence's tags break their scheme, ascending.

    iob2: an I- that continues nothing. iob1: a B- that does not follow its own type. bioes: an I- or E- that continues
    nothing, and a B- or I- after which the entity stops without E-.

    Raises:
        ValueError: a tag has a prefix that the scheme does not have.
    """
    parts = _split_tags(tags, scheme)
    found = []
    for i, (prefix, kind) in enumerate(parts):
        before, kind_before = parts[i - 1] if i else ("O", "")
        after, kind_after = parts[i + 1] if i + 1 < len(parts) else ("O", "")
        follows = kind_before == kind and before != "O"
        if scheme == "iob2":
            broken = prefix == "I" and not follows
        elif scheme == "iob1":
            broken = prefix == "B" and not follows
        else:
            orphan = prefix in "IE" and not (follows and before in "BI")
            unclosed = prefix in "BI" and not (kind_after == kind and after in "IE")
            broken = orphan or unclosed
        if broken:
            found.append(i)
    return found


def spans(tags: Sequence[str], scheme: str = "iob2") -> list[Span]:
    """Find the entities of a sentence, in order.

    Tags that break the scheme are read as in seqeval's default mode: an entity begins at B- or S-, after E- or S-, and
    wherever the type changes.

    Example:
        from lorakit.data.tags import spans
        spans(["B-DNA", "I-DNA", "O", "B-RNA"])  # [Span(type='DNA', start=0, end=2), Span(type='RNA', start=3, end=4)]

    Args:
        tags: one tag per word.
        scheme: one of SCHEMES.

    Raises:
        ValueError: a tag has a prefix that the scheme does not have.
    """
    found: list[Span] = []
    before, kind_before = "O", ""
    for i, (prefix, kind) in enumerate(_split_tags(tags, scheme)):
        if prefix == "O":
            pass
        elif prefix in "BS" or before in "ES" or kind != kind_before:
            found.append(Span(kind, i, i + 1))
        else:
            found[-1] = found[-1]._replace(end=i + 1)
        before, kind_before = prefix, kind
    return found


def from_spans(entities: Iterable[Span], length: int) -> tuple[str, ...]:
    """The IOB2 tags of a sentence of `length` words: the inverse of `spans`. Entities must not overlap."""
    tags = ["O"] * length
    for kind, start, end in entities:
        tags[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
    return tuple(tags)


def to_iob2(tags: Sequence[str], scheme: str) -> tuple[str, ...]:
    """Convert a sentence's tags to IOB2; the entities are those that `spans` finds."""
    return from_spans(spans(tags, scheme), len(tags))


def _split_tags(tags: Sequence[str], scheme: str) -> list[tuple[str, str]]:
    parts = [split_tag(tag) for tag in tags]
    for tag, (prefix, _) in zip(tags, parts, strict=True):
        if prefix != "O" and prefix not in _PREFIXES[scheme]:
            raise ValueError(f"tag {tag!r} does not exist in scheme {scheme!r}")
    return parts
