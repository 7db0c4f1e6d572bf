"""The proof of an export: entity by entity the same as `lorakit.predict`, through the runtime that will use it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lorakit.data.encoding import encode
from lorakit.data.habits import habits_of, split_like
from lorakit.data.subwords import kept_tokens
from lorakit.data.tags import Span, scheme_of_labels, spans, with_prefixes
from lorakit.training.evaluation import label_names, tag_words, window_of


class NotProven(ValueError):
    """An export does not find what lorakit finds; the message holds the first difference."""


@dataclass(frozen=True)
class Reference:
    """What lorakit finds in the sentences that an export is proven on.

    Args:
        sentences: the words of each.
        entities: of each sentence, by words.
        gold: the tags of each, where the corpus has them.
        longer: how many sentences were left out because they need several windows, which other runtimes do not make.
    """

    sentences: list[list[str]]
    entities: list[list[Span]]
    gold: list[list[str]]
    longer: int = 0

    def proven(self, runtime: str) -> str:
        """The sentence that says so, for an export's README."""
        text = f"Equal to lorakit.predict (greedy, fp32) in all {self.count:,} entities of {len(self.sentences):,}"
        text += f" sentences through {runtime}"
        return text + (f"; {self.longer} longer than the model's window were left out." if self.longer else ".")

    @property
    def count(self) -> int:
        """Entities in all sentences."""
        return sum(map(len, self.entities))


def find_reference(
    model: nn.Module, tokenizer: Any, sentences: Sequence[tuple[Sequence[str], Sequence[str]]], raw: bool = False
) -> Reference:
    """What lorakit finds in (words, tags) pairs, in float32 and with greedy decoding, as the other runtimes compute.

    Args:
        model: the tagger, with its adapter as it was trained.
        tokenizer: the model's.
        sentences: of a corpus.
        raw: split the words, joined by spaces, as `lorakit.predict` splits a raw text.

    Raises:
        ValueError: no sentence fits in one window, or the model finds no entity in any, which would prove nothing.
    """
    rows = [list(words) for words, _ in sentences]
    if raw:
        keep = kept_tokens(tokenizer)
        rows = [[word.text for word in split_like(" ".join(row), habits_of(model), keep)] for row in rows]
    windows = [len(encode(tokenizer, [words], window_of(model, tokenizer))) for words in rows]
    kept = [i for i, count in enumerate(windows) if count == 1]
    labels = label_names(model)
    tags = tag_words(model, tokenizer, [rows[i] for i in kept], "fp32", decode="greedy").tags
    found = Reference(
        [rows[i] for i in kept],
        [entities_of(row, labels) for row in tags],
        [list(sentences[i][1]) for i in kept],
        sum(count > 1 for count in windows),
    )
    if not found.count:
        raise ValueError(
            f"the model finds no entity in the {len(kept):,} sentences, so they prove nothing; give others with"
            " --dataset, or train longer"
        )
    return found


def entities_of(tags: Sequence[str], labels: Sequence[str]) -> list[Span]:
    """The entities of a sentence's tags, read in the scheme of the model's labels.

    Raises:
        ValueError: the labels are not entity tags.
    """
    scheme, tag_of = scheme_of_labels(labels), with_prefixes(labels)
    if scheme is None:
        raise ValueError(f"the model's classes are not entity tags: its labels are {', '.join(labels)}")
    return spans([tag_of[tag] for tag in tags], scheme)


def compare(reference: Reference, found: Iterable[Sequence[Span]], runtime: str) -> None:
    """Compare what another runtime finds, sentence by sentence.

    Raises:
        NotProven: at the first difference.
    """
    for number, (words, wanted, got) in enumerate(
        zip(reference.sentences, reference.entities, found, strict=True), start=1
    ):
        if list(got) == list(wanted):
            continue
        missing, more = ([e for e in one if e not in other] for one, other in ((wanted, got), (got, wanted)))
        raise NotProven(
            f"the export is refused and nothing was written: in sentence {number} of {len(reference.sentences)} lorakit"
            f" finds {_named(missing, words)} and {runtime} {_named(more, words)} ({_short(' '.join(words))})"
        )


def _named(entities: Sequence[Span], words: Sequence[str]) -> str:
    if not entities:
        return "nothing there"
    kind, start, end = entities[0]
    if min(start, end) < 0:
        return f"{kind} that begins or ends inside a word"
    return f"{kind} {_short(' '.join(words[start:end]))!r} (words {start}-{end})"


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"
