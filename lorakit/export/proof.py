"""The proof of an export: entity by entity the same as `lorakit.predict`, through the runtime that will use it.

A runtime that takes the best class of each word is compared with greedy predictions, even of a model that was trained
with another decoder; the export then says what that costs in F1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from lorakit._counts import counted
from lorakit.data.decoding import decoder_of, transitions, viterbi
from lorakit.data.encoding import encode
from lorakit.data.habits import habits_of, split_like
from lorakit.data.subwords import kept_tokens
from lorakit.data.tags import Span, scheme_of_labels, spans, types_of_labels, with_prefixes
from lorakit.export.words import Logits, read_by_words
from lorakit.training.evaluation import label_names, tag_words, window_of
from lorakit.training.metrics import entity_scores


class NotProven(ValueError):
    """An export does not find what lorakit finds; the message holds the first difference."""


@dataclass(frozen=True)
class Reference:
    """What lorakit finds in the sentences that an export is proven on.

    Args:
        sentences: the words of each.
        entities: decoder ("greedy" or "viterbi") -> the entities of each sentence, by words.
        gold: the corpus' entities of each sentence; none where it marks types that are not the model's.
        decode: the decoder that the model was trained with, which `lorakit.predict` uses.
        longer: how many sentences were left out because they need several windows, which other runtimes do not make.
        split: of the corpus that they are from; "" where nobody knows.
    """

    sentences: list[list[str]]
    entities: Mapping[str, list[list[Span]]]
    gold: list[list[Span]]
    decode: str
    longer: int = 0
    split: str = ""

    def proven(self, runtime: str, *decoders: str) -> str:
        """The sentence that says so, for an export's README."""
        entities = (counted(self.count(name), "entity", "entities") for name in decoders)
        counts = " and ".join(f"{shown} ({name}, fp32)" for shown, name in zip(entities, decoders, strict=True))
        text = f"Equal to lorakit.predict in every entity: {counts} of {counted(len(self.sentences), 'sentence')}"
        text += f"{f' of the {self.split} set' if self.split else ''} through {runtime}"
        longer = counted(self.longer, "longer than the model's window was", "longer than the model's window were")
        return text + (f"; {longer} left out." if self.longer else ".")

    def count(self, decode: str) -> int:
        """Entities in all sentences."""
        return sum(map(len, self.entities[decode]))

    def f1_of(self, entities: Sequence[Sequence[Span]]) -> float | None:
        """F1 of these entities, as in seqeval's default mode; None where the corpus marks none, or other types."""
        if not any(self.gold):
            return None
        pairs = list(zip(self.gold, entities, strict=True))
        found = sum(len(set(gold) & set(row)) for gold, row in pairs)
        return entity_scores(found, sum(len(row) for _, row in pairs), sum(map(len, self.gold))).f1

    def price_of_greedy(self, runtime: str) -> list[str]:
        """What is lost by a runtime that takes each word's best class; nothing of a model that was trained like that.

        Args:
            runtime: whose output is greedy.
        """
        if self.decode == "greedy":
            return []
        sides = [self.entities[name] for name in ("greedy", self.decode)]
        changed = sum(one != other for one, other in zip(*sides, strict=True))
        before, after = (self.f1_of(side) for side in sides)
        if before is None or after is None:
            price = (
                "what that costs in F1 is unknown, because the corpus marks no entity, or other types than the model's"
            )
        else:
            price = (
                f"over all of them F1 is {before:.4f} greedy and {after:.4f} with {self.decode} ({before - after:+.4f})"
            )
        return [
            f"Note that {runtime} are greedy, and lorakit.predict decodes this model with {self.decode}, as it was"
            f" trained: the entities of {changed:,} of {counted(len(self.sentences), 'sentence')} differ; {price}."
        ]


