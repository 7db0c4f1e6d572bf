"""A corpus as the rest of lorakit sees it: sentences of words and IOB2 tags, in three splits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lorakit.data.tags import labels_of_types


class Sentence(NamedTuple):
    """Words and one IOB2 tag per word. A word may be empty or odd: it keeps its place.

    Example:
        from lorakit.data.ner_data import Sentence
        sentence = Sentence(words=("IL-2", "gene"), tags=("B-DNA", "I-DNA"))
        sentence.words[0], sentence.tags[0]  # ('IL-2', 'B-DNA')

    Args:
        words: the words of one sentence.
        tags: as many tags: "O", or "B-" or "I-" and an entity type.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class NerData:
    """A corpus for named-entity recognition, as `read_ner` returns it.

    Example:
        from lorakit.data.ner_data import NerData, Sentence
        sentence = Sentence(("IL-2", "gene"), ("B-DNA", "I-DNA"))
        data = NerData(train=(sentence,), validation=(), test=(), labels=("O", "B-DNA", "I-DNA"), source="made here")
        len(data.train), data.notes  # (1, ())

    Args:
        train: the training sentences.
        validation: those that choose the best epoch; empty if the source has no such split.
        test: those that are scored once, at the end; empty if the source has no such split.
        labels: every IOB2 label in the order of its id: label.json's order, else "O" and then B-X, I-X by sorted type.
        source: what was read, as the caller named it.
        notes: what to know about it: tags converted or repaired, splits missing, sentences without words dropped.
    """

    train: tuple[Sentence, ...]
    validation: tuple[Sentence, ...]
    test: tuple[Sentence, ...]
    labels: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()


def join(corpora: Sequence[NerData]) -> NerData:
    """Several corpora as one: their splits in a row, and the union of their labels."""
    if len(corpora) == 1:
        return replace(corpora[0], notes=(*corpora[0].notes, *about_case(corpora[0].labels)))
    labels = corpora[0].labels
    if any(set(data.labels) != set(labels) for data in corpora):
        labels = labels_of_types({label[2:] for data in corpora for label in data.labels if label != "O"})
    return NerData(
        train=tuple(sentence for data in corpora for sentence in data.train),
        validation=tuple(sentence for data in corpora for sentence in data.validation),
        test=tuple(sentence for data in corpora for sentence in data.test),
        labels=labels,
        source=" + ".join(data.source for data in corpora),
        notes=(
            *(note if data.source in note else f"{data.source}: {note}" for data in corpora for note in data.notes),
            *about_case(labels),
        ),
    )


def about_case(labels: Iterable[str]) -> list[str]:
    """A note for each group of types whose names differ only in case: more likely one type than several."""
    groups: dict[str, set[str]] = {}
    for label in labels:
        if label != "O":
            groups.setdefault(label[2:].casefold(), set()).add(label[2:])
    return [
        f"{' and '.join(sorted(group))} are types of their own; if they are one, a table renames them (label_map)"
        for group in groups.values()
        if len(group) > 1
    ]
