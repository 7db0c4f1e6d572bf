"""Entity scores of a tagger, as seqeval computes them in its two modes.

Papers quote seqeval's *default* mode (conlleval's rules: an I- tag without a B- before it still opens an entity).
*Strict* IOB2 counts only entities that are well formed. Neither is always the lower one: strict drops a malformed
entity, default counts it as a false positive. So both are reported, each under its name.

Entities are counted here, on arrays of classes, because seqeval takes longer than a GPU needs for an epoch. Tags of
another scheme (IOB1, BIOES, BILOU, BMES, types without prefixes) are first brought to IOB2: for the strict mode those
entities that are well formed in their own scheme. What is of no scheme goes to seqeval itself, which warns about it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from lorakit._counts import counted
from lorakit.data.tags import Span, from_spans, scheme_of_labels, spans, split_tag, well_formed_spans, with_prefixes
from lorakit.training.scores import EntityScores, Scores


@dataclass(frozen=True)
class SentenceCounts:
    """Entities of each sentence: columns found (true positives), predicted and gold; their sums give a split's scores.

    Attributes:
        default: in seqeval's default mode, integers of shape (sentences, 3).
        strict: the same in strict IOB2.
    """

    default: np.ndarray
    strict: np.ndarray

    def total(self, mode: str) -> EntityScores:
        """The scores of the whole split.

        Args:
            mode: "default" or "strict".
        """
        return entity_scores(*getattr(self, mode).sum(0).tolist())


def score(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    loss: float | None = None,
    scheme: str | None = None,
) -> Scores:
    """Score predicted tags against gold ones.

    Args:
        gold: the tags of each sentence.
        predicted: as many for each.
        loss: stored in the result.
        scheme: "iob2", "iob1" or "bioes" (BMES and BILOU are read as that), in which strict entities are well formed;
            None for the one that the tags themselves tell, which is iob2 for B- and I-.

    Raises:
        ValueError: there is no sentence, or a sentence's two tag lists differ in length.
    """
    if len(gold) != len(predicted) or not any(gold):
        raise ValueError(
            f"cannot score {len(predicted)} predicted against {counted(len(gold), 'gold sentence')}; "
            "both must be the same number, with at least one word"
        )
    for number, (tags, guess) in enumerate(zip(gold, predicted, strict=True)):
        if len(tags) != len(guess):
            raise ValueError(f"sentence {number} has {counted(len(tags), 'gold tag')} and {len(guess)} predicted")
    labels = list(dict.fromkeys(chain(*gold, *predicted)))
    classes = {label: number for number, label in enumerate(labels)}
    flat = (np.array([classes[tag] for tags in side for tag in tags]) for side in (gold, predicted))
    return score_classes(*flat, np.array([len(tags) for tags in gold]), labels, loss, scheme or _scheme(labels))


def score_classes(
    gold: np.ndarray,
    predicted: np.ndarray,
    sentence_lengths: np.ndarray,
    labels: Sequence[str],
    loss: float | None = None,
    scheme: str | None = None,
) -> Scores:
    """Score predicted classes against gold ones, with the words of all sentences in one array.

    Args:
        gold: the class of every word, integers of any type.
        predicted: the same.
        sentence_lengths: in words; a sentence may be empty.
        labels: the tag of each class.
        loss: stored in the result.
        scheme: of the labels, from `lorakit.data.tags`; None for what the labels tell.

    Raises:
        ValueError: there is no word, or the three arrays do not agree on the number of words.
    """
    if not len(gold) == len(predicted) == sentence_lengths.sum() > 0:
        raise ValueError(
            f"cannot score {len(predicted)} predicted against {counted(len(gold), 'gold word')} in sentences of "
            f"{counted(sentence_lengths.sum(), 'word')} in all; the three must be the same number, at least one"
        )
    sides = _in_iob2(gold, predicted, sentence_lengths, labels, scheme or scheme_of_labels(labels))
    if sides is None:
        ends = np.cumsum(sentence_lengths)[:-1]
        return score_by_seqeval(*(_names(side, ends, labels) for side in (gold, predicted)), loss)
    first = _first_words(sentence_lengths)
    default = count_entities(*sides.default, first, sides.labels, default_types(sides.labels), strict=False)
    strict = count_entities(*sides.strict, first, sides.labels, strict_types(sides.labels), strict=True)
    overall = _micro(default)
    same = np.array([labels.index(tag) for tag in labels])  # several classes may have the same tag
    return Scores(
        loss=loss,
        precision=overall.precision,
        recall=overall.recall,
        f1=overall.f1,
        accuracy=int((same[gold] == same[predicted]).sum()) / len(gold),
        strict=_micro(strict),
        by_type={name: entity_scores(*default[name]) for name in sorted(default)},
        strict_by_type={name: entity_scores(*strict[name]) for name in sorted(strict)},
    )


def count_by_sentence(
    gold: np.ndarray,
    predicted: np.ndarray,
    sentence_lengths: np.ndarray,
    labels: Sequence[str],
    scheme: str | None = None,
) -> SentenceCounts:
    """Count the entities of each sentence; the arguments are those of `score_classes`, which gives the sums' scores."""
    sides = _in_iob2(gold, predicted, sentence_lengths, labels, scheme or scheme_of_labels(labels))
    if sides is None:
        ends = np.cumsum(sentence_lengths)[:-1]
        return _count_by_seqeval(*(_names(side, ends, labels) for side in (gold, predicted)))
    first = _first_words(sentence_lengths)
    sentence = np.repeat(np.arange(len(sentence_lengths)), sentence_lengths)

    def counts(pair: tuple[np.ndarray, np.ndarray], types: list[str], strict: bool) -> np.ndarray:
        matches = match_entities(*pair, first, sides.labels, types, strict)
        starts = (matches.found, matches.predicted, matches.gold)
        return np.stack([np.bincount(sentence[at], minlength=len(sentence_lengths)) for at in starts], axis=1)

    names = sides.labels
    return SentenceCounts(
        counts(sides.default, default_types(names), False), counts(sides.strict, strict_types(names), True)
    )