def find_reference(
    model: nn.Module,
    tokenizer: Any,
    sentences: Sequence[tuple[Sequence[str], Sequence[str]]],
    raw: bool = False,
    split: str = "",
) -> Reference:
    """What lorakit finds in (words, tags) pairs, in float32.

    Args:
        model: the tagger, with its adapter as it was trained.
        tokenizer: the model's.
        sentences: of a corpus.
        raw: split the words, joined by spaces, as `lorakit.predict` splits a raw text, and decode only as trained;
            otherwise also decode greedily, as other runtimes do.
        split: of the corpus that they are from.

    Raises:
        ValueError: no sentence fits in one window, or the model finds no entity in any, which would prove nothing.
    """
    rows = [list(words) for words, _ in sentences]
    if raw:
        keep = kept_tokens(tokenizer)
        rows = [[word.text for word in split_like(" ".join(row), habits_of(model), keep)] for row in rows]
    windows = [len(encode(tokenizer, [words], window_of(model, tokenizer))) for words in rows]
    kept = [i for i, count in enumerate(windows) if count == 1]
    labels, decode, own = label_names(model), decoder_of(model), [rows[i] for i in kept]
    entities = {
        name: [entities_of(tags, labels) for tags in tag_words(model, tokenizer, own, "fp32", decode=name).tags]
        for name in dict.fromkeys([decode] if raw else ["greedy", decode])
    }
    gold = _gold_entities([sentences[i][1] for i in kept])
    if not {entity.type for row in gold for entity in row} <= set(types_of_labels(labels)):
        gold = [[] for _ in gold]
    found = Reference(own, entities, gold, decode, sum(count > 1 for count in windows), split)
    if not found.count(decode):
        raise ValueError(
            f"the model finds no entity in {counted(len(kept), 'sentence')}, which proves nothing; give others"
            " (lorakit export --dataset), or train longer"
        )
    return found


def _gold_entities(tagged: Sequence[Sequence[str]]) -> list[list[Span]]:
    labels = {"O", *(tag for tags in tagged for tag in tags)}
    scheme, tag_of = scheme_of_labels(labels) or "iob2", with_prefixes(labels)
    return [spans([tag_of[tag] for tag in tags], scheme) for tags in tagged]


def entities_of(tags: Sequence[str], labels: Sequence[str]) -> list[Span]:
    """The entities of a sentence's tags, read in the scheme of the model's labels.

    Raises:
        ValueError: the labels are not entity tags.
    """
    scheme, tag_of = scheme_of_labels(labels), with_prefixes(labels)
    if scheme is None:
        raise ValueError(f"the model's classes are not entity tags: its labels are {', '.join(labels)}")
    return spans([tag_of[tag] for tag in tags], scheme)


def compare(reference: Reference, found: Iterable[Sequence[Span]], runtime: str, decode: str = "greedy") -> None:
    """Compare what another runtime finds with a decoder, sentence by sentence.

    Raises:
        NotProven: at the first difference.
    """
    for number, (words, wanted, got) in enumerate(
        zip(reference.sentences, reference.entities[decode], found, strict=True), start=1
    ):
        if list(got) == list(wanted):
            continue
        missing, more = ([e for e in one if e not in other] for one, other in ((wanted, got), (got, wanted)))
        raise NotProven(
            f"the export is refused and nothing was written: in sentence {number} of {len(reference.sentences)} lorakit"
            f" finds {_named(missing, words)} and {runtime} {_named(more, words)} ({_short(' '.join(words))})"
        )


def entities_by_words(rows: Iterable[np.ndarray], labels: Sequence[str], decode: str) -> list[list[Span]]:
    """The entities of each sentence.

    Args:
        rows: from `read_by_words`.
        labels: of the model's classes.
        decode: "greedy" or "viterbi".
    """
    allowed = transitions(labels) if decode == "viterbi" else None
    found = []
    for logits in rows:
        classes = logits.argmax(-1) if allowed is None else viterbi(logits, np.array([len(logits)]), allowed)
        found.append(entities_of([labels[number] for number in classes.tolist()], labels))
    return found


def prove_by_words(
    reference: Reference,
    tokenizer: Any,
    labels: Sequence[str],
    logits: Logits,
    runtime: str,
) -> tuple[dict[str, list[list[Span]]], list[str]]:
    """Compare what a runtime finds with each decoder that lorakit was asked with.

    Args:
        reference: what lorakit finds.
        tokenizer, labels, logits: as for `read_by_words` and `entities_by_words`.
        runtime: its name.

    Returns:
        Decoder -> the entities of each sentence, and sentences about the proof.

    Raises:
        NotProven: with the first difference.
    """
    rows = list(read_by_words(tokenizer, logits, reference.sentences))
    found = {decode: entities_by_words(rows, labels, decode) for decode in reference.entities}
    for decode, entities in found.items():
        compare(reference, entities, runtime, decode)
    return found, [reference.proven(runtime, *found), *reference.price_of_greedy("its largest logits")]


def _named(entities: Sequence[Span], words: Sequence[str]) -> str:
    if not entities:
        return "nothing there"
    kind, start, end = entities[0]
    if min(start, end) < 0:
        return f"{kind} that begins or ends inside a word"
    return f"{kind} {_short(' '.join(words[start:end]))!r} (words {start}-{end})"


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"
