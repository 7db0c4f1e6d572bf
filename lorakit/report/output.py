"""What a training run writes about itself: each mode's record, then comparison.json, .md and .png."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorakit._files import atomic_write, write_text
from lorakit.adapters.counting import ParameterCount
from lorakit.power.reading import Reading
from lorakit.report.comparison import as_json
from lorakit.report.picture import draw_comparison
from lorakit.report.run_comparison import verdict_text
from lorakit.report.seeds import seeds_table
from lorakit.report.tables import as_markdown
from lorakit.training.config import TrainConfig, TrainResult


def mode_record(
    result: TrainResult,
    parameters: ParameterCount,
    reading: Reading,
    config: TrainConfig,
    adapter: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make one mode's part of comparison.json.

    Args:
        result: what `train` returned.
        parameters: what `count_parameters` returned for the trained model.
        reading: the energy of the training, evaluation included.
        config: what `train` was called with.
        adapter: LoRA's options and "peft_total_parameters"; None in full mode.
    """
    return {
        "trainable_parameters": parameters.trainable,
        "total_parameters": parameters.total,
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "seed": config.seed,
        "learning_rate": config.learning_rate,
        "module_learning_rates": config.module_learning_rates,
        "batch_size": config.batch_size,
        "adapter": dict(adapter) if adapter else None,
        "steps": result.steps,
        "train_tokens": result.train_tokens,
        "computed_tokens": result.computed_tokens,
        "train_seconds": result.train_seconds,
        "compile_seconds": result.compile_seconds,
        "train_tokens_per_s": result.train_tokens_per_s,
        "duration_s": result.duration_s,
        "validation": result.validation.to_json() if result.validation else None,
        "test": result.test.to_json() if result.test else None,
        "history": [{"epoch": i, **asdict(scores)} for i, scores in enumerate(result.history, start=1)],
        "energy": reading.to_json(),
    }


def write_comparison(record: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Write comparison.json, .md and .png into a folder, each atomically.

    Args:
        record: what `comparison_record` returned.
        folder: made if it does not exist.

    Raises:
        ValueError: a number is not finite; nothing is written.
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = as_json(record)
    write_text(folder / "comparison.json", text)
    write_text(folder / "comparison.md", as_markdown(record, _sections(record)))
    atomic_write(folder / "comparison.png", lambda path: draw_comparison(record, path))


def _sections(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What comparison.md has besides for several seeds."""
    if "seeds" not in record:
        return []
    return [("Seeds", seeds_table(record)), ("Comparison", verdict_text(record))]