class _Sides(NamedTuple):
    """Gold and predicted classes whose labels are IOB2, for each of the two modes."""

    default: tuple[np.ndarray, np.ndarray]
    strict: tuple[np.ndarray, np.ndarray]
    labels: Sequence[str]


def _in_iob2(
    gold: np.ndarray, predicted: np.ndarray, sentence_lengths: np.ndarray, labels: Sequence[str], scheme: str | None
) -> _Sides | None:
    """Bring both sides to IOB2; None where tags are not those of a scheme, which only seqeval itself can read.

    In another scheme the default mode's entities are written as IOB2, and the strict mode's are those that are well
    formed in that scheme.
    """
    if scheme in (None, "iob2"):
        return _Sides((gold, predicted), (gold, predicted), labels) if _all_iob2(gold, predicted, labels) else None
    tags, ends = list(with_prefixes(labels).values()), np.cumsum(sentence_lengths)[:-1]
    kinds = sorted({split_tag(tag)[1] for tag in tags} - {""})
    names = ["O", *(f"{letter}-{kind}" for kind in kinds for letter in "BI")]
    number_of = {name: number for number, name in enumerate(names)}

    def converted(side: np.ndarray, find: Callable[[Sequence[str], str], list[Span]]) -> np.ndarray:
        rows = _names(side, ends, tags)
        return np.array([number_of[tag] for row in rows for tag in from_spans(find(row, scheme), len(row))], np.int64)

    default, strict = ((converted(gold, find), converted(predicted, find)) for find in (spans, well_formed_spans))
    return _Sides(default, strict, names)


def _scheme(labels: Sequence[str]) -> str | None:
    """The scheme of tags that were seen, which need not be all labels: those with B- and I- are IOB2."""
    scheme, tags = scheme_of_labels(labels), with_prefixes(labels)
    return "iob2" if scheme == "iob1" and all(tag == label for label, tag in tags.items()) else scheme


def default_types(labels: Sequence[str]) -> list[str]:
    """The entity type of each tag in seqeval's default mode, conlleval's: what follows the first hyphen."""
    return [tag[2:] or "_" for tag in labels]


def strict_types(labels: Sequence[str]) -> list[str]:
    """The entity type of each tag in strict IOB2, for which seqeval strips hyphens."""
    return [tag[1:].strip("-") or "_" for tag in labels]


def _first_words(sentence_lengths: np.ndarray) -> np.ndarray:
    """Whether each word starts a sentence."""
    first = np.zeros(sentence_lengths.sum(), bool)
    first[(np.cumsum(sentence_lengths) - sentence_lengths)[sentence_lengths > 0]] = True
    return first


