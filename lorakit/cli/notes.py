"""Notes to the user: what a command found out about its input that is no error but should be known."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorakit._counts import counted
from lorakit.cli.wording import in_flags
from lorakit.data.tags import spans

if TYPE_CHECKING:
    from lorakit.data.ner_data import NerData

MOST_TYPES = 8  # that the line of counts names, the most frequent first


class Notes:
    """Prints each note to stderr: once, however often it is made and however many processes run.

    Args:
        parser: The command's, whose name and flags the notes have.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser, self.made = parser, set[str]()

    def __call__(self, message: str) -> None:
        """Print the note if it is new."""
        if message not in self.made and os.environ.get("RANK", "0") == "0":
            print(f"{self.parser.prog}: note: {in_flags(message, self.parser)}", file=sys.stderr)
        self.made.add(message)


def case_note(tokenizer: Any, sentences: Iterable[tuple[Sequence[str], Sequence[str]]]) -> str | None:
    """A note if the base's tokenizer drops the capitals that the corpus has; None if nothing is lost.

    Args:
        tokenizer: A fast tokenizer.
        sentences: (words, tags) pairs.
    """
    from lorakit.data.subwords import ignores_case

    words = [word for sentence in sentences for word in sentence[0]]
    capitals = sum(word != word.lower() for word in words)
    if not capitals or not ignores_case(tokenizer):
        return None
    return (
        f"the base is uncased and {capitals / len(words):.0%} of the training words have capitals, which it does not"
        " see; a cased base usually finds more entities"
    )


def describe_corpus(data: "NerData", program: str, note: Callable[[str], None]) -> None:
    """Print a line of counts to stderr, and a note for everything about the corpus that a user should know.

    Args:
        data: The corpus.
        program: The command's name.
        note: Prints a note.
    """
    types = types_by_split(data)
    if os.environ.get("RANK", "0") == "0":
        print(f"{program}: corpus: {corpus_counts(data, types)}", file=sys.stderr)
    for message in (*data.notes, *split_notes(types)):
        note(message)


def unscored_note(data: "NerData") -> str | None:
    """A note if nothing tells how good the model will be."""
    if data.validation or data.test:
        return None
    return (
        "there is no validation or test split, so nothing is scored and the last epoch's weights are kept; put a part"
        " of the sentences into a file of their own (valid, test) beside the training file"
    )


def corpus_counts(data: "NerData", types: Mapping[str, Counter[str]]) -> str:
    """Sentences and entities of each split, then the entity types with their entities, in one line.

    Args:
        data: the corpus.
        types: from `types_by_split`.
    """
    splits = [
        f"{name} {counted(len(getattr(data, name)), 'sentence')}, {counted(found.total(), 'entity', 'entities')}"
        for name, found in types.items()
    ]
    everything = sum(types.values(), Counter())
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in everything.most_common(MOST_TYPES))
    rest = len(everything) - MOST_TYPES
    more = f", and {counted(rest, 'more type')}" if rest > 0 else ""
    return "; ".join([*splits, f"by type: {kinds}{more}" if kinds else "no entity"])


def split_notes(types: Mapping[str, Counter[str]]) -> list[str]:
    """A note for each split without an entity, and for types that only the training split or only another one has.

    Args:
        types: from `types_by_split`.
    """
    types = dict(types)
    notes = [f"the {name} split has no entity, so its F1 is always 0" for name, found in types.items() if not found]
    learned, scored = types.pop("train", Counter()), sum(types.values(), Counter())
    for name, found in types.items():
        if unknown := sorted(found.keys() - learned.keys()):
            count = sum(found[kind] for kind in unknown)
            notes.append(
                f"{', '.join(unknown)}: in the {name} split ({count:,} of"
                f" {counted(found.total(), 'entity', 'entities')}) but not in the training split, so the model cannot"
                " learn to find them"
            )
    if scored and (unscored := sorted(learned.keys() - scored.keys())):
        notes.append(f"{', '.join(unscored)}: only in the training split, so no score says how well they are found")
    return notes


def check_entities(data: "NerData") -> None:
    """Refuse to train on sentences without any entity.

    Raises:
        ValueError: The training split has none.
    """
    if data.train and not any(spans(sentence.tags) for sentence in data.train):
        raise ValueError(
            f"{data.source}: no entity in {counted(len(data.train), 'training sentence')}:"
            " every word is tagged O, so there is nothing to learn; see how it is read with lorakit data show, and name"
            " the column of tags with --columns"
        )


def types_by_split(data: "NerData") -> "dict[str, Counter[str]]":
    """How often each entity type occurs in each split that the corpus has."""
    splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
    return {
        name: Counter(span.type for sentence in sentences for span in spans(sentence.tags))
        for name, sentences in splits.items()
        if sentences
    }
