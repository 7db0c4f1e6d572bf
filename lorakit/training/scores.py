"""The scores of a tagger, as records; `metrics` computes them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class EntityScores:
    """Precision, recall and F1, and the number of gold entities they are measured on.

    Args:
        precision: share of the found entities that are right, 0 to 1.
        recall: share of the gold entities that were found, 0 to 1.
        f1: the harmonic mean of the two, 0 to 1.
        support: the number of gold entities.
    """

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """The scores of a tagger on one split; entity-level ones are micro-averaged.

    Args:
        loss: mean cross-entropy per word; None where only tags were compared.
        precision: share of the found entities that are right, in seqeval's default mode, 0 to 1.
        recall: share of the gold entities that were found, in the same mode, 0 to 1.
        f1: the harmonic mean of the two, 0 to 1.
        accuracy: share of words with the right tag, 0 to 1.
        strict: precision, recall, F1 and support in strict IOB2.
        by_type: the scores of each entity type in the default mode.
        strict_by_type: the same in strict IOB2.
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
