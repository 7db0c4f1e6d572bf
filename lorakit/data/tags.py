"""Tags of named entities: their schemes, the spans they stand for, and the conversion to IOB2.

iob2    B- begins an entity, I- continues it
iob1    B- only where an entity directly follows another of its type, I- otherwise
bioes   E- ends an entity of several words, S- is an entity of one word (also called IOBES; BILOU writes L- and U-,
        BMES M- for I-, BMEWO also W- for S-)

A tagger's labels may also be types without prefixes, such as PER: each is read as I-PER, iob1 without any B-.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SCHEMES = ("iob2", "iob1", "bioes")
DECODERS = ("auto", "viterbi", "greedy")  # from probabilities to tags: see `lorakit.data.decoding`

_TAG = re.compile(r"([BIESLUMW])-(.+)", re.DOTALL)
_PREFIXED = re.compile(r"[BIESLUMW](-.*)?", re.DOTALL)
_OTHER_LETTERS = {"L": "E", "U": "S", "M": "I", "W": "S"}
_PREFIXES = {"iob2": "BI", "iob1": "BI", "bioes": "BIES"}


class Span(NamedTuple):
    """An entity: its type and its words, [start, end)."""

    type: str
    start: int
    end: int

    def mean(self, per_word: Sequence[float]) -> float:
        """The mean of its words' values, which for the probabilities of their tags is the entity's score."""
        return sum(per_word[self.start : self.end]) / (self.end - self.start)


@functools.cache
def split_tag(tag: str) -> tuple[str, str]:
    """Prefix and entity type: "B-DNA" -> ("B", "DNA"), "O" -> ("O", ""). L, U, M and W become E, S, I and S.

    Raises:
        ValueError: it is not a tag.
    """
    if tag == "O":
        return "O", ""
    match = _TAG.fullmatch(tag)
    if match is None:
        raise ValueError(f"unknown tag {tag!r}; a tag is O or one of B I E S L U M W, a hyphen and the entity type")
    prefix, kind = match.groups()
    return _OTHER_LETTERS.get(prefix, prefix), kind


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
    """Refuse a corpus' list of labels that lacks "O".

    Raises:
        ValueError: with the place.
    """
    if "O" not in labels:
        raise ValueError(f"{place}: no label 'O'; the labels are {', '.join(labels) or 'none'}")


def labels_of_types(types: Iterable[str]) -> tuple[str, ...]:
    """The IOB2 labels of these entity types in the usual order of their ids: O, then B-X and I-X by sorted type."""
    return ("O", *(f"{prefix}-{kind}" for kind in sorted(types) for prefix in "BI"))


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
        if prefix == "O":
            continue
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


def well_formed_spans(tags: Sequence[str], scheme: str) -> list[Span]:
    """Find the entities whose tags keep to the scheme, as seqeval's strict mode does with the scheme's class.

    Args:
        tags: one tag per word.
        scheme: one of SCHEMES.

    Raises:
        ValueError: a tag has a prefix that the scheme does not have.
    """
    parts = [*_split_tags(tags, scheme), ("O", "")]
    found, i, before = [], 0, ("O", "")
    while i < len(tags):
        start, i = i, i + 1
        if _starts(scheme, before, parts[start]):
            while _continues(scheme, parts[i - 1], parts[i]):
                i += 1
            if _ends(scheme, parts[i - 1], parts[i]):
                found.append(Span(parts[start][1], start, i))
        before = parts[i - 1]
    return found


def _starts(scheme: str, before: tuple[str, str], here: tuple[str, str]) -> bool:
    if scheme == "iob2":
        return here[0] == "B"
    if scheme == "bioes":
        return here[0] in "BS"
    same = before[1] == here[1]
    return before[0] in "BI" and same if here[0] == "B" else here[0] == "I" and not (before[0] == "I" and same)


def _continues(scheme: str, before: tuple[str, str], here: tuple[str, str]) -> bool:
    return here[0] in ("IE" if scheme == "bioes" else "I") and before[0] in "BI" and before[1] == here[1]


def _ends(scheme: str, last: tuple[str, str], after: tuple[str, str]) -> bool:
    """Whether an entity may end with `last` where the next word, which is not part of it, has the tag `after`."""
    if scheme == "bioes":
        return last[0] in "ES"
    return scheme == "iob2" or not (last[0] == after[0] == "B" and last[1] != after[1])


# Labels of a tagger ---------------------------------------------------------------------------------------------------


def scheme_of_labels(labels: Iterable[str]) -> str | None:
    """The scheme that a tagger's labels are of; None where they are not entity tags.

    bioes if any has one of its letters; iob1 if they have no prefixes, or a type has I- and no B- to begin with; else
    iob2, although a tagger of iob1 may have the same labels.
    """
    try:
        parts = {split_tag(tag) for tag in with_prefixes(labels).values()}
    except ValueError:
        return None
    if any(prefix in "ES" for prefix, _ in parts):
        return "bioes"
    return "iob1" if any(prefix == "I" and ("B", kind) not in parts for prefix, kind in parts) else "iob2"


def with_prefixes(labels: Iterable[str]) -> dict[str, str]:
    """Label -> tag: the label itself, or for labels that are all types without prefixes, I- and the type."""
    labels = list(labels)
    bare = any(label != "O" for label in labels) and not any(_PREFIXED.fullmatch(label) for label in labels)
    return {label: f"I-{label}" if bare and label != "O" else label for label in labels}


def types_of_labels(labels: Iterable[str]) -> list[str]:
    """The entity types of a tagger's labels, in the order of the alphabet."""
    return sorted({tag.partition("-")[2] for tag in with_prefixes(labels).values()} - {""})


