"""What a tagger gets wrong: confusion by type and border, forms, seen and unseen, worst sentences, suspected labels."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from lorakit.data.tags import Span

MOST_SHOWN = 20  # rows of each list
CONFIDENT = 0.9  # mean probability from which a disagreement with the labels is suspicious
TENTHS = tuple(f"{i / 10:.1f}–{(i + 1) / 10:.1f}" for i in range(10))  # of a score
OUTCOMES = ("right", "border", "type", "type and border", "missed")
"""Of a gold entity: found; found with other words; with another type; with both; not overlapped by any entity."""


class Tagged(NamedTuple):
    """A sentence with its gold and predicted entities, and the probability of each word's predicted tag."""

    words: Sequence[str]
    gold: list[Span]
    predicted: list[Span]
    probabilities: Sequence[float]

    def form(self, entity: Span) -> str:
        """The words of an entity."""
        return " ".join(self.words[entity.start : entity.end])

    def confidence(self, entity: Span) -> float:
        """The mean probability of the predicted tags of an entity's words."""
        return entity.mean(self.probabilities)


class Tenth(NamedTuple):
    """The predicted entities with a score in a tenth of its range; without any, `score` and `right` are 0.

    Attributes:
        count: of the entities.
        score: their mean.
        right: the share that is right.
    """

    count: int
    score: float
    right: float


