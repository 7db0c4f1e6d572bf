"""Entity scores of a tagger, counted by seqeval in its two modes.

Papers quote seqeval's *default* mode (conlleval's rules: an I- tag without a B- before it still opens an entity).
*Strict* IOB2 counts only entities that are well formed. Neither is always the lower one: strict drops a malformed
entity where default counts it as a false positive. So both are reported, each under its name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from seqeval.metrics import accuracy_score, classification_report
from seqeval.scheme import IOB2


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

    `precision`, `recall`, `f1` and `by_type` are entity-level in seqeval's default mode, micro-averaged; `strict` is
    the same in strict IOB2; `accuracy` is the share of words with the right tag; `loss` is the mean cross-entropy a
    word (None where only tags were compared).
    """

    loss: float | None
    precision: float
    recall: float
    f1: float
    accuracy: float
    strict: EntityScores
    by_type: dict[str, EntityScores]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and Python numbers, in `comparison.json`'s layout."""
        return asdict(self)

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> "Scores":
        """The scores that `to_json` wrote."""
        by_type = {name: EntityScores(**row) for name, row in record["by_type"].items()}
        return Scores(**{**record, "strict": EntityScores(**record["strict"]), "by_type": by_type})


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
    gold, predicted = [list(tags) for tags in gold], [list(tags) for tags in predicted]
    default, strict = _report(gold, predicted), _report(gold, predicted, mode="strict", scheme=IOB2)
    overall = default.pop("micro avg")
    return Scores(
        loss=loss,
        precision=overall.precision,
        recall=overall.recall,
        f1=overall.f1,
        accuracy=float(accuracy_score(gold, predicted)),
        strict=strict["micro avg"],
        by_type={name: row for name, row in default.items() if not name.endswith(" avg")},
    )


def _report(gold: list[list[str]], predicted: list[list[str]], **mode: Any) -> dict[str, EntityScores]:
    opens = ("B-",) if mode else ("B-", "I-")
    if not any(tag.startswith(opens) for tags in (*gold, *predicted) for tag in tags):
        return {"micro avg": EntityScores(0.0, 0.0, 0.0, 0)}  # seqeval fails where neither side has an entity
    rows = classification_report(gold, predicted, output_dict=True, zero_division=0, **mode)
    return {
        name: EntityScores(float(row["precision"]), float(row["recall"]), float(row["f1-score"]), int(row["support"]))
        for name, row in rows.items()
    }