def _all_iob2(gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> bool:
    used = np.flatnonzero(np.bincount(gold, minlength=len(labels)) + np.bincount(predicted, minlength=len(labels)))
    return all(_is_iob2(labels[number]) for number in used)


def _is_iob2(tag: str) -> bool:
    return tag in ("O", "B", "I") or tag.startswith(("B-", "I-"))


class Matches(NamedTuple):
    """Which words start an entity, a bool per word, and the type of each word as a number."""

    found: np.ndarray  # a gold entity that was predicted with the same words and type
    predicted: np.ndarray
    gold: np.ndarray
    predicted_type: np.ndarray
    gold_type: np.ndarray


def count_entities(
    gold: np.ndarray, predicted: np.ndarray, first: np.ndarray, labels: Sequence[str], types: list[str], strict: bool
) -> dict[str, tuple[int, int, int]]:
    """Entities found, predicted and gold, for each type that occurs.

    Args:
        gold: the class of every word.
        predicted: the same.
        first: whether a word starts a sentence.
        labels: the tag of each class.
        types: the entity type of each class; that of O does not matter.
        strict: count only entities that start with B-.
    """
    names = list(dict.fromkeys(types))
    found, guessed, wanted, guessed_kind, kind = match_entities(gold, predicted, first, labels, types, strict)
    counts = (np.bincount(kinds, minlength=len(names)) for kinds in (kind[found], guessed_kind[guessed], kind[wanted]))
    rows = zip(names, *(column.tolist() for column in counts), strict=True)
    return {name: row for name, *row in rows if any(row)}


def match_entities(
    gold: np.ndarray, predicted: np.ndarray, first: np.ndarray, labels: Sequence[str], types: list[str], strict: bool
) -> Matches:
    """Find the entities of both sides and those that agree; the arguments are those of `count_entities`."""
    names = list(dict.fromkeys(types))
    kind_of = np.array([names.index(name) for name in types])
    letter_of = np.array(["OBI".index(tag[0]) if _is_iob2(tag) else 0 for tag in labels])
    sides = []
    for side in (gold, predicted):
        letter, kind = letter_of[side], kind_of[side]
        inside = letter > 0
        starts = inside & (first | (letter == 1))
        starts[1:] |= inside[1:] & (~inside[:-1] | (kind[1:] != kind[:-1]))
        # an entity is a start and the following inside words up to the next start
        words = np.bincount(np.cumsum(starts)[inside])[1:]
        lengths = np.zeros(len(side), np.int64)  # of the entity that starts here
        lengths[starts] = np.where(strict & (letter[starts] != 1), 0, words)
        sides.append((kind, lengths))
    (kind, length), (guessed_kind, guessed_length) = sides
    wanted, guessed = length > 0, guessed_length > 0
    found = wanted & (length == guessed_length) & (kind == guessed_kind)
    return Matches(found, guessed, wanted, guessed_kind, kind)


def _micro(counts: Mapping[str, tuple[int, int, int]]) -> EntityScores:
    return entity_scores(*(sum(row[i] for row in counts.values()) for i in range(3)))


def entity_scores(found: int, predicted: int, gold: int) -> EntityScores:
    """Scores from counts; 0 where nothing was predicted or there was nothing to find."""
    precision, recall = found / (predicted or 1), found / (gold or 1)
    return EntityScores(precision, recall, 2 * precision * recall / (precision + recall or 1), gold)


def _names(classes: np.ndarray, ends: np.ndarray, labels: Sequence[str]) -> list[list[str]]:
    return [[labels[number] for number in sentence] for sentence in np.split(classes, ends)]


def score_by_seqeval(gold: list[list[str]], predicted: list[list[str]], loss: float | None = None) -> Scores:
    """The same scores, from seqeval itself."""
    from seqeval.metrics import accuracy_score, classification_report  # loads scikit-learn, so only where it is needed
    from seqeval.scheme import IOB2

    def report(**mode: Any) -> dict[str, EntityScores]:
        opens = ("B-",) if mode else ("B-", "I-")
        if not any(tag.startswith(opens) for tags in (*gold, *predicted) for tag in tags):
            return {"micro avg": EntityScores(0.0, 0.0, 0.0, 0)}  # seqeval fails where neither side has an entity
        rows = classification_report(gold, predicted, output_dict=True, zero_division=0, **mode)
        return {
            name: EntityScores(
                float(row["precision"]), float(row["recall"]), float(row["f1-score"]), int(row["support"])
            )
            for name, row in rows.items()
        }

    default, strict = report(), report(mode="strict", scheme=IOB2)
    overall = default.pop("micro avg")
    return Scores(
        loss=loss,
        precision=overall.precision,
        recall=overall.recall,
        f1=overall.f1,
        accuracy=float(accuracy_score(gold, predicted)),
        strict=strict["micro avg"],
        by_type={name: row for name, row in default.items() if not name.endswith(" avg")},
        strict_by_type={name: row for name, row in strict.items() if not name.endswith(" avg")},
    )


def _count_by_seqeval(gold: list[list[str]], predicted: list[list[str]]) -> SentenceCounts:
    """The same counts, from seqeval's own lists of entities."""
    from seqeval.metrics.sequence_labeling import get_entities
    from seqeval.scheme import IOB2, Entities

    def strict_entities(tags: list[str]) -> list[tuple[Any, ...]]:
        return [entity.to_tuple() for entity in Entities([tags], IOB2).entities[0]]

    def counts(entities_of: Callable[[list[str]], Sequence[tuple[Any, ...]]]) -> np.ndarray:
        pairs = [(set(entities_of(tags)), set(entities_of(guess))) for tags, guess in zip(gold, predicted, strict=True)]
        return np.array([(len(wanted & guessed), len(guessed), len(wanted)) for wanted, guessed in pairs])

    return SentenceCounts(counts(get_entities), counts(strict_entities))