@dataclass(frozen=True)
class Errors:
    """The errors on a split.

    Args:
        sentences: how many there are.
        outcomes: gold type -> outcome, one of OUTCOMES -> how many gold entities.
        spurious: type -> predicted entities that overlap no gold one.
        confusion: (gold type, predicted type) -> how many gold entities were found as another type.
        missed_forms: (type, form) -> how often a gold entity was not found with its words and type.
        spurious_forms: (type, form) -> how often an entity was predicted that is not gold.
        seen: type -> found and gold entities whose form is an entity of this type in the training set.
        unseen: the same for other forms; both are empty without a training set.
        worst: sentence numbers, from 1, and errors: those with most.
        suspected: sentence number, words [start, end), the labels' type, the predicted type, and the confidence.
        reliability: of each tenth of the score, from 0 on.
        leaks: pair of splits -> distinct sentences that both have.
    """

    sentences: int
    outcomes: Mapping[str, Mapping[str, int]]
    spurious: Mapping[str, int]
    confusion: Mapping[tuple[str, str], int]
    missed_forms: Sequence[tuple[tuple[str, str], int]]
    spurious_forms: Sequence[tuple[tuple[str, str], int]]
    seen: Mapping[str, tuple[int, int]]
    unseen: Mapping[str, tuple[int, int]]
    worst: Sequence[tuple[int, int]]
    suspected: Sequence[tuple[int, int, int, str, str, float]]
    reliability: Sequence[Tenth]
    leaks: Mapping[tuple[str, str], int]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists; a pair of names becomes "one/other"."""
        record = asdict(self)
        for name in ("confusion", "leaks"):
            record[name] = {"/".join(pair): count for pair, count in record[name].items()}
        return record


def find_errors(
    tagged: Sequence[Tagged],
    train: Iterable[tuple[Sequence[str], Sequence[Span]]] | None = None,
    splits: Mapping[str, Iterable[Sequence[str]]] | None = None,
) -> Errors:
    """Compare gold and predicted entities.

    Example:
        from lorakit.data.tags import Span
        from lorakit.report.errors import Tagged, find_errors
        sentence = Tagged(["IL-2", "gene"], [Span("DNA", 0, 2)], [Span("DNA", 0, 1)], [0.9, 0.6])
        find_errors([sentence]).outcomes["DNA"]["border"]  # 1

    Args:
        tagged: the sentences of a split.
        train: the words and entities of the training sentences, which tell seen forms from unseen ones.
        splits: the words of each split's sentences, among which leaks are looked for.
    """
    outcomes = {kind: dict.fromkeys(OUTCOMES, 0) for kind in sorted({e.type for row in tagged for e in row.gold})}
    spurious, confusion, missed, more = Counter(), Counter(), Counter(), Counter()
    known = {(e.type, " ".join(words[e.start : e.end])) for words, entities in train or () for e in entities}
    by_form = {True: Counter(), False: Counter()}, {True: Counter(), False: Counter()}
    for row in tagged:
        for entity in row.gold:
            outcome, other = _outcome(entity, row.predicted)
            outcomes[entity.type][outcome] += 1
            confusion[entity.type, other] += other not in (None, entity.type)
            found, form = outcome == "right", (entity.type, row.form(entity))
            missed[form] += not found
            for counter, count in zip(by_form, (found, 1), strict=True):
                counter[form in known][entity.type] += count
        for entity in row.predicted:
            spurious[entity.type] += not any(_overlap(entity, gold) for gold in row.gold)
            more[entity.type, row.form(entity)] += entity not in row.gold
    found, all_of = by_form
    seen, unseen = (
        {kind: (found[known_form][kind], count) for kind, count in sorted(all_of[known_form].items()) if train}
        for known_form in (True, False)
    )
    wrong = [(len(set(row.gold) ^ set(row.predicted)), -number) for number, row in enumerate(tagged, start=1)]
    return Errors(
        len(tagged),
        outcomes,
        {kind: count for kind, count in sorted(spurious.items()) if count},
        {pair: count for pair, count in confusion.most_common() if count},
        [(form, count) for form, count in missed.most_common(MOST_SHOWN) if count],
        [(form, count) for form, count in more.most_common(MOST_SHOWN) if count],
        seen,
        unseen,
        [(-number, count) for count, number in sorted(wrong, reverse=True)[:MOST_SHOWN] if count],
        _suspected(tagged),
        tenths_of([(row.confidence(e), e in row.gold) for row in tagged for e in row.predicted]),
        find_leaks(splits or {}),
    )


def _overlap(one: Span, other: Span) -> bool:
    return one.start < other.end and other.start < one.end


def _outcome(entity: Span, predicted: Sequence[Span]) -> tuple[str, str | None]:
    """What became of a gold entity, and the type it was given, which for several is that of the best match."""
    near = [other for other in predicted if _overlap(entity, other)]
    if not near:
        return "missed", None

    def badness(other: Span) -> int:
        return 2 * (other.type != entity.type) + (other[1:] != entity[1:])

    best = min(near, key=badness)
    return {0: "right", 1: "border", 2: "type", 3: "type and border"}[badness(best)], best.type


def _suspected(tagged: Sequence[Tagged]) -> list[tuple[int, int, int, str, str, float]]:
    """Where the model disagrees with the labels and is sure: most confident first."""
    found = []
    for number, row in enumerate(tagged, start=1):
        for entity in set(row.predicted) - set(row.gold):
            near = [gold.type for gold in row.gold if _overlap(entity, gold)]
            found.append((number, entity.start, entity.end, "/".join(near) or "O", entity.type, row.confidence(entity)))
        for gold in row.gold:
            if not any(_overlap(gold, entity) for entity in row.predicted):
                found.append((number, gold.start, gold.end, gold.type, "O", row.confidence(gold)))
    sure = [suspect for suspect in found if suspect[-1] >= CONFIDENT]
    return sorted(sure, key=lambda suspect: (-suspect[-1], *suspect[:3]))[:MOST_SHOWN]


def tenths_of(outcomes: Iterable[tuple[float, bool]]) -> list[Tenth]:
    """Of each tenth of the score, the entities, their mean score and the share that is right.

    Args:
        outcomes: the score of each predicted entity, 0 to 1, and whether it is right.
    """
    parts: list[list[tuple[float, bool]]] = [[] for _ in TENTHS]
    for score, right in outcomes:
        parts[min(9, int(10 * score))].append((score, right))
    return [
        Tenth(len(part), *(sum(column) / len(part) for column in zip(*part, strict=True))) if part else Tenth(0, 0, 0)
        for part in parts
    ]


def mean_distance(tenths: Sequence[Tenth]) -> float:
    """The mean distance of score and share that is right, over all entities (expected calibration error)."""
    total = sum(tenth.count for tenth in tenths)
    return sum(tenth.count * abs(tenth.score - tenth.right) for tenth in tenths) / total


def find_leaks(splits: Mapping[str, Iterable[Sequence[str]]]) -> dict[tuple[str, str], int]:
    """Distinct sentences that two splits share, of pairs that share any; one-word sentences do not count."""
    sets = {name: {tuple(words) for words in rows if len(words) > 1} for name, rows in splits.items()}
    names = list(sets)
    pairs = {(a, b): len(sets[a] & sets[b]) for i, a in enumerate(names) for b in names[i + 1 :]}
    return {pair: count for pair, count in pairs.items() if count}
