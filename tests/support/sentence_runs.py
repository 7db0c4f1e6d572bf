"""Runs on disk that hold what a comparison needs, made without training."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.report.comparison import comparison_record
from lorakit.training.metrics import EntityScores, SentenceCounts
from lorakit.training.sentences import RunSentences, SplitSentences, write_sentences
from tests.support.reports import SCORES, mode_values


def draw_counts(share: float, seed: int, sentences: int = 400) -> np.ndarray:
    """Found, predicted and gold entities by sentence: so large a share is found, and as many are predicted wrongly."""
    gold = np.random.default_rng(99).poisson(2.0, sentences)
    draw = np.random.default_rng(seed)
    found = draw.binomial(gold, share)
    return np.stack([found, found + draw.binomial(gold - found, 0.8), gold], axis=1)


def make_run(
    folder: Path,
    shares: dict[str, float],
    seed: int = 0,
    digest: str = "d1",
    sentences: int = 400,
    settings: dict[str, Any] | None = None,
) -> Path:
    """An output folder with a run of each mode in `shares`, scored on a test set."""
    modes = {}
    for number, (mode, share) in enumerate(shares.items()):
        counts = SentenceCounts(*(draw_counts(share, 10 * seed + number, sentences) for _ in range(2)))
        place = folder / mode
        place.mkdir(parents=True)
        run = RunSentences(seed, 1, settings or {"epochs": 2}, {"test": SplitSentences(digest, counts)})
        write_sentences(place, run)
        scores = {**SCORES, **_fields(counts.total("default")), "strict": vars(counts.total("strict"))}
        (place / "metrics.jsonl").write_text(json.dumps({"event": "evaluation", "split": "test", **scores}) + "\n")
        values = mode_values(adapter={"r": 8} if mode == "lora" else None)
        speed = 2000.0 + 100 * number + seed
        modes[mode] = {
            **values, "seed": seed, "test": scores, "validation": None, "history": [], "train_tokens_per_s": speed
        }  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(comparison_record("c", {}, "base", "corpus", modes)))
    return folder


def _fields(scores: EntityScores) -> dict[str, float]:
    return {name: getattr(scores, name) for name in ("precision", "recall", "f1")}
