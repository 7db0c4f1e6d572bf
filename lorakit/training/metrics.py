"""Entity scores of a tagger, as seqeval counts them in its two modes.

Papers quote seqeval's *default* mode (conlleval's rules: an I- tag without a B- before it still opens an entity).
*Strict* IOB2 counts only entities that are well formed. Neither is always the lower one: strict drops a malformed
entity where default counts it as a false positive. So both are reported, each under its name.

Counting is done here, on arrays of classes, for seqeval takes longer than a GPU needs for an epoch. Tags other than O,
B-… and I-… still go to seqeval itself, which knows more schemes and warns of what is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import numpy as np


@dataclass(frozen=True)
class EntityScores:
    """Precision, recall and F1 in 0…1 and the number of gold entities they stand on."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """What a tagger does on one split.

    `precision`, `recall`, `f1` and `by_type` are entity-level in seqeval's default mode, micro-averaged; `strict` and
    `strict_by_type` are the same in strict IOB2; `accuracy` is the share of words with the right tag; `loss` is the
    mean cross-entropy a word (None where only tags were compared).
    """

    loss: float | None
    precision: float
    recall: float
    f1: float
    accuracy: float
    strict: EntityScores
    by_type: dict[str, EntityScores]
    strict_by_type: dict[str, EntityScores] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and Python numbers, in `comparison.json`'s layout."""
        return asdict(self)

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> "Scores":
        """The scores that `to_json` wrote."""
        types = ("by_type", "strict_by_type")
        rows = {key: {name: EntityScores(**row) for name, row in record.get(key, {}).items()} for key in types}
        return Scores(**{**record, "strict": EntityScores(**record["strict"]), **rows})


def score(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], loss: float | None = None) -> Scores:
    """Score predicted tags against gold ones, sentence by sentence.

    Raises:
        ValueError: there is no sentence, or a sentence's two tag lists differ in length.
    """
    if len(gold) != len(predicted) or not any(gold):
        raise ValueError(
            f"cannot score {len(predicted)} predicted against {len(gold)} gold sentences; "
            "both must be the same number, with at least one word"
        )
    for number, (tags, guess) in enumerate(zip(gold, predicted, strict=True)):
        if len(tags) != len(guess):
            raise ValueError(f"sentence {number} has {len(tags)} gold tags and {len(guess)} predicted ones")
    labels = list(dict.fromkeys(chain(*gold, *predicted)))
    classes = {label: number for number, label in enumerate(labels)}
    flat = (np.array([classes[tag] for tags in side for tag in tags]) for side in (gold, predicted))
    return score_classes(*flat, np.array([len(tags) for tags in gold]), labels, loss)


def score_classes(
    gold: np.ndarray,
    predicted: np.ndarray,
    sentence_lengths: np.ndarray,
    labels: Sequence[str],
    loss: float | None = None,
) -> Scores:
    """The same for classes, of all sentences in a row.

    Args:
        gold, predicted: the class of every word, whole numbers of any type.
        sentence_lengths: in words; a sentence may have none.
        labels: the tag of each class.

    Raises:
        ValueError: there is no word, or the three do not agree on how many there are.
    """
    if not len(gold) == len(predicted) == sentence_lengths.sum() > 0:
        raise ValueError(
            f"cannot score {len(predicted)} predicted against {len(gold)} gold words in sentences of "
            f"{sentence_lengths.sum()} words; the three must be the same number, at least one"
        )
    used = np.flatnonzero(np.bincount(gold, minlength=len(labels)) + np.bincount(predicted, minlength=len(labels)))
    if not all(_is_iob2(labels[number]) for number in used):
        ends = np.cumsum(sentence_lengths)[:-1]
        return _score_by_seqeval(*(_names(side, ends, labels) for side in (gold, predicted)), loss)
    first = np.zeros(len(gold), bool)
    first[(np.cumsum(sentence_lengths) - sentence_lengths)[sentence_lengths > 0]] = True
    # conlleval takes the type behind the first hyphen, seqeval's IOB2 strips hyphens; both name the empty one "_"
    default = _count(gold, predicted, first, labels, [tag[2:] or "_" for tag in labels], strict=False)
    strict = _count(gold, predicted, first, labels, [tag[1:].strip("-") or "_" for tag in labels], strict=True)
    overall = _micro(default)
    same = np.array([labels.index(tag) for tag in labels])  # a tag may be the name of several classes
    return Scores(
        loss=loss,
        precision=overall.precision,
        recall=overall.recall,
        f1=overall.f1,
        accuracy=int((same[gold] == same[predicted]).sum()) / len(gold),
        strict=_micro(strict),
        by_type={name: _entity_scores(*default[name]) for name in sorted(default)},
        strict_by_type={name: _entity_scores(*strict[name]) for name in sorted(strict)},
    )


def _is_iob2(tag: str) -> bool:
    return tag in ("O", "B", "I") or tag.startswith(("B-", "I-"))


def _count(
    gold: np.ndarray, predicted: np.ndarray, first: np.ndarray, labels: Sequence[str], types: list[str], strict: bool
) -> dict[str, tuple[int, int, int]]:
    """Entities found, predicted and in gold, for each type of which there is one.

    Args:
        first: whether a sentence starts with the word.
        types: of each class; that of O does not matter.
        strict: count only entities that start with B-.
    """
    names = list(dict.fromkeys(types))
    kind_of = np.array([names.index(name) for name in types])
    letter_of = np.array(["OBI".index(tag[0]) if _is_iob2(tag) else 0 for tag in labels])
    sides = []
    for side in (gold, predicted):
        letter, kind = letter_of[side], kind_of[side]
        inside = letter > 0
        starts = inside & (first | (letter == 1))
        starts[1:] |= inside[1:] & (~inside[:-1] | (kind[1:] != kind[:-1]))
        # an entity is a start and the words inside up to the next start
        words = np.bincount(np.cumsum(starts)[inside])[1:]
        lengths = np.zeros(len(side), np.int64)  # of the entity that starts here
        lengths[starts] = np.where(strict & (letter[starts] != 1), 0, words)
        sides.append((kind, lengths))
    (kind, length), (guessed_kind, guessed_length) = sides
    wanted, guessed = length > 0, guessed_length > 0
    found = wanted & (length == guessed_length) & (kind == guessed_kind)
    counts = (np.bincount(kinds, minlength=len(names)) for kinds in (kind[found], guessed_kind[guessed], kind[wanted]))
    rows = zip(names, *(column.tolist() for column in counts), strict=True)
    return {name: row for name, *row in rows if any(row)}


def _micro(counts: Mapping[str, tuple[int, int, int]]) -> EntityScores:
    return _entity_scores(*(sum(row[i] for row in counts.values()) for i in range(3)))


def _entity_scores(found: int, predicted: int, gold: int) -> EntityScores:
    """0 stands where nothing was predicted or there was nothing to find."""
    precision, recall = found / (predicted or 1), found / (gold or 1)
    return EntityScores(precision, recall, 2 * precision * recall / (precision + recall or 1), gold)


def _names(classes: np.ndarray, ends: np.ndarray, labels: Sequence[str]) -> list[list[str]]:
    return [[labels[number] for number in sentence] for sentence in np.split(classes, ends)]


def _score_by_seqeval(gold: list[list[str]], predicted: list[list[str]], loss: float | None = None) -> Scores:
    from seqeval.metrics import accuracy_score, classification_report  # loads scikit-learn: only where it is needed
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