def scheme_of_sentences(labels: Sequence[str], sentences: Iterable[Sequence[str]]) -> str | None:
    """The scheme of a tagger by its labels and, where these leave iob2 and iob1 open, by tagged sentences.

    It is iob1 only if a tag breaks iob2 and none breaks iob1.
    """
    scheme = scheme_of_labels(labels)
    if scheme != "iob2":
        return scheme
    sentences = list(sentences)
    if not any(irregular(tags, "iob2") for tags in sentences):
        return "iob2"
    return "iob2" if any(irregular(tags, "iob1") for tags in sentences) else "iob1"


def in_labels_of(
    tags: Sequence[str], labels: Sequence[str], scheme: str | None = None, own: str | None = None
) -> tuple[str, ...]:
    """A sentence's tags in the scheme and letters of a tagger's labels.

    Unchanged where all of them are labels of the same scheme already. (Except for a tagger of iob1, if `scheme` says
    so: iob2 has the same labels.)

    Example:
        from lorakit.data.tags import in_labels_of
        in_labels_of(["B-X", "I-X", "O", "B-X"], ["O", "B-X", "M-X", "E-X", "S-X"])  # ('B-X', 'E-X', 'O', 'S-X')

    Args:
        tags: one tag per word, in any scheme.
        labels: the tagger's.
        scheme: the tagger's; None for what its labels tell.
        own: of the tags; None for what they tell. In a corpus of bioes, a sentence need not have an E- or S-.
    """
    scheme, own = scheme or scheme_of_labels(labels), own or scheme_of_labels({*tags, "O"})
    same = set(tags) <= set(labels) and scheme != "iob1" and (scheme != "bioes" or own == scheme)
    if same or scheme is None or own is None or scheme_of_labels(labels) is None:
        return tuple(tags)
    label_of = {split_tag(tag): label for label, tag in with_prefixes(labels).items()}
    written = ["O"] * len(tags)
    before = Span("", -1, -1)
    for entity in spans([with_prefixes(tags)[tag] for tag in tags], own):
        kind, start, end = entity
        letters = "B" + "I" * (end - start - 1)
        if scheme == "bioes":
            letters = "S" if end - start == 1 else "B" + "I" * (end - start - 2) + "E"
        elif scheme == "iob1" and not (before.end == start and before.type == kind and ("B", kind) in label_of):
            letters = "I" * (end - start)
        if not all((letter, kind) in label_of for letter in letters):
            return tuple(tags)  # the tagger does not know this entity, which whoever encodes the tags will say
        written[start:end] = [label_of[letter, kind] for letter in letters]
        before = entity
    return tuple(written)


def _split_tags(tags: Sequence[str], scheme: str) -> list[tuple[str, str]]:
    parts = [split_tag(tag) for tag in tags]
    for tag, (prefix, _) in zip(tags, parts, strict=True):
        if prefix != "O" and prefix not in _PREFIXES[scheme]:
            raise ValueError(f"tag {tag!r} does not exist in scheme {scheme!r}")
    return parts
