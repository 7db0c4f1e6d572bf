"""sentences.json: the entity counts of each sentence of a run's best epoch, which comparing runs needs.

A digest of each split's words and tags tells whether two runs were scored on the same sentences.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorakit._files import write_text
from lorakit.training.config import TrainConfig
from lorakit.training.identity import UNKNOWN_BEFORE
from lorakit.training.metrics import SentenceCounts

NAME = "sentences.json"
SCHEMA = 1
METRIC = "entities by seqeval: default mode and strict IOB2"
MODES = ("default", "strict")
COLUMNS = ("found", "predicted", "gold")
DEFAULTS = {"loss": "cross_entropy", "class_weights": None, "loraplus_lr_ratio": None}


@dataclass(frozen=True)
class SplitSentences:
    """A split: which one it is, and what a run counted on it.

    Attributes:
        digest: of the words and gold tags.
        counts: by sentence.
    """

    digest: str
    counts: SentenceCounts


@dataclass(frozen=True)
class RunSentences:
    """The content of a run's sentences.json.

    Attributes:
        seed: of the run.
        best_epoch: whose weights were scored.
        settings: what else the run depended on, as JSON values; runs that differ only in the seed have the same.
        splits: "validation" and "test", where the corpus has them.
    """

    seed: int
    best_epoch: int
    settings: Mapping[str, Any]
    splits: Mapping[str, SplitSentences]


def settings_of(config: TrainConfig, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a run depends on besides its seed, the base and LoRA's options, which the loop does not know.

    Args:
        config: of the run.
        identity: from `same_run.run_identity`.
    """
    # The hash of the frozen weights depends on the seed where LoRA starts from a random factorisation of them. The rest
    # is left out, so that runs compare with those of versions that did not have it.
    kept = {name: value for name, value in identity.items() if name not in ("seed", *UNKNOWN_BEFORE)}
    # left out where they do nothing, so that runs compare with those of versions that did not have them
    kept = {name: value for name, value in kept.items() if name not in DEFAULTS or value != DEFAULTS[name]}
    shapes = json.dumps(kept.pop("trained parameters"), sort_keys=True)
    return {
        **kept,
        "trained parameters (hash)": hashlib.sha256(shapes.encode()).hexdigest()[:16],
        "patience": config.patience,
        "strategy": config.strategy,
    }


def write_sentences(folder: Path, run: RunSentences) -> None:
    """Write a run's sentences.json atomically.

    Raises:
        OSError: it cannot be written.
    """
    splits = {
        name: {
            "digest": split.digest,
            **{mode: dict(zip(COLUMNS, getattr(split.counts, mode).T.tolist(), strict=True)) for mode in MODES},
        }
        for name, split in run.splits.items()
    }
    record = {
        "schema": SCHEMA,
        "metric": METRIC,
        "seed": run.seed,
        "best_epoch": run.best_epoch,
        "settings": dict(run.settings),
        "splits": splits,
    }
    write_text(folder / NAME, json.dumps(record, separators=(",", ":")) + "\n")


def read_sentences(folder: Path) -> RunSentences:
    """Read a run's sentences.json.

    Raises:
        FileNotFoundError: the run has none.
        ValueError: it is damaged, or of another schema or metric.
    """
    path = folder / NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    for key, ours in (("schema", SCHEMA), ("metric", METRIC)):
        theirs = record.get(key) if isinstance(record, dict) else None
        if theirs != ours:
            raise ValueError(f"{path} has {key} {theirs!r}, and this version of lorakit reads {ours!r}")
    try:
        splits = {
            name: SplitSentences(split["digest"], SentenceCounts(*(_table(split[mode]) for mode in MODES)))
            for name, split in record["splits"].items()
        }
        return RunSentences(record["seed"], record["best_epoch"], record["settings"], splits)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); train the run again") from error


def _table(columns: Mapping[str, Sequence[int]]) -> np.ndarray:
    return np.stack([np.asarray(columns[name], np.int64) for name in COLUMNS], axis=1)
